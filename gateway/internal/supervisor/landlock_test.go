package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// TestSandbox: a process reaches the system's own files, its own, and what its block names; no secret of its user's, no
// file of the gateway's, and nobody else's process.
func TestSandbox(t *testing.T) {
	if landlockVersion() == 0 {
		t.Log("this kernel has no Landlock: not run")
		return
	}
	r := newRig(t)
	open, private := t.TempDir(), t.TempDir()
	readable, secret := filepath.Join(open, "readable"), filepath.Join(private, "secret")
	if err := errors.Join(os.WriteFile(readable, []byte("r"), 0o600), os.WriteFile(secret, []byte("s"), 0o600)); err != nil {
		t.Fatal(err)
	}
	other := exec.CommandContext(t.Context(), "sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(other.Process.Kill(), other.Wait()) })
	boxed := r.probe("noop")
	boxed.Read, boxed.Write = []string{readable}, []string{filepath.Join(open, "kept")}
	free := r.probe("noop")
	free.Name, free.Sandbox = "free", SandboxNone
	limited := boxed
	limited.Name, limited.Limits = "limited", Limits{Files: 256} // it stands still at its start
	for _, x := range []struct {
		what        string
		boxed, free bool
	}{
		{"read:/etc/passwd", true, true},
		{"list:/usr/lib", true, true},
		{"touch", true, true},
		{"write:/dev/null", true, true},
		{"read:" + readable, true, true},
		{"write:" + readable, false, true},
		{"write:" + filepath.Join(open, "kept", "lease"), true, true},
		{"read:" + secret, false, true},
		{"list:" + private, false, true},
		{"list:/", false, true},
		{"list:/tmp", false, true},
		{"list:" + r.dir, false, true},
		{"read:/etc/fstab", false, true},
		{fmt.Sprintf("read:/proc/%d/environ", os.Getpid()), false, os.Geteuid() != 0}, // root's has more capabilities
		{fmt.Sprintf("kill:%d", other.Process.Pid), landlockVersion() < 7, true},
		{fmt.Sprintf("kill:%d", os.Getpid()), landlockVersion() < 7, true},
	} {
		if x.what == "read:/etc/fstab" {
			if _, err := os.Stat("/etc/fstab"); err != nil {
				continue
			}
		}
		for spec, want := range map[*Spec]bool{&boxed: x.boxed, &free: x.free, &limited: x.boxed} {
			h := r.handle(*spec)
			if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", x.what)); want != (err == nil) {
				t.Errorf("%s: %s: %v, want it allowed: %t", spec.Name, x.what, err, want)
			}
		}
	}
	for spec, want := range map[*Spec]string{&boxed: "landlock", &free: "no sandbox"} {
		if got := spec.Isolation(); !strings.Contains(got, want) {
			t.Errorf("its isolation is %q, want %q in it", got, want)
		}
	}
	if _, err := os.ReadFile(secret); err != nil {
		t.Errorf("the gateway itself is confined: %v", err)
	}
}

// handle returns the extension of a spec, which is started where it is not there.
func (r *rig) handle(spec Spec) *Handle {
	r.t.Helper()
	for _, h := range r.Handles() {
		if h.Name() == spec.Name {
			return h
		}
	}
	return r.up(spec)
}

// TestSandboxThatCannotBe: what is asked for and cannot be given is no start.
func TestSandboxThatCannotBe(t *testing.T) {
	r := newRig(t)
	for want, change := range map[string]func(*Spec){
		`"jail" is neither "landlock" nor "none"`: func(s *Spec) { s.Sandbox = "jail" },
		"is not absolute":                         func(s *Spec) { s.Read = []string{"etc"} },
		"paths are those of a sandbox":            func(s *Spec) { s.Sandbox, s.Read = SandboxNone, []string{"/etc"} },
		"/nowhere/at/all":                         func(s *Spec) { s.Write = []string{"/nowhere/at/all"} },
	} {
		spec := r.probe("noop")
		change(&spec)
		if _, err := r.Launch(r.ctx(), spec); err == nil || !strings.Contains(err.Error(), want) || fault.Is(err, fault.Internal) {
			if landlockVersion() > 0 || want != "/nowhere/at/all" {
				t.Errorf("got %v, want %q in it", err, want)
			}
		}
	}
	var left []string
	entries, err := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.Contains(to, "landlock") {
			left = append(left, to)
		}
	}
	if err != nil || len(left) > 0 {
		t.Errorf("rules are left open: %v, %v", left, err)
	}
}

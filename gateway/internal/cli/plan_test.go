package cli

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// state is everything that a plan must leave as it is: every file of the site, with its content, and as root the
// network of the host that the gateway runs in.
func (s *site) state(gateway int) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			out[path] = ""
			return err
		}
		if strings.HasSuffix(path, "-shm") {
			return nil // SQLite's index of the log, which readers write too
		}
		raw, err := os.ReadFile(path)
		out[path] = fmt.Sprintf("%x", sha256.Sum256(raw))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return out
	}
	for _, what := range []string{"link", "addr", "route", "netns"} {
		raw, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", gateway), "ip", "-j", what).CombinedOutput()
		if err != nil {
			s.t.Fatalf("ip -j %s: %v %s", what, err, raw)
		}
		out["ip "+what] = string(raw)
	}
	return out
}

// A plan shows every field with its owner, and leaves ipam's pool, the journal and the host as they are.
func TestAPlanTouchesNothing(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		attr.Cloneflags = unix.CLONE_NEWNET // nobody else changes it
	}
	gateway := s.startProcess(attr).Process.Pid
	flags := []string{"sandbox", "plan", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--env", "A=b"}
	command := []string{"--", "sleep", "600"}
	before := s.state(gateway)
	for range 3 {
		s.ok(append(flags, command...)...)
	}
	out := s.ok(append(append(flags, "-o", "json"), command...)...)
	if diff := cmp.Diff(before, s.state(gateway)); diff != "" {
		t.Errorf("a plan has changed something (-before +after):\n%s", diff)
	}
	if strings.Count(out, `"owner":`) != strings.Count(out, `"path":`) || strings.Contains(out, `"owner": ""`) {
		t.Errorf("a field without an owner:\n%s", out)
	}
	for _, empty := range [][]string{{"sandbox", "list", "--all"}, {"workspace", "list"}, {"operation", "list"}, {"resource", "list"}, {"audit"}} {
		if out := s.ok(empty...); strings.Count(out, "\n") != 1 {
			t.Errorf("%v after plans:\n%s", empty, out)
		}
	}
}

// In observe mode the plan says what would be set, what cannot be seen, and what is not called at all.
func TestObserveModeShowsTheDifference(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("observe"))
	s.start()
	out := s.ok("sandbox", "plan", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--", "sleep", "600")
	s.golden("plan-observe", out)
	for _, want := range []string{"observed, not applied: tenant-namespace", "labels.tier", "would be tenant-namespace", "observed, not applied: ipam", "Process.environment: set by a later phase, not observable"} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan does not say %q:\n%s", want, out)
		}
	}
	s.ok("sandbox", "create", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--wait", "--", "sleep", "600")
	if out := s.ok("sandbox", "plan", "--of", "one"); strings.Contains(out, "tier") {
		t.Errorf("what is only observed was applied:\n%s", out)
	}
	s.ok("sandbox", "delete", "one", "--wait")
}

package native

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

func TestASandboxSeesItselfAlone(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	s := answer[sight](k, k.workspace(""), []string{"look"})
	for ns, link := range s.Namespaces {
		host, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if own := link != host; !own && (ns != "user" || k.d.host.userNamespace) {
			t.Errorf("its %s namespace is the host's", ns)
		}
	}
	if s.UID != 0 || s.Hostname != "box" {
		t.Errorf("it is user %d on host %q, want root on box", s.UID, s.Hostname)
	}
	if len(s.PIDs) != 2 || s.PIDs[0] != "1" {
		t.Errorf("it sees the processes %v, want the first and itself", s.PIDs)
	}
	if !slices.Equal(s.Links, []string{"lo"}) {
		t.Errorf("it has the links %v, want lo", s.Links)
	}
	if !slices.Equal(s.Files, []string{"0", "1", "2"}) {
		t.Errorf("it was given the descriptors %v", s.Files)
	}
}

func TestASandboxHasNoPrivileges(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	passOn(t)
	s := answer[sight](k, k.workspace(""), []string{"look"})
	var allowed uint64
	for _, c := range kept {
		allowed |= 1 << c
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"} {
		caps, err := strconv.ParseUint(s.Status[set], 16, 64)
		if err != nil || caps&^allowed != 0 {
			t.Errorf("%s is %s, %v; want nothing but %x", set, s.Status[set], err, allowed)
		}
	}
	if s.Status["NoNewPrivs"] != "1" {
		t.Error("it may get new privileges")
	}
	// Signals 32 and 33 belong to the C library of whoever began it all; nobody sends them to another program.
	const internal = 1<<31 | 1<<32
	if ignored, err := strconv.ParseUint(s.Status["SigIgn"], 16, 64); err != nil || ignored&^internal != 0 {
		t.Errorf("its command ignores the signals %s from the start", s.Status["SigIgn"])
	}
	if len(s.Did) > 0 {
		t.Errorf("it has %s", strings.Join(s.Did, ", "))
	}
	if diff := cmp.Diff([]string{"/dev/shm/x", "/tmp/x", "/work/x"}, s.Wrote); diff != "" {
		t.Errorf("what it could write (-want +got):\n%s", diff)
	}
}

// passOn makes this a gateway that was given capabilities to pass on, as a service manager may do: what is executed gets
// them whatever bounds it.
func passOn(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return // an ordinary user has none
	}
	runtime.LockOSThread() // for good: the thread ends with the test, and the shim is started by it
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	for i := range data {
		data[i].Inheritable = data[i].Permitted
	}
	if err = errors.Join(err, unix.Capset(&header, &data[0])); err != nil {
		t.Fatal(err)
	}
}

// What the gateway and other sandboxes have is hidden wherever it shows: under its own name, through a symbolic link,
// and in a Mount of a directory above it.
func TestASandboxSeesNoFilesOfTheGatewayOrOfOthers(t *testing.T) {
	t.Parallel()
	var secret string
	k := newKit(t, func(c *Config) {
		dir := filepath.Dir(c.Dir)
		hidden := filepath.Join(dir, "hidden")
		secret = filepath.Join(hidden, "secret")
		for _, err := range []error{os.Mkdir(hidden, 0o755), os.WriteFile(secret, []byte("secret"), 0o644), os.Symlink(hidden, filepath.Join(dir, "link")), os.Chmod(dir, 0o755)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		c.Hide = []string{filepath.Join(dir, "link")}
	})
	w := k.workspace("")
	other := k.plan(w, sh("echo secret >/work/file; exec sleep 600")).create()
	other.until(driver.Ready)
	theirs := filepath.Join(k.d.dir(other.Identity.ID), workDir, "file")
	base := filepath.Base(k.dir)
	above := plan.Object{Kind: kindMount, Name: "above", Fields: map[string]any{"type": "bind", "source": "/var/tmp", "target": "/see"}}
	paths := []string{k.d.cfg.Dir, k.d.sandboxes(), theirs, secret, filepath.Join(k.dir, "link", "secret"),
		"/see/" + base + "/data/instance", "/see/" + base + "/hidden/secret"}
	visible := filepath.Join(k.dir, "visible")
	if err := os.WriteFile(visible, []byte("seen"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := answer[sight](k, w, append([]string{"look", visible, "/see/" + base + "/visible"}, paths...), above)
	want := map[string]string{visible: "seen", "/see/" + base + "/visible": "seen"}
	if diff := cmp.Diff(want, s.Read); diff != "" {
		t.Errorf("what it could read (-want +got):\n%s", diff)
	}
	within := plan.Object{Kind: kindMount, Name: "within", Fields: map[string]any{"type": "bind", "source": filepath.Join(k.dir, "link"), "target": "/see"}}
	b := k.plan(w, sh("cat /see/secret"), within)
	if err := k.d.Create(t.Context(), b.CreateRequest); err == nil || !strings.Contains(err.Error(), "no sandbox may see it") {
		t.Errorf("Create with a Mount of what is hidden: %v", err)
	}
}

func TestARootOfItsOwn(t *testing.T) {
	t.Parallel()
	var root string
	k := newKit(t, func(c *Config) {
		root = filepath.Join(filepath.Dir(c.Dir), "root")
		c.Roots = map[string]string{"small": root}
		err := errors.Join(os.MkdirAll(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "etc", "issue"), []byte("small\n"), 0o644))
		for _, dir := range []string{"bin", "lib", "lib64"} {
			err = errors.Join(err, os.Symlink("usr/"+dir, filepath.Join(root, dir)))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	usr := plan.Object{Kind: kindMount, Name: "usr", Fields: map[string]any{"type": "bind", "source": "/usr", "target": "/usr", "read_only": true}}
	b := k.plan(k.workspace(""), sh("cat /etc/*; ls /; for f in /x /etc/x /usr/x; do (echo >$f) 2>/dev/null && echo $f; done; echo that is all"), usr, withMain(map[string]any{"image": "small"})).create()
	b.until(driver.Exited)
	got := b.logs(false)
	for _, want := range []string{"small\nbin\ndev\netc\nlib\nlib64\nproc\nrun\ntmp\nusr\nwork\nthat is all\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("it sees\n%s\nwant\n%s", got, want)
		}
	}
	if b := k.plan(k.workspace(""), sh("true"), withMain(map[string]any{"image": "unknown"})); !fault.Is(k.d.Resolve(t.Context(), b.resolution()), fault.FailedPrecondition) {
		t.Error("Resolve takes an image that is not configured")
	}
}

func TestSandboxesOfAWorkspaceReachEachOtherAndNoOther(t *testing.T) {
	t.Parallel()
	asRoot(t)
	k := newKit(t)
	const subnet, address = "10.203.18.0/24", "10.203.18.2:7000"
	home, away := k.workspace(subnet), k.workspace(subnet)
	serving, program := k.inside("serve", address)
	server := k.plan(home, serving, program, at("10.203.18.2")).create()
	server.says("serving")

	dialing := func(patience string) []string {
		command, _ := k.inside("dial", address, patience)
		return command
	}
	for _, c := range []struct {
		who   string
		from  *tenant
		where []plan.Object
		wait  string
		want  int
	}{
		{"a sandbox of its workspace", home, []plan.Object{program, at("10.203.18.3")}, "30s", 0},
		{"a sandbox of another workspace", away, []plan.Object{program, at("10.203.18.3")}, "1s", 1},
		{"a sandbox without an address", home, []plan.Object{program}, "1s", 1},
	} {
		b := k.plan(c.from, dialing(c.wait), c.where...).create()
		if st := b.until(driver.Exited); *st.ExitCode != c.want {
			t.Errorf("%s dials and ends with %d, want %d: %s", c.who, *st.ExitCode, c.want, b.logs(false))
		}
	}
	if c, err := net.DialTimeout("tcp", address, 300*time.Millisecond); err == nil { // perhaps another one of the world's
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if raw, _ := io.ReadAll(c); strings.Contains(string(raw), "hello") {
			t.Error("the host reaches the sandbox")
		}
		_ = c.Close()
	}
}

func TestLimitsAreKept(t *testing.T) {
	t.Parallel()
	asRoot(t)
	k := newKit(t)
	w := k.workspace("")
	limit := func(name string, n int64) plan.Object {
		return plan.Object{Kind: kindProcess, Name: mainProcess, Fields: map[string]any{"limits": map[string]any{name: n}}}
	}
	allocating, program := k.inside("allocate")
	b := k.plan(w, allocating, program, limit("memory", 128<<20)).create()
	if st := b.until(driver.Exited); *st.ExitCode != 137 {
		t.Errorf("with 128 MiB, taking 1 GiB ends with %d: %s", *st.ExitCode, b.logs(false))
	}
	b = k.plan(w, sh("ulimit -n"), limit("files", 77)).create()
	b.until(driver.Exited)
	if got := b.logs(false); got != "77\n" {
		t.Errorf("with 77 files it may have %q", got)
	}
	b = k.plan(w, sh("exec sleep 600"), limit("milli_cpu", 500)).create()
	b.until(driver.Ready)
	raw, err := os.ReadFile(filepath.Join(k.d.host.roots["cpu"], b.Identity.ID+"."+b.Operation, "cpu.cfs_quota_us"))
	if err != nil { // the unified hierarchy
		raw, err = os.ReadFile(filepath.Join(k.d.host.roots["cpu"], b.Identity.ID+"."+b.Operation, "cpu.max"))
	}
	if got := strings.Fields(string(raw)); err != nil || got[0] != "50000" {
		t.Errorf("with half a processor its quota is %v, %v", got, err)
	}
}

// A sandbox that makes processes without end has its share and no more, also where nobody set a limit.
func TestAForkBombHitsItsOwnWall(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w := k.workspace("")
	var limits []plan.Object
	if k.d.host.cgroups {
		limits = append(limits, withMain(map[string]any{"limits": map[string]any{"pids": int64(40)}}))
	}
	b := k.plan(w, sh(`i=0; while [ $i -lt 5000 ]; do sleep 600 & i=$((i+1)); done; echo "all $i"`), limits...).create()
	if st := b.until(driver.Exited); *st.ExitCode == 0 {
		t.Errorf("it could make all of them: %s", b.logs(false))
	}
	b = k.plan(w, sh(fmt.Sprintf(`i=0; while [ $i -lt %d ]; do sleep 600 & i=$((i+1)); done; echo "all $i"`, 30)), limits...).create()
	if st := b.until(driver.Exited); *st.ExitCode != 0 {
		t.Errorf("it could not have its share: %s", b.logs(false))
	}
}

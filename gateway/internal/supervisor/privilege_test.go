package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// privileges returns what a process may do, by the names of proc_pid_status(5).
func privileges(t *testing.T, pid int) map[string]uint64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" {
			out[name], _ = strconv.ParseUint(value, 16, 64)
		}
	}
	return out
}

func TestAProcessHasTheCapabilitiesThatItKeepsAndGainsNone(t *testing.T) {
	const admin = 1 << unix.CAP_NET_ADMIN
	r := newRig(t)
	before := privileges(t, os.Getpid())
	for name, c := range map[string]struct {
		keep []string
		user string
		want uint64
	}{
		"by default none":             {want: 0},
		"the one that is kept":        {keep: []string{"CAP_NET_ADMIN"}, want: admin},
		"by its short name":           {keep: []string{"net_admin"}, want: admin},
		"as another user, by default": {user: "65534", want: 0},
		"as another user":             {keep: []string{"CAP_NET_ADMIN"}, user: "65534", want: admin},
	} {
		if os.Geteuid() != 0 && (len(c.keep) > 0 || c.user != "") {
			continue // an ordinary user has nothing to keep
		}
		spec := r.probe("noop")
		spec.Name, spec.Capabilities, spec.User, spec.Group = "probe", c.keep, c.user, c.user
		got := privileges(t, r.up(spec).Status().PID)
		if got["NoNewPrivs"] != 1 {
			t.Errorf("%s: it may gain privileges", name)
		}
		if os.Geteuid() == 0 && (got["CapEff"] != c.want || got["CapBnd"] != c.want) {
			t.Errorf("%s: it has %x, and could have %x; want %x", name, got["CapEff"], got["CapBnd"], c.want)
		}
	}
	if after := privileges(t, os.Getpid()); after["CapBnd"] != before["CapBnd"] || after["NoNewPrivs"] != before["NoNewPrivs"] {
		t.Errorf("the gateway itself had %v and has %v", before, after)
	}
	spec := r.probe("noop")
	spec.Capabilities = []string{"CAP_EVERYTHING"}
	if _, err := r.Launch(r.ctx(), spec); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "CAP_EVERYTHING") {
		t.Errorf("a capability that is none: %v", err)
	}
}

// TestTheLimitsOfADriverHoldForWhatItStarts, and what that is outlives the process, the gateway, and the next start.
func TestTheLimitsOfADriverHoldForWhatItStarts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups are made by root")
	}
	r := newRig(t)
	spec := r.probe("grandchild:away")
	spec.Privileged, spec.User, spec.Limits = true, "65534", Limits{PIDs: 77}
	h := r.up(spec)
	_, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3"))
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("call: %v", err)
	}
	exit := r.await("exit", func(e Event) bool { return e.Exit != nil }).Exit
	m := regexp.MustCompile(`grandchild (\d+)`).FindStringSubmatch(strings.Join(exit.Stderr, "\n"))
	if m == nil {
		t.Fatalf("stderr: %q", exit.Stderr)
	}
	first, _ := strconv.Atoi(m[1])
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "noop")); err != nil {
		t.Fatal(err)
	}
	second := h.Status().PID
	limit := filepath.Join(r.groups.dirs["pids"]+r.groups.dirs[""], stays+"probe", "pids.max")
	if raw, err := os.ReadFile(limit); err != nil || strings.TrimSpace(string(raw)) != "77" {
		t.Errorf("%s is %q: %v", limit, raw, err)
	}
	for _, pid := range []int{first, second} {
		group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(group), "/"+stays+"probe\n") {
			t.Errorf("process %d is in %s: %v", pid, group, err)
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	r.groups.sweep() // as the next gateway does
	if err := unix.Kill(first, 0); err != nil {
		t.Errorf("what the driver started is gone: %v", err)
	}
	left, err := os.ReadFile(filepath.Join(filepath.Dir(limit), "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(left)) { // each process of the driver has started one
		pid, _ := strconv.Atoi(field)
		_ = unix.Kill(pid, unix.SIGKILL)
		pidGone(t, pid)
	}
	r.groups.sweep()
	if exists(filepath.Dir(limit)) {
		t.Errorf("%s is left", filepath.Dir(limit))
	}
}

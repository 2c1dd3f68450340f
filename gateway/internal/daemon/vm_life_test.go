package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// chainOf writes a configuration of the example extensions, unchanged programs, between two recorders.
func (c *chained) chainOf(dir string) {
	c.t.Helper()
	leases := filepath.Join(c.dir, "leases")
	if err := os.MkdirAll(leases, 0o700); err != nil {
		c.t.Fatal(err)
	}
	extensions := fmt.Sprintf(`
extension "tenant-namespace" {
  command = "%[1]s/tenant-namespace"
  config {
    tenant "*" {
      labels  = { tier = "gold" }
      network = true
    }
  }
}
extension "ipam" {
  command = "%[1]s/ipam"
  paths {
    write = [%[2]q]
  }
  config {
    store = %[2]q
    pool "sandboxes" {
      cidr          = "10.120.0.0/16"
      subnet_prefix = 24
    }
  }
}
extension "guest-dropin" {
  command = "%[1]s/guest-dropin"
  config {
    dropin "50-second.sh" {
      contents = "#!/bin/sh\necho second after $(cat /run/first) of $SANDGATE_WORKSPACE\n"
    }
    dropin "10-first.sh" {
      contents = "#!/bin/sh\necho first > /run/first\n"
    }
  }
}
`, dir, leases)
	binds := `
  bind "tenant-namespace" {
    grant { mutate = ["LaunchPlan.labels", "Network"] }
  }
  bind "ipam" {
    grant { mutate = ["LaunchPlan.guest_ip", "Network.subnet"] }
  }
  bind "guest-dropin" {
    grant { mutate = ["GuestInitDropin"] }
  }
`
	for _, name := range []string{"a", "z"} {
		extensions += fmt.Sprintf("extension %q {\n  command = %q\n  args    = [%q, %q, %q]\n  paths {\n    write = [%q]\n  }\n}\n", name, self(c.t), recorderSwitch, c.dir, name, c.dir)
	}
	bind := func(name string) string {
		return fmt.Sprintf("  bind %q {\n    grant { mutate = [\"LaunchPlan.environment\"] }\n  }\n", name)
	}
	c.text(extensions, bind("a")+binds+bind("z"))
}

// history is what was done for a sandbox, oldest first, as `sandbox history` shows it: each operation with its steps.
func (c *chained) history(id string) (all []string) {
	c.t.Helper()
	ops, err := c.d.engine.Operations(c.t.Context(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, op := range slices.Backward(ops) {
		all = append(all, "= "+string(op.Kind))
		steps, err := c.d.engine.Steps(c.t.Context(), op.ID)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, st := range steps {
			text := "driver." + st.Driver
			if st.Driver == "" {
				text = strings.TrimSpace(fmt.Sprintf("%s %s %s", st.Phase, st.Extension, st.Cause))
			}
			if st.State != engine.StepOK {
				text += fmt.Sprintf(" (%s %s)", st.State, st.Error)
			}
			all = append(all, text)
		}
	}
	return all
}

// log is what a sandbox has written.
func (c *chained) log(id string) string {
	c.t.Helper()
	sb, _ := c.d.engine.Lookup(id)
	c.d.mu.Lock()
	d := c.d.open["vm"].driver
	c.d.mu.Unlock()
	logger, ok := driver.As[driver.Logger](d)
	if !ok {
		c.t.Fatal("the driver has no logs")
	}
	var b bytes.Buffer
	if err := logger.Logs(c.t.Context(), sb.Identity, false, &b); err != nil {
		c.t.Fatal(err)
	}
	return b.String()
}

// qemus are the processes of machines of this site.
func (c *chained) qemus() (pids []int) {
	c.t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		raw, err := os.ReadFile(path)
		var pid int
		if _, bad := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && bad == nil && bytes.Contains(raw, []byte("qemu-system")) && bytes.Contains(raw, []byte(c.dir)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// fates is a command that ends in another way at each of its runs, as a counter on the machine's own disk says.
var fates = []string{"/bin/sh", "-c", `
n=$(($(cat /n 2>/dev/null || echo 0) + 1)); echo $n > /n; busybox sync
echo run $n, mine is $(ip -4 addr show dev eth0 | busybox grep inet), $RECORDING_a$RECORDING_z
case $n in
3) sleep 3; exit 5;;
4) sleep 3; echo c > /proc/sysrq-trigger;;
6) sleep 3; exit 6;;
esac
while :; do sleep 1; done`}

// The whole life of a machine with the example extensions around it: the order of the hooks through create, ready, stop,
// start, the end of its process in four ways, a restart of the gateway, and delete; and the address that was leased is
// the machine's own.
func TestAMachineLivesThroughItsChain(t *testing.T) {
	t.Parallel()
	dir, err := examples()
	if err != nil {
		t.Fatal(err)
	}
	c := newChained(t, "vm")
	c.chainOf(dir)
	c.start()
	id := c.ready("one", sandbox.Spec{Command: fates})
	sb, _ := c.d.engine.Lookup(id)
	if diff := cmp.Diff([]string{"= create",
		"validate_request a", "validate_request tenant-namespace", "validate_request z",
		"prepare_plan a", "prepare_plan tenant-namespace", "prepare_plan guest-dropin", "prepare_plan z",
		"before_create a create", "before_create ipam create", "before_create z create", "before_start a create", "before_start z create", "driver.create",
		"after_create a create", "after_create z create",
		"= ready", "after_ready a create", "after_ready z create"}, c.history(id)); diff != "" {
		t.Errorf("create (-want +got):\n%s", diff)
	}
	if len(sb.Addresses) != 1 || !strings.HasPrefix(sb.Addresses[0], "10.120.") {
		t.Fatalf("addresses: %v", sb.Addresses)
	}
	address := strings.TrimSuffix(sb.Addresses[0], "/24")
	c.wait("the machine says which address it has", func() bool { return strings.Contains(c.log(id), "run 1, mine is inet "+address+"/24") })
	if log := c.log(id); !strings.Contains(log, "second after first of default\n") || !strings.Contains(log, ", 11\n") {
		t.Errorf("log:\n%s", log)
	}
	c.each(id, address)
	c.deleteIt(id)
	if err := c.d.engine.Err(); err != nil {
		t.Fatal(err)
	}
	h, err := c.d.engine.DeleteWorkspace("acme", sandbox.DefaultWorkspace, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
	c.nothing()
	if left := c.qemus(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	c.end()
}

// each leads a machine that is ready through everything that may happen to it, and checks who is told, in which order.
func (c *chained) each(id, address string) {
	started := func(n int) {
		c.t.Helper()
		if err := c.startIt(id); err != nil {
			c.t.Fatal(err)
		}
		c.wait("it runs again", func() bool { return strings.Contains(c.log(id), fmt.Sprintf("run %d, mine is inet %s/24", n, address)) })
	}
	for _, step := range []struct {
		name  string
		do    func()
		state sandbox.State
		want  []string
	}{
		{"stop", func() {
			if err := c.stopIt(id); err != nil {
				c.t.Fatal(err)
			}
		}, sandbox.Stopped, []string{"before_stop z", "before_stop a", "after_stop z stopped", "after_stop a stopped"}},
		{"start", func() { started(2) }, sandbox.Ready, runs("start")},
		{"the gateway restarts over a machine that runs", func() {
			before := c.qemus()
			c.end()
			c.start()
			c.comes(id, sandbox.Ready)
			if after := c.qemus(); len(before) != 1 || !slices.Equal(before, after) {
				c.t.Errorf("machines: %v, then %v", before, after)
			}
		}, sandbox.Ready, nil},
		{"QEMU is killed", func() {
			for _, pid := range c.qemus() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}, sandbox.Exited, exits},
		{"its command ends", func() { started(3) }, sandbox.Exited, append(runs("start")[:2], exits...)},
		{"its kernel panics", func() { started(4) }, sandbox.Exited, append(runs("start")[:2], exits...)},
		{"start again", func() { started(5) }, sandbox.Ready, runs("start")},
		{"stop again", func() {
			if err := c.stopIt(id); err != nil {
				c.t.Fatal(err)
			}
		}, sandbox.Stopped, []string{"before_stop z", "before_stop a", "after_stop z stopped", "after_stop a stopped"}},
		{"its command ends while the gateway is away", func() {
			started(6)
			c.end()
			waitFor(c.t, "end of the machine", func() bool { return len(c.qemus()) == 0 })
			c.start()
		}, sandbox.Exited, append(runs("start")[:2], exits...)},
	} {
		c.forget()
		step.do()
		c.comes(id, step.state)
		c.rest(id)
		got := calls(recorded(c.t, c.dir))
		if step.state == sandbox.Exited { // on a busy host nobody may have seen that it was ready in between
			got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, string(phase.AfterReady)) })
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			c.t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		sb, _ := c.d.engine.Lookup(id)
		if step.name == "its kernel panics" && !strings.Contains(sb.Reason, "Kernel panic") {
			c.t.Errorf("%s: %q", step.name, sb.Reason)
		}
		code := map[string]int{"QEMU is killed": 137, "its command ends": 5, "its command ends while the gateway is away": 6}
		if want, ok := code[step.name]; ok && (sb.Run.ExitCode == nil || *sb.Run.ExitCode != want) {
			c.t.Errorf("%s: exit code %v, want %d", step.name, sb.Run.ExitCode, want)
		}
		if held := c.d.engine.Holdings(); (step.state == sandbox.Ready) != holds(held, phase.Run) {
			c.t.Errorf("%s: held for the run: %+v", step.name, held)
		}
	}
}

func runs(cause string) []string {
	return []string{"before_start a " + cause, "before_start z " + cause, "after_ready a " + cause, "after_ready z " + cause}
}

var exits = []string{"after_stop z process_exited", "after_stop a process_exited"}

// holds reports whether anything is held of a lifetime.
func holds(all []engine.Holding, l phase.Lifetime) bool {
	return slices.ContainsFunc(all, func(h engine.Holding) bool { return len(h.Entries[l]) > 0 })
}

// A machine whose create is cancelled while a hook runs and while it boots, one whose hook does not end, one that is deleted
// twice at once, and one whose drop-in fails: everybody is told once, and nothing is left.
func TestAMachineIsInterrupted(t *testing.T) {
	t.Parallel()
	c := newChained(t, "vm", member("a", within(phase.AfterReady, "3s")), member("b")).up()
	told := []phase.Phase{phase.AfterStop, phase.OnCreateFailed, phase.AfterDelete}

	c.do("a", phase.BeforeStart, "gate")
	_, id, err := c.d.engine.CreateSandbox(c.ask("one", sandbox.Spec{}))
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the hook runs", func() bool { return slices.Contains(calls(recorded(t, c.dir)), "before_start a create") })
	c.deleteIt(id.ID)
	c.called(told, "after_stop a cancelled", "on_create_failed b cancelled", "on_create_failed a cancelled")
	c.do("a", phase.BeforeStart, "")

	c.forget()
	_, id, err = c.d.engine.CreateSandbox(c.ask("one", sandbox.Spec{}))
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the machine boots", func() bool { return len(c.qemus()) > 0 })
	c.deleteIt(id.ID)
	if left := c.qemus(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// The driver may have ended its call before it was cancelled; then it is a delete like any other.
	if got := calls(recorded(t, c.dir), told...); !slices.Equal(got, []string{"after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a"}) &&
		!slices.Equal(got, []string{"after_stop b cancelled", "after_stop a cancelled", "on_create_failed b cancelled", "on_create_failed a cancelled"}) {
		t.Errorf("calls: %v", got)
	}

	c.forget()
	c.do("a", phase.AfterReady, "hang")
	sb := c.ready("one", sandbox.Spec{}) // it is recorded that the hook did not end, and no more
	if !slices.ContainsFunc(c.history(sb), func(s string) bool { return strings.HasPrefix(s, "after_ready a create (failed") }) {
		t.Errorf("history: %v", c.history(sb))
	}
	one, err := c.d.engine.DeleteSandbox(sb, sandbox.Origin{})
	two, again := c.d.engine.DeleteSandbox(sb, sandbox.Origin{})
	for _, h := range []*engine.Handle{one, two} {
		if h != nil {
			_, bad := h.Wait(t.Context())
			err = errors.Join(err, bad)
		}
	}
	if err := errors.Join(err, again); err != nil {
		t.Error(err)
	}
	c.comes(sb, sandbox.Deleted)
	c.called(told, "after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
	c.nothing()
	c.end()

	c = newChained(t, "vm", member("a", "dropin=10-good.sh"), member("b", "dropin=20-bad.sh", "script=exit 7")).up()
	id1, err := c.make("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	ended := c.comes(id1, sandbox.Exited, sandbox.Failing)
	c.rest(id1)
	if !strings.Contains(ended.Reason, "drop-in 20-bad.sh: it ended with 7") {
		t.Errorf("it is %s: %q", ended.State, ended.Reason)
	}
	c.called([]phase.Phase{phase.AfterReady, phase.AfterStop}, "after_stop b process_exited", "after_stop a process_exited")
	if log := c.log(id1); log != "drop-in a\ndrop-in b\n" {
		t.Errorf("log: %q", log)
	}
	c.deleteIt(id1)
	c.nothing()
	c.end()
}

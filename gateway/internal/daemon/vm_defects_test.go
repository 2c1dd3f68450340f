package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The defects that OpenShell's VM hooks are known to have, each with what shows that it cannot happen here. All of it is
// of the chain and not of a machine, so sandboxes are processes of the native driver; extensions are programs.
var lifecycleDefects = map[string]func(t *testing.T){
	"01_cleanup_is_told_of_another_sandbox_than_setup":  cleanupKnowsTheSandbox,
	"02_cleanup_of_those_whose_setup_never_ran":         cleanupOfThoseThatStarted,
	"03_setup_runs_beside_cleanup":                      cleanupWaitsForSetup,
	"04_cancelled_between_hooks_is_not_cleaned_up":      cancelledBetweenHooks,
	"05_an_abort_leaks_an_address":                      abortLeaksNoAddress,
	"06_a_stop_is_a_failed_launch":                      stopIsNoFailure,
	"07_hooks_have_no_deadline_and_may_change_anything": hooksAreBounded,
	"08_a_slow_hook_hides_an_exit":                      slowHookHidesNoExit,
	"09_a_refused_restore_is_not_found":                 refusedRestoreIsSeen,
	"12_a_retried_delete_cleans_up_again":               retriedDelete,
}

func TestLifecycleDefects(t *testing.T) {
	for name, show := range lifecycleDefects {
		t.Run(name, show)
	}
}

// killed ends a sleeper.
func (c *chained) killed(n int) {
	c.t.Helper()
	word := sleeper(n).Command[1]
	found := false
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		raw, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(raw), word) && strings.HasPrefix(string(raw), "/bin/sleep") {
			found = unix.Kill(pidOf(path), unix.SIGKILL) == nil
		}
	}
	if !found {
		c.t.Fatalf("there is no process with %s", word)
	}
}

func pidOf(path string) (pid int) {
	for _, digit := range strings.Split(path, "/")[2] {
		pid = pid*10 + int(digit-'0')
	}
	return pid
}

// sleeper is a sandbox whose process killed finds, among those of other tests too.
func sleeper(n int) sandbox.Spec {
	return sandbox.Spec{Command: []string{"/bin/sleep", fmt.Sprintf("%d%04d", os.Getpid(), n)}}
}

// 1. What releases sees what set up: labels, image, state and entries, in every way in which a run may end. An extension
// that was asked for by a label is called for its cleanup, also by a gateway that was started since.
func cleanupKnowsTheSandbox(t *testing.T) {
	c := newChained(t, "native", member("nemo", `bind:activation = "on_request"`))
	c.rules = "activation \"nemo\" {\n  when {}\n}\n"
	c.up()
	labels := map[string]string{"openshell.io/extension.nemo": "enabled", "team": "x"}
	spec := sleeper(7101)
	spec.Labels = labels
	id := c.ready("one", spec)
	c.killed(7101)
	c.comes(id, sandbox.Exited)
	c.rest(id)
	if err := c.startIt(id); err != nil {
		t.Fatal(err)
	}
	c.comes(id, sandbox.Ready)
	if err := c.stopIt(id); err != nil {
		t.Fatal(err)
	}
	c.end()
	c.start()
	c.deleteIt(id)
	c.called([]phase.Phase{phase.AfterStop, phase.AfterDelete}, "after_stop nemo process_exited", "after_stop nemo stopped", "after_delete nemo")
	for _, n := range recorded(t, c.dir) {
		if n.Labels["team"] != "x" || n.Sandbox != "one" {
			t.Errorf("%s(%s) is told of %q, %v", n.Phase, n.Cause, n.Sandbox, n.Labels)
		}
		if released := n.Phase == phase.AfterStop || n.Phase == phase.AfterDelete; released && (n.State != "of nemo" || n.Held != 1) {
			t.Errorf("%s(%s) is given the state %q and %d entries", n.Phase, n.Cause, n.State, n.Held)
		}
	}
	c.end()
}

// 2. Who was not called has nothing to clean up, and is not called for it.
func cleanupOfThoseThatStarted(t *testing.T) {
	c := newChained(t, "native", member("a"), member("failing", once(phase.BeforeCreate)), member("c")).up()
	c.do("failing", phase.BeforeCreate, "fail no")
	id, err := c.make("one", sandbox.Spec{})
	if err == nil {
		t.Fatal("it was made")
	}
	c.comes(id, sandbox.Deleted)
	c.called([]phase.Phase{phase.BeforeCreate, phase.BeforeStart, phase.AfterStop, phase.AfterDelete, phase.OnCreateFailed},
		"before_create a create", "before_create failing create", "on_create_failed failing before_create_failed", "on_create_failed a before_create_failed")
	c.nothing()
	c.end()
}

// 3. A setup that heeds no cancelling goes on while the sandbox is deleted: its cleanup waits for it.
func cleanupWaitsForSetup(t *testing.T) {
	c := newChained(t, "native", member("a")).up()
	c.do("a", phase.BeforeCreate, "late")
	h, id, err := c.d.engine.CreateSandbox(c.ask("one", sandbox.Spec{}))
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the setup runs", func() bool { return slices.Contains(calls(recorded(t, c.dir)), "before_create a create") })
	gone, err := c.d.engine.DeleteSandbox(id.ID, sandbox.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	c.comes(id.ID, sandbox.Deleting, sandbox.Releasing)
	c.do("a", phase.BeforeCreate, "") // now it goes on, and takes what it wanted
	if _, err := h.Wait(t.Context()); err == nil {
		t.Error("the create succeeded")
	}
	if _, err := gone.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	c.comes(id.ID, sandbox.Deleted)
	var open []string
	for _, n := range recorded(t, c.dir) {
		if !n.Ended {
			open = append(open, string(n.Phase))
		} else {
			open = slices.DeleteFunc(open, func(p string) bool { return p == string(n.Phase) })
		}
		if len(open) > 1 {
			t.Errorf("at the same time: %v", open)
		}
	}
	c.called([]phase.Phase{phase.OnCreateFailed, phase.AfterDelete}, "on_create_failed a cancelled")
	c.nothing()
	c.end()
}

// 4. A create that is cancelled while one hook runs, or between two, is cleaned up like any that failed.
func cancelledBetweenHooks(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b"), member("c")).up()
	for _, p := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
		c.forget()
		c.do("b", p, "gate")
		_, id, err := c.d.engine.CreateSandbox(c.ask("one", sandbox.Spec{}))
		if err != nil {
			t.Fatal(err)
		}
		c.wait("the hook runs", func() bool { return slices.Contains(calls(recorded(t, c.dir)), string(p)+" b create") })
		c.deleteIt(id.ID)
		want := []string{"on_create_failed b cancelled", "on_create_failed a cancelled"}
		if p == phase.BeforeStart {
			want = append([]string{"after_stop b cancelled", "after_stop a cancelled", "on_create_failed c cancelled"}, want...)
		}
		c.called([]phase.Phase{phase.AfterStop, phase.OnCreateFailed, phase.AfterDelete}, want...)
		c.do("b", p, "")
	}
	c.nothing()
	c.end()
}

// 5. What is taken before a launch is given back when that does not come to be, whatever is between: the same address is
// free again, and nothing is leased in the end.
func abortLeaksNoAddress(t *testing.T) {
	dir, err := examples()
	if err != nil {
		t.Fatal(err)
	}
	c := newChained(t, "native")
	leases := filepath.Join(c.dir, "leases")
	if err := os.Mkdir(leases, 0o700); err != nil {
		t.Fatal(err)
	}
	c.text(`extension "ipam" {
  command = "`+dir+`/ipam"
  paths {
    write = ["`+leases+`"]
  }
  config {
    store = "`+leases+`"
    pool "sandboxes" {
      cidr          = "10.121.0.0/28"
      subnet_prefix = 29
    }
  }
}
extension "late" {
  command = "`+self(t)+`"
  args    = ["`+recorderSwitch+`", "`+c.dir+`", "late"]
  paths {
    write = ["`+c.dir+`"]
  }
}
`, `
  bind "ipam" {
    grant { mutate = ["Process.network.address", "Network.subnet", "Process.environment"] }
  }
  bind "late" {
    grant { mutate = ["Process.environment"] }
    phase "before_start" {
      attempts = 1
    }
  }
`)
	c.start()
	c.do("late", phase.BeforeStart, "fail not now")
	for range 6 { // more often than there are addresses
		id, err := c.make("one", sandbox.Spec{})
		if err == nil || !strings.Contains(err.Error(), "not now") {
			t.Fatalf("%v", err)
		}
		c.comes(id, sandbox.Deleted)
	}
	for _, h := range c.d.engine.Holdings() {
		if len(h.Entries[phase.Sandbox]) > 0 || len(h.Entries[phase.Run]) > 0 {
			t.Errorf("held: %+v", h)
		}
	}
	c.end()
}

// 6. A stop has its own hooks, before and after, and is no failure.
func stopIsNoFailure(t *testing.T) {
	c := newChained(t, "native", member("a")).up()
	id := c.ready("one", sandbox.Spec{})
	for range 2 {
		c.forget()
		if err := c.stopIt(id); err != nil {
			t.Fatal(err)
		}
		c.called(nil, "before_stop a", "after_stop a stopped")
		c.forget()
		if err := c.stopIt(id); err != nil { // again: it is stopped, and nobody is told twice
			t.Error(err)
		}
		if all := calls(recorded(t, c.dir), phase.AfterStop, phase.OnCreateFailed); len(all) > 0 {
			t.Errorf("a second stop: %v", all)
		}
		if err := c.startIt(id); err != nil {
			t.Fatal(err)
		}
		c.comes(id, sandbox.Ready)
		c.rest(id)
	}
	c.deleteIt(id)
	c.end()
}

// 7. A hook that does not answer has used up its time, and the sandbox is undone. What is decided before the driver has
// judged the plan cannot be changed after.
func hooksAreBounded(t *testing.T) {
	c := newChained(t, "native", member("a", within(phase.BeforeCreate, "1s"), within(phase.BeforeStart, "1s"))).up()
	for _, p := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
		c.do("a", p, "hang")
		id, err := c.make("one", sandbox.Spec{})
		if !fault.Is(err, fault.DeadlineExceeded) || !strings.Contains(err.Error(), "a") {
			t.Errorf("%s: %v", p, err)
		}
		c.comes(id, sandbox.Deleted)
		c.do("a", p, "")
	}
	c.nothing()
	c.end()

	c = newChained(t, "none", member("a", "late_backend=q35", once(phase.BeforeStart))).up()
	id, err := c.make("one", sandbox.Spec{})
	if err == nil || !strings.Contains(err.Error(), "LaunchPlan.backend") || !strings.Contains(err.Error(), "before_start") {
		t.Errorf("a backend that is chosen after it was judged: %v", err)
	}
	c.comes(id, sandbox.Deleted)
	c.nothing()
	c.end()
}

// 8. A hook of a run that does not end holds back what is said of the run's end for as long as it may take and no longer:
// its time is used up, the end is shown, and what it may have taken is released.
func slowHookHidesNoExit(t *testing.T) {
	c := newChained(t, "native", member("a", within(phase.AfterReady, "2s"))).up()
	c.do("a", phase.AfterReady, "hang")
	id, err := c.make("one", sleeper(7108))
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the hook runs", func() bool { return slices.Contains(calls(recorded(t, c.dir)), "after_ready a create") })
	c.killed(7108)
	c.comes(id, sandbox.Exited)
	c.wait("its run is released", func() bool {
		return slices.Contains(calls(recorded(t, c.dir)), "after_stop a process_exited")
	})
	if n := len(calls(recorded(t, c.dir), phase.AfterReady)); n > 3 || endsOf(recorded(t, c.dir), phase.AfterReady) != n {
		t.Errorf("after_ready was called %d times, and ended %d times", n, endsOf(recorded(t, c.dir), phase.AfterReady))
	}
	c.deleteIt(id)
	c.end()
}

func endsOf(all []noted, p phase.Phase) (n int) {
	for _, x := range all {
		if x.Ended && x.Phase == p {
			n++
		}
	}
	return n
}

// seeing makes a driver say something else of its sandboxes.
type seeing struct {
	driver.Driver
	change func(*driver.Status)
}

func (s seeing) Unwrap() driver.Driver { return s.Driver }

func (s seeing) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	st, err := s.Driver.Get(ctx, id)
	if err == nil {
		s.change(st)
	}
	return st, err
}

func (s seeing) List(ctx context.Context) ([]*driver.Status, error) {
	all, err := s.Driver.List(ctx)
	for _, st := range all {
		s.change(st)
	}
	return all, err
}

func (s seeing) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return s.Driver.Watch(ctx, func(e driver.Event) error {
		if e.Status != nil {
			s.change(e.Status)
		}
		return fn(e)
	})
}

// 9. A restore that an extension refuses leaves a sandbox that is there, in error, with the reason; it is tried again, and
// runs once nobody refuses.
func refusedRestoreIsSeen(t *testing.T) {
	c := newChained(t, "native", member("a"))
	c.configure()
	var lost atomic.Bool
	c.startWith(func(o *Options) {
		o.between.driver = func(d driver.Driver) driver.Driver {
			return seeing{d, func(st *driver.Status) {
				if lost.Load() && st.State == driver.Exited {
					st.State, st.ExitCode = driver.Lost, nil
				}
			}}
		}
	})
	id := c.ready("one", sleeper(7109))
	c.forget()
	c.do("a", phase.BeforeStart, "deny")
	lost.Store(true)
	c.killed(7109) // the host went away under it, says the driver
	sb := c.comes(id, sandbox.Failing)
	c.wait("the reason is shown", func() bool {
		sb, _ = c.d.engine.Lookup(id)
		return strings.Contains(sb.Reason, "no, says a")
	})
	if found, err := c.d.engine.Find(engine.Ref{IDOrName: "one"}); err != nil || found.ID != id {
		t.Errorf("it is not found: %v", err)
	}
	c.wait("it is tried again", func() bool { return len(calls(recorded(t, c.dir), phase.BeforeStart)) > 1 })
	c.do("a", phase.BeforeStart, "")
	c.comes(id, sandbox.Ready)
	c.rest(id)
	lost.Store(false)
	all := calls(recorded(t, c.dir))
	if all[0] != "after_stop a lost" || all[1] != "before_start a restore" || all[len(all)-1] != "after_ready a restore" {
		t.Errorf("calls: %v", all)
	}
	c.deleteIt(id)
	c.nothing()
	c.end()
}

// 12. A delete whose driver fails at first goes on by itself; who has released is not asked again, however often it is
// deleted.
func retriedDelete(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b"))
	c.configure()
	var fail atomic.Int64
	c.startWith(func(o *Options) {
		o.between.driver = func(d driver.Driver) driver.Driver {
			return faulty{d, func(what string) error {
				if what == "delete" && fail.Add(-1) >= 0 {
					return errors.New("the directory cannot be removed")
				}
				return nil
			}}
		}
	})
	id := c.ready("one", sandbox.Spec{})
	c.forget()
	fail.Store(2)
	h, err := c.d.engine.DeleteSandbox(id, sandbox.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the driver has failed", func() bool { return fail.Load() < 2 })
	if sb, known := c.d.engine.Lookup(id); !known || sb.State == sandbox.Deleted {
		t.Errorf("it is forgotten: %+v", sb.State)
	}
	if all := calls(recorded(t, c.dir), phase.AfterStop, phase.AfterDelete); len(all) > 0 && fail.Load() > 0 {
		t.Errorf("released while something of it is left: %v", all)
	}
	again, err := c.d.engine.DeleteSandbox(id, sandbox.Origin{})
	for _, handle := range []*engine.Handle{h, again} {
		if handle != nil && err == nil {
			_, err = handle.Wait(t.Context())
		}
	}
	if err != nil {
		t.Error(err)
	}
	c.comes(id, sandbox.Deleted)
	if third, err := c.d.engine.DeleteSandbox(id, sandbox.Origin{}); err == nil {
		_, _ = third.Wait(t.Context()) // it says that there is none, or is done at once
	}
	c.called([]phase.Phase{phase.AfterStop, phase.AfterDelete}, "after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
	c.nothing()
	c.end()
}

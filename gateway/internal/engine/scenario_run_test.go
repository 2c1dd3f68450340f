package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The scenarios of runs and of a sandbox's end.

// life creates a sandbox and forgets what was called for that.
func (r *rig) life() string {
	r.t.Helper()
	id, err := r.create("one")
	r.must(err)
	r.log.take()
	return id.ID
}

func (r *rig) is(id string, want sandbox.State) Sandbox {
	r.t.Helper()
	sb := r.get(id)
	if sb.State != want {
		r.t.Errorf("it is %s (%s), want %s", sb.State, sb.Reason, want)
	}
	return sb
}

func (r *rig) stop(id string) error { return r.wait(r.engine.StopSandbox(id, sandbox.Origin{})) }

func (r *rig) start(id string) error { return r.wait(r.engine.StartSandbox(id, nil, sandbox.Origin{})) }

func (r *rig) remove(id string) error { return r.wait(r.engine.DeleteSandbox(id, sandbox.Origin{})) }

func TestScenario05FailOpenLeavesOutOneRun(t *testing.T) {
	bubble(t, rigOptions{policy: pipeline.FailOpen, attempts: 1}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.must(r.stop(id))
		r.log.take()
		r.exts[0].on(phase.BeforeStart, broken)
		r.must(r.start(id))
		r.same("the run without a", r.said("before", "after"), "before_start a start", "before_start b start", "after_ready b start")
		if sb := r.is(id, sandbox.Ready); len(sb.Run.Without) != 1 || sb.Run.Without[0] != "a" || sb.Binds[0].Without {
			t.Errorf("the record says %+v, %+v", sb.Run, sb.Binds)
		}
		r.exts[0].on(phase.BeforeStart, nil)
		r.must(r.stop(id))
		r.same("its stop", r.said("after"), "after_stop b stopped", "after_stop a stopped")
		r.must(r.start(id))
		r.same("the next run", r.said("before", "after"), "before_start a start", "before_start b start", "after_ready a start", "after_ready b start")
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

func TestScenario08DeleteOfWhatNeverBecameReady(t *testing.T) {
	bubble(t, rigOptions{features: drivertest.Options{ManualReady: true}}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.exts[1].on(phase.BeforeStop, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			r.world.SetReady(id) // late
			return r.exts[1].effect(c)
		})
		r.must(r.remove(id))
		r.same("calls", r.said(""), "before_stop b", "before_stop a", "before_delete b", "before_delete a",
			"after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
		r.nothingHeld()
	})
}

func TestScenario10AStartWaitsForTheStop(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		held := r.world.Inject(drivertest.Fault{Call: drivertest.CallStop, How: drivertest.HoldBefore, Times: 1})
		stop, err := r.engine.StopSandbox(id, sandbox.Origin{})
		r.must(err)
		<-held.Reached()
		began := time.Now()
		start, err := r.engine.StartSandbox(id, nil, sandbox.Origin{})
		r.must(err)
		r.must(r.wait(stop, nil))
		if d := time.Since(began); d < 9*time.Minute || d > 12*time.Minute {
			t.Errorf("the stop's call was in doubt after %v", d)
		}
		r.must(r.wait(start, nil))
		r.same("calls", r.said("before", "after", "driver"), "before_stop a", "driver.Stop", "driver.Stop", "after_stop a stopped",
			"before_start a start", "driver.Start", "after_ready a start")
		r.is(id, sandbox.Ready)
	})
}

func TestScenario11AStartIsRefusedWhileTheRunBeforeIsNotReleased(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.exts[1].on(phase.AfterStop, broken)
		r.must(r.stop(id))
		began := time.Now()
		err := r.start(id)
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "b still holds") {
			t.Errorf("start: %v", err)
		}
		if d := time.Since(began); d != 5*time.Minute {
			t.Errorf("refused after %v", d)
		}
		r.is(id, sandbox.Stopped)
		r.same("setup", r.said("before_start"))
		r.exts[1].on(phase.AfterStop, nil)
		time.Sleep(10 * time.Minute)
		r.must(r.start(id))
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

func TestScenario13AnExitDuringAStopIsPartOfIt(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.exts[1].on(phase.BeforeStop, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			r.world.Exit(id, 7)
			time.Sleep(time.Second)
			return r.exts[1].effect(c)
		})
		r.must(r.stop(id))
		time.Sleep(time.Minute)
		synctest.Wait()
		r.same("calls", r.said(""), "before_stop b", "before_stop a", "after_stop b stopped", "after_stop a stopped")
		if sb := r.is(id, sandbox.Stopped); sb.Run.Released != phase.CauseStopped {
			t.Errorf("released as %s", sb.Run.Released)
		}
	})
}

func TestScenario14AnExitWhileTheGatewayWasDown(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		old := r.journal
		r.journal = old.Crash()
		r.must(r.engine.Close())
		r.world.Exit(id, 3)
		time.Sleep(time.Hour)
		r.open()
		synctest.Wait()
		r.same("calls", r.said("before", "after", "driver"), "after_stop a process_exited")
		if sb := r.is(id, sandbox.Exited); sb.Run.ExitCode == nil || *sb.Run.ExitCode != 3 {
			t.Errorf("exit code %v", sb.Run.ExitCode)
		}
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

func TestScenario15ARestoreWaitsForTheReleaseOfWhatWasLost(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.exts[0].on(phase.AfterStop, broken)
		r.world.LoseAll()
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if sb := r.is(id, sandbox.Failing); !strings.Contains(sb.Reason, "a still holds") {
			t.Errorf("the reason: %s", sb.Reason)
		}
		r.same("setup", r.said("before_start"))
		r.exts[0].on(phase.AfterStop, nil)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		r.is(id, sandbox.Ready)
		r.same("then", r.said("before_start", "after_ready", "after_stop a"), "after_stop a lost", "before_start a restore", "before_start b restore", "after_ready a restore", "after_ready b restore")
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

func TestScenario16SomeoneElseRemovesIt(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.world.AnnounceDeleted(id) // an event alone proves nothing
		synctest.Wait()
		r.is(id, sandbox.Ready)
		gets := r.world.Calls(drivertest.CallGet)
		r.world.Vanish(id)
		synctest.Wait()
		r.same("calls", r.said(""), "driver.Delete", "after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
		if r.world.Calls(drivertest.CallGet) == gets {
			t.Error("the driver was not asked")
		}
		r.is(id, sandbox.Deleted)
		r.nothingHeld()
	})
}

func TestScenario17UnderAnotherInstanceNothingIsGone(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.must(r.engine.Close())
		r.journal = r.journal.Crash()
		was := r.world
		r.world = drivertest.NewWorld(drivertest.Options{Instance: "another cluster"})
		r.configure(r.exts...)
		r.open()
		time.Sleep(time.Hour)
		synctest.Wait()
		r.same("calls", r.said("before", "after", "on_"))
		r.is(id, sandbox.Ready)
		r.world = was
	})
}

func TestScenario41AnOverrideEndsWithItsRun(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		for run, want := range []string{"alpine", "mirror/alpine", "alpine"} {
			if run == 1 {
				r.exts[0].on(phase.BeforeStart, contribute(map[string]any{"image": "mirror/alpine"}))
			} else {
				r.exts[0].on(phase.BeforeStart, nil)
			}
			if run > 0 {
				r.must(r.stop(id))
				r.must(r.start(id))
			}
			if got := r.box(id)["image"]; got != want {
				t.Errorf("run %d: the image is %v, want %s", run, got, want)
			}
		}
		found := false
		lines, err := r.engine.Audit(t.Context(), id, 0)
		r.must(err)
		for _, l := range lines {
			found = found || l.What == "override" && strings.Contains(fmt.Sprint(l.Text), "request")
		}
		if !found {
			t.Error("the override is not in the audit, with the old owner")
		}
	})
}

// An override is in the audit once, however often its owner contributes something else later.
func TestAnOverrideIsAuditedOnce(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		r.exts[0].on(phase.PreparePlan, contribute(map[string]any{"image": "mirror/alpine"}))
		r.exts[0].on(phase.BeforeStart, contribute(map[string]any{"annotations": map[string]any{"note": "of-a"}}))
		id := r.life()
		r.must(r.stop(id))
		r.must(r.start(id))
		lines, err := r.engine.Audit(t.Context(), id, 0)
		r.must(err)
		n := 0
		for _, l := range lines {
			if l.What == "override" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the override is in the audit %d times, want once", n)
		}
	})
}

func TestScenario45TheClusterIsDestroyedForGood(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.world.Inject(drivertest.Fault{Call: drivertest.CallDelete})
		h, err := r.engine.DeleteSandbox(id, sandbox.Origin{})
		r.must(err)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		r.same("before", r.said("after"))
		if err := r.engine.AbandonDriver(id, "", "operator"); !fault.Is(err, fault.Invalid) {
			t.Errorf("abandon without a reason: %v", err)
		}
		r.must(r.engine.AbandonDriver(id, "the cluster burnt down", "operator"))
		r.must(r.wait(h, nil))
		r.same("after", r.said("after"), "after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
		r.is(id, sandbox.Deleted)
		lines, err := r.engine.Audit(t.Context(), id, 0)
		r.must(err)
		if !strings.Contains(fmt.Sprint(lines), "the cluster burnt down") {
			t.Error("the reason is not in the audit")
		}
		for _, x := range r.exts {
			if held := x.holds(); strings.Contains(fmt.Sprint(held), id) {
				t.Errorf("%s holds %v", x.name, held)
			}
		}
	})
}

package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The scenarios of the design, each under its number; DESIGN.md has the table. Here: those of a create.

func TestScenario02DenialReleasesThoseThatStarted(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b", "c"}, func(t *testing.T, r *rig) {
		r.exts[1].on(phase.BeforeCreate, deny("not on a Tuesday"))
		_, err := r.create("one")
		if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "not on a Tuesday") {
			t.Fatalf("create: %v", err)
		}
		got := r.log.take()
		if diff := cmp.Diff([]string{"before_create a create", "before_create b create",
			"on_create_failed b before_create_failed", "on_create_failed a before_create_failed"}, got[len(got)-4:]); diff != "" {
			t.Errorf("after the denial (-want +got):\n%s", diff)
		}
		r.nothingHeld()
		if _, err := r.create("one"); err == nil {
			t.Error("b does not deny any more")
		}
		if n := r.world.Calls(drivertest.CallCreate); n != 0 {
			t.Errorf("the driver was called %d times", n)
		}
	})
}

func TestScenario04FailOpenGoesOnWithout(t *testing.T) {
	bubble(t, rigOptions{policy: pipeline.FailOpen, attempts: 1, drives: true}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		a, b := r.exts[0], r.exts[1]
		a.on(phase.PreparePlan, contribute(map[string]any{"annotations": map[string]any{"note": "of-a"}}))
		a.on(phase.BeforeCreate, broken)
		var prepared, seen string
		b.on(phase.PreparePlan, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			prepared = fmt.Sprint(c.Plan)
			return b.effect(c)
		})
		b.on(phase.BeforeCreate, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			seen = fmt.Sprint(c.Plan)
			return b.effect(c)
		})
		id, err := r.create("one")
		r.must(err)
		r.same("calls", r.said("before", "after", "driver.Resolve", "driver.Create"), "driver.Resolve", "before_create a create", "driver.Resolve",
			"before_create b create", "before_start b create", "driver.Create", "after_create b create", "after_ready b create")
		if !strings.Contains(prepared, "of-a") || strings.Contains(seen, "of-a") || r.box(id.ID)["annotations"] != nil {
			t.Errorf("b saw %s, then %s; the driver got %v", prepared, seen, r.box(id.ID))
		}
		if sb := r.get(id.ID); !sb.Binds[0].Without || sb.Binds[1].Without || sb.State != sandbox.Ready {
			t.Errorf("the record does not say that it runs without a: %+v", sb.Binds)
		}
		r.must(r.stop(id.ID))
		r.must(r.start(id.ID))
		r.same("a later start", r.said("before_start", "after_ready"), "before_start b start", "after_ready b start")
		r.must(r.remove(id.ID))
		r.same("the delete", r.said("after_delete"), "after_delete b", "after_delete a")
		r.nothingHeld()
	})
}

func TestScenario07DeleteOvertakesACreate(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		entered := make(chan struct{})
		r.exts[0].on(phase.BeforeCreate, func(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
			close(entered)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		h, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
		r.must(err)
		<-entered
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		if _, err := h.Wait(t.Context()); !fault.Is(err, fault.Canceled) {
			t.Errorf("the create ended with %v", err)
		}
		got := r.log.take()
		if last := got[len(got)-1]; last != "on_create_failed a cancelled" {
			t.Errorf("it ended with %s", last)
		}
		r.nothingHeld()
		r.exts[0].on(phase.BeforeCreate, nil)
		_, err = r.create("one")
		r.must(err)
	})
}

func TestScenario09OneEnsureForManyCreates(t *testing.T) {
	for _, places := range []int{64, 4} {
		bubble(t, rigOptions{max: places}, []string{"a"}, func(t *testing.T, r *rig) {
			r.exts[0].on(phase.EnsureWorkspace, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				time.Sleep(10 * time.Second) // all of them wait for it
				return r.exts[0].effect(c)
			})
			var handles []*Handle
			for i := range 64 {
				h, _, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: fmt.Sprintf("sb-%02d", i)})
				r.must(err)
				handles = append(handles, h)
			}
			for _, h := range handles {
				_, err := h.Wait(t.Context())
				r.must(err)
			}
			r.same("ensures", r.said("ensure_workspace"), "ensure_workspace a")
		})
	}
}

func TestScenario12DeleteWhileTheRunsReleaseIsStuck(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id, err := r.create("one")
		r.must(err)
		r.exts[0].on(phase.AfterStop, broken)
		r.must(r.wait(r.engine.StopSandbox(id.ID, sandbox.Origin{})))
		r.log.take()
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		if sb := r.get(id.ID); sb.State != sandbox.Releasing {
			t.Errorf("it is %s", sb.State)
		}
		r.exts[0].on(phase.AfterStop, nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, l := range r.log.take() {
			if strings.HasPrefix(l, "after_stop") && l != "after_stop a stopped" {
				t.Errorf("a second release of the run: %s", l)
			}
		}
		if sb := r.get(id.ID); sb.State != sandbox.Deleted {
			t.Errorf("it is %s", sb.State)
		}
		r.nothingHeld()
	})
}

// said returns the lines of the log that begin so.
func (r *rig) said(prefixes ...string) []string {
	out := []string{}
	for _, l := range r.log.take() {
		for _, p := range prefixes {
			if strings.HasPrefix(l, p) {
				out = append(out, l)
			}
		}
	}
	return out
}

func (r *rig) same(what string, got []string, want ...string) {
	r.t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func annotate(value string) []plan.Object {
	return []plan.Object{{Kind: drivertest.KindBox, Name: drivertest.Main, Fields: map[string]any{"annotations": map[string]any{"note": value}}}}
}

func (r *rig) box(id string) map[string]any {
	for _, o := range r.world.Plan(id) {
		if o.Kind == drivertest.KindBox && o.Name == drivertest.Main {
			return o.Fields
		}
	}
	return nil
}

func TestScenario01AnAnswerThatWasNotCommittedIsAskedForAgain(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		a, b := r.exts[0], r.exts[1]
		a.on(phase.BeforeCreate, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			ans, err := a.effect(c)
			ans.Contribute = annotate("kept")
			return ans, err
		})
		var keys []string
		var numbers []uint64
		answered := make(chan struct{}, 2)
		b.on(phase.BeforeStart, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			keys, numbers = append(keys, c.Key), append(numbers, c.Number)
			answered <- struct{}{}
			return b.effect(c)
		})
		// The commit after b's answer never comes: the gateway dies before it.
		r.journal.Hook(func([]journal.Write) {
			if len(answered) > 0 {
				<-r.engine.ctx.Done()
			}
		}, nil)
		_, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
		r.must(err)
		synctest.Wait()
		before := r.said("")
		r.same("before the crash", before[len(before)-2:], "before_start a create", "before_start b create")
		r.crash()
		synctest.Wait()
		r.same("after it", r.said(""), "before_start b create", "after_create a create", "after_create b create",
			"after_ready a create", "after_ready b create")
		if len(keys) != 2 || keys[0] != keys[1] || numbers[1] != numbers[0]+1 {
			t.Errorf("keys %v, numbers %v", keys, numbers)
		}
		if got := r.box(id.ID)["annotations"]; cmp.Diff(map[string]any{"note": "kept"}, got) != "" {
			t.Errorf("what before_create contributed is %v", got)
		}
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		r.nothingHeld()
	})
}

func TestScenario03ACallThatAllocatesTooLateIsOvertaken(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		b := r.exts[1]
		var asked, released uint64
		late := make(chan error, 3)
		b.on(phase.BeforeCreate, func(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
			asked = c.Number
			go func() {
				time.Sleep(5 * time.Minute)
				_, err := b.effect(c)
				late <- err
			}()
			<-ctx.Done() // cancelled
			return nil, ctx.Err()
		})
		b.on(phase.OnCreateFailed, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			released = c.Number
			return b.effect(c)
		})
		if _, err := r.create("one"); !fault.Is(err, fault.DeadlineExceeded) {
			t.Errorf("create: %v", err)
		}
		if released <= asked {
			t.Errorf("the release is number %d, the call %d", released, asked)
		}
		for range 3 {
			if err := <-late; !fault.Is(err, fault.Conflict) {
				t.Errorf("the late call: %v", err)
			}
		}
		r.nothingHeld()
	})
}

func TestScenario06AFieldOfTheDriversIsADecisionUnderEveryPolicy(t *testing.T) {
	bubble(t, rigOptions{policy: pipeline.FailOpen}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		r.exts[0].on(phase.PreparePlan, contribute(map[string]any{"size": "large"}))
		_, err := r.create("one")
		if !fault.Is(err, fault.Denied) {
			t.Errorf("create: %v", err)
		}
		for _, want := range []string{"a contributes", "Box.size", "driver set it", "test.hcl:1"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("it does not say %q: %v", want, err)
			}
		}
		r.nothingHeld()
	})
}

func contribute(fields map[string]any) func(context.Context, *extension.Call) (*extension.Answer, error) {
	return func(context.Context, *extension.Call) (*extension.Answer, error) {
		return &extension.Answer{Contribute: []plan.Object{{Kind: drivertest.KindBox, Name: drivertest.Main, Fields: fields}}}, nil
	}
}

func TestScenario28DisabledInTheMiddleOfACreate(t *testing.T) {
	for _, bypass := range []bool{false, true} {
		bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
			a := r.exts[0]
			a.on(phase.BeforeCreate, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				if err := r.engine.Disable("a", bypass, "operator"); err != nil {
					return nil, err
				}
				return a.effect(c)
			})
			id, err := r.create("one")
			calls := r.said("before_start", "after_create", "after_ready", "after_stop", "on_create_failed")
			if !bypass {
				if err == nil || !strings.Contains(err.Error(), `extension "a" is disabled`) {
					t.Errorf("create: %v", err)
				}
				r.same("without bypass", calls, "on_create_failed b before_start_failed", "on_create_failed a before_start_failed")
				r.nothingHeld()
				return
			}
			r.must(err)
			r.same("with bypass", calls, "before_start b create", "after_create b create", "after_ready b create")
			r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
			r.same("the delete", r.said("after_delete"), "after_delete b", "after_delete a")
			r.nothingHeld()
		})
	}
}

// The switch ends setup phases; what ends a sandbox still reaches those who take part in it.
func TestADisabledExtensionIsToldOfTheEnd(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.must(r.engine.Disable("a", true, "operator"))
		r.must(r.remove(id))
		r.same("the delete", r.said("before", "after"), "before_stop b", "before_stop a", "before_delete b", "before_delete a",
			"after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
		r.nothingHeld()
	})
}

// An id may be used again when nothing of the one that had it is left: a gateway of OpenShell's does so when a start finds
// nothing. Extensions see the numbers of its calls go on.
func TestAnIDIsUsedAgain(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		id, err := r.createAs("again", "one")
		r.must(err)
		if _, err := r.createAs("again", "two"); !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("while it is there: %v", err)
		}
		last := r.exts[0].answered["again"]
		r.must(r.remove(id.ID))
		r.world.Inject(drivertest.Fault{Call: drivertest.CallCreate, Times: 1, Err: fault.New(fault.Invalid, "no")})
		if _, err := r.createAs("again", "one"); err == nil {
			t.Error("the fault was not met")
		}
		_, err = r.createAs("again", "two")
		r.must(err)
		if n := r.exts[0].answered["again"]; n <= last+2 {
			t.Errorf("the number of the last call is %d; before it was %d", n, last)
		}
		if sb, _ := r.engine.Lookup("again"); sb.Ended != nil || sb.Name != "two" || sb.Run.Number != 1 {
			t.Errorf("it is %+v", sb)
		}
		r.must(r.remove("again"))
		r.nothingHeld()
	})
}

func TestScenario32TheCallerOfACreateGoesAway(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		r.exts[0].on(phase.BeforeCreate, func(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return r.exts[0].effect(c)
		})
		h, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
		r.must(err)
		ctx, away := context.WithTimeout(t.Context(), time.Second)
		defer away()
		if _, err := h.Wait(ctx); !fault.Is(err, fault.DeadlineExceeded) {
			t.Errorf("the caller went away with %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if sb := r.get(id.ID); sb.State != sandbox.Ready {
			t.Errorf("it is %s: %s", sb.State, sb.Reason)
		}
	})
}

func TestScenario33NothingIsHeldWithoutAPhaseThatReleases(t *testing.T) {
	phases := map[string][]phase.Phase{"a": {phase.BeforeCreate}}
	bubble(t, rigOptions{phases: phases}, []string{"a"}, func(t *testing.T, r *rig) {
		r.exts[0].on(phase.BeforeCreate, func(context.Context, *extension.Call) (*extension.Answer, error) {
			return &extension.Answer{Entries: []extension.Entry{{Kind: "thing", ID: "one"}}}, nil
		})
		if _, err := r.create("one"); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "does not declare every phase that releases") {
			t.Errorf("create: %v", err)
		}
		r.nothingHeld()
	})
}

func TestScenario34AnEmptySetReleases(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		r.exts[0].on(phase.AfterCreate, func(context.Context, *extension.Call) (*extension.Answer, error) {
			return &extension.Answer{}, nil
		})
		id, err := r.create("one")
		r.must(err)
		for _, h := range r.engine.Holdings() {
			if h.Subject == id.ID && len(h.Entries[phase.Sandbox]) > 0 {
				t.Errorf("the ledger has %v", h.Entries)
			}
		}
		if len(r.exts[0].holds()) == 0 {
			t.Error("the extension has forgotten what before_create held, and the case shows nothing")
		}
	})
}

func TestScenario35ARunIsReleasedWhereTheCreateFails(t *testing.T) {
	phases := map[string][]phase.Phase{"a": {phase.BeforeStart, phase.AfterStop}}
	bubble(t, rigOptions{phases: phases, drives: true}, []string{"a"}, func(t *testing.T, r *rig) {
		r.world.Inject(drivertest.Fault{Call: drivertest.CallCreate, How: drivertest.FailPartly, Err: fault.New(fault.ResourceExhausted, "full")})
		if _, err := r.create("one"); !fault.Is(err, fault.ResourceExhausted) {
			t.Errorf("create: %v", err)
		}
		r.same("calls", r.said("before", "after", "on_", "driver.Create", "driver.Delete"),
			"before_start a create", "driver.Create", "driver.Delete", "after_stop a launch_failed")
		r.nothingHeld()
	})
}

func TestScenario37ADriverThatDiesInCreate(t *testing.T) {
	for _, how := range []drivertest.How{drivertest.FailBefore, drivertest.FailPartly, drivertest.FailAfter} {
		t.Run(how.String(), func(t *testing.T) {
			bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
				r.world.Inject(drivertest.Fault{Call: drivertest.CallCreate, How: how, Times: 1})
				id, err := r.create("one")
				r.must(err)
				operations, runs, asked := map[string]bool{}, 0, false
				for _, e := range r.world.Log() {
					switch {
					case e.Verb == drivertest.Called && e.Call == drivertest.CallCreate:
						operations[e.Operation] = true
					case e.Verb == drivertest.Called && e.Call == drivertest.CallGet && runs < 2:
						asked = true
					case e.Verb == drivertest.Began:
						runs++
					}
				}
				if len(operations) != 1 || runs != 1 || !asked {
					t.Errorf("operations %v, %d runs, asked %t", operations, runs, asked)
				}
				r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
				r.nothingHeld()
			})
		})
	}
}

func TestScenario38AnIdThatSomebodyElseHasIsNotDeleted(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a"}, func(t *testing.T, r *rig) {
		r.world.Inject(drivertest.Fault{Call: drivertest.CallCreate, Err: fault.New(fault.AlreadyExists, "the name is taken")})
		if _, err := r.create("one"); !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("create: %v", err)
		}
		r.same("calls", r.said("driver.Create", "driver.Delete", "after", "on_"),
			"driver.Create", "after_stop a launch_failed", "on_create_failed a launch_failed")
		r.nothingHeld()
	})
}

func TestScenario39ACreateThatFinishesAfterItsUndo(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		late := r.world.Inject(drivertest.Fault{Call: drivertest.CallCreate, How: drivertest.FinishLate})
		id, err := r.create("one")
		if !fault.Is(err, fault.DeadlineExceeded) {
			t.Errorf("create: %v", err)
		}
		r.nothingHeld()
		time.Sleep(time.Hour)
		late.Release()
		synctest.Wait()
		if sb := r.get(id.ID); !sb.Leftover || sb.State != sandbox.Deleted {
			t.Errorf("it is not reported: %+v", sb)
		}
		r.nothingHeld()
	})
}

func TestScenario44TheStoreIsFullInTheMiddle(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		var full []error
		for range 20 {
			full = append(full, fault.New(fault.ResourceExhausted, "no space left on device"))
		}
		r.exts[0].on(phase.BeforeStart, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			r.journal.FailNext(full...)
			return r.exts[0].effect(c)
		})
		h, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
		r.must(err)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		op, err := r.engine.Operation(t.Context(), r.engine.Unfinished(id.ID))
		r.must(err)
		if !strings.Contains(op.Waiting, "no space left on device") {
			t.Errorf("the operation waits for %q", op.Waiting)
		}
		for _, l := range r.said("before_start") {
			if l != "before_start a create" {
				t.Errorf("it goes on: %s", l)
			}
		}
		_, err = h.Wait(t.Context())
		r.must(err)
		synctest.Wait()
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		r.nothingHeld()
	})
}

package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The scenarios of workspaces, of reconcile and of configurations that change.

func (r *rig) ensure() error { return r.wait(r.engine.EnsureWorkspace("fake", "", sandbox.Origin{})) }

func (r *rig) deleteWorkspace() error {
	return r.wait(r.engine.DeleteWorkspace("fake", sandbox.DefaultWorkspace, sandbox.Origin{}))
}

func (r *rig) workspace() Workspace {
	r.t.Helper()
	ws, err := r.engine.FindWorkspace("fake", sandbox.DefaultWorkspace)
	r.must(err)
	return ws
}

// nets lets an extension contribute a labelled network of its own, and a subnet, to the workspace.
func (x *scripted) nets(subnet, own string) {
	x.on(phase.EnsureWorkspace, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
		a, err := x.effect(c)
		a.Contribute = []plan.Object{{Kind: drivertest.KindNet, Name: drivertest.Main, Fields: map[string]any{"subnet": subnet}}}
		if own != "" {
			a.Contribute = append(a.Contribute, plan.Object{Kind: drivertest.KindNet, Name: own, Fields: map[string]any{"subnet": subnet}})
		}
		return a, err
	})
}

func (r *rig) nets(id string) []string {
	out := []string{}
	for _, o := range r.world.WorkspacePlan(id) {
		out = append(out, fmt.Sprintf("%s=%v", o.Name, o.Fields["subnet"]))
	}
	return out
}

// loads makes a new configuration and tells the engine.
func (r *rig) loads(exts ...*scripted) *Generation {
	g := r.configure(exts...)
	r.engine.Reconfigured()
	return g
}

func TestScenario18ANewConfigurationIsAppliedAtTheNextEnsure(t *testing.T) {
	for _, byCreate := range []bool{true, false} {
		bubble(t, rigOptions{grants: []plan.Pattern{"Net"}}, []string{"a"}, func(t *testing.T, r *rig) {
			r.exts[0].nets("10.0.0.0/24", "extra")
			r.must(r.ensure())
			id := r.workspace().ID
			r.exts[0].nets("10.1.0.0/24", "")
			r.loads(r.exts...)
			synctest.Wait()
			r.same("before", r.nets(id), "extra=10.0.0.0/24", "main=10.0.0.0/24")
			if byCreate {
				_, err := r.create("one")
				r.must(err)
			} else {
				r.must(r.ensure())
			}
			r.same("after", r.nets(id), "extra=10.0.0.0/24", "main=10.1.0.0/24")
			if n := len(r.said("ensure_workspace")); n != 2 {
				t.Errorf("ensured %d times", n)
			}
			for _, sb := range r.engine.Sandboxes(false) {
				r.must(r.remove(sb.ID))
			}
			r.must(r.deleteWorkspace())
			r.same("in the end", r.nets(id))
		})
	}
}

func TestScenario19AnOldOperationDoesNotEnsureBack(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		a := r.exts[0]
		r.must(r.ensure())
		entered, goOn := make(chan struct{}), make(chan struct{})
		a.on(phase.ValidateRequest, func(context.Context, *extension.Call) (*extension.Answer, error) {
			close(entered)
			<-goOn
			return &extension.Answer{}, nil
		})
		h, _, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "old"})
		r.must(err)
		<-entered
		a.on(phase.ValidateRequest, nil)
		a.nets("10.1.0.0/24", "")
		g := r.loads(a)
		r.must(r.ensure())
		r.log.take()
		close(goOn)
		r.must(r.wait(h, nil))
		r.same("ensures", r.said("ensure_workspace"))
		if ws := r.workspace(); ws.Generation != g.ID {
			t.Errorf("it is ensured under %s, want %s", ws.Generation, g.ID)
		}
	})
}

func TestScenario20AFirstEnsureThatFails(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b", "c"}, func(t *testing.T, r *rig) {
		r.exts[1].on(phase.EnsureWorkspace, deny("no network left"))
		if _, err := r.create("one"); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "no network left") {
			t.Errorf("create: %v", err)
		}
		r.same("calls", r.said("ensure", "delete_workspace", "before"), "ensure_workspace a", "ensure_workspace b", "delete_workspace b", "delete_workspace a")
		if ws := r.engine.Workspaces(false); len(ws) > 0 {
			t.Errorf("there is %+v", ws)
		}
		for _, x := range r.exts {
			if held := x.holds(); len(held) > 0 {
				t.Errorf("%s holds %v", x.name, held)
			}
		}
		r.exts[1].on(phase.EnsureWorkspace, nil)
		_, err := r.create("one")
		r.must(err)
	})
}

func TestScenario21AWorkspaceIsNotDeletedUnderACreate(t *testing.T) {
	for _, p := range []phase.Phase{phase.EnsureWorkspace, phase.PreparePlan, phase.BeforeCreate} {
		bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
			a := r.exts[0]
			entered, goOn := make(chan struct{}), make(chan struct{})
			a.on(p, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				close(entered)
				<-goOn
				return a.effect(c)
			})
			h, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "in-the-way"})
			r.must(err)
			<-entered
			if err := r.deleteWorkspace(); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "in-the-way") {
				t.Errorf("delete during %s: %v", p, err)
			}
			close(goOn)
			r.must(r.wait(h, nil))
			a.on(p, nil)
			r.must(r.remove(id.ID))
			// The reverse.
			release := make(chan struct{})
			a.on(phase.DeleteWorkspace, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				<-release
				return a.effect(c)
			})
			d, err := r.engine.DeleteWorkspace("fake", sandbox.DefaultWorkspace, sandbox.Origin{})
			r.must(err)
			synctest.Wait()
			if _, err := r.create("two"); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), `"default"`) {
				t.Errorf("create during the delete: %v", err)
			}
			close(release)
			r.must(r.wait(d, nil))
			_, err = r.create("three")
			r.must(err)
		})
	}
}

func TestScenario22APreviewOfAWorkspaceThatIsNotThere(t *testing.T) {
	bubble(t, rigOptions{drives: true}, []string{"a"}, func(t *testing.T, r *rig) {
		p, err := r.engine.Preview(t.Context(), CreateRequest{Driver: "fake", Workspace: "never", Name: "p"})
		r.must(err)
		if p.WorkspacePlan != nil || p.Plan == nil || len(p.Late) == 0 {
			t.Errorf("the preview: workspace %v, late %v", p.WorkspacePlan, p.Late)
		}
		r.same("calls", r.said(""), "validate_request a create", "prepare_plan a create", "driver.Resolve")
		if n := len(r.engine.Workspaces(true)) + len(r.engine.Sandboxes(true)) + len(r.engine.Holdings()) + r.journal.Commits() + len(r.world.Leftovers()); n != 0 {
			t.Errorf("%d things are there", n)
		}
	})
}

func TestScenario23AWorkspaceWithoutSandboxesIsNoDifference(t *testing.T) {
	bubble(t, rigOptions{authority: true}, []string{"a"}, func(t *testing.T, r *rig) {
		r.must(r.ensure())
		time.Sleep(time.Hour)
		synctest.Wait()
		r.same("calls", r.said("reconcile", "delete_workspace"))
		if held := r.exts[0].holds(); len(held) != 1 {
			t.Errorf("a holds %v", held)
		}
		ops, err := r.engine.Operations(t.Context(), "fake/a")
		r.must(err)
		if len(ops) != 0 {
			t.Errorf("reported: %+v", ops)
		}
	})
}

func TestScenario24ADroppedBindReleasesItsWorkspace(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		r.must(r.ensure())
		old := r.catalog.Current().ID
		r.loads(r.exts[1])
		if !r.engine.References().Generations[old] {
			t.Error("the configuration that a needs is not kept")
		}
		r.exts[0].on(phase.DeleteWorkspace, broken)
		r.must(r.deleteWorkspace())
		if !r.engine.References().Generations[old] {
			t.Error("the configuration that a needs is not kept until it has acknowledged")
		}
		r.exts[0].on(phase.DeleteWorkspace, nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if r.engine.References().Generations[old] {
			t.Error("the configuration is kept for nothing")
		}
		if held := r.exts[0].holds(); len(held) > 0 {
			t.Errorf("a holds %v", held)
		}
	})
}

// plant lets an extension hold something that the ledger does not know.
func (x *scripted) plant(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hold(id+"|sandbox", extension.Entry{Kind: "thing", ID: "orphan"})
}

func (x *scripted) hasOrphan() bool { return strings.Contains(fmt.Sprint(x.holds()), "thing/orphan") }

func TestScenario25NothingIsRepairedDuringADelete(t *testing.T) {
	bubble(t, rigOptions{authority: true}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		a := r.exts[0]
		goOn := make(chan struct{})
		a.on(phase.BeforeDelete, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			a.plant(id)
			select {
			case <-goOn:
			case <-time.After(29 * time.Second):
			}
			return a.effect(c)
		})
		time.Sleep(10*time.Minute - 10*time.Second - time.Since(r.began)%(10*time.Minute))
		h, err := r.engine.DeleteSandbox(id, sandbox.Origin{})
		r.must(err)
		time.Sleep(20 * time.Second) // a pass was answered meanwhile
		ops, err := r.engine.Operations(t.Context(), "fake/a")
		r.must(err)
		if len(ops) != 0 {
			t.Errorf("reported during a delete: %+v", ops)
		}
		close(goOn)
		r.must(r.wait(h, nil))
		time.Sleep(time.Hour)
		synctest.Wait()
		r.same("repairs", r.said("reconcile"))
		r.nothingHeld()
	})
}

func TestScenario26ARepairFindsThatTheLedgerHasItNow(t *testing.T) {
	bubble(t, rigOptions{authority: true}, []string{"a"}, func(t *testing.T, r *rig) {
		id := r.life()
		a := r.exts[0]
		r.must(r.stop(id))
		a.mu.Lock()
		a.hold(id+"|run", extension.Entry{Kind: "thing", ID: "a-before_start-" + id}) // that the next start takes
		a.mu.Unlock()
		time.Sleep(10*time.Minute + time.Second) // the first pass
		synctest.Wait()
		// Before the second one acts, a start begins.
		goOn := make(chan struct{})
		a.on(phase.BeforeStart, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			<-goOn
			return a.effect(c)
		})
		d := r.catalog.Current().Drivers["fake"]
		found := []difference{{subject: id, sandbox: &sandbox.Identity{ID: id, Driver: "fake"}, lifetime: phase.Run, orphan: true,
			entry: extension.Entry{Kind: "thing", ID: "a-before_start-" + id}, number: r.engine.subjects[id].holdings["a"].rec.Number}}
		h, err := r.engine.StartSandbox(id, nil, sandbox.Origin{})
		r.must(err)
		synctest.Wait()
		r.engine.mend(d, d.Chain.Bind("a"), found)
		close(goOn)
		r.must(r.wait(h, nil))
		r.same("repairs", r.said("reconcile"))
		if held := fmt.Sprint(a.holds()); !strings.Contains(held, "a-before_start-"+id) {
			t.Errorf("it was taken away: %v", held)
		}
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

// An after_create whose failure is recorded leaves a doubt; what it may have taken is found and released by reconcile.
func TestARecordedFailureIsReconciled(t *testing.T) {
	bubble(t, rigOptions{authority: true}, []string{"a"}, func(t *testing.T, r *rig) {
		a := r.exts[0]
		a.on(phase.AfterCreate, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			_, _ = a.effect(c)
			return broken(context.Background(), c)
		})
		id := r.life()
		if doubt := r.engine.Holdings()[0].Doubt; !strings.Contains(fmt.Sprint(r.engine.Holdings()), "after_create") {
			t.Fatalf("there is no doubt: %v", doubt)
		}
		time.Sleep(21 * time.Minute) // two passes that agree
		synctest.Wait()
		r.same("repairs", r.said("reconcile"), "reconcile a")
		if held := fmt.Sprint(a.holds()); strings.Contains(held, "a-after_create-"+id) {
			t.Errorf("what nobody knows of is held still: %s", held)
		}
		for _, h := range r.engine.Holdings() {
			if len(h.Doubt) > 0 {
				t.Errorf("the doubt stays: %+v", h)
			}
		}
		r.must(r.remove(id))
		r.nothingHeld()
	})
}

func TestScenario27WhatOnlyHoldsCannotBeObserved(t *testing.T) {
	phases := map[string][]phase.Phase{"a": {phase.BeforeCreate}}
	modes := map[string]pipeline.Mode{"a": pipeline.Observe}
	bubble(t, rigOptions{phases: phases, modes: modes}, []string{"a"}, func(t *testing.T, r *rig) {
		p, err := r.engine.Preview(t.Context(), CreateRequest{Driver: "fake", Name: "p"})
		r.must(err)
		id, err := r.create("one")
		r.must(err)
		r.same("calls", r.said(""))
		ops, err := r.engine.Operations(t.Context(), id.ID)
		r.must(err)
		create := ops[slices.IndexFunc(ops, func(o Operation) bool { return o.Kind == phase.OpCreate })]
		for what, observed := range map[string][]pipeline.Observation{"the preview": p.Observed, "the create": create.Observed} {
			if len(observed) != 1 || fmt.Sprint(observed[0].Late) != "[Box.annotations Box.environment Box.address]" || fmt.Sprint(observed[0].Phases) != "[before_create]" {
				t.Errorf("%s observes %+v", what, observed)
			}
		}
	})
}

func TestScenario29AReloadDuringACreate(t *testing.T) {
	for _, crash := range []bool{false, true} {
		bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
			a, b := r.exts[0], r.exts[1]
			entered := make(chan struct{})
			a.on(phase.BeforeCreate, func(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
				close(entered)
				select {
				case <-time.After(10 * time.Second):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				return a.effect(c)
			})
			_, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
			r.must(err)
			<-entered
			a.on(phase.BeforeCreate, nil)
			old := r.catalog.Current().ID
			r.loads(b)
			if !r.engine.References().Generations[old] {
				t.Error("the configuration of the create is not kept")
			}
			if crash {
				r.crash()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := r.said("before_start a", "after_create a"); len(got) != 2 {
				t.Errorf("the create ended without a: %v", got)
			}
			if got := r.engine.Retiring(r.is(id.ID, sandbox.Ready)); fmt.Sprint(got) != "[a]" {
				t.Errorf("retiring: %v", got)
			}
			r.must(r.remove(id.ID))
			r.nothingHeld()
		})
	}
}

func TestScenario30AStartAfterThatReload(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		id := r.life()
		r.loads(r.exts[1])
		r.must(r.stop(id))
		r.same("the stop", r.said("after_stop"), "after_stop b stopped", "after_stop a stopped")
		r.must(r.start(id))
		r.same("the start", r.said("before_start", "after_ready"), "before_start b start", "after_ready b start")
		if got := r.engine.Retiring(r.get(id)); fmt.Sprint(got) != "[a]" {
			t.Errorf("the record says %v", got)
		}
		r.must(r.remove(id))
		r.same("the delete", r.said("after_delete"), "after_delete b", "after_delete a")
		r.nothingHeld()
	})
}

func TestScenario40TheActivationRuleIsGone(t *testing.T) {
	onRequest := func(g *Generation, rules ...pipeline.Rule) {
		b := g.Drivers["fake"].Chain.Bind("a")
		b.OnRequest, b.Rules = true, rules
	}
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		onRequest(r.catalog.Current(), pipeline.Rule{})
		create := func(name string) (sandbox.Identity, error) {
			h, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: name, Spec: sandbox.Spec{Extensions: []string{"a"}}})
			r.must(err)
			return id, r.wait(h, nil)
		}
		id, err := create("one")
		r.must(err)
		r.must(r.stop(id.ID))
		onRequest(r.configure(r.exts...))
		r.crash()
		r.log.take()
		r.must(r.start(id.ID))
		r.same("the start", r.said("before_start"), "before_start a start")
		if _, err := create("two"); !fault.Is(err, fault.Denied) {
			t.Errorf("a new one that no rule allows: %v", err)
		}
		r.must(r.remove(id.ID))
		r.nothingHeld()
	})
}

func TestScenario43WhatWasAbandonedAndIsHeldStill(t *testing.T) {
	for _, authoritative := range []bool{false, true} {
		bubble(t, rigOptions{authority: authoritative}, []string{"a"}, func(t *testing.T, r *rig) {
			id := r.life()
			a := r.exts[0]
			a.on(phase.AfterDelete, broken)
			r.must(r.remove(id))
			r.is(id, sandbox.Releasing)
			r.must(r.engine.AbandonRelease(t.Context(), id, "a", "its server is gone", "operator"))
			synctest.Wait()
			r.is(id, sandbox.Deleted)
			time.Sleep(35 * time.Minute)
			synctest.Wait()
			ops, err := r.engine.Operations(t.Context(), "fake/a")
			r.must(err)
			if len(ops) == 0 || !strings.Contains(strings.Join(ops[len(ops)-1].Report, "\n"), "orphan: thing a-before_create-"+id) {
				t.Errorf("it is not shown as an orphan: %+v", ops)
			}
			if held := strings.Contains(fmt.Sprint(a.holds()), id); held == authoritative {
				t.Errorf("authoritative %t, and it is held: %t", authoritative, held)
			}
		})
	}
}

package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// orderCase is a history and what it has to come to. Both speak in turns: what was called since the last check.
type orderCase struct {
	features drivertest.Options
	fails    []phase.Phase // one of them is failed by one of the extensions; none: nobody fails
	run      func(r *rig, o *oracle)
}

// inOrder carries a case out for every mix of declared phases that rapid draws.
func inOrder(t *testing.T, c orderCase) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		o := &oracle{mix: mixes(rt), began: map[string][]string{}}
		if len(c.fails) > 0 {
			o.fails = rapid.SampledFrom(c.fails).Draw(rt, "fails")
			o.culprit = rapid.SampledFrom(chainOfThree).Draw(rt, "culprit")
		}
		var wrong []string
		synctest.Test(t, func(t *testing.T) {
			early := &complaints{TB: t}
			r := newRig(early, rigOptions{phases: o.mix, drives: true, features: c.features}, chainOfThree...)
			r.watchReleases(o)
			c.run(r, o)
			synctest.Wait()
			got, want := canonical(r.log.take()), canonical(o.lines)
			if diff := cmp.Diff(want, got); diff != "" {
				early.Errorf("(-contract +engine):\n%s", diff)
			}
			r.close()
			wrong = early.lines
		})
		if len(wrong) > 0 {
			rt.Fatalf("%s", strings.Join(wrong, "\n"))
		}
	})
}

// complaints gathers failures, so that rapid can look for a smaller case.
type complaints struct {
	testing.TB
	lines []string
}

func (c *complaints) Errorf(format string, args ...any) {
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
}

// canonical drops causes where the contract has none, and sorts what is asked at once.
func canonical(lines []string) []string {
	out := []string{}
	for _, l := range lines {
		w := strings.Fields(l)
		if len(w) > 2 && !slices.Contains(withCause, phase.Phase(w[0])) {
			w = w[:2]
		}
		out = append(out, strings.Join(w, " "))
	}
	n := 0
	for n < len(out) && strings.HasPrefix(out[n], "validate_request ") {
		n++
	}
	slices.Sort(out[:n])
	return out
}

// watchReleases scripts the extensions: the culprit fails after its effect; and whoever is asked to release looks
// whether the driver still has something.
func (r *rig) watchReleases(o *oracle) {
	for _, x := range r.exts {
		for _, p := range []phase.Phase{phase.AfterStop, phase.AfterDelete, phase.OnCreateFailed, phase.DeleteWorkspace} {
			x.on(p, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				r.unused(c)
				return x.effect(c)
			})
		}
		if x.name == o.culprit {
			x.on(o.fails, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				_, _ = x.effect(c)
				return &extension.Answer{Denied: true, Diagnostics: []fault.Diagnostic{{Summary: "no"}}}, nil
			})
		}
	}
}

// unused complains where compute may still use what a call releases.
func (r *rig) unused(c *extension.Call) {
	if c.Phase == phase.DeleteWorkspace {
		if left := r.world.WorkspacePlan(c.Workspace.ID); left != nil {
			r.t.Errorf("%s while the driver has %v", c.Phase, left)
		}
		return
	}
	st := r.world.Sandbox(c.Sandbox.ID)
	switch {
	case st == nil:
	case c.Phase != phase.AfterStop:
		r.t.Errorf("%s while the driver has the sandbox, %s", c.Phase, st.State)
	case st.State != driver.Stopped && st.State != driver.Exited && st.State != driver.Lost:
		r.t.Errorf("%s %s while the sandbox is %s", c.Phase, c.Cause, st.State)
	}
}

// gives up what is left, and looks whether that was all.
func (r *rig) cleared(o *oracle, id sandbox.Identity) {
	if sb, err := r.engine.Find(Ref{IDOrName: id.ID}); err == nil && sb.Ended == nil {
		o.remove(sb.Run.Active)
		r.may(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
	}
	if ws := r.engine.Workspaces(false); len(ws) > 0 {
		o.drive("DeleteWorkspace")
		o.release("delete_workspace", "", true)
		r.may(r.wait(r.engine.DeleteWorkspace("fake", sandbox.DefaultWorkspace, sandbox.Origin{})))
	}
	r.nothingHeld()
	for _, x := range r.exts {
		for _, h := range x.holds() {
			r.t.Errorf("in the end %s holds %s", x.name, h)
		}
	}
	if left := r.world.Leftovers(); len(left) > 0 {
		r.t.Errorf("in the end the driver has %v", left)
	}
}

// may complains of an error without ending the case.
func (r *rig) may(err error) {
	if err != nil {
		r.t.Errorf("%v", err)
	}
}

// created creates a sandbox and says so to the oracle; nil: it was undone.
func (r *rig) created(o *oracle) (sandbox.Identity, bool) {
	id, err := r.create("one")
	ok := o.create()
	if ok && !r.opts.features.ManualReady {
		o.up("after_ready", "create")
	}
	if ok != (err == nil) {
		r.t.Errorf("create: %v", err)
	}
	return id, ok
}

func TestOrderOfALife(t *testing.T) {
	inOrder(t, orderCase{run: func(r *rig, o *oracle) {
		id, _ := r.created(o)
		r.may(r.wait(r.engine.StopSandbox(id.ID, sandbox.Origin{})))
		o.down("before_stop")
		o.drive("Stop")
		o.release("after_stop", "stopped", true)
		r.may(r.wait(r.engine.StartSandbox(id.ID, nil, sandbox.Origin{})))
		o.begin("start")
		o.up("after_ready", "start")
		r.cleared(o, id)
	}})
}

func TestOrderOfACreateThatFailsInAPhase(t *testing.T) {
	inOrder(t, orderCase{
		fails: []phase.Phase{"validate_request", "ensure_workspace", "prepare_plan", "before_create", "before_start", "after_create"},
		run: func(r *rig, o *oracle) {
			id, _ := r.created(o)
			r.cleared(o, id)
		}})
}

func TestOrderOfACreateThatTheDriverFails(t *testing.T) {
	for call, err := range map[drivertest.Call]error{
		drivertest.CallEnsureWorkspace: fault.New(fault.Invalid, "no"), drivertest.CallResolve: fault.New(fault.Invalid, "no"),
		drivertest.CallCreate: fault.New(fault.Invalid, "no"), "taken": fault.New(fault.AlreadyExists, "somebody has it"),
	} {
		t.Run(string(call), func(t *testing.T) {
			inOrder(t, orderCase{run: func(r *rig, o *oracle) {
				f := drivertest.Fault{Call: call, Err: err}
				if call == "taken" {
					f.Call = drivertest.CallCreate
				}
				defer r.world.Inject(f).Remove()
				id, got := r.create("one")
				if fault.CodeOf(got) != fault.CodeOf(err) {
					r.t.Errorf("create: %v", got)
				}
				o.failedByTheDriver(call)
				r.cleared(o, id)
			}})
		})
	}
}

func (o *oracle) failedByTheDriver(call drivertest.Call) {
	o.up("validate_request", "")
	o.up("ensure_workspace", "")
	o.drive("EnsureWorkspace")
	if call == drivertest.CallEnsureWorkspace {
		o.drive("DeleteWorkspace")
		o.release("delete_workspace", "", false)
		return
	}
	o.up("prepare_plan", "")
	o.drive("Resolve")
	if call == drivertest.CallResolve {
		return
	}
	o.up("before_create", "")
	o.up("before_start", "create")
	o.drive("Create")
	if call != "taken" {
		o.drive("Delete")
	}
	o.release("after_stop", "launch_failed", false)
	o.release("on_create_failed", "launch_failed", false)
}

func TestOrderOfACreateThatIsOvertaken(t *testing.T) {
	inOrder(t, orderCase{fails: []phase.Phase{"before_create", "before_start"}, run: func(r *rig, o *oracle) {
		held := slices.Contains(o.mix[o.culprit], o.fails)
		entered := make(chan struct{})
		for _, x := range r.exts {
			if x.name == o.culprit {
				x.on(o.fails, func(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
					_, _ = x.effect(c)
					close(entered)
					<-ctx.Done()
					return nil, ctx.Err()
				})
			}
		}
		_, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
		r.must(err)
		synctest.Wait()
		if !held {
			o.create()
			o.up("after_ready", "create")
			r.cleared(o, id)
			return
		}
		<-entered
		r.may(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		o.pure()
		o.drive("Resolve")
		if o.up("before_create", "") {
			o.up("before_start", "create")
			o.release("after_stop", "cancelled", false)
		}
		o.release("on_create_failed", "cancelled", false)
		r.cleared(o, id)
	}})
}

func TestOrderOfAStartThatFails(t *testing.T) {
	for _, byDriver := range []bool{false, true} {
		t.Run(fmt.Sprintf("driver=%t", byDriver), func(t *testing.T) {
			inOrder(t, orderCase{run: func(r *rig, o *oracle) {
				id, _ := r.created(o)
				r.may(r.wait(r.engine.StopSandbox(id.ID, sandbox.Origin{})))
				o.down("before_stop")
				o.drive("Stop")
				o.release("after_stop", "stopped", true)
				if byDriver {
					r.world.Inject(drivertest.Fault{Call: drivertest.CallStart, Err: fault.New(fault.Invalid, "no")})
				} else {
					o.fails, o.culprit = "before_start", "b"
					r.watchReleases(o)
				}
				err := r.wait(r.engine.StartSandbox(id.ID, nil, sandbox.Origin{}))
				switch ok := o.begin("start"); {
				case ok && byDriver:
					o.drive("Stop")
					o.release("after_stop", "launch_failed", false)
				case ok:
					o.up("after_ready", "start")
				}
				if runs := r.get(id.ID).Run.Active; runs != (err == nil) {
					r.t.Errorf("start: %v, and it runs: %t", err, runs)
				}
				r.cleared(o, id)
			}})
		})
	}
}

func TestOrderOfAnExit(t *testing.T) {
	inOrder(t, orderCase{run: func(r *rig, o *oracle) {
		id, _ := r.created(o)
		r.world.Exit(id.ID, 3)
		synctest.Wait()
		o.release("after_stop", "process_exited", true)
		if sb := r.get(id.ID); sb.State != sandbox.Exited || *sb.Run.ExitCode != 3 {
			r.t.Errorf("it is %s, %v", sb.State, sb.Run.ExitCode)
		}
		r.cleared(o, id)
	}})
}

func TestOrderOfARestore(t *testing.T) {
	for _, how := range []string{"at once", "refused", "driver"} {
		t.Run(how, func(t *testing.T) {
			inOrder(t, orderCase{run: func(r *rig, o *oracle) {
				id, _ := r.created(o)
				var inject *drivertest.Injected
				switch how {
				case "refused":
					o.fails, o.culprit = "before_start", "b"
					r.watchReleases(o)
				case "driver":
					inject = r.world.Inject(drivertest.Fault{Call: drivertest.CallStart, Err: fault.New(fault.Invalid, "no")})
				}
				r.world.Lose(id.ID)
				synctest.Wait()
				o.release("after_stop", "lost", true)
				began := o.begin("restore")
				if how == "driver" {
					o.drive("Stop")
					o.release("after_stop", "launch_failed", false)
					inject.Remove()
					began = false
				}
				if !began {
					if sb := r.get(id.ID); sb.State != sandbox.Failing || sb.Reason == "" {
						r.t.Errorf("it is %s: %s", sb.State, sb.Reason)
					}
					o.fails = ""
					r.exts[1].on(phase.BeforeStart, nil)
					time.Sleep(11 * time.Minute)
					synctest.Wait()
					o.begin("restore")
				}
				o.up("after_ready", "restore")
				if sb := r.get(id.ID); sb.State != sandbox.Ready {
					r.t.Errorf("it is %s: %s", sb.State, sb.Reason)
				}
				r.cleared(o, id)
			}})
		})
	}
}

func TestOrderOfWhatNeverBecameReady(t *testing.T) {
	inOrder(t, orderCase{features: drivertest.Options{ManualReady: true}, run: func(r *rig, o *oracle) {
		id, _ := r.created(o)
		r.cleared(o, id)
	}})
}

func TestOrderOfWhatIsStoppedOrGone(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		for _, gone := range []bool{false, true} {
			t.Run(fmt.Sprintf("stopped=%t gone=%t", stopped, gone), func(t *testing.T) {
				inOrder(t, orderCase{run: func(r *rig, o *oracle) {
					id, _ := r.created(o)
					if stopped {
						r.may(r.wait(r.engine.StopSandbox(id.ID, sandbox.Origin{})))
						o.down("before_stop")
						o.drive("Stop")
						o.release("after_stop", "stopped", true)
					}
					if gone {
						r.world.Vanish(id.ID)
						synctest.Wait()
						o.gone(!stopped)
					}
					r.cleared(o, id)
				}})
			})
		}
	}
}

func TestOrderOfAPreview(t *testing.T) {
	inOrder(t, orderCase{fails: []phase.Phase{"", "validate_request", "prepare_plan"}, run: func(r *rig, o *oracle) {
		_, err := r.engine.Preview(context.Background(), CreateRequest{Driver: "fake", Name: "p"})
		ok := o.up("validate_request", "") && o.up("prepare_plan", "")
		if ok {
			o.drive("Resolve")
		}
		if ok != (err == nil) {
			r.t.Errorf("preview: %v", err)
		}
		if n := r.journal.Commits(); n != 0 {
			r.t.Errorf("a preview has made %d commits", n)
		}
		r.cleared(o, sandbox.Identity{})
	}})
}

func TestOrderOfAWorkspace(t *testing.T) {
	for _, how := range []string{"well", "refused", "driver"} {
		t.Run(how, func(t *testing.T) {
			inOrder(t, orderCase{run: func(r *rig, o *oracle) {
				ensure := func() error { return r.wait(r.engine.EnsureWorkspace("fake", "", sandbox.Origin{})) }
				r.may(ensure())
				o.ensureWorkspace()
				switch how {
				case "refused":
					o.fails, o.culprit = "ensure_workspace", "b"
					r.watchReleases(o)
				case "driver":
					defer r.world.Inject(drivertest.Fault{Call: drivertest.CallEnsureWorkspace, Err: fault.New(fault.Invalid, "no")}).Remove()
				}
				err := ensure() // later: it stays as it was
				ok := o.up("ensure_workspace", "")
				if ok {
					o.drive("EnsureWorkspace")
				}
				if (err == nil) != (ok && how != "driver") {
					r.t.Errorf("the second ensure: %v", err)
				}
				if ws := r.engine.Workspaces(false); len(ws) != 1 || ws[0].State != WorkspaceEnsured {
					r.t.Errorf("the workspace is %+v", ws)
				}
				r.cleared(o, sandbox.Identity{})
			}})
		})
	}
}

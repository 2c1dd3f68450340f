package drivertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The deliberate faults, by the group of checks that find them.

func brokenPlans() []broken {
	return []broken{
		{"another version at each Describe", "Describe answers the same when asked twice", func(f *faulty) {
			n := 0
			f.describe = func(ctx context.Context) (*driver.Description, error) {
				d, err := f.Fake.Describe(ctx)
				n++
				d.Version = fmt.Sprint(n)
				return d, err
			}
		}},
		{"another instance after it was opened again", "Describe answers the same when asked twice", func(f *faulty) {
			f.described(func(d *driver.Description) { d.Instance = fmt.Sprintf("%p", f) })
		}},
		{"a point of a kind that is not there", "Describe is coherent", func(f *faulty) {
			f.described(func(d *driver.Description) {
				d.Points = append(slices.Clone(d.Points), plan.Point{Pattern: "Car.wheels", Phases: []phase.Phase{phase.PreparePlan}})
			})
		}},
		{"a point that is open in a phase of the other scope", "Describe is coherent", func(f *faulty) {
			f.described(func(d *driver.Description) { d.Points[0].Phases = []phase.Phase{phase.EnsureWorkspace} })
		}},
		{"a feature without its point", "Describe is coherent", func(f *faulty) {
			f.described(func(d *driver.Description) {
				d.Features = append(d.Features, extension.Feature{Name: "x", Point: "Box.size"})
			})
		}},
		{"logs kept and not said", "Describe is coherent", func(f *faulty) {
			f.described(func(d *driver.Description) {
				d.Features = slices.DeleteFunc(d.Features, func(x extension.Feature) bool { return x.Name == "logs" })
			})
		}},
		{"other layers at each call", "Layers is pure", func(f *faulty) {
			n := 0
			f.layered(func(layers []plan.Layer) []plan.Layer {
				n++
				layers[2].Objects[0].Fields["size"] = fmt.Sprint(n)
				return layers
			})
		}},
		{"Layers changes the request", "Layers is pure", func(f *faulty) {
			f.layers = func(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
				r.Spec.Environment["PATH"] = "/bin"
				return f.Fake.Layers(ctx, r)
			}
		}},
		{"a layer in an extension's name", "Layers is pure", func(f *faulty) {
			f.layered(func(layers []plan.Layer) []plan.Layer { return append(layers, plan.Layer{Owner: "somebody"}) })
		}},
		{"any configuration is accepted", "Layers refuses what cannot be used", func(f *faulty) {
			f.layers = func(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
				free := *r
				free.Config = nil
				return f.Fake.Layers(ctx, &free)
			}
		}},
		{"other workspace layers at each call", "WorkspaceLayers is pure", func(f *faulty) {
			n := 0
			f.wsLayers = func(ctx context.Context, w sandbox.Workspace) ([]plan.Layer, error) {
				n++
				w.ID += fmt.Sprint(n)
				return f.Fake.WorkspaceLayers(ctx, w)
			}
		}},
		{"Resolve makes it", "Resolve is pure", func(f *faulty) {
			f.resolve = func(ctx context.Context, r *driver.ResolveRequest) error {
				return f.Fake.Create(ctx, &driver.CreateRequest{Identity: r.Identity, Operation: "resolve", Run: 1, Plan: r.Plan, Workspace: r.Workspace})
			}
		}},
		{"Resolve wants the workspace", "Resolve answers before the workspace was ensured", func(f *faulty) {
			f.resolve = func(ctx context.Context, r *driver.ResolveRequest) error {
				if r.Workspace == nil {
					return fault.New(fault.FailedPrecondition, "there is no workspace")
				}
				return f.Fake.Resolve(ctx, r)
			}
		}},
		{"requirements are not looked at", "Resolve refuses a required feature that is missing", func(f *faulty) {
			f.resolve = func(ctx context.Context, r *driver.ResolveRequest) error {
				free := *r
				free.Requires = nil
				return f.Fake.Resolve(ctx, &free)
			}
		}},
	}
}

func (f *faulty) described(change func(*driver.Description)) {
	f.describe = func(ctx context.Context) (*driver.Description, error) {
		d, err := f.Fake.Describe(ctx)
		if err == nil {
			change(d)
		}
		return d, err
	}
}

func (f *faulty) layered(change func([]plan.Layer) []plan.Layer) {
	f.layers = func(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
		layers, err := f.Fake.Layers(ctx, r)
		if err != nil {
			return nil, err
		}
		return change(layers), nil
	}
}

func brokenMaking() []broken {
	return []broken{
		{"the operation's mark is not kept", "Create makes a marked sandbox that becomes ready", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.Operation = "" })
		}},
		{"it is never ready", "Create makes a marked sandbox that becomes ready", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.State = driver.Running })
		}},
		{"the status has no objects", "Create makes a marked sandbox that becomes ready", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.Objects = nil })
		}},
		{"the status shows the token", "Create makes a marked sandbox that becomes ready", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.Message = "started with token " + f.world.Token(s.Identity.ID) })
		}},
		{"List shows it twice", "Create makes a marked sandbox that becomes ready", func(f *faulty) {
			f.list = func(ctx context.Context) ([]*driver.Status, error) {
				all, err := f.Fake.List(ctx)
				return append(all, all...), err
			}
		}},
		{"a second Create is AlreadyExists", "Create repeated by its operation makes nothing twice", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if f.know(r.Identity) != nil {
					return alreadyThere()
				}
				return f.Fake.Create(ctx, r)
			}
		}},
		{"a second Create makes it anew", "Create repeated by its operation makes nothing twice", func(f *faulty) {
			n := 0
			f.create = func(ctx context.Context, r *driver.CreateRequest) error { n++; return f.Fake.Create(ctx, r) }
			f.edit(func(s *driver.Status) { s.Objects = append(s.Objects, make([]driver.RealObject, n)...) })
		}},
		{"another operation's Create succeeds", "Create by another operation is AlreadyExists and changes nothing", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if f.know(r.Identity) != nil {
					return nil
				}
				return f.Fake.Create(ctx, r)
			}
		}},
		{"another operation's Create is refused and undoes what it found", "Create by another operation is AlreadyExists and changes nothing", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if s := f.know(r.Identity); s != nil {
					f.destroy(s)
					return alreadyThere()
				}
				return f.Fake.Create(ctx, r)
			}
		}},
		{"long ids are cut off", "Create takes ids and names at their limits", func(f *faulty) {
			seen := map[string]bool{}
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				short := r.Identity.ID[:min(len(r.Identity.ID), 64)]
				if seen[short] {
					return alreadyThere()
				}
				seen[short] = true
				return f.Fake.Create(ctx, r)
			}
		}},
		{"Get of nothing is another error", "Get of nothing is NotFound", func(f *faulty) {
			f.get = func(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
				s, err := f.Fake.Get(ctx, id)
				if err != nil {
					return nil, fault.New(fault.Unavailable, "perhaps later")
				}
				return s, nil
			}
		}},
		{"Stop of nothing fails", "Stop and Delete of nothing succeed", func(f *faulty) {
			f.stop = func(ctx context.Context, id sandbox.Identity) error {
				if f.know(id) == nil {
					return notThere()
				}
				return f.Fake.Stop(ctx, id)
			}
		}},
		{"Delete of nothing fails", "Stop and Delete of nothing succeed", func(f *faulty) { f.deletesWhat(func(s *driver.Status) error { return absent(s) }) }},
		{"Start of nothing succeeds", "Start of nothing is NotFound", func(f *faulty) {
			f.start = func(context.Context, *driver.StartRequest) error { return nil }
		}},
		{"Delete of what runs does nothing", "Delete leaves nothing of a sandbox that runs", func(f *faulty) {
			f.deletesUnless(func(s *driver.Status) bool { return runs(s.State) })
		}},
		{"Delete of what is stopped does nothing", "Delete leaves nothing of a sandbox that is stopped", func(f *faulty) {
			f.deletesUnless(func(s *driver.Status) bool { return s.State == driver.Stopped })
		}},
		{"Delete does not look at the operation's mark", "Delete under another operation's mark removes nothing", func(f *faulty) {
			f.remove = func(_ context.Context, r *driver.DeleteRequest) error {
				if s := f.know(r.Identity); s != nil {
					f.destroy(s)
				}
				return nil
			}
		}},
		{"Delete takes the whole workspace's sandboxes", "Delete leaves other sandboxes alone", func(f *faulty) {
			f.remove = func(_ context.Context, r *driver.DeleteRequest) error {
				for _, s := range f.all() {
					if s.Identity.WorkspaceID == r.Identity.WorkspaceID {
						f.destroy(s)
					}
				}
				return nil
			}
		}},
		{"names are never free again", "A name is free again after Delete", func(f *faulty) {
			seen := map[string]bool{}
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if seen[r.Identity.Name] {
					return alreadyThere()
				}
				seen[r.Identity.Name] = true
				return f.Fake.Create(ctx, r)
			}
		}},
		{"names are unique over all workspaces", "Sandboxes of one name live in two workspaces", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				for _, s := range f.all() {
					if s.Identity.Name == r.Identity.Name && s.Identity.ID != r.Identity.ID {
						return alreadyThere()
					}
				}
				return f.Fake.Create(ctx, r)
			}
		}},
		{"there is room for four", "Many sandboxes are made and removed at once", func(f *faulty) {
			var asked atomic.Int64 // how many are there at once depends on the machine
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if asked.Add(1) > 4 {
					return fault.New(fault.ResourceExhausted, "there is room for four")
				}
				return f.Fake.Create(ctx, r)
			}
		}},
	}
}

// deletesUnless makes Delete succeed without effect where leave says so.
func (f *faulty) deletesUnless(leave func(s *driver.Status) bool) {
	f.remove = func(ctx context.Context, r *driver.DeleteRequest) error {
		if s := f.know(r.Identity); s != nil && leave(s) {
			return nil
		}
		return f.Fake.Delete(ctx, r)
	}
}

// deletesWhat makes Delete fail where judge does, which is asked with nil for what is not there.
func (f *faulty) deletesWhat(judge func(s *driver.Status) error) {
	f.remove = func(ctx context.Context, r *driver.DeleteRequest) error {
		if err := judge(f.know(r.Identity)); err != nil {
			return err
		}
		return f.Fake.Delete(ctx, r)
	}
}

func absent(s *driver.Status) error {
	if s == nil {
		return notThere()
	}
	return nil
}

func brokenRuns() []broken {
	return []broken{
		{"Stop does nothing", "Stop ends the run and keeps the sandbox", func(f *faulty) {
			f.stop = func(context.Context, sandbox.Identity) error { return nil }
		}},
		{"Stop removes the sandbox", "Stop ends the run and keeps the sandbox", func(f *faulty) {
			f.stop = func(_ context.Context, id sandbox.Identity) error {
				if s := f.know(id); s != nil {
					f.destroy(s)
				}
				return nil
			}
		}},
		{"a second Stop fails", "Stop of what is stopped succeeds", func(f *faulty) {
			f.stop = func(ctx context.Context, id sandbox.Identity) error {
				if s := f.know(id); s != nil && s.State == driver.Stopped {
					return fault.New(fault.FailedPrecondition, "it is stopped")
				}
				return f.Fake.Stop(ctx, id)
			}
		}},
		{"the number of the run is not kept", "Start begins the next run", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.Run = 1 })
		}},
		{"a second Start fails", "Start repeated changes nothing", func(f *faulty) {
			f.start = func(ctx context.Context, r *driver.StartRequest) error {
				if s := f.know(r.Identity); s != nil && runs(s.State) {
					return fault.New(fault.FailedPrecondition, "it runs")
				}
				return f.Fake.Start(ctx, r)
			}
		}},
		{"the address of the plan is not used", "Start applies the plan that it is given", func(f *faulty) {
			f.edit(func(s *driver.Status) { s.Addresses = []string{"192.0.2.1"} })
		}},
		{"what was lost is shown as stopped", "A run that was lost is started again", func(f *faulty) {
			f.edit(func(s *driver.Status) {
				if s.State == driver.Lost {
					s.State = driver.Stopped
				}
			})
		}},
		{"what someone removed is still shown", "What someone else removed is gone", func(f *faulty) {
			seen := map[string]*driver.Status{}
			f.edit(func(s *driver.Status) { seen[s.Identity.ID] = s })
			get := f.get
			f.get = func(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
				s, err := get(ctx, id)
				if kept := seen[id.ID]; err != nil && kept != nil {
					return kept, nil
				}
				return s, err
			}
		}},
	}
}

func brokenWorkspaces() []broken {
	return []broken{
		{"a second EnsureWorkspace is AlreadyExists", "EnsureWorkspace repeated changes nothing", func(f *faulty) {
			f.ensure = func(ctx context.Context, r *driver.WorkspaceRequest) error {
				if f.world.WorkspacePlan(r.Workspace.ID) != nil {
					return alreadyThere()
				}
				return f.Fake.EnsureWorkspace(ctx, r)
			}
		}},
		{"a second EnsureWorkspace ends what is in it", "EnsureWorkspace repeated changes nothing", func(f *faulty) {
			f.ensure = func(ctx context.Context, r *driver.WorkspaceRequest) error {
				for _, s := range f.all() {
					f.world.Lose(s.Identity.ID)
				}
				return f.Fake.EnsureWorkspace(ctx, r)
			}
		}},
		{"an EnsureWorkspace that was cut short is in the way", "EnsureWorkspace under a context that has ended is finished by repeating it", func(f *faulty) {
			half := map[string]bool{}
			f.ensure = func(ctx context.Context, r *driver.WorkspaceRequest) error {
				half[r.Workspace.ID] = half[r.Workspace.ID] || ctx.Err() != nil
				if half[r.Workspace.ID] {
					return alreadyThere()
				}
				return f.Fake.EnsureWorkspace(ctx, r)
			}
		}},
		{"the last sandbox takes the workspace with it", "A workspace outlives its sandboxes", func(f *faulty) {
			f.remove = func(ctx context.Context, r *driver.DeleteRequest) error {
				err := f.Fake.Delete(ctx, r)
				if len(f.all()) == 0 {
					_ = f.Fake.DeleteWorkspace(ctx, sandbox.Workspace{ID: r.Identity.WorkspaceID})
				}
				return err
			}
		}},
		{"DeleteWorkspace of nothing fails", "DeleteWorkspace of nothing succeeds", func(f *faulty) {
			f.workspace = func(ctx context.Context, w sandbox.Workspace) error {
				if f.world.WorkspacePlan(w.ID) == nil {
					return notThere()
				}
				return f.Fake.DeleteWorkspace(ctx, w)
			}
		}},
		{"DeleteWorkspace takes all of them", "DeleteWorkspace leaves other workspaces alone", func(f *faulty) {
			f.workspace = func(context.Context, sandbox.Workspace) error {
				return f.drop(func(sandbox.Workspace) bool { return true })
			}
		}},
		{"DeleteWorkspace goes by the name", "A workspace comes into being again under its name", func(f *faulty) {
			f.workspace = func(_ context.Context, w sandbox.Workspace) error {
				return f.drop(func(x sandbox.Workspace) bool { return x.Name == w.Name })
			}
		}},
	}
}

// drop removes workspaces, whoever may be in them.
func (f *faulty) drop(which func(sandbox.Workspace) bool) error {
	for _, w := range f.world.Workspaces() {
		if which(w) {
			f.world.mu.Lock()
			delete(f.world.nets, w.ID)
			f.world.mu.Unlock()
		}
	}
	return nil
}

func brokenInterruptions() []broken {
	return []broken{
		{"a Create under an ended context leaves what bears no mark", "A Create under a context that has ended is settled by Delete", func(f *faulty) {
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if ctx.Err() == nil {
					return f.Fake.Create(ctx, r)
				}
				unmarked := *r
				unmarked.Operation = ""
				_ = f.Fake.Create(context.WithoutCancel(ctx), &unmarked)
				return ctx.Err()
			}
		}},
		{"a cancelled Create leaves what Delete does not know", "A Create that was cancelled is settled by Delete", func(f *faulty) { f.leavesHalf() }},
		{"a cancelled Create is in the way of its repetition", "A Create that was cancelled is finished by repeating it", func(f *faulty) { f.leavesHalf() }},
		{"what a cancelled Start began is not stopped", "A Start that was cancelled is settled by Stop", func(f *faulty) {
			cut := false
			f.start = func(ctx context.Context, r *driver.StartRequest) error {
				cut = cut || ctx.Err() != nil
				return f.Fake.Start(ctx, r)
			}
			f.stop = func(ctx context.Context, id sandbox.Identity) error {
				if cut {
					return nil
				}
				return f.Fake.Stop(ctx, id)
			}
		}},
		{"a cancelled Start is in the way of its repetition", "A Start that was cancelled is finished by repeating it", func(f *faulty) {
			tried := false
			f.start = func(ctx context.Context, r *driver.StartRequest) error {
				if tried {
					return fault.New(fault.FailedPrecondition, "it is starting")
				}
				tried = true
				return f.Fake.Start(ctx, r)
			}
		}},
		{"a cancelled Delete cannot be repeated", "Stop and Delete that were cancelled are finished by repeating them", func(f *faulty) {
			f.deletesWhat(absent)
		}},
		{"Close ends what runs", "Close leaves sandboxes running, and a driver opened again finds them", func(f *faulty) {
			f.close = func() error {
				for _, s := range f.all() {
					f.world.Exit(s.Identity.ID, 143)
				}
				return f.Fake.Close()
			}
		}},
		{"Close removes what is stopped", "A driver opened again finds what was stopped", func(f *faulty) {
			f.close = func() error {
				for _, s := range f.all() {
					if s.State == driver.Stopped {
						f.destroy(s)
					}
				}
				return f.Fake.Close()
			}
		}},
		{"a driver knows only what it has made itself", "A driver opened again repeats a Create of before", func(f *faulty) {
			own := map[string]bool{}
			f.create = func(ctx context.Context, r *driver.CreateRequest) error {
				if f.know(r.Identity) != nil && !own[r.Identity.ID] {
					return alreadyThere()
				}
				own[r.Identity.ID] = true
				return f.Fake.Create(ctx, r)
			}
		}},
	}
}

// leavesHalf makes the first Create end with its context and leave something under another operation's mark.
func (f *faulty) leavesHalf() {
	var first sync.Once
	f.create = func(ctx context.Context, r *driver.CreateRequest) (err error) {
		err = alreadyThere()
		first.Do(func() {
			other := *r
			other.Operation = "other"
			_ = f.Fake.Create(ctx, &other)
			<-ctx.Done()
			err = ctx.Err()
		})
		return err
	}
}

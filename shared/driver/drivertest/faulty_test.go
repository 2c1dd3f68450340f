package drivertest

import (
	"context"
	"io"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// faulty is a driver that breaks one promise.
type faulty struct {
	*Fake
	describe  func(ctx context.Context) (*driver.Description, error)
	layers    func(ctx context.Context, r *driver.Request) ([]plan.Layer, error)
	resolve   func(ctx context.Context, r *driver.ResolveRequest) error
	create    func(ctx context.Context, r *driver.CreateRequest) error
	start     func(ctx context.Context, r *driver.StartRequest) error
	stop      func(ctx context.Context, id sandbox.Identity) error
	remove    func(ctx context.Context, r *driver.DeleteRequest) error
	get       func(ctx context.Context, id sandbox.Identity) (*driver.Status, error)
	watch     func(ctx context.Context, fn func(driver.Event) error) error
	ensure    func(ctx context.Context, r *driver.WorkspaceRequest) error
	workspace func(ctx context.Context, w sandbox.Workspace) error
	logs      func(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error
	close     func() error
	wsLayers  func(ctx context.Context, w sandbox.Workspace) ([]plan.Layer, error)
	list      func(ctx context.Context) ([]*driver.Status, error)
}

func newFaulty(f *Fake) *faulty {
	return &faulty{Fake: f, describe: f.Describe, layers: f.Layers, resolve: f.Resolve, create: f.Create, start: f.Start, stop: f.Stop,
		remove: f.Delete, get: f.Get, watch: f.Watch, ensure: f.EnsureWorkspace, workspace: f.DeleteWorkspace, logs: f.Logs,
		close: f.Close, wsLayers: f.WorkspaceLayers, list: f.List}
}

func (f *faulty) Describe(ctx context.Context) (*driver.Description, error) { return f.describe(ctx) }
func (f *faulty) Layers(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
	return f.layers(ctx, r)
}
func (f *faulty) WorkspaceLayers(ctx context.Context, w sandbox.Workspace) ([]plan.Layer, error) {
	return f.wsLayers(ctx, w)
}
func (f *faulty) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	return f.resolve(ctx, r)
}
func (f *faulty) Create(ctx context.Context, r *driver.CreateRequest) error { return f.create(ctx, r) }
func (f *faulty) Start(ctx context.Context, r *driver.StartRequest) error   { return f.start(ctx, r) }
func (f *faulty) Stop(ctx context.Context, id sandbox.Identity) error       { return f.stop(ctx, id) }
func (f *faulty) Delete(ctx context.Context, r *driver.DeleteRequest) error { return f.remove(ctx, r) }
func (f *faulty) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	return f.get(ctx, id)
}
func (f *faulty) List(ctx context.Context) ([]*driver.Status, error) { return f.list(ctx) }
func (f *faulty) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return f.watch(ctx, fn)
}
func (f *faulty) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	return f.ensure(ctx, r)
}
func (f *faulty) DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error {
	return f.workspace(ctx, w)
}
func (f *faulty) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	return f.logs(ctx, id, follow, out)
}
func (f *faulty) Close() error { return f.close() }

// broken is one deliberate fault and the check that has to find it.
type broken struct {
	fault string
	found string // name of a check that must fail; others may too
	with  func(f *faulty)
}

// edit changes every status that the driver shows.
func (f *faulty) edit(change func(*driver.Status)) {
	get, list, watch := f.get, f.list, f.watch
	f.get = func(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
		s, err := get(ctx, id)
		if err == nil {
			change(s)
		}
		return s, err
	}
	f.list = func(ctx context.Context) ([]*driver.Status, error) {
		all, err := list(ctx)
		for _, s := range all {
			change(s)
		}
		return all, err
	}
	f.watch = func(ctx context.Context, fn func(driver.Event) error) error {
		return watch(ctx, func(e driver.Event) error {
			if e.Status != nil {
				change(e.Status)
			}
			return fn(e)
		})
	}
}

// filter lets only some events through.
func (f *faulty) filter(ok func(e driver.Event, synced bool) bool) {
	watch := f.watch
	f.watch = func(ctx context.Context, fn func(driver.Event) error) error {
		synced := false
		return watch(ctx, func(e driver.Event) error {
			pass := ok(e, synced)
			synced = synced || e.Synced
			if !pass {
				return nil
			}
			return fn(e)
		})
	}
}

// all returns the sandboxes that there are, as the world knows them.
func (f *faulty) all() []*driver.Status { return f.world.Sandboxes() }

// know returns what the world knows of one sandbox, or nil.
func (f *faulty) know(id sandbox.Identity) *driver.Status { return f.world.Sandbox(id.ID) }

// destroy removes a sandbox as it should be removed.
func (f *faulty) destroy(s *driver.Status) {
	_ = f.Fake.Delete(context.Background(), &driver.DeleteRequest{Identity: s.Identity, Operation: s.Operation})
}

func alreadyThere() error { return fault.New(fault.AlreadyExists, "it exists") }

func notThere() error { return fault.New(fault.NotFound, "it does not exist") }

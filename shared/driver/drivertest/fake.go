package drivertest

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Fake is a driver over a World. Several may be open on one world, as when a gateway was replaced.
type Fake struct {
	world  *World
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	busy map[string]Call // subject -> the mutating call that is under way for it
}

var (
	_ driver.Driver = (*Fake)(nil)
	_ driver.Logger = (*Fake)(nil)
)

func errClosed() error { return fault.New(fault.Unavailable, "the driver is closed") }

// World returns the world that the driver works on.
func (f *Fake) World() *World { return f.world }

// Describe implements driver.Driver.
func (f *Fake) Describe(ctx context.Context) (*driver.Description, error) {
	var d driver.Description
	err := f.do(ctx, Moment{Call: CallDescribe}, func(bool) error {
		d = *f.world.about
		d.Features, d.Kinds, d.Points = slices.Clone(d.Features), slices.Clone(d.Kinds), slices.Clone(d.Points)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &d, nil
}

// Layers implements driver.Driver.
func (f *Fake) Layers(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
	var layers []plan.Layer
	err := f.do(ctx, Moment{Call: CallLayers, ID: r.Identity.ID}, func(bool) (err error) {
		layers, err = boxLayers(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return layers, nil
}

// WorkspaceLayers implements driver.Driver.
func (f *Fake) WorkspaceLayers(ctx context.Context, ws sandbox.Workspace) ([]plan.Layer, error) {
	if err := f.do(ctx, Moment{Call: CallWorkspaceLayers, ID: ws.ID}, func(bool) error { return nil }); err != nil {
		return nil, err
	}
	return netLayers(ws), nil
}

// Resolve implements driver.Driver.
func (f *Fake) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	return f.do(ctx, Moment{Call: CallResolve, ID: r.Identity.ID}, func(bool) error {
		for _, name := range r.Requires {
			if !slices.ContainsFunc(f.world.about.Features, func(x extension.Feature) bool { return x.Name == name }) {
				return fault.New(fault.FailedPrecondition, "feature %q is required and this driver does not have it", name)
			}
		}
		return f.world.judge(r.Identity, objects(r.Plan), objects(r.Workspace), fault.Conflict)
	})
}

// Create implements driver.Driver.
func (f *Fake) Create(ctx context.Context, r *driver.CreateRequest) error {
	m := Moment{Call: CallCreate, ID: r.Identity.ID, Operation: r.Operation, Run: r.Run}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.create(r, partly) })
}

// Start implements driver.Driver.
func (f *Fake) Start(ctx context.Context, r *driver.StartRequest) error {
	m := Moment{Call: CallStart, ID: r.Identity.ID, Operation: r.Operation, Run: r.Run}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.start(r, partly) })
}

// Stop implements driver.Driver.
func (f *Fake) Stop(ctx context.Context, id sandbox.Identity) error {
	m := Moment{Call: CallStop, ID: id.ID}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.stop(id, partly) })
}

// Delete implements driver.Driver.
func (f *Fake) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	m := Moment{Call: CallDelete, ID: r.Identity.ID, Operation: r.Operation}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.remove(r, partly) })
}

// Get implements driver.Driver.
func (f *Fake) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	var s *driver.Status
	err := f.do(ctx, Moment{Call: CallGet, ID: id.ID}, func(bool) error {
		b := f.world.boxes[key{id.Driver, id.ID}]
		if b == nil {
			return notFound(id)
		}
		s = b.clone()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// List implements driver.Driver.
func (f *Fake) List(ctx context.Context) ([]*driver.Status, error) {
	var all []*driver.Status
	err := f.do(ctx, Moment{Call: CallList}, func(bool) error {
		all = f.world.snapshot()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// EnsureWorkspace implements driver.Driver.
func (f *Fake) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	m := Moment{Call: CallEnsureWorkspace, ID: r.Workspace.ID}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.ensure(r, partly) })
}

// DeleteWorkspace implements driver.Driver.
func (f *Fake) DeleteWorkspace(ctx context.Context, ws sandbox.Workspace) error {
	m := Moment{Call: CallDeleteWorkspace, ID: ws.ID}
	return f.mutate(ctx, m, func(partly bool) error { return f.world.removeWorkspace(ws, partly) })
}

// Logs implements driver.Logger.
func (f *Fake) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	if err := f.do(ctx, Moment{Call: CallLogs, ID: id.ID}, func(bool) error { return nil }); err != nil {
		return err
	}
	written := 0
	for {
		output, changed, running, err := f.world.output(id)
		if err != nil {
			return err
		}
		n, err := out.Write(output[written:])
		if err != nil {
			return err
		}
		written += n
		if !follow || !running {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-f.closed:
			return errClosed()
		}
	}
}

// Close implements driver.Driver. Calls that are held answer that the driver is closed.
func (f *Fake) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// mutate is do for the calls of which a gateway makes one at a time for one sandbox or workspace.
func (f *Fake) mutate(ctx context.Context, m Moment, effect func(partly bool) error) error {
	f.mu.Lock()
	other, taken := f.busy[m.ID]
	if !taken {
		f.busy[m.ID] = m.Call
	}
	f.mu.Unlock()
	if taken {
		f.world.mu.Lock()
		f.world.violated("%s of %s was called while %s of it was under way", m.Call, m.ID, other)
		f.world.mu.Unlock()
		return f.do(ctx, m, effect)
	}
	defer func() {
		f.mu.Lock()
		delete(f.busy, m.ID)
		f.mu.Unlock()
	}()
	return f.do(ctx, m, effect)
}

// do makes one call: it notes both ends, asks the hook, and carries out the effect under the world's lock, in the way
// that an injected fault wants it.
func (f *Fake) do(ctx context.Context, m Moment, effect func(partly bool) error) error {
	w := f.world
	entry := Entry{Verb: Called, Call: m.Call, ID: m.ID, Operation: m.Operation, Run: m.Run}
	w.mu.Lock()
	w.note(entry)
	struck := w.match(m)
	w.mu.Unlock()

	err := f.attempt(ctx, m, struck, func(partly bool) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		return effect(partly)
	})

	entry.Verb, entry.Code = Answered, fault.CodeOf(err)
	w.mu.Lock()
	w.note(entry)
	w.mu.Unlock()
	return err
}

func (f *Fake) attempt(ctx context.Context, m Moment, struck *Injected, effect func(partly bool) error) error {
	select {
	case <-f.closed:
		return errClosed()
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.hook(ctx, m); err != nil {
		return err
	}
	var err error
	if struck == nil {
		err = effect(false)
	} else {
		err = struck.strike(ctx, f.closed, effect)
	}
	if err != nil {
		return err
	}
	m.After = true
	return f.hook(ctx, m)
}

func (f *Fake) hook(ctx context.Context, m Moment) error {
	if f.world.options.Hook == nil {
		return nil
	}
	return f.world.options.Hook(ctx, m)
}

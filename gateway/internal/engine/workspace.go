package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// enterWorkspace returns the workspace of a create, ensured under the configuration, and counts the create in from the
// beginning, so that the workspace is not deleted under it. leaveWorkspace counts it out.
func (e *Engine) enterWorkspace(ctx context.Context, gen *Generation, d *Driver, sb *Sandbox, origin sandbox.Origin) (*Workspace, error) {
	e.mu.Lock()
	key := sb.Driver + "/" + sb.Workspace
	if s := e.subjects[e.workspaces[key]]; s != nil && s.closing {
		e.mu.Unlock()
		return nil, fault.New(fault.FailedPrecondition, "workspace %q of driver %q is being deleted", sb.Workspace, sb.Driver)
	}
	e.arriving[key] = append(e.arriving[key], sb.Name)
	e.mu.Unlock()
	for {
		if ws := e.ensured(gen, key); ws != nil {
			return ws, nil
		}
		if _, err := e.ensureWorkspace(gen, d, sb.Workspace, origin).Wait(ctx); err != nil {
			e.leaveWorkspace(sb)
			return nil, err
		}
	}
}

func (e *Engine) ensured(gen *Generation, key string) *Workspace {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.subjects[e.workspaces[key]]; s != nil && s.workspace != nil && ensuredUnder(s.workspace, gen) {
		return s.workspace
	}
	return nil
}

// ensuredUnder reports whether a workspace is as the configuration wants it, or a newer one: it never goes back.
func ensuredUnder(ws *Workspace, gen *Generation) bool {
	return ws.State == WorkspaceEnsured && ws.Generation >= gen.ID
}

func (e *Engine) leaveWorkspace(sb *Sandbox) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := sb.Driver + "/" + sb.Workspace
	if i := slices.Index(e.arriving[key], sb.Name); i >= 0 {
		e.arriving[key] = slices.Delete(e.arriving[key], i, i+1)
	}
	if len(e.arriving[key]) == 0 {
		delete(e.arriving, key)
	}
	e.notify()
}

// EnsureWorkspace brings a workspace into being, or applies its objects anew.
func (e *Engine) EnsureWorkspace(driver, name string, origin sandbox.Origin) (*Handle, error) {
	if name == "" {
		name = sandbox.DefaultWorkspace
	}
	if err := sandbox.CheckName("workspace", name); err != nil {
		return nil, err
	}
	gen, done := e.current()
	defer done()
	d := gen.Drivers[driver]
	e.mu.Lock()
	refused := e.closing
	e.mu.Unlock()
	switch {
	case d == nil:
		return nil, fault.New(fault.NotFound, "there is no driver %q", driver)
	case refused:
		return nil, errClosed
	}
	return e.queueEnsure(gen, d, name, origin, false), nil
}

// ensureWorkspace queues an ensure that does nothing where the workspace is ensured by the time its turn comes.
func (e *Engine) ensureWorkspace(gen *Generation, d *Driver, name string, origin sandbox.Origin) *Handle {
	return e.queueEnsure(gen, d, name, origin, true)
}

func (e *Engine) queueEnsure(gen *Generation, d *Driver, name string, origin sandbox.Origin, onlyIfNeeded bool) *Handle {
	e.mu.Lock()
	key := d.Name + "/" + name
	id := e.workspaces[key]
	if id == "" {
		id = e.NewID()
		e.workspaces[key] = id
	}
	s := e.subjectOf(id)
	e.mu.Unlock()
	op := e.newOperation(phase.OpWorkspaceEnsure, id, origin)
	op.Driver, op.Workspace, op.Name, op.Generation = d.Name, name, name, gen.ID
	h := newHandle(op)
	done := e.again(gen)
	s.push(&task{fixed: true, run: func(ctx context.Context) {
		defer done()
		e.runEnsure(ctx, s, op, h, gen, d, onlyIfNeeded)
	}}, false)
	return h
}

func (e *Engine) runEnsure(ctx context.Context, s *subject, op Operation, h *Handle, gen *Generation, d *Driver, onlyIfNeeded bool) {
	e.mu.Lock()
	ws, closing := s.workspace, s.closing
	e.mu.Unlock()
	switch {
	case s.failure != nil:
		h.finish(op, s.failure)
		return
	case ws != nil && (ws.Ended != nil || closing):
		h.finish(op, fault.New(fault.FailedPrecondition, "workspace %q of driver %q is being deleted", op.Name, d.Name))
		return
	case ws != nil && onlyIfNeeded && ensuredUnder(ws, gen):
		e.endUnneeded(op, h)
		return
	}
	layers, err := d.Driver.WorkspaceLayers(ctx, sandbox.Workspace{ID: s.id, Driver: d.Name, Name: op.Name})
	if err != nil {
		err = pipeline.Shorten(err)
		e.failEnsure(s, ws, d.Name, op.Name, err)
		h.finish(op, err)
		return
	}
	if ws == nil {
		op.First = true
		ws = &Workspace{Workspace: sandbox.Workspace{ID: s.id, Driver: d.Name, Name: op.Name}, State: WorkspaceEnsuring,
			Created: e.Now(), Instance: d.Description.Instance}
	}
	x := e.workspaceExecution(ctx, s, op, h, gen, d, ws)
	x.updateWorkspace(func(ws *Workspace) { ws.Pending = layers })
	x.run()
	if _, err := h.Wait(ctx); err != nil && op.First {
		e.failEnsure(s, nil, d.Name, op.Name, err)
	}
}

// failEnsure lets those who wait for the first ensure of a workspace fail with it, and the next one begin anew.
func (e *Engine) failEnsure(s *subject, ws *Workspace, driver, name string, err error) {
	if ws != nil || e.ctx.Err() != nil {
		return
	}
	s.failure = err
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.workspaces[driver+"/"+name] == s.id {
		delete(e.workspaces, driver+"/"+name)
	}
	if s.workspace == nil {
		delete(e.subjects, s.id)
	}
}

// workspaceExecution makes the execution of an operation of a workspace, new or resumed.
func (e *Engine) workspaceExecution(ctx context.Context, s *subject, op Operation, h *Handle, gen *Generation, d *Driver, ws *Workspace) *execution {
	op.State, op.Generation = OperationRunning, gen.ID
	x := &execution{e: e, s: s, gen: gen, d: d, op: op, ws: ws, ctx: ctx, handle: h, steps: map[string]*Step{}, skip: make(chan struct{})}
	x.trace()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, st := range e.steps[op.ID] {
		x.steps[st.unit()] = st
		x.seq = max(x.seq, st.Seq+1)
		x.written = true
	}
	return x
}

// DeleteWorkspace removes a workspace and what is held for it. It is refused while the driver has a sandbox of it.
func (e *Engine) DeleteWorkspace(driver, name string, origin sandbox.Origin) (*Handle, error) {
	e.mu.Lock()
	s := e.subjects[e.workspaces[driver+"/"+name]]
	refused := e.closing
	e.mu.Unlock()
	switch {
	case refused:
		return nil, errClosed
	case s == nil:
		return nil, fault.New(fault.NotFound, "driver %q has no workspace %q", driver, name)
	}
	if err := e.closeWorkspace(s, driver, name); err != nil {
		return nil, err
	}
	op := e.newOperation(phase.OpWorkspaceDelete, s.id, origin)
	op.Driver, op.Workspace, op.Name = driver, name, name
	h := newHandle(op)
	s.push(&task{fixed: true, run: func(ctx context.Context) { e.runWorkspaceDelete(ctx, s, op, h) }}, false)
	return h, nil
}

// closeWorkspace keeps creates out of a workspace from now on, unless something is in the way.
func (e *Engine) closeWorkspace(s *subject, driver, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for _, o := range e.subjects {
		if o.sandbox != nil && o.sandbox.WorkspaceID == s.id && o.sandbox.Ended == nil {
			names = append(names, o.sandbox.Name)
		}
	}
	arriving := slices.Sorted(slices.Values(e.arriving[driver+"/"+name]))
	slices.Sort(names)
	switch {
	case len(names) > 0:
		return fault.New(fault.FailedPrecondition, "workspace %q of driver %q has %d sandboxes: %s", name, driver, len(names),
			strings.Join(names[:min(len(names), 10)], ", "))
	case len(arriving) > 0:
		return fault.New(fault.FailedPrecondition, "workspace %q of driver %q: %d creates are in flight in it: %s", name, driver,
			len(arriving), strings.Join(arriving[:min(len(arriving), 10)], ", "))
	}
	s.closing = true
	return nil
}

func (e *Engine) runWorkspaceDelete(ctx context.Context, s *subject, op Operation, h *Handle) {
	e.mu.Lock()
	ws := s.workspace
	e.mu.Unlock()
	if ws == nil || ws.Ended != nil {
		e.endUnneeded(op, h)
		return
	}
	gen, done := e.current()
	defer done()
	d := gen.Drivers[op.Driver]
	if d == nil {
		h.finish(op, fault.New(fault.FailedPrecondition, "driver %q is not configured", op.Driver))
		return
	}
	x := e.workspaceExecution(ctx, s, op, h, gen, d, ws)
	x.updateWorkspace(func(ws *Workspace) { ws.State = WorkspaceDeleting })
	x.run()
	if _, err := h.Wait(ctx); err != nil && !x.written {
		e.mu.Lock()
		s.closing = false
		e.mu.Unlock()
	}
}

package engine

import (
	"context"
	"slices"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// StartSandbox begins a new run of a sandbox that does not run. One that runs already is left as it is. The request is
// sandbox.Spec.StartRequest of the run, and of those that restore it.
func (e *Engine) StartSandbox(id string, request []byte, origin sandbox.Origin) (*Handle, error) {
	return e.request(id, phase.OpStart, origin, func(sb *Sandbox) { sb.Spec.StartRequest = request }, func(sb *Sandbox) error {
		switch sb.State {
		case sandbox.Stopped, sandbox.Exited, sandbox.Failing:
			if !sb.Run.Active {
				return nil
			}
		case sandbox.Starting, sandbox.Ready:
		default:
			return fault.New(fault.FailedPrecondition, "sandbox %q is %s", sb.Name, sb.State)
		}
		return errNothingToDo
	})
}

// StopSandbox ends the run of a sandbox and keeps what a start needs. One that does not run is left as it is.
func (e *Engine) StopSandbox(id string, origin sandbox.Origin) (*Handle, error) {
	return e.request(id, phase.OpStop, origin, func(*Sandbox) {}, func(sb *Sandbox) error {
		switch {
		case sb.Ended != nil || sb.State == sandbox.Deleting:
			return fault.New(fault.FailedPrecondition, "sandbox %q is %s", sb.Name, sb.State)
		case sb.Run.Active || sb.State == sandbox.Failing:
			return nil
		}
		return errNothingToDo
	})
}

// DeleteSandbox removes a sandbox. It does not wait for what is in flight: that is ended early, and counts as begun.
// Deleting one that is gone or on its way out joins that.
func (e *Engine) DeleteSandbox(id string, origin sandbox.Origin) (*Handle, error) {
	e.mu.Lock()
	s := e.subjects[id]
	refused := e.closing
	e.mu.Unlock()
	switch {
	case s == nil || s.workspace != nil:
		return nil, fault.New(fault.NotFound, "there is no sandbox with the id %q", id)
	case refused:
		return nil, errClosed
	}
	op := e.newOperation(phase.OpDelete, id, origin)
	h := newHandle(op)
	if err := e.queueDelete(s, op, h); err != nil {
		return nil, err
	}
	return h, nil
}

// queueDelete writes the delete down before it ends early what is in flight, so that it is not forgotten.
func (e *Engine) queueDelete(s *subject, op Operation, h *Handle) error {
	var tx change
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	if sb != nil && sb.Ended == nil && sb.State != sandbox.Deleting && s.busy() {
		op.Driver, op.Workspace, op.Name, op.Generation = sb.Driver, sb.Workspace, sb.Name, e.Catalog.Current().ID
		op.State = OperationQueued
		e.putOperation(&tx, op)
		last := len(tx.shows) - 1
		show := tx.shows[last]
		tx.shows[last] = func() { // at the moment at which it is accepted, so that no step begins after that
			show()
			s.interruptAll()
		}
		if err := e.commit(&tx, nil); err != nil {
			return err
		}
		h.accept()
	}
	s.overtake(&task{fixed: true, run: func(ctx context.Context) { e.runDelete(ctx, s, op, h) }})
	return nil
}

// runDelete carries out a delete when its turn has come.
func (e *Engine) runDelete(ctx context.Context, s *subject, op Operation, h *Handle) {
	s.mu.Lock()
	s.overtaken = false
	s.mu.Unlock()
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	if sb == nil || sb.Ended != nil {
		e.endUnneeded(op, h)
		return
	}
	e.begin(ctx, s, op, h, func(x *execution) {
		x.op.Ran = sb.Run.Active
		x.putOperation() // it was queued
		x.update(func(sb *Sandbox) { sb.State, sb.Reason = sandbox.Deleting, "" })
	})
}

// endUnneeded ends an operation that found nothing to do. Only one that was written down needs a commit.
func (e *Engine) endUnneeded(op Operation, h *Handle) {
	e.mu.Lock()
	_, written := e.operations[op.ID]
	e.mu.Unlock()
	now := e.Now()
	op.State, op.Ended = OperationDone, &now
	if written {
		var tx change
		e.putOperation(&tx, op)
		if err := e.commit(&tx, func(error) {}); err != nil {
			h.finish(op, err)
			return
		}
	}
	h.accept()
	h.finish(op, nil)
}

// doorGateway is the origin of what the gateway does by itself.
const doorGateway = "gateway"

var errNothingToDo = fault.New(fault.OK, "nothing to do")

// request queues an operation of a sandbox. When its turn comes, ready says whether it is to be done: nil, or
// errNothingToDo, or why not; and first what it changes of the sandbox with its first commit.
func (e *Engine) request(id string, kind phase.Operation, origin sandbox.Origin, first func(*Sandbox), ready func(*Sandbox) error) (*Handle, error) {
	e.mu.Lock()
	s := e.subjects[id]
	exists := s != nil && s.sandbox != nil
	refused := e.closing
	e.mu.Unlock()
	switch {
	case refused:
		return nil, errClosed
	case !exists:
		return nil, fault.New(fault.NotFound, "there is no sandbox with the id %q", id)
	case s.isOvertaken():
		return nil, fault.New(fault.FailedPrecondition, "sandbox %q is being deleted", id)
	}
	op := e.newOperation(kind, id, origin)
	h := newHandle(op)
	e.enqueue(s, op, h, first, ready)
	return h, nil
}

// enqueue queues an operation of a sandbox, whoever wants it.
func (e *Engine) enqueue(s *subject, op Operation, h *Handle, first func(*Sandbox), ready func(*Sandbox) error) {
	s.push(&task{run: func(ctx context.Context) {
		e.mu.Lock()
		sb := s.sandbox
		e.mu.Unlock()
		if s.isOvertaken() {
			h.finish(op, errOvertaken)
			return
		}
		switch err := ready(sb); err {
		case nil:
			e.begin(ctx, s, op, h, func(x *execution) {
				x.starts(sb)
				x.update(first)
			})
		case errNothingToDo:
			e.endUnneeded(op, h)
		default:
			h.finish(op, err)
		}
	}}, false)
}

// starts puts into the first commit what an operation changes at once.
func (x *execution) starts(sb *Sandbox) {
	x.op.Was = sb.State
	switch x.op.Kind {
	case phase.OpStart:
		x.state(sandbox.Starting, "")
	case phase.OpStop:
		x.state(sandbox.Stopping, "")
		x.update(func(sb *Sandbox) { sb.Lost = false })
	case phase.OpRestore:
		x.update(func(sb *Sandbox) { sb.Lost = true })
	case phase.OpReady:
		x.update(func(sb *Sandbox) { sb.State, sb.Reason, sb.Failed, sb.Run.Ready = sandbox.Ready, "", false, true })
	}
}

func (e *Engine) newOperation(kind phase.Operation, subject string, origin sandbox.Origin) Operation {
	return Operation{ID: e.NewID(), Kind: kind, Subject: subject, Origin: origin, State: OperationRunning, Started: e.Now(),
		Trace: origin.Trace}
}

// begin carries out a new operation of a sandbox under the current configuration.
func (e *Engine) begin(ctx context.Context, s *subject, op Operation, h *Handle, first func(*execution)) {
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	gen, done := e.current()
	defer done()
	x, err := e.execution(ctx, s, op, h, gen, sb)
	if err != nil {
		h.finish(op, err)
		return
	}
	first(x)
	x.run()
}

// execution makes the execution of an operation of a sandbox, new or resumed.
func (e *Engine) execution(ctx context.Context, s *subject, op Operation, h *Handle, gen *Generation, sb *Sandbox) (*execution, error) {
	d := gen.Drivers[sb.Driver]
	if d == nil {
		return nil, fault.New(fault.FailedPrecondition, "driver %q is not configured", sb.Driver)
	}
	op.State, op.Generation, op.Driver, op.Workspace, op.Name = OperationRunning, gen.ID, sb.Driver, sb.Workspace, sb.Name
	x := &execution{e: e, s: s, gen: gen, d: d, op: op, sb: sb, ctx: ctx, handle: h, steps: map[string]*Step{},
		skip: make(chan struct{})}
	x.trace()
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.subjects[sb.WorkspaceID]; w != nil {
		x.ws = w.workspace
	}
	x.written = e.operations[op.ID] != nil
	for _, st := range e.steps[op.ID] {
		x.steps[st.unit()] = st
		x.seq = max(x.seq, st.Seq+1)
		x.written = true
	}
	return x, nil
}

// prepare computes the plans that the operation's calls see. Those of a new create are there already.
func (x *execution) prepare() error {
	if x.plan != nil {
		return nil
	}
	if x.sb == nil {
		return x.compute(x.ws.Pending)
	}
	if x.ws != nil {
		p, err := x.d.Schema.Compute(x.ws.Layers)
		if err != nil {
			return err
		}
		x.wsPlan = p
	}
	return x.compute(x.sb.Layers)
}

// beginRun begins a new run from the stored layers, without what before_start contributed to earlier runs.
func (x *execution) beginRun() error {
	if x.op.Run != 0 {
		return nil // before the gateway stopped
	}
	x.update(func(sb *Sandbox) {
		sb.Layers = plan.Without(sb.Layers, func(l plan.Layer) bool { return l.Phase == phase.BeforeStart })
		sb.Run = Run{Run: sandbox.Run{Number: sb.Run.Number + 1, Started: x.e.Now()}, Active: true, Cause: startCause[x.op.Kind]}
		sb.State, sb.Reason, sb.Failed = sandbox.Starting, "", false
	})
	x.op.Run = x.sb.Run.Number
	x.putOperation()
	return x.compute(x.sb.Layers)
}

// pipelineSubject says who a call is about.
func (e *Engine) pipelineSubject(d *Driver, sb *Sandbox) *pipeline.Subject {
	subject := &pipeline.Subject{
		Sandbox:   &sb.Identity,
		Workspace: sandbox.Workspace{ID: sb.WorkspaceID, Driver: sb.Driver, Name: sb.Workspace},
		Spec:      &sb.Spec, Origin: sb.Origin, Run: sb.Run.Number, Addresses: sb.Addresses,
		Active: []string{},
	}
	if len(subject.Spec.Labels) == 0 {
		spec := sb.Spec
		spec.Labels, spec.Image, spec.Resources = sb.Labels, sb.Image, sb.Resources
		subject.Spec = &spec
	}
	for _, b := range sb.Binds {
		subject.Active = append(subject.Active, b.Extension)
		if b.Without {
			subject.Without = append(subject.Without, b.Extension)
		}
	}
	if d.Split != nil {
		// It was split without error when the sandbox was accepted.
		subject.ExtensionsConfig, _ = d.Split(sb.Spec.DriverConfig)
	}
	subject.Without = append(subject.Without, slices.Clone(sb.Run.Without)...)
	return subject
}

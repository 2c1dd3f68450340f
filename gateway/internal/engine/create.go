package engine

import (
	"context"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// CreateRequest is a sandbox that is asked for.
type CreateRequest struct {
	ID        string // "": a new one
	Driver    string
	Workspace string // "": sandbox.DefaultWorkspace
	Name      string // "": made from the id
	Spec      sandbox.Spec
	Origin    sandbox.Origin
}

// CreateSandbox creates a sandbox. The handle's Accepted returns once validate_request, prepare_plan and
// driver.Resolve have agreed and the plan is journaled; an error before that has touched nothing.
func (e *Engine) CreateSandbox(r CreateRequest) (*Handle, sandbox.Identity, error) {
	sb, err := e.candidate(r)
	if err != nil {
		return nil, sandbox.Identity{}, err
	}
	s, err := e.reserve(sb)
	if err != nil {
		return nil, sandbox.Identity{}, err
	}
	op := e.newOperation(phase.OpCreate, sb.ID, r.Origin)
	op.Driver, op.Workspace, op.Name, op.Run = sb.Driver, sb.Workspace, sb.Name, 1
	sb.Operation = op.ID
	id := sb.Identity // from here on the record is the subject's
	h := newHandle(op)
	s.push(&task{run: func(ctx context.Context) {
		sb.Numbers = s.numbersBefore()
		e.create(ctx, s, op, h, sb)
		e.unreserve(s, sb)
	}}, false)
	return h, id, nil
}

// candidate checks what can be checked without asking anybody.
func (e *Engine) candidate(r CreateRequest) (*Sandbox, error) {
	if r.ID == "" {
		r.ID = e.NewID()
	}
	if r.Workspace == "" {
		r.Workspace = sandbox.DefaultWorkspace
	}
	if r.Name == "" {
		r.Name = "sb-" + r.ID[max(0, len(r.ID)-12):]
	}
	for _, err := range []error{sandbox.CheckID("id", r.ID), sandbox.CheckName("name", r.Name),
		sandbox.CheckName("workspace", r.Workspace), r.Spec.Check()} {
		if err != nil {
			return nil, err
		}
	}
	gen := e.Catalog.Current()
	d := gen.Drivers[r.Driver]
	if d == nil {
		return nil, fault.New(fault.NotFound, "there is no driver %q", r.Driver)
	}
	if d.Split != nil {
		if _, err := d.Split(r.Spec.DriverConfig); err != nil {
			return nil, err
		}
	}
	return &Sandbox{
		Identity: sandbox.Identity{ID: r.ID, Driver: r.Driver, Workspace: r.Workspace, Name: r.Name},
		State:    sandbox.Creating, Created: e.Now(), Origin: r.Origin,
		Image: r.Spec.Image, Labels: r.Spec.Labels, Resources: r.Spec.Resources, Spec: r.Spec,
		Instance: d.Description.Instance,
	}, nil
}

// reserve keeps id and name for a sandbox that is about to be journaled.
func (e *Engine) reserve(sb *Sandbox) (*subject, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := sb.Driver + "/" + sb.Workspace + "/" + sb.Name
	switch {
	case e.closing:
		return nil, errClosed
	case e.Catalog.Current().Drivers[sb.Driver] == nil: // a reload has dropped it since
		return nil, fault.New(fault.NotFound, "there is no driver %q", sb.Driver)
	case e.subjects[sb.ID] != nil && !e.subjects[sb.ID].reusable():
		return nil, fault.New(fault.AlreadyExists, "there is a sandbox with the id %q", sb.ID)
	case e.names[key] != "":
		return nil, fault.New(fault.AlreadyExists, "driver %q has a sandbox %q in workspace %q already", sb.Driver, sb.Name, sb.Workspace)
	}
	e.names[key] = sb.ID
	s := e.subjectOf(sb.ID)
	s.reserved = sb
	return s, nil
}

// unreserve gives up id and name of a sandbox that was not journaled after all.
func (e *Engine) unreserve(s *subject, sb *Sandbox) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.reserved == sb {
		s.reserved = nil
	}
	if s.sandbox != nil && s.sandbox.Operation == sb.Operation {
		return
	}
	if s.sandbox == nil {
		delete(e.subjects, sb.ID)
	}
	if key := sb.Driver + "/" + sb.Workspace + "/" + sb.Name; e.names[key] == sb.ID {
		delete(e.names, key)
	}
	e.notify()
}

// create does the pure part, then carries the create out.
func (e *Engine) create(ctx context.Context, s *subject, op Operation, h *Handle, sb *Sandbox) {
	gen, done := e.current()
	defer done()
	ctx, span := e.traced(ctx, &op)
	x, err := e.plannedCreate(ctx, s, op, h, gen, sb)
	defer func() { endSpan(span, err) }()
	if err != nil {
		e.auditRefusal(op, err)
		h.finish(op, err)
		return
	}
	x.run()
	err = x.opError()
	e.leaveWorkspace(sb)
}

// plannedCreate asks everyone who decides before anything is touched. It counts the create in with its workspace.
func (e *Engine) plannedCreate(ctx context.Context, s *subject, op Operation, h *Handle, gen *Generation, sb *Sandbox) (*execution, error) {
	d := gen.Drivers[sb.Driver]
	if d == nil {
		return nil, fault.New(fault.NotFound, "there is no driver %q", sb.Driver)
	}
	p := &planner{e: e, d: d, op: &op, sb: sb}
	if err := p.within(ctx, p.validate); err != nil {
		return nil, err
	}
	within := op.Origin
	within.Trace = op.Trace
	ws, err := e.enterWorkspace(ctx, gen, d, sb, within)
	if err != nil {
		return nil, err
	}
	sb.WorkspaceID = ws.ID
	if err := p.within(ctx, func(ctx context.Context) error { return p.plan(ctx, ws) }); err != nil {
		e.leaveWorkspace(sb)
		return nil, err
	}
	sb.Generation = gen.ID
	sb.Run = Run{Run: sandbox.Run{Number: 1, Started: e.Now()}, Active: true, Cause: phase.CauseCreate}
	x, err := e.execution(ctx, s, op, h, gen, sb)
	if err != nil {
		e.leaveWorkspace(sb)
		return nil, err
	}
	x.plan, x.wsPlan = p.prepared.Plan, p.wsPlan
	x.update(func(*Sandbox) {})
	x.putOperation()
	for i := range p.calls {
		x.auditPure(&p.calls[i])
	}
	for _, l := range p.prepared.Layers {
		if l.Phase == phase.PreparePlan {
			x.auditLayer(l, nil, p.prepared.Plan)
		}
	}
	return x, nil
}

// planner runs the pure phases of a create or of its preview.
type planner struct {
	e        *Engine
	d        *Driver
	op       *Operation
	sb       *Sandbox
	preview  bool
	notes    []string // what the driver could not judge
	prepared *pipeline.Prepared
	wsPlan   *plan.Plan // nil where the workspace was never ensured
	calls    []pipeline.CallReport
}

// within runs fn with a place among max_operations and under the chain's budget.
func (p *planner) within(ctx context.Context, fn func(context.Context) error) error {
	if err := p.e.acquire(ctx, p.op); err != nil {
		return err
	}
	defer p.e.release()
	ctx, cancel := context.WithTimeoutCause(ctx, p.d.ChainTimeout,
		fault.New(fault.DeadlineExceeded, "the chain's budget of %v is used up", p.d.ChainTimeout))
	defer cancel()
	return fn(ctx)
}

func (p *planner) step() pipeline.Step {
	return pipeline.Step{Operation: p.op.ID, Kind: p.op.Kind, Key: p.op.ID, Cause: phase.CauseCreate, Preview: p.preview}
}

// validate decides which extensions are active and asks them.
func (p *planner) validate(ctx context.Context) error {
	subject := p.e.pipelineSubject(p.d, p.sb)
	active, err := p.d.Chain.Activate(subject)
	if err != nil {
		return err
	}
	p.sb.Binds = nil
	for _, name := range active {
		p.sb.Binds = append(p.sb.Binds, ActiveBind{Extension: name})
	}
	calls, without, err := p.d.Chain.Validate(ctx, p.step(), p.e.pipelineSubject(p.d, p.sb))
	p.calls = append(p.calls, calls...)
	p.leaveOut(without)
	return err
}

// plan gathers the layers and has the driver judge them. ws is nil where the workspace was never ensured.
func (p *planner) plan(ctx context.Context, ws *Workspace) error {
	if ws != nil && ws.State == WorkspaceEnsured {
		var err error
		if p.wsPlan, err = p.d.Schema.Compute(ws.Layers); err != nil {
			return err
		}
	}
	layers, err := p.d.Driver.Layers(ctx, &driver.Request{Identity: p.sb.Identity, Spec: p.sb.Spec, Config: p.sb.Spec.DriverConfig})
	if err != nil {
		return pipeline.Shorten(err)
	}
	prepared, err := p.d.Chain.Prepare(ctx, p.step(), p.e.pipelineSubject(p.d, p.sb), layers, p.wsPlan)
	if prepared != nil {
		p.calls = append(p.calls, prepared.Calls...)
	}
	if err != nil {
		return err
	}
	p.prepared = prepared
	p.leaveOut(prepared.Without)
	p.sb.Layers, p.sb.Requires, p.op.Observed = prepared.Layers, prepared.Requires, prepared.Observed
	return pipeline.Shorten(p.d.Driver.Resolve(ctx, &driver.ResolveRequest{Identity: p.sb.Identity, Request: p.sb.Spec.Request,
		Plan: prepared.Plan, Workspace: p.wsPlan, Requires: p.sb.required(p.op.Without), Preview: p.preview,
		Note: func(text string) { p.notes = append(p.notes, text) }}))
}

func (p *planner) leaveOut(names []string) {
	for _, name := range names {
		for i := range p.sb.Binds {
			if p.sb.Binds[i].Extension == name && !p.sb.Binds[i].Without {
				p.sb.Binds[i].Without = true
				p.op.Without = append(p.op.Without, name)
			}
		}
	}
}

func (x *execution) auditPure(c *pipeline.CallReport) {
	a := AuditEntry{What: "call", Extension: c.Extension, Phase: c.Phase, Outcome: string(StepOK), Duration: c.Duration, Text: c.Note}
	s := Step{Operation: x.op.ID, Seq: x.seq, Phase: c.Phase, Extension: c.Extension, State: StepOK, Attempt: 1,
		Started: c.Started, Duration: c.Duration, Note: c.Note}
	if c.Err != nil {
		a.Outcome, a.Text = string(StepFailed), c.Err.Error()
		s.State, s.Error, s.Code = StepLeftOut, c.Err.Error(), fault.CodeOf(c.Err).String()
	}
	x.seq++
	x.putStep(s)
	x.audit(a)
}

// auditRefusal writes down that a create was refused. It is not worth failing for.
func (e *Engine) auditRefusal(op Operation, err error) {
	var tx change
	e.putAudit(&tx, AuditEntry{What: "decision", Subject: op.Subject, Operation: op.ID, Outcome: "refused",
		Actor: op.Origin.Caller, Text: "create of " + op.Driver + "/" + op.Workspace + "/" + op.Name + ": " + err.Error()})
	if cerr := e.commit(&tx, nil); cerr != nil {
		e.Logger.Warn("a refusal was not written to the audit", "err", cerr)
	}
}

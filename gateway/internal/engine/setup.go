package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// setup calls a setup phase through the chain, in bind order.
func (x *execution) setup(p phase.Phase) error {
	for _, b := range x.participants(p) {
		if err := x.overtaken(); err != nil {
			return err
		}
		if err := x.call(p, b); err != nil {
			return err
		}
	}
	return nil
}

// participants returns the binds that get a setup phase of this operation: declared, enforced, active for the
// sandbox, in its chain still, and not left out.
func (x *execution) participants(p phase.Phase) []*pipeline.Bind {
	var out []*pipeline.Bind
	for _, b := range x.d.Chain.Binds() {
		if b.Phases.Has(p) && b.Mode != pipeline.Observe && x.takesPart(b) {
			out = append(out, b)
		}
	}
	return out
}

func (x *execution) takesPart(b *pipeline.Bind) bool {
	if slices.Contains(x.op.Without, b.Extension) {
		return false
	}
	if x.sb == nil {
		return !b.OnRequest // a workspace is prepared by those that take part in every sandbox of it
	}
	if x.op.Kind == phase.OpReady && slices.Contains(x.sb.Run.Without, b.Extension) {
		return false // the run goes without it
	}
	return slices.Contains(x.sb.Binds, ActiveBind{Extension: b.Extension})
}

// call makes one setup call, with its attempts, and decides what its failure means.
func (x *execution) call(p phase.Phase, b *pipeline.Bind) error {
	s := x.begin(Step{Phase: p, Extension: b.Extension, Cause: x.setupCause()})
	if s == nil {
		return nil
	}
	if disabled, bypass := x.e.Disabled(b.Extension); disabled {
		return x.withoutDisabled(s, b, bypass)
	}
	h := x.e.holdingOf(x.s, b.Extension, x.d.Name, x.sb == nil)
	if err := h.enter(x.ctx); err != nil {
		return err
	}
	defer h.leave()
	for policy := b.Policy(p); ; {
		s.Attempt++
		if err := x.intend(s, h); err != nil {
			return err
		}
		if err := x.overtaken(); err != nil { // while the intent was written: it counts as started, and is not made
			x.end(s, StepCancelled, err)
			return err
		}
		r := x.ask(b.Extension, x.request(p, s, h))
		if x.e.ctx.Err() != nil {
			return x.e.Err()
		}
		if r.Err == nil {
			return x.answered(s, h, r)
		}
		if x.ctx.Err() != nil {
			x.end(s, StepCancelled, r.Err)
			return context.Cause(x.ctx)
		}
		if r.Decision || s.Attempt >= policy.Attempts || x.usedUp() {
			return x.failedSetup(s, h, b, r, policy)
		}
		x.putStep(*s)
		if !sleep(x.ctx, x.e.backoff(s.Attempt, 100*time.Millisecond, 5*time.Second)) && x.ctx.Err() == nil {
			return x.failedSetup(s, h, b, r, policy)
		}
	}
}

// setupCause is the cause of a setup call: that of the operation, or of the run that has become ready.
func (x *execution) setupCause() phase.Cause {
	if x.op.Kind == phase.OpReady {
		return x.sb.Run.Cause
	}
	return startCause[x.op.Kind]
}

// intend commits that the call is about to be made, with the number it will carry. It shares the commit with the
// outcome of the step before.
func (x *execution) intend(s *Step, h *holding) error {
	old := h.rec
	rec := old
	rec.Number++
	rec.Generation = x.gen.ID
	if b := x.d.Chain.Bind(s.Extension); b != nil {
		rec.Phases = b.Phases
	}
	if l := s.Phase.Takes(); l != phase.None {
		rec.Started = with(rec.Started, l, firstOf(rec.Started[l], s.Phase))
		rec.Taken = with(rec.Taken, l, stepID(s.Operation, s.Seq))
		rec.Doubt = with(rec.Doubt, l, Doubt{Phase: s.Phase, Key: stepKey(s)})
	}
	s.Number, s.Started = rec.Number, x.e.Now()
	x.putStep(*s)
	x.putFirst()
	x.e.putHolding(&x.tx, h, rec)
	err := x.commit()
	if err != nil {
		x.e.resetHolding(h, old)
	}
	return err
}

// request says what the call carries.
func (x *execution) request(p phase.Phase, s *Step, h *holding) *pipeline.Request {
	r := &pipeline.Request{
		Phase: p,
		Step: pipeline.Step{Operation: x.op.ID, Kind: x.op.Kind, Attempt: s.Attempt, Number: s.Number, Key: stepKey(s),
			Cause: s.Cause},
		Subject: x.subject(), State: h.rec.State, Held: h.rec.Entries[p.Lifetime()],
		Plan: x.plan, WorkspacePlan: x.wsPlan,
	}
	if x.sb != nil {
		r.WorkspaceState = x.e.workspaceState(x.sb.WorkspaceID, s.Extension)
	}
	return r
}

func stepKey(s *Step) string { return s.Operation + "/" + s.unit() }

// answered puts what a good answer says into the next commit.
func (x *execution) answered(s *Step, h *holding, r pipeline.Result) error {
	if r.Skipped {
		x.end(s, StepLeftOut, fault.New(fault.Unavailable, "the extension is disabled"))
		return nil
	}
	rec := h.rec
	if r.State != nil {
		rec.State = r.State
	}
	if l := s.Phase.Lifetime(); l != phase.None {
		if rec.Entries = without(rec.Entries, l); len(r.Entries) > 0 {
			rec.Entries = with(rec.Entries, l, r.Entries)
		}
		rec.Doubt = without(rec.Doubt, l)
	}
	x.e.putHolding(&x.tx, h, rec)
	x.end(s, StepOK, nil)
	if r.Layer != nil {
		x.contributed(*r.Layer, r.Plan)
	}
	return nil
}

// contributed keeps a contribution with the subject.
func (x *execution) contributed(l plan.Layer, p *plan.Plan) {
	before := x.plan
	x.plan = p
	if x.sb == nil {
		x.updateWorkspace(func(ws *Workspace) { ws.Pending = append(slices.Clone(ws.Pending), l) })
	} else {
		x.update(func(sb *Sandbox) { sb.Layers = append(slices.Clone(sb.Layers), l) })
	}
	x.auditLayer(l, before, p)
}

// auditLayer writes down a contribution, and what it took from others: not what its owner had taken before it. before
// is nil where all of p is new.
func (x *execution) auditLayer(l plan.Layer, before, p *plan.Plan) {
	var known []plan.Override
	if before != nil {
		known = before.Overrides()
	}
	for _, o := range l.Objects {
		x.audit(AuditEntry{What: "contribution", Extension: string(l.Owner), Phase: l.Phase, Text: o.Ref()})
	}
	for _, o := range p.Overrides() {
		if o.Owner == l.Owner && !slices.Contains(known, o) {
			x.audit(AuditEntry{What: "override", Extension: string(l.Owner), Phase: l.Phase,
				Text: fmt.Sprintf("%s %s, which was set by %s", o.Object, o.Path, o.Old)})
		}
	}
}

// failedSetup decides what a call means that did not go well after its last attempt.
func (x *execution) failedSetup(s *Step, h *holding, b *pipeline.Bind, r pipeline.Result, policy pipeline.PhasePolicy) error {
	err := fmt.Errorf("%s of %q: %w", s.Phase, b.Extension, r.Err)
	if s.Phase.OnError() == phase.Recorded {
		x.end(s, StepFailed, r.Err)
		return nil
	}
	if r.Decision {
		x.end(s, StepDenied, r.Err)
		x.audit(AuditEntry{What: "decision", Extension: b.Extension, Phase: s.Phase, Outcome: "denied", Text: r.Err.Error()})
		return err
	}
	if policy.FailurePolicy != pipeline.FailOpen {
		x.end(s, StepFailed, r.Err)
		return err
	}
	x.end(s, StepLeftOut, r.Err)
	return x.leaveOut(b.Extension)
}

// leaveOut goes on without an extension: the plan is computed and resolved again without what it contributed.
func (x *execution) leaveOut(extension string) error {
	x.op.Without = append(slices.Clone(x.op.Without), extension)
	x.putOperation()
	drop := func(l plan.Layer) bool { return l.Owner == plan.Owner(extension) }
	if x.sb == nil {
		x.updateWorkspace(func(ws *Workspace) { ws.Pending = plan.Without(ws.Pending, drop) })
		return x.compute(x.ws.Pending)
	}
	if x.op.Kind == phase.OpCreate {
		x.update(func(sb *Sandbox) {
			sb.Layers = plan.Without(sb.Layers, drop)
			sb.Binds = slices.Clone(sb.Binds)
			for i := range sb.Binds {
				sb.Binds[i].Without = sb.Binds[i].Without || sb.Binds[i].Extension == extension
			}
		})
	} else {
		x.update(func(sb *Sandbox) {
			sb.Layers = plan.Without(sb.Layers, func(l plan.Layer) bool { return drop(l) && l.Phase == phase.BeforeStart })
			sb.Run.Without = append(slices.Clone(sb.Run.Without), extension)
		})
	}
	if err := x.compute(x.sb.Layers); err != nil {
		return err
	}
	return x.resolve()
}

// withoutDisabled is what an operator's disable means for a setup phase.
func (x *execution) withoutDisabled(s *Step, b *pipeline.Bind, bypass bool) error {
	err := fault.New(fault.FailedPrecondition, "extension %q is disabled by an operator", b.Extension)
	s.Started = x.e.Now()
	switch {
	case s.Phase.OnError() == phase.Recorded:
		x.end(s, StepLeftOut, err)
		return nil
	case bypass: // from here on it is as if it had failed open: switched on again, it does not come in half way
		x.end(s, StepLeftOut, err)
		x.audit(AuditEntry{What: "bypass", Extension: b.Extension, Phase: s.Phase, Text: "disabled with --bypass"})
		return x.leaveOut(b.Extension)
	case b.Policy(s.Phase).FailurePolicy == pipeline.FailOpen:
		x.end(s, StepLeftOut, err)
		return x.leaveOut(b.Extension)
	}
	err = fault.New(fault.FailedPrecondition, "%w; enable it, or disable it with --bypass", err)
	x.end(s, StepDenied, err)
	return err
}

// compute makes the plan anew from layers.
func (x *execution) compute(layers []plan.Layer) error {
	p, err := x.d.Schema.Compute(layers)
	if err != nil {
		return err
	}
	x.plan = p
	return nil
}

// resolve asks the driver whether the plan can be built.
func (x *execution) resolve() error {
	ctx, cancel := context.WithTimeout(x.ctx, x.d.DriverTimeout)
	defer cancel()
	return pipeline.Shorten(x.d.Driver.Resolve(ctx, &driver.ResolveRequest{Identity: x.sb.Identity, Request: x.sb.Spec.Request,
		Plan: x.plan, Workspace: x.wsPlan, Requires: x.sb.required(x.op.Without)}))
}

// subject says who the call is about.
func (x *execution) subject() *pipeline.Subject {
	if x.sb == nil {
		return &pipeline.Subject{Workspace: x.ws.Workspace}
	}
	return x.e.pipelineSubject(x.d, x.sb)
}

func firstOf(p, q phase.Phase) phase.Phase {
	if p != "" {
		return p
	}
	return q
}

// with returns the map with one more entry, leaving the given one as it is.
func with[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	out := make(map[K]V, len(m)+1)
	for a, b := range m {
		out[a] = b
	}
	out[k] = v
	return out
}

// without returns the map without an entry, leaving the given one as it is; nil where nothing is left.
func without[K comparable, V any](m map[K]V, k K) map[K]V {
	if _, ok := m[k]; len(m) == 0 || ok && len(m) == 1 {
		return nil
	}
	out := make(map[K]V, len(m))
	for a, b := range m {
		if a != k {
			out[a] = b
		}
	}
	return out
}

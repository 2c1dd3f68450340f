package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// pauseBetweenAttempts is how long a pure phase waits before it is asked again.
const pauseBetweenAttempts = 50 * time.Millisecond

// participants returns the active binds that declare p.
func (c *Chain) participants(p phase.Phase, s *Subject) []*Bind {
	var out []*Bind
	for _, b := range c.binds {
		if b.Phases.Has(p) && slices.Contains(s.Active, b.Extension) && !slices.Contains(s.Without, b.Extension) {
			out = append(out, b)
		}
	}
	return out
}

// Validate asks every active bind that declares validate_request, all at once. Denials come back together, in bind
// order, as one Denied fault with every diagnostic. The second result lists those left out by fail_open.
func (c *Chain) Validate(ctx context.Context, op Step, s *Subject) ([]CallReport, []string, error) {
	binds := c.participants(phase.ValidateRequest, s)
	reports := make([]CallReport, len(binds))
	var wg sync.WaitGroup
	for i, b := range binds {
		wg.Go(func() { _, reports[i] = c.ask(ctx, b, phase.ValidateRequest, op, s, nil, nil) })
	}
	wg.Wait()
	var denied, failed []CallReport
	var without []string
	for i, b := range binds {
		r := &reports[i]
		switch {
		case r.Err == nil || b.Mode == Observe:
		case r.Decision:
			denied = append(denied, *r)
		case b.Policy(phase.ValidateRequest).FailurePolicy == FailOpen:
			without = append(without, b.Extension)
		default:
			failed = append(failed, *r)
		}
	}
	switch {
	case len(denied) > 0:
		return reports, without, together(denied)
	case len(failed) > 0:
		return reports, without, fmt.Errorf("%s of %q: %w", phase.ValidateRequest, failed[0].Extension, failed[0].Err)
	}
	return reports, without, nil
}

// together makes one error of several denials, in bind order.
func together(reports []CallReport) error {
	f := &fault.Error{Code: fault.Denied}
	var lines []string
	for _, r := range reports {
		lines = append(lines, r.Err.Error())
		f.Diagnostics = append(f.Diagnostics, fault.DiagnosticsOf(r.Err)...)
		f.Err = r.Err
	}
	f.Message = strings.Join(lines, "; ")
	return f
}

// ask makes a pure call with its attempts.
func (c *Chain) ask(ctx context.Context, b *Bind, p phase.Phase, op Step, s *Subject, current, workspace *plan.Plan) (*extension.Answer, CallReport) {
	policy := b.Policy(p)
	for attempt := 1; ; attempt++ {
		if disabled, bypass := c.disabled(b); disabled {
			return c.withoutDisabled(b, p, bypass)
		}
		op.Attempt, op.Preview = attempt, op.Preview || b.Mode == Observe
		a, r := c.attempt(ctx, b, &Request{Phase: p, Step: op, Subject: s, Plan: current, WorkspacePlan: workspace})
		if r.Err == nil || r.Decision || attempt >= policy.Attempts || ctx.Err() != nil {
			return a, r
		}
		select {
		case <-time.After(pauseBetweenAttempts):
		case <-ctx.Done():
			return a, r
		}
	}
}

func (c *Chain) disabled(b *Bind) (disabled, bypass bool) {
	if c.sw == nil {
		return false, false
	}
	return c.sw.Disabled(b.Extension)
}

// withoutDisabled is what an operator's disable means for a phase that may refuse: a decision where isolation must
// not go missing quietly, and nothing with --bypass.
func (c *Chain) withoutDisabled(b *Bind, p phase.Phase, bypass bool) (*extension.Answer, CallReport) {
	r := CallReport{Phase: p, Extension: b.Extension, Started: time.Now(), Note: "disabled"}
	if bypass || b.Mode == Observe {
		return &extension.Answer{}, r
	}
	r.Err = fault.New(fault.FailedPrecondition, "extension %q is disabled by an operator; enable it, or disable it with --bypass", b.Extension)
	r.Decision = b.Policy(p).FailurePolicy != FailOpen
	return &extension.Answer{}, r
}

// Prepare calls prepare_plan through the chain on top of the layers given, each bind seeing what its grant lets it
// read of the plan so far.
func (c *Chain) Prepare(ctx context.Context, op Step, s *Subject, layers []plan.Layer, workspace *plan.Plan) (*Prepared, error) {
	current, err := c.schema.Compute(layers)
	if err != nil {
		return nil, err
	}
	out := &Prepared{Plan: current}
	for _, b := range c.participants(phase.PreparePlan, s) {
		if b.Mode == Observe {
			out.Observed = append(out.Observed, c.observe(ctx, b, op, s, out.Plan, workspace, &out.Calls))
			continue
		}
		a, r := c.ask(ctx, b, phase.PreparePlan, op, s, out.Plan, workspace)
		if r.Err == nil {
			r = c.contribute(b, a, out, r)
		}
		out.Calls = append(out.Calls, r)
		switch {
		case r.Err == nil:
		case !r.Decision && b.Policy(phase.PreparePlan).FailurePolicy == FailOpen:
			out.Without = append(out.Without, b.Extension)
		default:
			return out, fmt.Errorf("%s of %q: %w", phase.PreparePlan, b.Extension, r.Err)
		}
	}
	for _, b := range c.binds {
		if b.Mode == Observe && !b.Phases.Has(phase.PreparePlan) && slices.Contains(s.Active, b.Extension) {
			out.Observed = append(out.Observed, c.unobservable(b))
		}
	}
	out.Layers = out.Plan.Layers()
	return out, nil
}

// contribute applies what an answer contributes. What the plan refuses is a decision.
func (c *Chain) contribute(b *Bind, a *extension.Answer, out *Prepared, r CallReport) CallReport {
	if len(a.Requires) > 0 {
		if out.Requires == nil {
			out.Requires = map[string][]string{}
		}
		out.Requires[b.Extension] = a.Requires
	}
	if len(a.Contribute) == 0 {
		return r
	}
	_, next, err := out.Plan.Apply(plan.Owner(b.Extension), phase.PreparePlan, b.Grant, a.Contribute)
	if err != nil {
		r.Err, r.Decision = err, true
		return r
	}
	out.Plan = next
	return r
}

// observe asks an extension in observe mode and records what it would have done. Nothing of it is applied.
func (c *Chain) observe(ctx context.Context, b *Bind, op Step, s *Subject, current, workspace *plan.Plan, calls *[]CallReport) Observation {
	o := c.unobservable(b)
	a, r := c.ask(ctx, b, phase.PreparePlan, op, s, current, workspace)
	r.Note = "observed"
	if r.Err == nil && len(a.Contribute) > 0 {
		_, next, err := current.Apply(plan.Owner(b.Extension), phase.PreparePlan, b.Grant, a.Contribute)
		if err != nil {
			r.Err = err
		} else {
			o.Fields = changed(current, next)
		}
	}
	if r.Err != nil {
		o.Err = r.Err.Error()
		r.Err = nil // it refuses nothing
	}
	*calls = append(*calls, r)
	return o
}

// unobservable returns what of a bind in observe mode cannot be observed.
func (c *Chain) unobservable(b *Bind) Observation {
	o := Observation{Extension: b.Extension}
	for _, p := range b.Phases {
		if !p.Pure() {
			o.Phases = append(o.Phases, p)
		}
	}
	for _, pt := range c.schema.Points() {
		late := pt.Late() && (b.Phases.Has(phase.BeforeCreate) && pt.Open(phase.BeforeCreate) || b.Phases.Has(phase.BeforeStart) && pt.Open(phase.BeforeStart))
		granted := slices.ContainsFunc(b.Grant.Mutate, func(g plan.Pattern) bool { return g.Covers(pt.Pattern) || pt.Pattern.Covers(g) })
		if late && granted && !(b.Phases.Has(phase.PreparePlan) && pt.Open(phase.PreparePlan)) {
			o.Late = append(o.Late, pt.Pattern)
		}
	}
	return o
}

// changed returns the fields of next that are not so in current.
func changed(current, next *plan.Plan) []plan.Field {
	had := map[string]plan.Owner{}
	for _, f := range current.Fields() {
		had[f.Object+"\x00"+f.Path] = f.Owner
	}
	var out []plan.Field
	for _, f := range next.Fields() {
		if had[f.Object+"\x00"+f.Path] != f.Owner {
			out = append(out, f)
		}
	}
	return out
}

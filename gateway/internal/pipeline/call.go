package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// Call makes one attempt, under the phase's timeout within ctx.
func (c *Chain) Call(ctx context.Context, extension string, r *Request) Result {
	b := c.Bind(extension)
	if b == nil {
		err := fault.New(fault.FailedPrecondition, "extension %q is not bound here", extension)
		return Result{Err: err, Report: CallReport{Phase: r.Phase, Extension: extension, Started: time.Now(), Err: err}}
	}
	if r.Phase.Setup() {
		if disabled, bypass := c.disabled(b); disabled {
			_, report := c.withoutDisabled(b, r.Phase, bypass)
			return Result{Report: report, Err: report.Err, Decision: report.Decision, Skipped: report.Err == nil}
		}
	}
	a, report := c.attempt(ctx, b, r)
	res := Result{Report: report, Err: report.Err, Decision: report.Decision}
	if a != nil {
		res.Diagnostics = a.Diagnostics
	}
	if report.Err != nil {
		return res
	}
	res.State, res.Entries = a.State, a.Entries
	if len(a.Contribute) == 0 {
		return res
	}
	layer, next, err := r.Plan.Apply(plan.Owner(b.Extension), r.Phase, b.Grant, a.Contribute)
	if err != nil {
		res.Err, res.Decision = err, true
		return res
	}
	res.Layer, res.Plan = &layer, next
	return res
}

// attempt makes one call and judges the answer.
func (c *Chain) attempt(ctx context.Context, b *Bind, r *Request) (*extension.Answer, CallReport) {
	report := CallReport{Phase: r.Phase, Extension: b.Extension, Started: time.Now()}
	timeout := b.Policy(r.Phase).Timeout
	callCtx, cancel := context.WithTimeoutCause(ctx, timeout, fault.New(fault.DeadlineExceeded, "no answer within %v", timeout))
	defer cancel()
	a, err := b.Program.Call(callCtx, c.message(b, r))
	report.Duration = time.Since(report.Started)
	switch {
	case err != nil:
		report.Err = Shorten(failure(callCtx, err))
	case a == nil:
		report.Err = fault.New(fault.Internal, "it answered nothing")
	case a.Denied:
		report.Err, report.Decision = denial(b, a), true
	default:
		report.Err = judge(b, r.Phase, a)
	}
	if a != nil {
		a.Diagnostics = abridge(a.Diagnostics)
	}
	return a, report
}

// failure says what became of a call that was not answered. Where time ran out, it says whose.
func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
			return cause
		}
	}
	return err
}

// denial makes an error of a decision, in the extension's words.
func denial(b *Bind, a *extension.Answer) error {
	msg, said := fmt.Sprintf("extension %q denies it", b.Extension), abridge(a.Diagnostics)
	for i, d := range said {
		if i == 0 {
			msg += ": "
		} else {
			msg += "; "
		}
		if d.Path != "" {
			msg += d.Path + ": "
		}
		msg += d.Summary
		if d.Detail != "" {
			msg += " (" + d.Detail + ")"
		}
	}
	return (&fault.Error{Code: fault.Denied, Message: msg}).With(said...)
}

// judge refuses an answer that cannot be used: that is a failed call.
func judge(b *Bind, p phase.Phase, a *extension.Answer) error {
	l := p.Lifetime()
	switch {
	case len(a.Diagnostics) > extension.MaxDiagnostics:
		return unusable("%d diagnostics; at most %d", len(a.Diagnostics), extension.MaxDiagnostics)
	case len(a.Contribute) > 0 && !p.Contributes():
		return unusable("a contribution in %s, which takes none", p)
	case p.Pure() && (a.State != nil || len(a.Entries) > 0):
		return unusable("state or entries in %s, which is pure", p)
	case a.State != nil && len(a.State.Payload) > extension.MaxState:
		return unusable("%d bytes of state; at most %d", len(a.State.Payload), extension.MaxState)
	case len(a.Entries) > extension.MaxEntries:
		return unusable("%d entries; at most %d", len(a.Entries), extension.MaxEntries)
	case len(a.Entries) > 0 && p.Releases() != phase.None:
		return unusable("%d entries in %s, after which it may hold none", len(a.Entries), p)
	case len(a.Entries) > 0 && l == phase.None && p != phase.Reconcile:
		return unusable("entries in %s, which takes none", p)
	case len(a.Entries) > 0 && l != phase.None && !b.Phases.MayHold(l):
		return unusable("entries of a %s, and it does not declare every phase that releases them (%v)", l, phase.Releasers(l))
	}
	return judgeEntries(a.Entries)
}

func judgeEntries(entries []extension.Entry) error {
	seen := map[extension.Entry]bool{}
	for _, e := range entries {
		key := extension.Entry{Kind: e.Kind, ID: e.ID}
		switch {
		case e.Kind == "" || e.ID == "" || len(e.Kind) > extension.MaxEntryField || len(e.ID) > extension.MaxEntryField || len(e.Text) > extension.MaxEntryField:
			return unusable("an entry whose kind, id or text is empty or longer than %d bytes", extension.MaxEntryField)
		case seen[key]:
			return unusable("the entry %s %s twice", e.Kind, e.ID)
		}
		seen[key] = true
	}
	return nil
}

func unusable(format string, args ...any) error {
	return fault.New(fault.Internal, "its answer cannot be used: it has "+format, args...)
}

// message says what the call carries: who it is about, and of the rest only what the grant lets the extension read.
func (c *Chain) message(b *Bind, r *Request) *extension.Call {
	s := r.Subject
	m := &extension.Call{
		Phase: r.Phase, Bind: b.ID, Operation: r.Step.Operation, Kind: r.Step.Kind, Attempt: r.Step.Attempt,
		Number: r.Step.Number, Key: r.Step.Key, Cause: r.Step.Cause, Preview: r.Step.Preview, TraceParent: r.Step.TraceParent,
		Sandbox: s.Sandbox, Workspace: s.Workspace, Run: s.Run,
		State: r.State, WorkspaceState: r.WorkspaceState, Held: r.Held, InDoubt: r.InDoubt,
		Lifetime: r.Lifetime, Orphans: r.Orphans, Lost: r.Lost,
	}
	if s.Spec != nil {
		m.Labels, m.Image, m.Resources = s.Spec.Labels, s.Spec.Image, s.Spec.Resources
	}
	if r.Phase == phase.AfterReady {
		m.Addresses = s.Addresses
	}
	m.Config = s.ExtensionsConfig[b.Extension]
	read := b.Grant.Read
	if len(read) == 0 {
		read = b.Grant.Mutate
	}
	if r.Plan != nil {
		m.Plan = r.Plan.View(read)
	}
	if r.WorkspacePlan != nil {
		m.WorkspacePlan = r.WorkspacePlan.View(read)
	}
	return m
}

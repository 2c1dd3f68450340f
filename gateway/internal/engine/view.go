package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Changed returns a channel that is closed at the next change of anything that can be seen here. Take it before
// looking, and no change is missed.
func (e *Engine) Changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// Sandboxes returns every sandbox, the newest last; those that are gone only with all.
func (e *Engine) Sandboxes(all bool) []Sandbox {
	gen := e.Catalog.Current()
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Sandbox
	for _, s := range e.subjects {
		if sb := s.sandbox; sb != nil && (all || sb.State != sandbox.Deleted) {
			out = append(out, *sb)
			last := &out[len(out)-1]
			last.Overdue = e.overdue(gen, last) <= 0
		}
	}
	slices.SortFunc(out, byAge)
	return out
}

// Lookup returns the sandbox of an id.
func (e *Engine) Lookup(id string) (Sandbox, bool) {
	gen := e.Catalog.Current()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.subjects[id]
	if s == nil || s.sandbox == nil {
		return Sandbox{}, false
	}
	sb := *s.sandbox
	sb.Overdue = e.overdue(gen, &sb) <= 0
	return sb, true
}

// overdue returns how long the releases of a sandbox have until it counts as deleted all the same; never where it is
// not being released.
func (e *Engine) overdue(gen *Generation, sb *Sandbox) time.Duration {
	d := gen.Drivers[sb.Driver]
	if sb.State != sandbox.Releasing || sb.Ended == nil || d == nil {
		return math.MaxInt64
	}
	return d.ReleaseTimeout - e.Now().Sub(*sb.Ended)
}

// Progress is what is being done for a sandbox at the moment.
type Progress struct {
	Operation phase.Operation
	Phase     phase.Phase // or
	Driver    string      // the driver's call
	Extension string
	Since     time.Time
}

// String says it for people.
func (p Progress) String() string {
	if p.Phase == "" {
		return "driver " + p.Driver
	}
	return p.Extension + " " + string(p.Phase)
}

// Progress returns the step of a sandbox that is begun and has not ended.
func (e *Engine) Progress(id string) (Progress, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, op := range e.operations {
		if op.Subject != id {
			continue
		}
		for _, st := range slices.Backward(e.steps[op.ID]) {
			if st.State == StepBegun {
				return Progress{Operation: op.Kind, Phase: st.Phase, Driver: st.Driver, Extension: st.Extension, Since: st.Started}, true
			}
		}
	}
	return Progress{}, false
}

// Workspaces returns every workspace; those that are gone only with all.
func (e *Engine) Workspaces(all bool) []Workspace {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Workspace
	for _, s := range e.subjects {
		if ws := s.workspace; ws != nil && (all || ws.State != WorkspaceDeleted) {
			out = append(out, *ws)
		}
	}
	slices.SortFunc(out, func(a, b Workspace) int {
		return cmp.Or(cmp.Compare(a.Driver, b.Driver), cmp.Compare(a.Name, b.Name), a.Created.Compare(b.Created))
	})
	return out
}

// Ref names a sandbox: by id, or by name with driver and workspace where the name alone is ambiguous.
type Ref struct{ IDOrName, Driver, Workspace string }

// place says where a reference looks, for people.
func (r Ref) place() string {
	var where string
	if r.Driver != "" {
		where += fmt.Sprintf(" of driver %q", r.Driver)
	}
	if r.Workspace != "" {
		where += fmt.Sprintf(" in workspace %q", r.Workspace)
	}
	return where
}

// Find returns the sandbox that is meant: the one of that id; else the newest of that name, live ones first. A name
// that several drivers or workspaces have is Invalid, naming them.
func (e *Engine) Find(r Ref) (Sandbox, error) {
	match := e.Named(r)
	if len(match) > 0 && match[0].ID == r.IDOrName {
		return match[0], nil
	}
	if len(match) == 0 {
		return Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q%s", r.IDOrName, r.place())
	}
	if live := slices.DeleteFunc(slices.Clone(match), func(sb Sandbox) bool { return sb.Ended != nil }); len(live) > 0 {
		match = live
	}
	var places []string
	for _, sb := range match {
		places = append(places, sb.Driver+"/"+sb.Workspace)
	}
	slices.Sort(places)
	if places = slices.Compact(places); len(places) > 1 {
		return Sandbox{}, fault.New(fault.Invalid, "%q is the name of several sandboxes, in %s: say --driver and --workspace",
			r.IDOrName, strings.Join(places, ", "))
	}
	return match[len(match)-1], nil
}

// Named returns the sandbox of that id alone, or those of that name, the newest last.
func (e *Engine) Named(r Ref) []Sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.subjects[r.IDOrName]; s != nil && s.sandbox != nil {
		return []Sandbox{*s.sandbox}
	}
	var match []Sandbox
	for _, s := range e.subjects {
		if sb := s.sandbox; sb != nil && sb.Name == r.IDOrName && (r.Driver == "" || sb.Driver == r.Driver) && (r.Workspace == "" || sb.Workspace == r.Workspace) {
			match = append(match, *sb)
		}
	}
	slices.SortFunc(match, byAge)
	return match
}

func byAge(a, b Sandbox) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) }

// FindWorkspace returns a live workspace by driver and name.
func (e *Engine) FindWorkspace(driver, name string) (Workspace, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.subjects[e.workspaces[driver+"/"+name]]; s != nil && s.workspace != nil {
		return *s.workspace, nil
	}
	return Workspace{}, fault.New(fault.NotFound, "driver %q has no workspace %q", driver, name)
}

// PlanOf returns the plan of a sandbox as it is now.
func (e *Engine) PlanOf(id string) (*plan.Plan, error) {
	e.mu.Lock()
	var sb *Sandbox
	if s := e.subjects[id]; s != nil {
		sb = s.sandbox
	}
	e.mu.Unlock()
	switch {
	case sb == nil:
		return nil, fault.New(fault.NotFound, "there is no sandbox with the id %q", id)
	case sb.State == sandbox.Deleted:
		return nil, fault.New(fault.FailedPrecondition, "sandbox %q is deleted, and its plan with it", sb.Name)
	}
	d := e.Catalog.Current().Drivers[sb.Driver]
	if d == nil {
		return nil, fault.New(fault.FailedPrecondition, "driver %q is not configured", sb.Driver)
	}
	return d.Schema.Compute(sb.Layers)
}

// Operations returns operations, newest first: the unfinished ones, and of one subject also those that have ended.
func (e *Engine) Operations(ctx context.Context, subject string) ([]Operation, error) {
	e.mu.Lock()
	var out []Operation
	for _, op := range e.operations {
		if subject == "" || op.Subject == subject {
			out = append(out, *op)
		}
	}
	e.mu.Unlock()
	if subject != "" {
		records, err := e.Journal.List(ctx, journal.Query{Kind: kindHistory, Parent: subject})
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			op, err := decode[Operation](r)
			if err != nil {
				return nil, err
			}
			out = append(out, *op)
		}
	}
	slices.SortFunc(out, func(a, b Operation) int { return cmp.Compare(b.ID, a.ID) })
	return slices.CompactFunc(out, func(a, b Operation) bool { return a.ID == b.ID }), nil
}

// Operation returns one operation, unfinished or ended.
func (e *Engine) Operation(ctx context.Context, id string) (Operation, error) {
	e.mu.Lock()
	op := e.operations[id]
	e.mu.Unlock()
	if op != nil {
		return *op, nil
	}
	r, err := e.Journal.Get(ctx, kindHistory, id)
	if fault.Is(err, fault.NotFound) {
		return Operation{}, fault.New(fault.NotFound, "there is no operation %q", id)
	}
	if err != nil {
		return Operation{}, err
	}
	ended, err := decode[Operation](r)
	if err != nil {
		return Operation{}, err
	}
	return *ended, nil
}

// Steps returns the steps of an operation, in order.
func (e *Engine) Steps(ctx context.Context, operation string) ([]Step, error) {
	e.mu.Lock()
	var out []Step
	_, unfinished := e.operations[operation]
	for _, st := range e.steps[operation] {
		out = append(out, *st)
	}
	e.mu.Unlock()
	if !unfinished {
		out = nil
		records, err := e.Journal.List(ctx, journal.Query{Kind: kindStep, Parent: operation})
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			st, err := decode[Step](r)
			if err != nil {
				return nil, err
			}
			out = append(out, *st)
		}
	}
	slices.SortFunc(out, func(a, b Step) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}

// Audit returns lines of the audit, oldest first: the newest ones where limit is set, of one subject where it is named.
func (e *Engine) Audit(ctx context.Context, subject string, limit int) ([]AuditEntry, error) {
	records, err := e.Journal.List(ctx, journal.Query{Kind: kindAudit, Parent: subject, Last: true, Limit: limit})
	if err != nil {
		return nil, err
	}
	var out []AuditEntry
	for _, r := range slices.Backward(records) {
		a, err := decode[AuditEntry](r)
		if err != nil {
			return nil, err
		}
		out = append(out, *a)
	}
	return out, nil
}

// Preview is what a create would come to.
type Preview struct {
	Identity      sandbox.Identity
	Plan          *plan.Plan
	WorkspacePlan *plan.Plan // nil: the workspace is not there yet
	Late          []LatePoint
	Active        []string
	Without       []string
	Observed      []pipeline.Observation
	Notes         []string // what of the plan the driver could not judge, and why
}

// LatePoint is a point that an extension may set once it holds something.
type LatePoint struct {
	Extension string
	Pattern   plan.Pattern
	Phase     phase.Phase
}

// Preview runs the pure part of a create with preview set. Nothing comes of it: nothing is journaled, held or made.
func (e *Engine) Preview(ctx context.Context, r CreateRequest) (*Preview, error) {
	sb, err := e.candidate(r)
	if err != nil {
		return nil, err
	}
	gen, done := e.current()
	defer done()
	d := gen.Drivers[sb.Driver]
	if d == nil {
		return nil, fault.New(fault.NotFound, "there is no driver %q", sb.Driver)
	}
	op := e.newOperation(phase.OpCreate, sb.ID, r.Origin)
	p := &planner{e: e, d: d, op: &op, sb: sb, preview: true}
	out := &Preview{}
	var ws *Workspace
	if found, err := e.FindWorkspace(sb.Driver, sb.Workspace); err == nil && found.State == WorkspaceEnsured {
		ws, sb.WorkspaceID = &found, found.ID
		if out.WorkspacePlan, err = d.Schema.Compute(found.Layers); err != nil {
			return nil, err
		}
	}
	if err := p.within(ctx, p.validate); err != nil {
		return nil, err
	}
	if err := p.within(ctx, func(ctx context.Context) error { return p.plan(ctx, ws) }); err != nil {
		return nil, err
	}
	out.Identity, out.Plan, out.Observed, out.Without = sb.Identity, p.prepared.Plan, op.Observed, op.Without
	for _, b := range sb.Binds {
		out.Active = append(out.Active, b.Extension)
	}
	out.Late, out.Notes = latePoints(d, out.Active), p.notes
	return out, nil
}

// latePoints lists where the active binds may still contribute after the plan was resolved.
func latePoints(d *Driver, active []string) []LatePoint {
	var out []LatePoint
	for _, b := range d.Chain.Binds() {
		if !slices.Contains(active, b.Extension) || b.Mode == pipeline.Observe {
			continue
		}
		for _, pt := range d.Schema.Points() {
			granted := slices.ContainsFunc(b.Grant.Mutate, func(g plan.Pattern) bool { return g.Covers(pt.Pattern) || pt.Pattern.Covers(g) })
			for _, ph := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
				if granted && pt.Open(ph) && b.Phases.Has(ph) {
					out = append(out, LatePoint{Extension: b.Extension, Pattern: pt.Pattern, Phase: ph})
					break
				}
			}
		}
	}
	return out
}

// WorkspacePlanOf returns the plan of a workspace as it was last ensured.
func (e *Engine) WorkspacePlanOf(id string) (*plan.Plan, error) {
	e.mu.Lock()
	var ws *Workspace
	if s := e.subjects[id]; s != nil {
		ws = s.workspace
	}
	e.mu.Unlock()
	if ws == nil {
		return nil, fault.New(fault.NotFound, "there is no workspace with the id %q", id)
	}
	d := e.Catalog.Current().Drivers[ws.Driver]
	if d == nil {
		return nil, fault.New(fault.FailedPrecondition, "driver %q is not configured", ws.Driver)
	}
	return d.Schema.Compute(ws.Layers)
}

// Retiring returns the extensions of a sandbox that the current configuration binds no more: they only release.
func (e *Engine) Retiring(sb Sandbox) []string {
	d := e.Catalog.Current().Drivers[sb.Driver]
	var out []string
	for _, b := range sb.Binds {
		if sb.State != sandbox.Deleted && (d == nil || d.Chain.Bind(b.Extension) == nil) {
			out = append(out, b.Extension)
		}
	}
	return out
}

// Unfinished returns the id of the operation that is in flight for a subject, or "".
func (e *Engine) Unfinished(subject string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, op := range e.operations {
		if op.Subject == subject {
			return id
		}
	}
	return ""
}

// Owing returns the operations that have ended while releases of theirs are still retried, oldest first.
func (e *Engine) Owing(ctx context.Context) ([]Operation, error) {
	seen := map[string]bool{}
	for _, h := range e.Holdings() {
		for _, r := range h.Releases {
			seen[r.Operation] = true
		}
	}
	e.mu.Lock()
	for id := range e.operations {
		delete(seen, id)
	}
	e.mu.Unlock()
	var out []Operation
	for _, id := range slices.Sorted(maps.Keys(seen)) {
		op, err := e.Operation(ctx, id)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			op.Waiting = "releases are retried"
			out = append(out, op)
		}
	}
	return out, nil
}

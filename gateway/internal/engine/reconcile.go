package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// difference is one entry that only one side has.
type difference struct {
	subject   string
	sandbox   *sandbox.Identity // nil: the subject is a workspace
	workspace sandbox.Workspace
	lifetime  phase.Lifetime
	entry     extension.Entry
	orphan    bool   // the extension holds it, the ledger has it not; otherwise the reverse
	number    uint64 // the subject's number when it was compared
}

func (d difference) key() string {
	return fmt.Sprintf("%s|%s|%s|%s|%t|%d", d.subject, d.lifetime, d.entry.Kind, d.entry.ID, d.orphan, d.number)
}

func (d difference) String() string {
	what, of := "lost", "the ledger has it, the extension does not hold it"
	if d.orphan {
		what, of = "orphan", "the extension holds it, the ledger does not have it"
	}
	name := "workspace " + d.workspace.Name
	if d.sandbox != nil {
		name = "sandbox " + d.sandbox.ID
	}
	return fmt.Sprintf("%s: %s %s of %s (%s): %s", what, d.entry.Kind, d.entry.ID, name, d.lifetime, of)
}

// reconcileDriver compares, for every bind of a driver, what the extension says that it holds with the ledger.
func (e *Engine) reconcileDriver(ctx context.Context, d *Driver) {
	for _, b := range d.Chain.Binds() {
		if ctx.Err() != nil {
			return
		}
		if b.Phases.Has(phase.Reconcile) && b.Mode != pipeline.Observe {
			e.reconcile(ctx, d, b)
		}
	}
}

// reconcile is one pass over one bind. It holds nobody's lock and changes nothing by itself: differences are
// reported, and where the bind is authoritative and two passes agree, mended by an operation of the subject.
func (e *Engine) reconcile(ctx context.Context, d *Driver, b *pipeline.Bind) {
	op := e.newOperation(phase.OpReconcile, b.ID, sandbox.Origin{Door: doorGateway})
	op.Driver, op.Name, op.Generation = d.Name, b.ID, e.Catalog.Current().ID
	known := e.known(d.Name, b.Extension)
	callCtx, cancel := context.WithTimeout(ctx, b.Policy(phase.Reconcile).Timeout)
	defer cancel()
	held, err := b.Program.Reconcile(callCtx, b.ID, op.ID, slices.Values(known))
	if e.ctx.Err() != nil || ctx.Err() != nil {
		return
	}
	var found []difference
	if err == nil {
		found = e.differences(d.Name, b.Extension, known, held)
	}
	e.report(op, b, found, err)
	if err != nil {
		return // what the pass before found stands
	}
	e.mend(d, b, e.agreed(d, b.ID, found))
}

// known returns what the gateway knows of every subject of the driver that is not fully released.
func (e *Engine) known(driver, name string) []extension.Item {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []extension.Item
	for _, id := range slices.Sorted(maps.Keys(e.subjects)) {
		s := e.subjects[id]
		h := s.holdings[name]
		if h == nil || h.rec.Driver != driver {
			continue
		}
		item := extension.Item{Number: h.rec.Number, State: h.rec.State}
		switch {
		case s.sandbox != nil:
			item.Sandbox = &s.sandbox.Identity
			item.Workspace = sandbox.Workspace{ID: s.sandbox.WorkspaceID, Driver: driver, Name: s.sandbox.Workspace}
		case s.workspace != nil:
			item.Workspace = s.workspace.Workspace
		default:
			continue
		}
		for _, l := range lifetimesOf(item) {
			item.Lifetime, item.Entries = l, h.rec.Entries[l]
			out = append(out, item)
		}
	}
	return out
}

func lifetimesOf(item extension.Item) []phase.Lifetime {
	if item.Sandbox == nil {
		return []phase.Lifetime{phase.Workspace}
	}
	return []phase.Lifetime{phase.Sandbox, phase.Run}
}

func subjectID(item extension.Item) string {
	if item.Sandbox != nil {
		return item.Sandbox.ID
	}
	return item.Workspace.ID
}

// differences compares both sides. A subject that was called meanwhile, has a call in flight or a release that waits is
// left for a later pass. A doubt is none of these: where nothing runs, its step has ended without an answer, as an
// after_create whose failure is recorded, and what the extension says now is what settles it.
func (e *Engine) differences(driver, name string, known, held []extension.Item) []difference {
	asked := map[string]uint64{}
	for _, item := range known {
		asked[subjectID(item)] = item.Number
	}
	reported := map[string]map[string]bool{}
	var out []difference
	for _, item := range held {
		if item.Workspace.Driver != "" && item.Workspace.Driver != driver {
			continue
		}
		id := subjectID(item)
		quiet, h := e.quiet(id, name, asked)
		key := id + "|" + string(item.Lifetime)
		if reported[key] == nil {
			reported[key] = map[string]bool{}
		}
		has := entriesOf(h, item.Lifetime)
		for _, en := range item.Entries {
			reported[key][en.Kind+"\x00"+en.ID] = true
			if quiet && !has[en.Kind+"\x00"+en.ID] {
				out = append(out, difference{subject: id, sandbox: item.Sandbox, workspace: item.Workspace, lifetime: item.Lifetime,
					entry: en, orphan: true, number: max(h.Number, item.Number)})
			}
		}
	}
	for _, item := range known {
		id := subjectID(item)
		quiet, h := e.quiet(id, name, asked)
		for _, en := range item.Entries {
			if quiet && entriesOf(h, item.Lifetime)[en.Kind+"\x00"+en.ID] && !reported[id+"|"+string(item.Lifetime)][en.Kind+"\x00"+en.ID] {
				out = append(out, difference{subject: id, sandbox: item.Sandbox, workspace: item.Workspace, lifetime: item.Lifetime,
					entry: en, number: h.Number})
			}
		}
	}
	slices.SortFunc(out, func(a, b difference) int { return cmp.Compare(a.key(), b.key()) })
	return out
}

// quiet reports whether a subject stood still since it was asked about, and what of the extension it has now.
func (e *Engine) quiet(id, name string, asked map[string]uint64) (bool, Holding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.subjects[id]
	if s == nil {
		return true, Holding{} // nobody's: unknown, or forgotten since
	}
	if s.busy() {
		return false, Holding{}
	}
	h := s.holdings[name]
	if h == nil {
		_, was := asked[id]
		return !was, Holding{Number: s.numberOf(name)}
	}
	return asked[id] == h.rec.Number && len(h.busy) == 0 && len(h.rec.Releases) == 0, h.rec
}

// agreed remembers what a pass found and returns what the one before had found too. Two passes agree when an interval
// lies between them: a reload, which begins a pass at once, makes no difference older.
func (e *Engine) agreed(d *Driver, bind string, found []difference) []difference {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, now := e.passes[bind], map[string]time.Time{}
	var out []difference
	for _, x := range found {
		since, seen := before[x.key()]
		if !seen {
			since = time.Now()
		}
		now[x.key()] = since
		if seen && time.Since(since) >= d.ReconcileInterval*9/10 { // the ticker need not be exact
			out = append(out, x)
		}
	}
	e.passes[bind] = now
	return out
}

// report writes down what a pass found. One that found nothing leaves no trace but the log's.
func (e *Engine) report(op Operation, b *pipeline.Bind, found []difference, err error) {
	if err == nil && len(found) == 0 {
		return
	}
	now := e.Now()
	op.State, op.Ended = OperationDone, &now
	if err != nil {
		op.State, op.Error, op.Code = OperationFailed, err.Error(), fault.CodeOf(err).String()
	}
	var tx change
	for _, d := range found {
		op.Report = append(op.Report, d.String())
		e.putAudit(&tx, AuditEntry{What: "difference", Subject: d.subject, Operation: op.ID, Extension: b.Extension,
			Phase: phase.Reconcile, Outcome: "reported", Text: d.String()})
	}
	e.putOperation(&tx, op)
	e.dropOldReports(&tx, b.ID)
	e.Logger.Warn("reconcile", "bind", b.ID, "differences", len(found), "err", err)
	if cerr := e.commit(&tx, nil); cerr != nil {
		e.Logger.Warn("a reconcile report was not written", "bind", b.ID, "err", cerr)
	}
}

func (e *Engine) dropOldReports(tx *change, bind string) {
	old, err := e.Journal.List(e.ctx, journal.Query{Kind: kindHistory, Parent: bind})
	if err != nil {
		return // the next report drops them
	}
	for _, r := range old {
		if op, err := decode[Operation](r); err == nil && op.Ended.Before(e.Now().Add(-retention)) {
			tx.delete(kindHistory, r.ID, nil)
		}
	}
}

// mend queues a repair for each subject and lifetime on which two passes agreed.
func (e *Engine) mend(d *Driver, b *pipeline.Bind, agreed []difference) {
	if !b.Authoritative {
		return
	}
	groups := map[string][]difference{}
	for _, x := range agreed {
		k := x.subject + "|" + string(x.lifetime)
		groups[k] = append(groups[k], x)
	}
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		group := groups[k]
		e.mu.Lock()
		s := e.subjectOf(group[0].subject)
		e.mu.Unlock()
		s.push(&task{fixed: true, run: func(ctx context.Context) { e.repair(ctx, s, d, b, group) }}, false)
	}
}

// repair makes the call that mends differences of one subject and lifetime, if the ledger still says so.
func (e *Engine) repair(ctx context.Context, s *subject, d *Driver, b *pipeline.Bind, group []difference) {
	l := group[0].lifetime
	h := e.holdingOf(s, b.Extension, d.Name, group[0].sandbox == nil)
	if h.enter(ctx) != nil {
		return
	}
	defer h.leave()
	rec := h.rec
	rec.Number = max(rec.Number, group[0].number)
	if still := e.stillDiffers(h.rec, group); !still {
		e.forgetStranger(s)
		return
	}
	op := e.newOperation(phase.OpRepair, s.id, sandbox.Origin{Door: doorGateway})
	op.Driver, op.Workspace, op.Name, op.Generation = d.Name, group[0].workspace.Name, s.id, e.Catalog.Current().ID
	x := &execution{e: e, s: s, d: d, op: op, ctx: ctx, handle: newHandle(op), steps: map[string]*Step{}, gen: e.Catalog.Current()}
	st := x.begin(Step{Phase: phase.Reconcile, Extension: b.Extension})
	h.rec = rec
	st.Attempt = 1
	if x.intend(st, h) != nil {
		return
	}
	r := d.Chain.Call(ctx, b.Extension, e.repairRequest(s, d, h.rec, st, group))
	if e.ctx.Err() != nil {
		return
	}
	e.mended(x, st, h, l, group, r)
}

func (e *Engine) repairRequest(s *subject, d *Driver, rec Holding, st *Step, group []difference) *pipeline.Request {
	l := group[0].lifetime
	req := &pipeline.Request{
		Phase: phase.Reconcile, Lifetime: l, State: rec.State, Held: rec.Entries[l],
		Step: pipeline.Step{Operation: st.Operation, Kind: phase.OpRepair, Attempt: st.Attempt, Number: rec.Number, Key: stepKey(st)},
	}
	for _, x := range group {
		if x.orphan {
			req.Orphans = append(req.Orphans, x.entry)
		} else {
			req.Lost = append(req.Lost, x.entry)
		}
	}
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	if sb != nil {
		req.Subject = e.pipelineSubject(d, sb)
	} else {
		req.Subject = &pipeline.Subject{Sandbox: group[0].sandbox, Workspace: group[0].workspace, Spec: &sandbox.Spec{}}
	}
	return req
}

// stillDiffers reports whether the ledger still says what two passes saw.
func (e *Engine) stillDiffers(rec Holding, group []difference) bool {
	if len(rec.Releases) > 0 {
		return false
	}
	for _, x := range group {
		if entriesOf(rec, x.lifetime)[x.entry.Kind+"\x00"+x.entry.ID] == x.orphan || rec.Number > x.number {
			return false
		}
	}
	return true
}

// mended writes what became of a repair.
func (e *Engine) mended(x *execution, st *Step, h *holding, l phase.Lifetime, group []difference, r pipeline.Result) {
	now := e.Now()
	x.op.State, x.op.Ended = OperationDone, &now
	rec := h.rec
	outcome := "mended"
	if r.Err != nil {
		x.op.State, x.op.Error, x.op.Code, outcome = OperationFailed, r.Err.Error(), fault.CodeOf(r.Err).String(), "not mended: "+r.Err.Error()
		x.end(st, StepFailed, r.Err)
	} else {
		rec.Entries, rec.Doubt = with(rec.Entries, l, r.Entries), without(rec.Doubt, l)
		if r.State != nil {
			rec.State = r.State
		}
		x.end(st, StepOK, nil)
	}
	for _, d := range group {
		x.op.Report = append(x.op.Report, d.String())
		x.audit(AuditEntry{What: "difference", Extension: st.Extension, Phase: phase.Reconcile, Outcome: outcome, Text: d.String()})
	}
	e.putHolding(&x.tx, h, rec)
	e.forgetRepaired(&x.tx, x.s, rec)
	x.putOperation()
	if err := x.commit(); err != nil {
		e.Logger.Warn("a repair was not written down", "subject", x.s.id, "err", err)
	}
}

// forgetRepaired drops the holding of a subject that is gone, or that the gateway never knew: it was made for the repair.
func (e *Engine) forgetRepaired(tx *change, s *subject, rec Holding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	forget := func() { delete(s.holdings, rec.Extension) }
	switch {
	case s.sandbox != nil && s.sandbox.State == sandbox.Deleted:
		next := *s.sandbox
		next.Numbers = with(next.Numbers, rec.Extension, rec.Number)
		e.putSandbox(tx, s, &next)
	case s.workspace != nil && s.workspace.State == WorkspaceDeleted:
		next := *s.workspace
		next.Numbers = with(next.Numbers, rec.Extension, rec.Number)
		e.putWorkspace(tx, s, &next)
	case s.sandbox == nil && s.workspace == nil:
		forget = func() {
			delete(s.holdings, rec.Extension)
			delete(e.subjects, s.id)
		}
	default:
		return
	}
	tx.delete(kindHolding, rec.Subject+"/"+rec.Extension, forget)
}

// forgetStranger drops a subject that was made for a repair which is not needed.
func (e *Engine) forgetStranger(s *subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.sandbox == nil && s.workspace == nil {
		delete(e.subjects, s.id)
	}
}

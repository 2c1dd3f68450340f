package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// retention is how long what is known of a sandbox or workspace is kept after its end: its history can be
// read, and what the driver still shows of it is deleted again.
const retention = 24 * time.Hour

// load reads what the journal has into memory.
func (e *Engine) load(ctx context.Context) error {
	for _, l := range []struct {
		kind string
		read func(journal.Record) error
	}{
		{kindWorkspace, e.loadWorkspace}, {kindSandbox, e.loadSandbox}, {kindHolding, e.loadHolding},
		{kindOperation, func(r journal.Record) error { return e.loadOperation(ctx, r) }}, {kindSwitch, e.loadSwitch},
	} {
		records, err := e.Journal.List(ctx, journal.Query{Kind: l.kind})
		if err != nil {
			return fmt.Errorf("read the journal's %ss: %w", l.kind, err)
		}
		for _, r := range records {
			if err := l.read(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) loadSandbox(r journal.Record) error {
	sb, err := decode[Sandbox](r)
	if err != nil {
		return err
	}
	s, err := decodeSecrets(r)
	if err != nil {
		return err
	}
	sb.Spec, sb.Layers = s.Spec, s.Layers
	e.subjectOf(sb.ID).sandbox = sb
	if key := sb.unique(); key != "" {
		e.names[key] = sb.ID
	}
	return nil
}

func (e *Engine) loadWorkspace(r journal.Record) error {
	ws, err := decode[Workspace](r)
	if err != nil {
		return err
	}
	s, err := decodeSecrets(r)
	if err != nil {
		return err
	}
	ws.Layers, ws.Pending = s.Layers, s.Pending
	subject := e.subjectOf(ws.ID)
	subject.workspace = ws
	subject.closing = ws.State == WorkspaceDeleting
	if ws.Ended == nil {
		e.workspaces[ws.Driver+"/"+ws.Name] = ws.ID
	}
	return nil
}

func (e *Engine) loadHolding(r journal.Record) error {
	rec, err := decode[Holding](r)
	if err != nil {
		return err
	}
	e.subjectOf(rec.Subject).holdings[rec.Extension] = newHolding(*rec)
	return nil
}

func (e *Engine) loadOperation(ctx context.Context, r journal.Record) error {
	op, err := decode[Operation](r)
	if err != nil {
		return err
	}
	e.operations[op.ID] = op
	records, err := e.Journal.List(ctx, journal.Query{Kind: kindStep, Parent: op.ID})
	if err != nil {
		return fmt.Errorf("read the steps of operation %q: %w", op.ID, err)
	}
	for _, r := range records {
		st, err := decode[Step](r)
		if err != nil {
			return err
		}
		e.steps[op.ID] = append(e.steps[op.ID], st)
	}
	return nil
}

func (e *Engine) loadSwitch(r journal.Record) error {
	d, err := decode[Disabled](r)
	if err != nil {
		return err
	}
	e.switches[r.ID] = *d
	return nil
}

// resume goes on with every operation that was not finished, each in its subject's turn, and with every release that
// waits. It is the only way to resume.
func (e *Engine) resume() {
	e.mu.Lock()
	unfinished := slices.SortedFunc(maps.Values(e.operations), func(a, b *Operation) int {
		return cmp.Or(cmp.Compare(turn(a), turn(b)), cmp.Compare(a.ID, b.ID))
	})
	subjects := make(map[string]*subject, len(e.subjects))
	maps.Copy(subjects, e.subjects)
	inFlight := map[string]bool{}
	for _, op := range unfinished {
		inFlight[op.ID] = true
	}
	e.mu.Unlock()
	for _, op := range unfinished {
		if s := subjects[op.Subject]; s != nil && op.State == OperationQueued {
			s.interruptAll() // a delete was accepted: what it overtakes has to find that before its first step
		}
	}
	for _, id := range slices.Sorted(maps.Keys(subjects)) {
		e.resumeSubject(subjects[id], inFlight)
	}
	for _, op := range unfinished {
		e.resumeOperation(subjects[op.Subject], *op)
	}
}

// turn says in which order unfinished operations go on: what was being carried out before what waited.
func turn(op *Operation) int {
	if op.State == OperationQueued {
		return 1
	}
	return 0
}

func (e *Engine) resumeOperation(s *subject, op Operation) {
	h := newHandle(op)
	h.accept()
	switch {
	case s == nil:
		// A reconcile that was cut short is begun anew, by itself.
		e.spawn(func() { e.endUnneeded(op, h) })
	case op.State == OperationQueued:
		s.push(&task{fixed: true, run: func(ctx context.Context) { e.runDelete(ctx, s, op, h) }}, false)
	default:
		s.push(&task{fixed: s.workspace != nil || op.Kind == phase.OpDelete, run: func(ctx context.Context) { e.continueOperation(ctx, s, op, h) }}, false)
	}
}

// continueOperation carries an operation on under the generation with which it began.
func (e *Engine) continueOperation(ctx context.Context, s *subject, op Operation, h *Handle) {
	gen, done := e.generationOf(op)
	if gen == nil {
		h.finish(op, e.Err())
		return
	}
	defer done()
	e.mu.Lock()
	sb, ws := s.sandbox, s.workspace
	e.mu.Unlock()
	if op.Kind == phase.OpRepair {
		e.endUnneeded(op, h) // the next passes find again what it was to mend
		return
	}
	if ws != nil {
		if d := gen.Drivers[ws.Driver]; d != nil {
			e.workspaceExecution(ctx, s, op, h, gen, d, ws).run()
		}
		return
	}
	x, err := e.execution(ctx, s, op, h, gen, sb)
	if err != nil {
		e.Logger.Error("an unfinished operation cannot go on", "operation", op.ID, "err", err)
		h.finish(op, err)
		return
	}
	x.run()
}

// generationOf returns the generation under which an operation began, trying until it is there. Nil: the engine
// stops.
func (e *Engine) generationOf(op Operation) (*Generation, func()) {
	for n := 1; ; n++ {
		gen, done, err := e.generation(e.ctx, op.Generation)
		if err == nil {
			d := gen.Drivers[op.Driver]
			if d == nil || d.Missing == nil {
				return gen, done
			}
			err = d.Missing
			done()
		}
		e.Logger.Error("an unfinished operation waits for its configuration", "operation", op.ID, "generation", op.Generation, "err", err)
		if !sleep(e.ctx, e.backoff(n, time.Second, time.Minute)) {
			return nil, nil
		}
	}
}

// resumeSubject goes on with the releases of a subject that no unfinished operation will attempt first, and waits
// again for its readiness. Nothing of the subject runs yet.
func (e *Engine) resumeSubject(s *subject, inFlight map[string]bool) {
	e.mu.Lock()
	sb := s.sandbox
	var waiting []*holding
	for _, name := range slices.Sorted(maps.Keys(s.holdings)) {
		h := s.holdings[name]
		if slices.ContainsFunc(h.rec.Releases, func(r Release) bool { return !inFlight[r.Operation] || e.attempted(r) }) {
			waiting = append(waiting, h)
		}
	}
	e.mu.Unlock()
	for _, h := range waiting {
		e.retryReleases(s, h)
	}
	if len(waiting) == 0 {
		s.push(&task{fixed: true, run: func(context.Context) { e.settle(s) }}, false)
	}
	if sb != nil && sb.State == sandbox.Releasing {
		e.countDown(sb)
	}
	if sb != nil && sb.State == sandbox.Starting {
		if d := e.Catalog.Current().Drivers[sb.Driver]; d != nil {
			e.expectReady(s, d, sb.Run.Number)
		}
	}
}

// attempted reports whether a release had its first attempt: its operation leaves it to the background. The lock is held.
func (e *Engine) attempted(r Release) bool {
	return slices.ContainsFunc(e.steps[r.Operation], func(st *Step) bool { return st.Seq == r.Seq && st.State == StepWaiting })
}

// purgeLoop forgets, once an hour, what ended more than a day ago, and of the audit what is older than it is kept.
func (e *Engine) purgeLoop() {
	for sleep(e.ctx, time.Hour) {
		e.purge(e.Now().Add(-retention))
		if e.AuditRetention > 0 {
			e.purgeAudit(e.Now().Add(-e.AuditRetention))
		}
	}
}

// purgeBatch is how many lines of the audit are dropped with one commit.
const purgeBatch = 500

// purgeAudit drops the oldest lines of the audit, whose ids sort by time, until one is to be kept.
func (e *Engine) purgeAudit(before time.Time) {
	for {
		lines, err := e.Journal.List(e.ctx, journal.Query{Kind: kindAudit, Limit: purgeBatch})
		if err != nil {
			e.Logger.Warn("old lines of the audit were not dropped; it is tried again", "err", err)
			return
		}
		var tx change
		for _, r := range lines {
			if a, err := decode[AuditEntry](r); err == nil && !a.Time.Before(before) {
				break
			}
			tx.delete(kindAudit, r.ID, nil)
		}
		dropped := len(tx.writes)
		if e.commit(&tx, func(error) {}) != nil || dropped < purgeBatch {
			return // the engine stops, or nothing old is left
		}
	}
}

func (e *Engine) purge(before time.Time) {
	e.mu.Lock()
	var old []*subject
	for _, s := range e.subjects {
		sb, ws := s.sandbox, s.workspace
		if sb != nil && sb.State == sandbox.Deleted && sb.Ended.Before(before) || ws != nil && ws.State == WorkspaceDeleted && ws.Ended.Before(before) {
			old = append(old, s)
		}
	}
	e.mu.Unlock()
	for _, s := range old {
		s.push(&task{fixed: true, run: func(ctx context.Context) { e.purgeSubject(ctx, s) }}, false)
	}
}

// purgeSubject drops the records of one subject. Its lines in the audit stay as long as all others.
func (e *Engine) purgeSubject(ctx context.Context, s *subject) {
	e.mu.Lock()
	used := s.reserved != nil || s.sandbox != nil && s.sandbox.Ended == nil // again
	e.mu.Unlock()
	if used {
		return
	}
	var tx change
	ops, err := e.Journal.List(ctx, journal.Query{Kind: kindHistory, Parent: s.id})
	for _, op := range ops {
		tx.delete(kindHistory, op.ID, nil)
		var steps []journal.Record
		if steps, err = e.Journal.List(ctx, journal.Query{Kind: kindStep, Parent: op.ID}); err != nil {
			break
		}
		for _, st := range steps {
			tx.delete(kindStep, st.ID, nil)
		}
	}
	if err != nil {
		e.Logger.Warn("old history was not dropped; it is tried again", "subject", s.id, "err", err)
		return
	}
	forget := func() { delete(e.subjects, s.id) }
	if s.workspace != nil {
		tx.delete(kindWorkspace, s.id, forget)
	} else {
		tx.delete(kindSandbox, s.id, forget)
	}
	_ = e.commit(&tx, func(error) {}) // it fails only when the engine stops
}

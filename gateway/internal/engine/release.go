package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// quiesce calls a teardown phase that holds nothing, in reverse order. Nobody blocks a termination: what fails is
// recorded. The calls go to the extensions that are active for the sandbox and still bound, disabled ones too: an
// operator's switch ends setup phases only.
func (x *execution) quiesce(p phase.Phase) error {
	for _, b := range slices.Backward(x.participants(p)) {
		if err := x.overtaken(); err != nil {
			return err
		}
		s := x.begin(Step{Phase: p, Extension: b.Extension})
		if s == nil {
			continue
		}
		h := x.e.holdingOf(x.s, b.Extension, x.d.Name, false)
		if err := h.enter(x.ctx); err != nil {
			return err
		}
		err := x.quiesceOne(s, h)
		h.leave()
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) quiesceOne(s *Step, h *holding) error {
	s.Attempt++
	if err := x.intend(s, h); err != nil {
		return err
	}
	r := x.ask(s.Extension, x.request(s.Phase, s, h))
	switch {
	case x.e.ctx.Err() != nil:
		return x.e.Err()
	case r.Err != nil && x.ctx.Err() != nil:
		x.end(s, StepCancelled, r.Err)
		return context.Cause(x.ctx)
	case r.Err != nil:
		x.end(s, StepFailed, r.Err)
		return nil
	}
	return x.answered(s, h, r)
}

// releaseAll makes the first attempt at each release of a lifetime, in reverse order of the chain: to those whose
// partner was started, and where the operation is no undoing also, as a notice, to those that declare no partner.
// What fails is retried alone, in the background, for as long as it takes.
func (x *execution) releaseAll(l phase.Lifetime) error {
	if !x.beginRelease(l) {
		return nil
	}
	p := releasePhase(x.op.Kind, l)
	for _, name := range slices.Backward(x.releasees(p, l)) {
		s := x.begin(x.releaseStep(p, name, l))
		if s == nil {
			continue
		}
		if err := x.releaseOne(s, l); err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) releaseStep(p phase.Phase, name string, l phase.Lifetime) Step {
	s := Step{Phase: p, Extension: name, Cause: x.releaseCause(l)}
	if l == phase.Run {
		s.Run = x.sb.Run.Number
	}
	return s
}

// beginRelease reports whether this operation releases the lifetime. A run is released once, under the first cause.
func (x *execution) beginRelease(l phase.Lifetime) bool {
	if l != phase.Run {
		return true
	}
	run := x.sb.Run
	if !run.Active {
		return run.By == x.op.ID
	}
	x.update(func(sb *Sandbox) {
		ended := x.e.Now()
		sb.Run.Active, sb.Run.By, sb.Run.Released, sb.Run.Ended = false, x.op.ID, x.releaseCause(l), &ended
	})
	return true
}

func (x *execution) releaseCause(l phase.Lifetime) phase.Cause {
	switch {
	case l == phase.Workspace:
		return "" // a workspace goes for one reason only
	case x.op.Undo != "":
		return x.op.Undo
	case l == phase.Run:
		return runCause[x.op.Kind]
	}
	return ""
}

// releasees returns, in chain order, who gets the release.
func (x *execution) releasees(p phase.Phase, l phase.Lifetime) []string {
	var out []string
	for _, name := range x.chainOrder() {
		if x.isReleased(name, p, l) {
			out = append(out, name)
		}
	}
	return out
}

func (x *execution) isReleased(name string, p phase.Phase, l phase.Lifetime) bool {
	if s := x.releaseStep(p, name, l); x.steps[s.unit()] != nil {
		return true // begun before the gateway stopped
	}
	x.e.mu.Lock()
	h := x.s.holdings[name]
	started := h != nil && h.rec.Started[l] != ""
	declared := started && h.rec.Phases.Has(p)
	x.e.mu.Unlock()
	if started {
		return declared // what declares no release could hold nothing
	}
	b := x.d.Chain.Bind(name)
	if b == nil || x.op.Undo != "" || !b.Phases.Has(p) || !x.takesPart(b) || b.Mode == pipeline.Observe {
		return false
	}
	return !slices.ContainsFunc(phase.Takers(l), b.Phases.Has)
}

// chainOrder returns the extensions of the subject: of a sandbox in the order of the chain under which it came into
// being, of a workspace in that of the current one. Whoever holds something and is in no chain any more comes after
// them; of a workspace, which outlives chains, before those who were asked to ensure it later.
func (x *execution) chainOrder() []string {
	var out []string
	if x.sb != nil {
		for _, b := range x.sb.Binds {
			out = append(out, b.Extension)
		}
	} else {
		for _, b := range x.d.Chain.Binds() {
			out = append(out, b.Extension)
		}
	}
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	var gone []string
	for name := range x.s.holdings {
		if !slices.Contains(out, name) {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	if x.sb != nil {
		return append(out, gone...)
	}
	for _, name := range gone {
		at := slices.IndexFunc(out, func(o string) bool { return x.s.taken(o) > x.s.taken(name) })
		if at < 0 {
			at = len(out)
		}
		out = slices.Insert(out, at, name)
	}
	return out
}

// releaseOne journals a release and makes the first attempt at it, after those of the same extension that wait.
func (x *execution) releaseOne(s *Step, l phase.Lifetime) error {
	h := x.e.holdingOf(x.s, s.Extension, x.d.Name, x.sb == nil)
	if err := h.enter(x.e.ctx); err != nil {
		return err
	}
	defer h.leave()
	switch {
	case x.steps[s.unit()] == nil:
		x.journalRelease(s, h, l)
	case !slices.ContainsFunc(h.rec.Releases, func(r Release) bool { return r.Key == stepKey(s) }):
		x.end(s, StepOK, nil) // it was acknowledged before the gateway stopped
		return nil
	}
	for len(h.rec.Releases) > 0 {
		r := h.rec.Releases[0]
		mine := r.Key == stepKey(s)
		err := x.e.attemptRelease(x.life, x.gen, x.s, h, &x.tx, x.commit)
		if x.e.ctx.Err() != nil {
			return x.e.Err()
		}
		if err != nil {
			s.Attempt = h.rec.Releases[0].Attempts
			x.end(s, StepWaiting, err)
			x.e.retryReleases(x.s, h)
			return x.commit()
		}
		if mine {
			s.Attempt, s.Number = r.Attempts+1, h.rec.Number
			x.end(s, StepOK, nil)
			return nil
		}
	}
	return nil
}

// journalRelease puts the release into the next commit: from then on it is owed.
func (x *execution) journalRelease(s *Step, h *holding, l phase.Lifetime) {
	s.Started = x.e.Now()
	r := Release{Phase: s.Phase, Cause: s.Cause, Operation: x.op.ID, Kind: x.op.Kind, Key: stepKey(s), Seq: s.Seq, Since: s.Started}
	r.InDoubt = h.rec.Doubt[l].Key
	if x.sb != nil {
		r.Run = x.sb.Run.Number
	}
	rec := h.rec
	if rec.Generation == "" {
		rec.Generation = x.gen.ID // a notice to one that was never called
	}
	rec.Started = without(rec.Started, l)
	rec.Releases = append(slices.Clone(rec.Releases), r)
	x.putStep(*s)
	x.putFirst()
	x.e.putHolding(&x.tx, h, rec)
}

// attemptRelease makes one attempt at the oldest release of a holding, which the caller has entered. Its intent and
// its outcome go through tx; commit makes the intent durable. via is the generation of the operation that asks, if any.
func (e *Engine) attemptRelease(ctx context.Context, via *Generation, s *subject, h *holding, tx *change, commit func() error) error {
	rec := h.rec
	rec.Number++
	rec.Releases = slices.Clone(rec.Releases)
	rec.Releases[0].Attempts++
	r := rec.Releases[0]
	e.putHolding(tx, h, rec)
	if err := commit(); err != nil {
		return err
	}
	d, done, err := e.releaser(h, via)
	var res pipeline.Result
	if err == nil {
		defer done()
		res = d.Chain.Call(ctx, rec.Extension, e.releaseRequest(s, d, rec, r))
		err = res.Err
	}
	if e.ctx.Err() != nil {
		return e.Err()
	}
	rec = h.rec
	rec.Releases = slices.Clone(rec.Releases)
	if err != nil {
		rec.Releases[0].Error = err.Error()
		e.putHolding(tx, h, rec)
		return err
	}
	l := r.Phase.Releases()
	rec.Releases = rec.Releases[1:]
	rec.Entries, rec.Doubt = without(rec.Entries, l), without(rec.Doubt, l)
	if res.State != nil {
		rec.State = res.State
	}
	e.putHolding(tx, h, rec)
	return nil
}

func (e *Engine) releaseRequest(s *subject, d *Driver, rec Holding, r Release) *pipeline.Request {
	req := &pipeline.Request{
		Phase: r.Phase,
		Step: pipeline.Step{Operation: r.Operation, Kind: r.Kind, Attempt: r.Attempts, Number: rec.Number, Key: r.Key,
			Cause: r.Cause},
		State: rec.State, Held: rec.Entries[r.Phase.Releases()], InDoubt: r.InDoubt,
	}
	e.mu.Lock()
	sb, ws := s.sandbox, s.workspace
	e.mu.Unlock()
	if sb != nil {
		req.Subject = e.pipelineSubject(d, sb)
		req.Subject.Run = r.Run
		req.WorkspaceState = e.workspaceState(sb.WorkspaceID, rec.Extension)
	} else if ws != nil {
		req.Subject = &pipeline.Subject{Workspace: ws.Workspace}
	}
	return req
}

// releaser finds the chain through which an extension can still be asked to release: that of the generation under
// which its operation runs, the current one, or the stored one under which it was last called.
func (e *Engine) releaser(h *holding, via *Generation) (*Driver, func(), error) {
	bound := func(gen *Generation) *Driver {
		if d := gen.Drivers[h.rec.Driver]; d != nil && d.Chain.Bind(h.rec.Extension) != nil {
			return d
		}
		return nil
	}
	if via != nil && bound(via) != nil {
		return bound(via), e.again(via), nil
	}
	gen, done := e.current()
	if d := bound(gen); d != nil {
		return d, done, nil
	}
	done()
	gen, done, err := e.generation(e.ctx, h.rec.Generation)
	if err != nil {
		return nil, nil, fmt.Errorf("extension %q is bound no more, and its stored generation cannot be used: %w", h.rec.Extension, err)
	}
	if d := bound(gen); d != nil {
		return d, done, nil
	}
	done()
	return nil, nil, fault.New(fault.Unavailable, "extension %q is in no generation that is kept", h.rec.Extension)
}

// retryReleases retries the releases of one holding in the background until none is left. The caller has entered it.
func (e *Engine) retryReleases(s *subject, h *holding) {
	if h.live {
		return
	}
	h.live = true
	e.spawn(func() { e.retryLoop(s, h) })
}

func (e *Engine) retryLoop(s *subject, h *holding) {
	for n := 1; ; n++ {
		if !sleep(e.ctx, e.backoff(n, time.Second, 5*time.Minute)) || h.enter(e.ctx) != nil {
			return
		}
		left := e.retryOnce(s, h)
		if !left {
			h.live = false
		}
		h.leave()
		e.mu.Lock()
		e.notify() // a run that waits for the release looks again
		e.mu.Unlock()
		if !left {
			s.push(&task{fixed: true, run: func(context.Context) { e.settle(s) }}, false)
			return
		}
	}
}

// retryOnce makes one attempt at each release that waits, until one fails. It reports whether any is left.
func (e *Engine) retryOnce(s *subject, h *holding) bool {
	var tx change
	commit := func() error { return e.commit(&tx, func(error) {}) }
	for len(h.rec.Releases) > 0 {
		r := h.rec.Releases[0]
		started := e.Now()
		err := e.attemptRelease(e.ctx, nil, s, h, &tx, commit)
		if e.ctx.Err() != nil {
			return true
		}
		e.noteRetry(&tx, h, r, started, err)
		if err != nil {
			e.Logger.Warn("a release does not succeed; it is retried", "extension", h.rec.Extension, "phase", r.Phase,
				"subject", s.id, "attempt", r.Attempts+1, "err", err)
			_ = commit() // it comes back only once it is written, or when the engine stops
			return true
		}
	}
	return commit() != nil
}

// noteRetry writes what became of a retried release into the history of its operation and the audit.
func (e *Engine) noteRetry(tx *change, h *holding, r Release, started time.Time, err error) {
	s := Step{Operation: r.Operation, Seq: r.Seq, Phase: r.Phase, Extension: h.rec.Extension, Cause: r.Cause, State: StepOK,
		Attempt: r.Attempts + 1, Number: h.rec.Number, Started: r.Since, Duration: max(0, e.Now().Sub(r.Since)), Note: "retried in the background"}
	if r.Phase == phase.AfterStop {
		s.Run = r.Run
	}
	if err != nil {
		s.State, s.Error, s.Code = StepWaiting, err.Error(), fault.CodeOf(err).String()
	}
	tx.put(s.record(), func() { e.showStep(&s) })
	e.putAudit(tx, AuditEntry{What: "call", Subject: h.rec.Subject, Operation: r.Operation, Extension: h.rec.Extension,
		Phase: r.Phase, Outcome: string(s.State), Duration: max(0, e.Now().Sub(started)),
		Text: fmt.Sprintf("%s, attempt %d%s", s.unit(), s.Attempt, suffix(s.Error))})
}

// settled waits until the releases of earlier runs are acknowledged, at most the release timeout.
func (x *execution) settled() error {
	owing := func() (names []string) {
		for name, h := range x.s.holdings {
			// While somebody is at it, what it says of itself may not be durable yet.
			if len(h.busy) > 0 || slices.ContainsFunc(h.rec.Releases, func(r Release) bool { return r.Phase == phase.AfterStop }) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	err := x.pause(func() error {
		ctx, cancel := context.WithTimeout(x.ctx, x.d.ReleaseTimeout)
		defer cancel()
		return x.e.await(ctx, func() bool { return len(owing()) == 0 })
	})
	switch {
	case x.ctx.Err() != nil:
		return context.Cause(x.ctx)
	case err == nil:
		return nil
	}
	x.e.mu.Lock()
	names := owing()
	x.e.mu.Unlock()
	return fault.New(fault.FailedPrecondition, "the run before is not released: %s still holds something of it", strings.Join(names, ", "))
}

// holdingOf returns what an extension has to do with a subject, making it where there is nothing yet.
func (e *Engine) holdingOf(s *subject, name, driver string, workspace bool) *holding {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := s.holdings[name]
	if h == nil {
		h = newHolding(Holding{Subject: s.id, Extension: name, Workspace: workspace, Driver: driver, Number: s.numberOf(name)})
		s.holdings[name] = h
	}
	return h
}

// putHolding puts a new version into the next commit. The caller has entered the holding and sees it at once.
func (e *Engine) putHolding(tx *change, h *holding, rec Holding) {
	e.mu.Lock()
	h.rec = rec
	e.mu.Unlock()
	tx.put(rec.record(), nil)
}

// resetHolding takes back what was put into a commit that failed.
func (e *Engine) resetHolding(h *holding, rec Holding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h.rec = rec
}

// workspaceState returns the state that an extension keeps for a workspace.
func (e *Engine) workspaceState(id, name string) *extension.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.subjects[id]; s != nil && s.holdings[name] != nil {
		return s.holdings[name].rec.State
	}
	return nil
}

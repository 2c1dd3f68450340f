package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// probeInterval is how long after a first NotFound a second one is proof that a sandbox is gone.
const probeInterval = time.Minute

// Reconfigured follows a change of the current generation: new drivers are watched, those that are gone no more.
func (e *Engine) Reconfigured() {
	current := e.Catalog.Current()
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, cancel := range e.watched {
		cancel()
		delete(e.watched, name)
	}
	for name, d := range current.Drivers {
		ctx, cancel := context.WithCancel(e.ctx)
		e.watched[name] = cancel
		e.spawn(func() { e.watchDriver(ctx, d) })
		e.spawn(func() { e.periodic(ctx, d) })
	}
}

// watchDriver follows one driver until the configuration changes.
func (e *Engine) watchDriver(ctx context.Context, d *Driver) {
	for n := 1; ctx.Err() == nil; n++ {
		seen := map[string]bool{}
		err := d.Driver.Watch(ctx, func(ev driver.Event) error {
			switch {
			case ev.Status != nil:
				seen[ev.Status.Identity.ID] = true
				e.observed(d, ev.Status)
			case ev.Synced:
				n = 0
				e.compare(ctx, d, seen)
			case ev.Notice != nil:
				e.heard(d, ev.Notice)
			default:
				e.probe(ctx, d, ev.Deleted.ID, 0)
			}
			return nil
		})
		if ctx.Err() == nil {
			e.Logger.Warn("the driver's events ended; watching again", "driver", d.Name, "err", err)
		}
		sleep(ctx, e.backoff(max(n, 1), 100*time.Millisecond, 10*time.Second))
	}
}

// observed takes note of what a driver says of a sandbox. It is acted upon in the sandbox's turn, the newest only.
func (e *Engine) observed(d *Driver, st *driver.Status) {
	e.mu.Lock()
	s := e.subjects[st.Identity.ID]
	known := s != nil && s.workspace == nil
	e.mu.Unlock()
	if !known {
		return
	}
	s.mu.Lock()
	queued := s.status != nil
	s.status = st
	s.mu.Unlock()
	if !queued {
		s.push(&task{run: func(ctx context.Context) { e.act(ctx, s, d) }}, false)
	}
}

// act does what the newest word of the driver calls for.
func (e *Engine) act(ctx context.Context, s *subject, d *Driver) {
	s.mu.Lock()
	st := s.status
	s.status = nil
	s.mu.Unlock()
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	switch {
	case sb == nil || st == nil || sb.Driver != d.Name || s.isOvertaken():
	case sb.Ended != nil:
		e.removeLeftover(ctx, s, d, sb)
	case st.Run != 0 && st.Run < sb.Run.Number:
	case ends(st.State) && sb.Run.Active:
		// It was said a while ago perhaps, and what ends a run has to be so: its releases follow.
		if st = e.confirm(ctx, s, d, sb); st != nil {
			e.actOn(ctx, s, sb, st)
		}
	default:
		e.actOn(ctx, s, sb, st)
	}
}

// ends reports whether a run is over in a state.
func ends(st driver.State) bool {
	return st == driver.Exited || st == driver.Stopped || st == driver.Lost
}

// confirm asks the driver, until it answers, what it has of a sandbox now. Nil: nothing, or the engine stops.
func (e *Engine) confirm(ctx context.Context, s *subject, d *Driver, sb *Sandbox) *driver.Status {
	for n := 1; ; n++ {
		st, err := e.get(ctx, d, s)
		switch {
		case err == nil && st.Run != 0 && st.Run < sb.Run.Number:
			return nil
		case err == nil:
			return st
		case fault.Is(err, fault.NotFound):
			e.probe(e.ctx, d, sb.ID, 0)
			return nil
		}
		if !sleep(ctx, e.backoff(n, time.Second, time.Minute)) {
			return nil
		}
	}
}

func (e *Engine) actOn(ctx context.Context, s *subject, sb *Sandbox, st *driver.Status) {
	noted := e.note(s, sb, st)
	live := noted.Run.Active && (sb.State == sandbox.Starting || sb.State == sandbox.Ready || sb.State == sandbox.Failing)
	if !live {
		return
	}
	switch st.State {
	case driver.Ready:
		if !noted.Run.Ready {
			e.internal(ctx, s, phase.OpReady)
		}
	case driver.Exited, driver.Stopped:
		e.internal(ctx, s, phase.OpExit)
	case driver.Lost:
		e.internal(ctx, s, phase.OpRestore)
	}
}

// internal carries out an operation that the driver's word calls for.
func (e *Engine) internal(ctx context.Context, s *subject, kind phase.Operation) {
	op := e.newOperation(kind, s.id, sandbox.Origin{Door: doorGateway})
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	e.begin(ctx, s, op, newHandle(op), func(x *execution) { x.starts(sb) })
}

// note keeps what the driver says and what calls for nothing: addresses, objects, exit code, why it is not ready.
func (e *Engine) note(s *subject, sb *Sandbox, st *driver.Status) *Sandbox {
	next := *sb
	if told := words(st.Addresses); !slices.Equal(next.Addresses, told) {
		next.Addresses = told
	}
	if told := named(st.Objects); !slices.Equal(next.Objects, told) {
		next.Objects = told
	}
	if st.ExitCode != nil && next.Run.ExitCode == nil {
		next.Run.ExitCode = st.ExitCode
	}
	running := sb.Run.Active && (sb.State == sandbox.Starting || sb.State == sandbox.Ready || sb.State == sandbox.Failing)
	reason := reasonOf(st)
	switch {
	case running && st.State == driver.Failed:
		next.State, next.Reason, next.Failed = sandbox.Failing, reason, true
	case running && st.State == driver.Ready && sb.Run.Ready:
		next.State, next.Reason, next.Failed = sandbox.Ready, "", false
	case st.State == driver.Exited && running:
		next.Reason = reason
	}
	if same(sb, &next) {
		return sb
	}
	var tx change
	e.putSandbox(&tx, s, &next)
	if err := e.commit(&tx, func(error) {}); err != nil {
		return sb
	}
	return &next
}

// What a status tells is kept in the sandbox's record and goes to everybody who lists it. A driver from outside tells what
// it likes, so it is cut as all words of others are.
const (
	maxTold     = 64  // addresses, and objects
	maxToldWord = 512 // bytes of each
)

func reasonOf(st *driver.Status) string {
	return pipeline.Words(cmp.Or(st.Message, st.Reason), extension.MaxWords)
}

func words(list []string) []string {
	out := slices.Clone(list[:min(len(list), maxTold)])
	for i := range out {
		out[i] = pipeline.Words(out[i], maxToldWord)
	}
	return out
}

func named(list []driver.RealObject) []driver.RealObject {
	out := slices.Clone(list[:min(len(list), maxTold)])
	for i := range out {
		out[i] = driver.RealObject{Kind: pipeline.Words(out[i].Kind, maxToldWord), Name: pipeline.Words(out[i].Name, maxToldWord)}
	}
	return out
}

func same(a, b *Sandbox) bool {
	return a.State == b.State && a.Failed == b.Failed && a.Reason == b.Reason && a.Run.ExitCode == b.Run.ExitCode &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Objects, b.Objects)
}

// expectReady puts a sandbox into error when it is not ready in time. It becomes ready all the same if it does.
func (e *Engine) expectReady(s *subject, d *Driver, run int) {
	if d.ReadyTimeout <= 0 {
		return
	}
	time.AfterFunc(d.ReadyTimeout, func() {
		s.push(&task{fixed: true, run: func(ctx context.Context) { e.notReady(ctx, s, d, run) }}, false)
	})
}

func (e *Engine) notReady(ctx context.Context, s *subject, d *Driver, run int) {
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	if sb == nil || sb.Run.Number != run || !sb.Run.Active || sb.State != sandbox.Starting {
		return
	}
	next := *sb
	next.State, next.Reason = sandbox.Failing, fmt.Sprintf("not ready within %v", d.ReadyTimeout)
	ctx, cancel := context.WithTimeout(ctx, d.DriverTimeout)
	defer cancel()
	if st, err := d.Driver.Get(ctx, sb.Identity); err == nil && st.Message != "" {
		next.Reason += ": " + reasonOf(st)
	}
	var tx change
	e.putSandbox(&tx, s, &next)
	_ = e.commit(&tx, func(error) {}) // it fails only when the engine stops
}

// removeLeftover deletes again what the driver shows of a sandbox that is gone: a create that ended after its undo.
func (e *Engine) removeLeftover(ctx context.Context, s *subject, d *Driver, sb *Sandbox) {
	if e.notFound(ctx, d, s) {
		return // what the driver said was said before the end
	}
	e.Logger.Warn("the driver shows a sandbox that was deleted; it is deleted again", "driver", d.Name, "sandbox", sb.ID)
	ctx, cancel := context.WithTimeout(ctx, d.DriverTimeout)
	defer cancel()
	err := d.Driver.Delete(ctx, &driver.DeleteRequest{Identity: sb.Identity, Operation: sb.Operation})
	a := AuditEntry{What: "leftover", Subject: sb.ID, Outcome: string(StepOK), Text: "what appeared after its end was deleted again"}
	if err != nil {
		a.Outcome, a.Text = string(StepFailed), err.Error()
	}
	next := *sb
	next.Leftover = true
	var tx change
	e.putSandbox(&tx, s, &next)
	e.putAudit(&tx, a)
	_ = e.commit(&tx, func(error) {}) // it fails only when the engine stops
	if err != nil {
		e.spawn(func() { // until it succeeds, or is not there any more
			if sleep(e.ctx, e.backoff(1, leftoverPause, leftoverPause)) {
				s.push(&task{fixed: true, run: func(ctx context.Context) { e.removeLeftover(ctx, s, d, &next) }}, false)
			}
		})
	}
}

// leftoverPause is how long after a failure it is tried again to delete what appeared after its end.
const leftoverPause = time.Minute

// compare looks for sandboxes that a snapshot does not have. A list proves nothing: each is asked for.
func (e *Engine) compare(ctx context.Context, d *Driver, seen map[string]bool) {
	e.mu.Lock()
	var missing []string
	for _, id := range slices.Sorted(maps.Keys(e.subjects)) {
		if sb := e.subjects[id].sandbox; sb != nil && sb.Driver == d.Name && sb.Ended == nil && !seen[id] && sb.State != sandbox.Creating {
			missing = append(missing, id)
		}
	}
	e.mu.Unlock()
	for _, id := range missing {
		e.probe(ctx, d, id, probeInterval)
	}
}

// probe finds out whether a sandbox is gone: NotFound at once after a delete event, otherwise twice with a pause.
func (e *Engine) probe(ctx context.Context, d *Driver, id string, pause time.Duration) {
	e.mu.Lock()
	s := e.subjects[id]
	ok := s != nil && s.sandbox != nil && s.sandbox.Driver == d.Name && s.sandbox.Instance == d.Description.Instance
	e.mu.Unlock()
	if !ok {
		return
	}
	s.mu.Lock()
	busy := s.probing
	s.probing = true
	s.mu.Unlock()
	if busy {
		return
	}
	e.spawn(func() {
		gone := e.isGone(ctx, d, s) && (pause == 0 || sleep(ctx, pause) && e.isGone(ctx, d, s))
		s.mu.Lock()
		s.probing = false
		s.mu.Unlock()
		if gone {
			s.push(&task{run: func(ctx context.Context) { e.gone(ctx, s, d) }}, false)
		}
	})
}

// isGone asks the driver until it says whether it has the sandbox: what it said before will not be said again.
func (e *Engine) isGone(ctx context.Context, d *Driver, s *subject) bool {
	for n := 1; ; n++ {
		switch _, err := e.get(ctx, d, s); {
		case err == nil:
			return false
		case fault.Is(err, fault.NotFound):
			return true
		}
		if !sleep(ctx, e.backoff(n, time.Second, time.Minute)) {
			return false
		}
	}
}

func (e *Engine) notFound(ctx context.Context, d *Driver, s *subject) bool {
	_, err := e.get(ctx, d, s)
	return fault.Is(err, fault.NotFound)
}

// get asks the driver once.
func (e *Engine) get(ctx context.Context, d *Driver, s *subject) (*driver.Status, error) {
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, d.DriverTimeout)
	defer cancel()
	return d.Driver.Get(ctx, sb.Identity)
}

// gone ends a sandbox that someone else removed. What was in flight meanwhile may have made it anew, or deleted it.
func (e *Engine) gone(ctx context.Context, s *subject, d *Driver) {
	e.mu.Lock()
	sb := s.sandbox
	e.mu.Unlock()
	if sb == nil || sb.Ended != nil || s.isOvertaken() || !e.notFound(ctx, d, s) {
		return
	}
	op := e.newOperation(phase.OpGone, s.id, sandbox.Origin{Door: doorGateway})
	e.begin(ctx, s, op, newHandle(op), func(x *execution) {
		x.update(func(sb *Sandbox) { sb.State, sb.Reason = sandbox.Deleting, "someone else removed it" })
	})
}

// periodic does what is done every reconcile interval for one driver.
func (e *Engine) periodic(ctx context.Context, d *Driver) {
	for {
		e.reconcileDriver(ctx, d)
		if d.ReconcileInterval <= 0 || !sleep(ctx, d.ReconcileInterval) {
			return
		}
		e.restoreLost(d)
	}
}

// restoreLost tries again to run what was lost and could not be restored.
func (e *Engine) restoreLost(d *Driver) {
	e.mu.Lock()
	var lost []*subject
	for _, id := range slices.Sorted(maps.Keys(e.subjects)) {
		if sb := e.subjects[id].sandbox; sb != nil && sb.Driver == d.Name && sb.Lost && sb.State == sandbox.Failing {
			lost = append(lost, e.subjects[id])
		}
	}
	e.mu.Unlock()
	for _, s := range lost {
		op := e.newOperation(phase.OpRestore, s.id, sandbox.Origin{Door: doorGateway})
		e.enqueue(s, op, newHandle(op), func(*Sandbox) {}, func(sb *Sandbox) error {
			if sb.Lost && sb.State == sandbox.Failing {
				return nil
			}
			return errNothingToDo
		})
	}
}

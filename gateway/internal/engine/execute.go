package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// execution is one operation being carried out, new or resumed. It runs in its subject's goroutine.
type execution struct {
	e   *Engine
	s   *subject
	gen *Generation
	d   *Driver // nil where the driver is configured no more and only releases remain
	op  Operation
	sb  *Sandbox   // the latest version, perhaps not yet committed; nil for a workspace
	ws  *Workspace // of the sandbox, or the subject

	ctx     context.Context // ends when a delete takes over, or the engine stops
	life    context.Context // ends when the engine stops; in the operation's trace
	span    trace.Span      // of its own; nil: whoever made it ends the span
	asked   time.Duration   // how long the chain's calls have taken together
	done    context.CancelFunc
	tx      change // decided and not yet committed
	steps   map[string]*Step
	seq     int
	plan    *plan.Plan // computed from the subject's layers
	wsPlan  *plan.Plan // of the sandbox's workspace
	handle  *Handle
	placed  bool          // it holds one of max_operations
	written bool          // something of it is in the journal: it has to be ended there too
	skip    chan struct{} // closed when an operator abandons the driver's part
}

// errUndone marks a refusal whose undoing has to be caused by something else than the stage's default.
type stageError struct {
	cause phase.Cause
	err   error
}

func (s *stageError) Error() string { return s.err.Error() }
func (s *stageError) Unwrap() error { return s.err }

// run carries the operation out to its end, or until the engine stops: then it is resumed some day.
func (x *execution) run() {
	defer x.leave()
	if err := x.enterPlace(); err != nil {
		return
	}
	if !x.written && x.op.Origin.Caller != "" {
		x.audit(AuditEntry{What: "operator", Actor: x.op.Origin.Caller, Text: fmt.Sprintf("%s of %s/%s/%s", x.op.Kind, x.op.Driver, x.op.Workspace, x.op.Name)})
	}
	x.s.mu.Lock()
	x.s.current = x
	x.s.mu.Unlock()
	err := x.carryOut(x.prepare())
	if x.e.ctx.Err() != nil {
		x.handle.finish(x.op, x.e.Err())
		return
	}
	x.finish(err)
}

// ask makes one call of the chain. The calls of an operation have a budget together; what it waits for between them,
// and what the driver takes, does not count.
func (x *execution) ask(extension string, r *pipeline.Request) pipeline.Result {
	ctx := x.ctx
	b := x.d.Chain.Bind(extension)
	if t := x.d.ChainTimeout; t > 0 && (b == nil || t-x.asked < b.Policy(r.Phase).Timeout) { // else the phase's own timeout ends it first
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t-x.asked, fault.New(fault.DeadlineExceeded, "the chain's budget of %v is used up", t))
		defer cancel()
	}
	began := time.Now()
	defer func() { x.asked += time.Since(began) }()
	return x.d.Chain.Call(ctx, extension, r)
}

// usedUp reports whether the budget of the chain's calls is.
func (x *execution) usedUp() bool { return x.d.ChainTimeout > 0 && x.asked >= x.d.ChainTimeout }

// carryOut does the stages that are left, and undoes them where one fails. A plan that cannot be computed any more, as
// under a driver of another version, fails what builds from it; what only takes away goes on without.
func (x *execution) carryOut(unplanned error) error {
	p := procedures[x.op.Kind]
	if x.op.Undo == "" {
		err := unplanned
		if err == nil || !p.builds() {
			err = x.stages(p.forward)
		}
		switch {
		case err == nil, x.e.ctx.Err() != nil, !x.written:
			return err
		case errors.Is(err, errOvertaken) && (x.op.Kind != phase.OpCreate || x.stepOK(callCreate)):
			return err // the delete that follows does the rest
		}
		x.refuse(err)
	}
	failed := x.opError()
	if err := x.stages(p.undo); err != nil {
		return err
	}
	return failed
}

// refuse turns the operation round: from here on it is undone.
func (x *execution) refuse(err error) {
	x.op.Undo = phase.CauseLaunchFailed
	var s *stageError
	if errors.As(err, &s) {
		x.op.Undo, err = s.cause, s.err
	}
	if errors.Is(err, errOvertaken) {
		x.op.Undo = phase.CauseCancelled
	}
	x.op.Error, x.op.Code = err.Error(), fault.CodeOf(err).String()
	x.handle.diagnose(err)
	if x.sb != nil && x.op.Kind == phase.OpCreate {
		x.update(func(sb *Sandbox) { sb.State, sb.Reason, sb.Undone = sandbox.Deleting, x.op.Error, true })
	}
	x.putOperation()
}

func (x *execution) opError() error {
	if x.op.Error == "" {
		return nil
	}
	return &fault.Error{Code: fault.ParseCode(x.op.Code), Message: x.op.Error, Diagnostics: x.handle.diagnostics()}
}

func (x *execution) stages(stages []stage) error {
	for _, st := range stages {
		if st.when != nil && !st.when(x) {
			continue
		}
		if err := x.stage(st); err != nil {
			if x.e.ctx.Err() != nil {
				return x.e.Err()
			}
			if st.failed != "" {
				return &stageError{cause: st.failed, err: err}
			}
			return err
		}
	}
	return nil
}

func (x *execution) stage(st stage) error {
	switch {
	case st.setup != "":
		return x.setup(st.setup)
	case st.quiesce != "":
		return x.quiesce(st.quiesce)
	case st.drive != "":
		return x.drive(st.drive)
	case st.release != "":
		return x.releaseAll(st.release)
	case st.settled:
		return x.settled()
	default:
		return x.beginRun()
	}
}

// overtaken returns the error that a delete which waits causes, or nil.
func (x *execution) overtaken() error {
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	return nil
}

// enterPlace takes a place among max_operations; pause gives it up while fn waits.
func (x *execution) enterPlace() error {
	if err := x.e.acquire(x.e.ctx, &x.op); err != nil {
		return err
	}
	x.placed = true
	return nil
}

func (x *execution) leavePlace() {
	if x.placed {
		x.e.release()
		x.placed = false
	}
}

func (x *execution) pause(fn func() error) error {
	x.leavePlace()
	err := fn()
	return errors.Join(err, x.enterPlace())
}

func (x *execution) leave() {
	x.s.mu.Lock()
	x.s.current = nil
	x.s.mu.Unlock()
	x.leavePlace()
	if x.span != nil {
		endSpan(x.span, x.opError())
	}
	if x.done != nil {
		x.done()
	}
}

// commit makes everything decided so far durable. After the first one the operation is accepted.
func (x *execution) commit() error {
	if err := x.e.commit(&x.tx, x.stuck()); err != nil {
		return err
	}
	x.written = true
	x.handle.accept()
	x.waiting("") // whatever it was
	return nil
}

// stuck returns what a commit tells while the store is full: before the operation is accepted nil, since then
// nothing has happened yet and the caller can be told. What the driver's word calls for has no caller, and waits.
func (x *execution) stuck() func(error) {
	if !x.written && x.op.Origin.Door != doorGateway {
		return nil
	}
	return func(err error) { x.waiting("the store: " + err.Error()) }
}

// waiting shows people what the operation waits for. It is not journaled.
func (x *execution) waiting(what string) {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	if op := x.e.operations[x.op.ID]; op != nil && op.Waiting != what {
		shown := *op
		shown.Waiting = what
		x.e.operations[x.op.ID] = &shown
		x.e.wake(x.op.ID)
		x.e.notify()
	}
}

// update puts a changed version of the sandbox into the next commit.
func (x *execution) update(change func(*Sandbox)) {
	sb := *x.sb
	change(&sb)
	x.sb = &sb
	x.e.putSandbox(&x.tx, x.s, &sb)
}

// updateWorkspace does the same for a workspace that is the subject.
func (x *execution) updateWorkspace(change func(*Workspace)) {
	ws := *x.ws
	change(&ws)
	x.ws = &ws
	x.e.putWorkspace(&x.tx, x.s, &ws)
}

func (e *Engine) putSandbox(tx *change, s *subject, sb *Sandbox) {
	tx.put(sb.record(), func() {
		if s.sandbox != nil && s.sandbox.Operation != sb.Operation {
			s.notices = nil // they are of the sandbox that had the id before
		}
		s.sandbox = sb
		if s.reserved != nil && s.reserved.Operation == sb.Operation {
			s.reserved = nil
		}
		key := sb.Driver + "/" + sb.Workspace + "/" + sb.Name
		switch { // a name that was given up may be another's by now
		case sb.Ended == nil:
			e.names[key] = sb.ID
		case e.names[key] == sb.ID:
			delete(e.names, key)
		}
	})
}

func (e *Engine) putWorkspace(tx *change, s *subject, ws *Workspace) {
	tx.put(ws.record(), func() {
		s.workspace = ws
		key := ws.Driver + "/" + ws.Name
		switch {
		case ws.Ended == nil:
			e.workspaces[key] = ws.ID
		case e.workspaces[key] == ws.ID:
			delete(e.workspaces, key)
		}
	})
}

func (x *execution) putOperation() { x.e.putOperation(&x.tx, x.op) }

// putFirst puts the operation into its first commit. Later ones have it where it has changed.
func (x *execution) putFirst() {
	if !x.written {
		x.putOperation()
	}
}

// begin returns the step of a unit, to be begun: the one that is in doubt, or a new one; nil where it has ended.
func (x *execution) begin(s Step) *Step {
	if old := x.steps[s.unit()]; old != nil {
		if old.State != StepBegun {
			return nil
		}
		again := *old
		return &again
	}
	s.Operation, s.Seq, s.State = x.op.ID, x.seq, StepBegun
	x.seq++
	return &s
}

// putStep puts the step into the next commit.
func (x *execution) putStep(s Step) {
	x.steps[s.unit()] = &s
	x.tx.put(s.record(), func() { x.e.showStep(&s) })
}

// showStep makes a step visible in the history of its operation. The lock is held.
func (e *Engine) showStep(s *Step) {
	if e.operations[s.Operation] == nil {
		return
	}
	list := slices.Clone(e.steps[s.Operation])
	i := slices.IndexFunc(list, func(o *Step) bool { return o.Seq == s.Seq })
	if i < 0 {
		list = append(list, s)
	} else {
		list[i] = s
	}
	e.steps[s.Operation] = list
}

// end puts what became of a step into the next commit, and a line into the audit.
func (x *execution) end(s *Step, state StepState, err error) {
	s.State, s.Duration = state, max(0, x.e.Now().Sub(s.Started))
	s.Error, s.Code = "", ""
	if err != nil {
		s.Error, s.Code = err.Error(), fault.CodeOf(err).String()
	}
	x.putStep(*s)
	x.audit(AuditEntry{What: "call", Extension: s.Extension, Phase: s.Phase, Outcome: string(state), Duration: s.Duration,
		Text: fmt.Sprintf("%s, attempt %d%s", s.unit(), s.Attempt, suffix(s.Error))})
}

func suffix(err string) string {
	if err == "" {
		return ""
	}
	return ": " + err
}

func (x *execution) audit(a AuditEntry) {
	a.Subject, a.Operation = x.op.Subject, x.op.ID
	x.e.putAudit(&x.tx, a)
}

func (e *Engine) putAudit(tx *change, a AuditEntry) {
	a.ID, a.Time = e.NewID(), e.Now()
	tx.put(a.record(), nil)
}

// stepOK reports whether a driver call of this operation has ended well.
func (x *execution) stepOK(c call) bool {
	s := x.steps["driver."+string(c)]
	return s != nil && s.State == StepOK
}

package engine

import (
	"errors"
	"math"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// finish writes how the operation ended, and what the subject is now.
func (x *execution) finish(err error) {
	if !x.written && err != nil {
		x.dropped()
		x.handle.finish(x.op, err)
		return
	}
	now := x.e.Now()
	x.op.Ended, x.op.State, x.op.Waiting = &now, OperationDone, ""
	if err != nil {
		x.op.State, x.op.Error, x.op.Code = OperationFailed, err.Error(), fault.CodeOf(err).String()
	}
	if x.sb != nil {
		x.finishSandbox(err)
	} else if x.ws != nil {
		x.finishWorkspace(err)
	}
	x.putOperation()
	if cerr := x.commit(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	x.handle.finish(x.op, err)
}

// dropped forgets an operation of which nothing was written.
func (x *execution) dropped() {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	delete(x.e.operations, x.op.ID)
	x.e.notify()
}

// finishSandbox puts the state in which an operation leaves its sandbox into the last commit.
func (x *execution) finishSandbox(err error) {
	overtaken := errors.Is(err, errOvertaken)
	switch x.op.Kind {
	case phase.OpCreate:
		if x.op.Undo != "" {
			x.ended(true)
		}
	case phase.OpStop:
		if err == nil {
			x.state(sandbox.Stopped, "")
		}
	case phase.OpStart:
		x.finishStart(err, overtaken)
	case phase.OpRestore:
		if err != nil && !overtaken {
			x.state(sandbox.Failing, "it was lost and cannot be restored yet: "+err.Error())
		}
	case phase.OpExit:
		x.state(sandbox.Exited, x.sb.Reason)
	case phase.OpDelete, phase.OpGone:
		if err == nil {
			x.ended(false)
		}
	}
}

func (x *execution) finishStart(err error, overtaken bool) {
	switch {
	case err == nil || overtaken:
	case x.op.Run == 0:
		x.state(x.op.Was, err.Error()) // it was refused before a run began
	default:
		x.state(sandbox.Stopped, err.Error())
	}
}

func (x *execution) state(s sandbox.State, reason string) {
	x.update(func(sb *Sandbox) { sb.State, sb.Reason = s, reason })
}

// ended writes that the driver has nothing of the sandbox left, and, where nobody owes a release, that all is done.
func (x *execution) ended(undone bool) {
	x.update(func(sb *Sandbox) {
		if sb.Ended == nil {
			now := x.e.Now()
			sb.Ended = &now
		}
		sb.Undone, sb.Addresses, sb.Objects, sb.Reason = undone, nil, nil, ""
		sb.State = sandbox.Deleted
		var owed bool
		if sb.Numbers, owed = x.e.forgetHoldings(&x.tx, x.s, sb.Numbers); owed {
			sb.State = sandbox.Releasing
			x.e.countDown(sb)
		}
	})
}

// countDown lets those who watch see when a sandbox counts as deleted, though its releases go on.
func (e *Engine) countDown(sb *Sandbox) {
	left := e.overdue(e.Catalog.Current(), sb)
	if left == math.MaxInt64 {
		return
	}
	e.spawn(func() {
		if sleep(e.ctx, left) {
			e.mu.Lock()
			e.notify()
			e.mu.Unlock()
		}
	})
}

func (x *execution) finishWorkspace(err error) {
	now := x.e.Now()
	gone := func(ws *Workspace) {
		ws.Ended, ws.State, ws.Reason = &now, WorkspaceDeleted, ""
		var owed bool
		if ws.Numbers, owed = x.e.forgetHoldings(&x.tx, x.s, ws.Numbers); owed {
			ws.State = WorkspaceReleasing
		}
	}
	switch {
	case x.op.Kind == phase.OpWorkspaceDelete && err == nil:
		x.updateWorkspace(gone)
	case x.op.Kind == phase.OpWorkspaceEnsure && err == nil:
		x.updateWorkspace(func(ws *Workspace) {
			ws.State, ws.Reason, ws.Generation, ws.Layers, ws.Pending = WorkspaceEnsured, "", x.gen.ID, ws.Pending, nil
		})
	case x.op.Kind == phase.OpWorkspaceEnsure && x.op.First:
		x.updateWorkspace(gone)
	case x.op.Kind == phase.OpWorkspaceEnsure:
		x.updateWorkspace(func(ws *Workspace) {
			ws.State, ws.Reason, ws.Pending = WorkspaceEnsured, err.Error(), nil // it stays as it was
		})
	}
}

// forgetHoldings drops what extensions had to do with a subject that is gone, where nothing is owed, and reports
// whether anything is. It returns the numbers with those of whom it dropped, so that none is used again.
func (e *Engine) forgetHoldings(tx *change, s *subject, numbers map[string]uint64) (all map[string]uint64, owed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, h := range s.holdings {
		if len(h.rec.Releases) > 0 || len(h.busy) > 0 {
			owed = true // whoever is in it will write it once more, and settles the subject after that
			continue
		}
		rec := h.rec
		numbers = with(numbers, name, rec.Number)
		tx.delete(kindHolding, rec.Subject+"/"+rec.Extension, func() { delete(s.holdings, name) })
	}
	return numbers, owed
}

// settle writes that a subject which is gone is wholly released, once it is. It runs in the subject's turn.
func (e *Engine) settle(s *subject) {
	var tx change
	e.mu.Lock()
	sb, ws := s.sandbox, s.workspace
	e.mu.Unlock()
	switch {
	case sb != nil && sb.State == sandbox.Releasing:
		done, owed := *sb, false
		if done.Numbers, owed = e.forgetHoldings(&tx, s, sb.Numbers); owed {
			return
		}
		done.State = sandbox.Deleted
		e.putSandbox(&tx, s, &done)
	case ws != nil && ws.State == WorkspaceReleasing:
		done, owed := *ws, false
		if done.Numbers, owed = e.forgetHoldings(&tx, s, ws.Numbers); owed {
			return
		}
		done.State = WorkspaceDeleted
		e.putWorkspace(&tx, s, &done)
	}
	_ = e.commit(&tx, func(error) {}) // it fails only when the engine stops; the next start settles it
}

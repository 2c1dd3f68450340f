package drivertest

import (
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// What hosts, engines and other people do to the sandboxes of a world. Each does nothing to a sandbox that is not
// there, or not in a state in which it can happen, and reports whether it did something.

// Exit ends the run of a sandbox: its process ended, or was killed (128+n for signal n).
func (w *World) Exit(id string, code int) bool {
	return w.running(id, func(b *boxState) { w.exit(b, code) })
}

// Lose takes the host or engine away under the run of a sandbox.
func (w *World) Lose(id string) bool {
	return w.running(id, func(b *boxState) {
		b.status.Reason, b.status.Message = "HostGone", "the host went away"
		w.change(b, driver.Lost, LostNow)
	})
}

// LoseAll is a reboot: every run is lost. It returns how many.
func (w *World) LoseAll() int {
	n := 0
	for _, s := range w.Sandboxes() {
		if w.Lose(s.Identity.ID) {
			n++
		}
	}
	return n
}

// Vanish removes a sandbox with all its objects, as someone who is not the gateway would.
func (w *World) Vanish(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(id)
	if b == nil {
		return false
	}
	w.note(Entry{Verb: Vanished, ID: id, Operation: b.status.Operation, Run: b.status.Run})
	w.forget(b)
	return true
}

// SetReady makes a sandbox that runs ready.
func (w *World) SetReady(id string) bool {
	return w.running(id, func(b *boxState) {
		b.status.Reason, b.status.Message = "", ""
		w.change(b, driver.Ready, ReadyNow)
	})
}

// SetNotReady takes a sandbox that runs back to Running, with a reason.
func (w *World) SetNotReady(id, reason, message string) bool {
	return w.running(id, func(b *boxState) {
		b.status.Reason, b.status.Message = reason, message
		w.change(b, driver.Running, NotReady)
	})
}

// SetFailed makes the driver say that a sandbox cannot run. SetReady ends it.
func (w *World) SetFailed(id, reason, message string) bool {
	return w.running(id, func(b *boxState) {
		b.status.Reason, b.status.Message = reason, message
		w.change(b, driver.Failed, NotReady)
	})
}

// Announce tells the watchers what they know already: the state of a sandbox, once more.
func (w *World) Announce(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(id)
	if b != nil {
		w.emit(func() driver.Event { return driver.Event{Status: b.clone()} })
	}
	return b != nil
}

// AnnounceDeleted tells the watchers, falsely, that a sandbox is gone.
func (w *World) AnnounceDeleted(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(id)
	if b != nil {
		w.emit(func() driver.Event { return driver.Event{Deleted: b.status.Identity} })
	}
	return b != nil
}

// Tell gives everyone who watches a notice.
func (w *World) Tell(n driver.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.emit(func() driver.Event { told := n; return driver.Event{Notice: &told} })
}

// BreakWatches ends every Watch with Unavailable: the driver has lost its source.
func (w *World) BreakWatches() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wt := range w.watchers {
		wt.broken = fault.New(fault.Unavailable, "the source of events went away")
		wt.wake()
	}
}

// Plant puts an object into the world that belongs to nobody's sandbox; it is in the way of one of the same name.
func (w *World) Plant(o driver.RealObject) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.foreign[o] = true
}

// Planted reports whether an object that was planted is still there.
func (w *World) Planted(o driver.RealObject) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.foreign[o]
}

// running carries out what can only happen to a sandbox that is being started or runs.
func (w *World) running(id string, do func(b *boxState)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.find(id)
	if b == nil || !runs(b.status.State) || b.status.Run == 0 {
		return false
	}
	do(b)
	return true
}

// exit ends a run with a code. The lock is held.
func (w *World) exit(b *boxState, code int) {
	b.status.ExitCode = &code
	b.status.Reason, b.status.Message = "", ""
	w.change(b, driver.Exited, ExitedNow)
}

// forget removes every trace of a sandbox and tells the watchers. The lock is held.
func (w *World) forget(b *boxState) {
	id := b.status.Identity
	close(b.changed)
	delete(w.boxes, key{id.Driver, id.ID})
	w.emit(func() driver.Event { return driver.Event{Deleted: id} })
}

// runs reports whether something of a run exists in the state.
func runs(s driver.State) bool {
	return s == driver.Provisioning || s == driver.Running || s == driver.Ready || s == driver.Failed
}

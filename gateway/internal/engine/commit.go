package engine

import (
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/shared/fault"
)

// change is what one commit writes. What is put into it becomes visible to others only when it is durable.
// A later put of a record replaces an earlier one, so that a change may be gathered over several decisions.
type change struct {
	writes []journal.Write
	shows  []func() // beside each write; nil: it shows nowhere
}

func (c *change) put(r journal.Record, show func()) { c.add(journal.Write{Record: r}, show) }

func (c *change) delete(kind, id string, show func()) {
	c.add(journal.Write{Record: journal.Record{Kind: kind, ID: id}, Delete: true}, show)
}

func (c *change) add(w journal.Write, show func()) {
	for i := range c.writes { // they are few
		if r := &c.writes[i].Record; r.Kind == w.Record.Kind && r.ID == w.Record.ID {
			c.writes[i], c.shows[i] = w, show
			return
		}
	}
	c.writes, c.shows = append(c.writes, w), append(c.shows, show)
}

func (c *change) empty() bool { return len(c.writes) == 0 }

// commit makes the change durable, then visible. While the store cannot take it, whatever the reason, it waits and tries
// again, since nothing may go on that is not written down; stuck is told why, and where it is nil the error is returned.
// Two are final: a name that is taken, and a store that another gateway has taken over.
func (e *Engine) commit(c *change, stuck func(error)) error {
	if c.empty() {
		return nil
	}
	for n := 1; ; n++ {
		err := e.Journal.Commit(e.ctx, c.writes)
		if e.ctx.Err() != nil {
			return e.Err()
		}
		switch fault.CodeOf(err) {
		case fault.OK:
			e.publish(c)
			return nil
		case fault.AlreadyExists:
			return err // a name is taken; nothing else of a commit can be
		case fault.FailedPrecondition:
			e.cancel(fault.New(fault.FailedPrecondition, "this gateway may write no more: %w", err))
			return e.Err()
		default: // full, locked, unreachable, broken: what is in flight waits until somebody has mended it
			if stuck == nil {
				return err
			}
			stuck(err)
			e.Logger.Error("the store cannot be written; what is in flight waits", "err", err, "attempt", n)
			if !sleep(e.ctx, e.backoff(n, 100*time.Millisecond, 10*time.Second)) {
				return e.Err()
			}
		}
	}
}

func (e *Engine) publish(c *change) {
	e.mu.Lock()
	for _, show := range c.shows {
		if show != nil {
			show()
		}
	}
	for i := range c.writes {
		e.wake(c.writes[i].Record.ID)
		e.wake(c.writes[i].Record.Parent)
	}
	*c = change{}
	e.notify()
	e.mu.Unlock()
}

// notify wakes everyone who awaits something. The lock is held.
func (e *Engine) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// Subscribe returns a channel that gets a value whenever something is published of the sandbox, workspace or operation
// with this id, and what ends that. Subscribe before looking, and no change is missed. Who waits for one thing among
// many is not woken by the others.
func (e *Engine) Subscribe(id string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1) // one that is not yet taken stands for all that followed
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting[id] == nil {
		e.waiting[id] = map[chan struct{}]bool{}
	}
	e.waiting[id][ch] = true
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if delete(e.waiting[id], ch); len(e.waiting[id]) == 0 {
			delete(e.waiting, id)
		}
	}
}

// wake tells those who wait for one thing that something of it was published. The lock is held.
func (e *Engine) wake(id string) {
	for ch := range e.waiting[id] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

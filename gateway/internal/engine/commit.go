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

// commit makes the change durable, then visible. While the store is full or locked it waits and tries again, since
// nothing may go on that is not written down; stuck, where not nil, is told why. Any other error is final.
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
		case fault.ResourceExhausted, fault.Unavailable, fault.DeadlineExceeded:
			if stuck == nil {
				return err
			}
			stuck(err)
			e.Logger.Error("the store cannot be written; what is in flight waits", "err", err, "attempt", n)
			if !sleep(e.ctx, e.backoff(n, 100*time.Millisecond, 10*time.Second)) {
				return e.Err()
			}
		case fault.FailedPrecondition:
			e.cancel(fault.New(fault.FailedPrecondition, "this gateway may write no more: %w", err))
			return e.Err()
		default:
			return err
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
	*c = change{}
	e.notify()
	e.mu.Unlock()
}

// notify wakes everyone who awaits something. The lock is held.
func (e *Engine) notify() {
	close(e.changed)
	e.changed = make(chan struct{})
}

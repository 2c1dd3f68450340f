package drivertest

import (
	"context"

	"github.com/sandgate/sandgate/shared/driver"
)

// watcher is one Watch: a queue that the world fills under its lock and the caller of Watch empties.
type watcher struct {
	queue  []driver.Event
	broken error
	more   chan struct{} // has room for one: something is in the queue
}

// subscribe adds a watcher whose queue begins with the snapshot.
func (w *World) subscribe() *watcher {
	w.mu.Lock()
	defer w.mu.Unlock()
	wt := &watcher{more: make(chan struct{}, 1)}
	for _, s := range w.snapshot() {
		wt.queue = append(wt.queue, driver.Event{Status: s})
	}
	wt.queue = append(wt.queue, driver.Event{Synced: true})
	wt.wake()
	w.watchers[wt] = struct{}{}
	return wt
}

func (w *World) unsubscribe(wt *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watchers, wt)
}

// emit queues an event, made anew for each watcher. The lock is held.
func (w *World) emit(event func() driver.Event) {
	for wt := range w.watchers {
		wt.queue = append(wt.queue, event())
		wt.wake()
	}
}

// take empties a queue.
func (w *World) take(wt *watcher) ([]driver.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := wt.queue
	wt.queue = nil
	return events, wt.broken
}

func (wt *watcher) wake() {
	select {
	case wt.more <- struct{}{}:
	default:
	}
}

// Watch implements driver.Driver.
func (f *Fake) Watch(ctx context.Context, fn func(driver.Event) error) error {
	if err := f.do(ctx, Moment{Call: CallWatch}, func(bool) error { return nil }); err != nil {
		return err
	}
	wt := f.world.subscribe()
	defer f.world.unsubscribe(wt)
	for {
		events, broken := f.world.take(wt)
		for _, e := range events {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		if broken != nil {
			return broken
		}
		select {
		case <-wt.more:
		case <-ctx.Done():
			return ctx.Err()
		case <-f.closed:
			return errClosed()
		}
	}
}

package drivertest

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/sandgate/sandgate/shared/driver"
)

// watchChecks are about what a driver says of its sandboxes unasked.
func watchChecks() []check {
	return []check{
		{name: "Watch shows what there is, then Synced, then changes", run: watchAll},
		{name: "Watch shows in its snapshot what changed while nobody watched", run: watchLater},
		{name: "Watch ends when its function fails", run: watchFails},
		{name: "Watch ends with its context", run: watchCancelled},
		{name: "Two watches see the same", run: watchTwice},
	}
}

// viewer is a Watch that is going on.
type viewer struct {
	rig     *rig
	events  chan driver.Event
	done    chan error
	cancel  context.CancelFunc
	overlap atomic.Bool // two calls of the function at once
}

// watch begins a Watch that the check ends, or the end of the check.
func (r *rig) watch() *viewer {
	ctx, cancel := context.WithTimeout(r.Context(), r.f.Patience)
	v := &viewer{rig: r, events: make(chan driver.Event, 1024), done: make(chan error, 1), cancel: cancel}
	var busy atomic.Bool
	d := r.d
	go func() {
		v.done <- d.Watch(ctx, func(e driver.Event) error {
			if !busy.CompareAndSwap(false, true) {
				v.overlap.Store(true)
			}
			defer busy.Store(false)
			select {
			case v.events <- e:
			case <-ctx.Done():
			}
			return nil
		})
		close(v.done)
	}()
	r.Cleanup(v.end)
	return v
}

// end ends the Watch and waits for it.
func (v *viewer) end() {
	v.cancel()
	for range v.done { // closed when the Watch has returned
	}
	if v.overlap.Load() {
		v.rig.Error("Watch made two calls of its function at once")
	}
}

// next returns the first event that ok says yes to, and says what came instead.
func (v *viewer) next(what string, ok func(driver.Event) bool) driver.Event {
	v.rig.Helper()
	for {
		select {
		case e := <-v.events:
			if ok(e) {
				return e
			}
		case err := <-v.done:
			v.rig.Fatalf("Watch ended while waiting for %s: %v", what, err)
		}
	}
}

// snapshot returns the ids of this driver's name that come before Synced.
func (v *viewer) snapshot() map[string]*driver.Status {
	v.rig.Helper()
	got := map[string]*driver.Status{}
	v.next("Synced", func(e driver.Event) bool {
		if e.Status != nil && e.Status.Identity.Driver == v.rig.f.Driver {
			got[e.Status.Identity.ID] = e.Status
		}
		return e.Synced
	})
	return got
}

func (v *viewer) becomes(s *subject, state driver.State) {
	v.rig.Helper()
	v.next(s.id.Name+" "+string(state), func(e driver.Event) bool {
		return e.Status != nil && e.Status.Identity == s.id && e.Status.State == state
	})
}

func (v *viewer) deleted(s *subject) {
	v.rig.Helper()
	v.next("the end of "+s.id.Name, func(e driver.Event) bool { return e.Status == nil && e.Deleted == s.id })
}

func watchAll(r *rig) {
	running := r.sleeper()
	stopped := r.sandbox(running.space, "stopped", r.f.Commands.Sleep)
	running.ready()
	stopped.ready()
	stopped.stop()

	v := r.watch()
	got := v.snapshot()
	if len(got) != 2 || got[running.id.ID] == nil || got[stopped.id.ID] == nil {
		r.Fatalf("the snapshot has %d sandboxes, want the two that there are", len(got))
	}
	if a, b := got[running.id.ID].State, got[stopped.id.ID].State; a != driver.Ready || b != driver.Stopped {
		r.Errorf("in the snapshot they are %s and %s, want ready and stopped", a, b)
	}

	created := r.sandbox(running.space, "created", r.f.Commands.Sleep)
	created.create()
	v.becomes(created, driver.Ready)
	running.stop()
	v.becomes(running, driver.Stopped)
	stopped.start(2)
	v.becomes(stopped, driver.Ready)
	created.delete()
	v.deleted(created)
	if r.f.Vanish != nil {
		r.f.Vanish(r, stopped.get())
		v.deleted(stopped)
	}
}

func watchLater(r *rig) {
	kept := r.sleeper()
	kept.ready()
	v := r.watch()
	v.snapshot()
	v.end()

	kept.stop()
	removed := r.sandbox(kept.space, "removed", r.f.Commands.Sleep)
	removed.ready()
	removed.delete()
	got := r.watch().snapshot()
	if len(got) != 1 || got[kept.id.ID] == nil || got[kept.id.ID].State != driver.Stopped {
		r.Errorf("the snapshot is %v, want the one sandbox, stopped", got)
	}
}

func watchFails(r *rig) {
	r.sleeper().ready()
	ctx, cancel := context.WithTimeout(r.Context(), r.f.Patience)
	defer cancel()
	enough := errors.New("enough")
	calls := 0
	err := r.d.Watch(ctx, func(driver.Event) error {
		calls++
		return enough
	})
	if !errors.Is(err, enough) || calls != 1 {
		r.Errorf("Watch ended with %v after %d calls, want the function's error after one", err, calls)
	}
}

func watchCancelled(r *rig) {
	v := r.watch()
	v.snapshot()
	v.cancel()
	if err := <-v.done; err == nil {
		r.Error("Watch ended without an error, though its context was cancelled")
	}
}

func watchTwice(r *rig) {
	s := r.sleeper()
	both := []*viewer{r.watch(), r.watch()}
	for _, v := range both {
		if got := v.snapshot(); len(got) > 0 {
			r.Errorf("the snapshot of nothing has %d sandboxes", len(got))
		}
	}
	s.create()
	for _, v := range both {
		v.becomes(s, driver.Ready)
	}
	s.delete()
	for _, v := range both {
		v.deleted(s)
	}
}

package container

import (
	"context"
	"reflect"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// watcher tells of changes: an event says only which container to look at.
type watcher struct {
	d    *Driver
	fn   func(driver.Event) error
	seen map[string]*driver.Status // what was told last, by the container's id
}

// Watch implements driver.Driver.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	w := &watcher{d: d, fn: fn, seen: map[string]*driver.Status{}}
	err := d.engine.Events(ctx, ownerLabel, d.owner,
		func() error { return w.snapshot(ctx) },
		func(id string) error { return w.look(ctx, id) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (w *watcher) snapshot(ctx context.Context) error {
	if err := w.d.sameEngine(ctx); err != nil {
		return err
	}
	ids, err := w.d.engine.ListContainers(ctx, map[string]string{ownerLabel: w.d.owner})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := w.look(ctx, id); err != nil {
			return err
		}
	}
	return w.fn(driver.Event{Synced: true})
}

// look tells what became of a container, unless that was told.
func (w *watcher) look(ctx context.Context, id string) error {
	c, err := w.d.engine.FindContainer(ctx, id)
	old := w.seen[id]
	switch {
	case fault.Is(err, fault.NotFound) && old == nil:
		return nil
	case fault.Is(err, fault.NotFound):
		delete(w.seen, id)
		return w.fn(driver.Event{Deleted: old.Identity})
	case err != nil:
		return err
	}
	st, err := w.d.status(ctx, c)
	if fault.Is(err, fault.NotFound) {
		return nil // its marks are made up
	}
	if err != nil || reflect.DeepEqual(old, st) {
		return err
	}
	w.seen[id] = st
	return w.fn(driver.Event{Status: st})
}

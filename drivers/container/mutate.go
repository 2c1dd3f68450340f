package container

import (
	"context"
	"time"
)

// work is one mutating call.
type work struct {
	context.Context                 // of the engine's calls: it outlives the caller's
	caller          context.Context // when it ends, no further call is begun
}

// next says whether a further call of the engine may be begun.
func (w *work) next() error {
	if w.caller.Err() != nil {
		return context.Cause(w.caller)
	}
	return w.Err()
}

// mutate does one mutating call for the key. An engine goes on with what it was told when the caller goes away; so the
// key stays taken until it has answered, and whoever comes next sees what became of it.
func (d *Driver) mutate(ctx context.Context, key string, fn func(w *work) error) error {
	unlock, err := d.ones.Lock(ctx, key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		unlock()
		return context.Cause(ctx)
	}
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	release := context.AfterFunc(d.closed, cancel)
	done := make(chan error, 1)
	d.calls.Add(1)
	go func() {
		defer d.calls.Done()
		defer unlock()
		defer cancel()
		defer release()
		done <- fn(&work{Context: inner, caller: ctx})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// closePatience is how long Close lets the engine answer what it was told.
const closePatience = 10 * time.Second

// Close implements driver.Driver.
func (d *Driver) Close() error {
	ended := make(chan struct{})
	go func() {
		d.calls.Wait()
		close(ended)
	}()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	select {
	case <-ended:
	case <-patience.C:
	}
	d.shut()
	<-ended
	return d.engine.Close()
}

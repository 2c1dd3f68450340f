package kubernetes

import (
	"context"
	"time"
)

// work is one mutating call. As a context it is the caller's, of what is read and waited for.
type work struct {
	context.Context
	writes context.Context // of what is written: it outlives the caller's
}

// mutate does one mutating call for the key. The API server goes on with a request that nobody waits for any more; so the
// key stays taken until it has answered, and whoever comes next sees what became of it.
func (d *Driver) mutate(ctx context.Context, key string, fn func(w *work) error) error {
	unlock, err := d.ones.Lock(ctx, key)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		unlock()
		return context.Cause(ctx)
	}
	writes, cancel := context.WithCancel(context.WithoutCancel(ctx))
	waits, leave := context.WithCancel(ctx)
	release := context.AfterFunc(d.closed, func() { cancel(); leave() })
	done := make(chan error, 1)
	d.calls.Add(1)
	go func() {
		defer d.calls.Done()
		defer unlock()
		defer cancel()
		defer leave()
		defer release()
		done <- fn(&work{Context: waits, writes: writes})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// closePatience is how long Close lets the API server answer what it was told.
const closePatience = 10 * time.Second

// Close implements driver.Driver. Sandboxes go on.
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
	d.cluster.close()
	return nil
}

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

// mutate does one mutating call for the key.
func (d *Driver) mutate(ctx context.Context, key string, fn func(w *work) error) error {
	return d.calls.Do(ctx, key, func(asked, told context.Context) error { return fn(&work{Context: asked, writes: told}) })
}

// closePatience is how long Close lets the API server answer what it was told.
const closePatience = 10 * time.Second

// Close implements driver.Driver. Sandboxes go on.
func (d *Driver) Close() error {
	d.calls.Close(closePatience)
	d.cluster.close()
	return nil
}

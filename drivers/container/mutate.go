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

// mutate does one mutating call for the key.
func (d *Driver) mutate(ctx context.Context, key string, fn func(w *work) error) error {
	return d.calls.Do(ctx, key, func(asked, told context.Context) error { return fn(&work{Context: told, caller: asked}) })
}

// closePatience is how long Close lets the engine answer what it was told.
const closePatience = 10 * time.Second

// Close implements driver.Driver.
func (d *Driver) Close() error {
	d.calls.Close(closePatience)
	return d.engine.Close()
}

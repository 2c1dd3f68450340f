package driver

import (
	"context"
	"sync"
	"time"
)

// Calls makes one mutating call at a time for each key, such as a sandbox's id, and lets it outlive its caller: an engine
// goes on with what it was told when nobody waits for it any more. So the key stays taken until the engine has answered, and
// whoever comes next sees what became of it.
type Calls struct {
	turns  Keyed
	begun  sync.WaitGroup
	closed context.Context
	shut   context.CancelFunc
}

// NewCalls returns those of a driver that is open.
func NewCalls() *Calls {
	c := &Calls{}
	c.closed, c.shut = context.WithCancel(context.Background()) // nobody's call
	return c
}

// Do waits for the key's turn and calls fn, and returns what it says, or why ctx ended. Until the driver is closed, asked ends
// with ctx, and told does not: asked is for what is read, waited for or begun, told for what an engine has been told and is
// to be heard out.
func (c *Calls) Do(ctx context.Context, key string, fn func(asked, told context.Context) error) error {
	done, err := c.turns.Lock(ctx, key)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		done()
		return context.Cause(ctx)
	}
	asked, leave := context.WithCancel(ctx)
	told, cancel := context.WithCancel(context.WithoutCancel(ctx))
	release := context.AfterFunc(c.closed, func() { leave(); cancel() })
	answer := make(chan error, 1)
	c.begun.Go(func() {
		defer done()
		defer cancel()
		defer leave()
		defer release()
		answer <- fn(asked, told)
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close gives the calls that are under way patience to end, then ends their contexts, and returns when they have ended. No
// call may be begun meanwhile.
func (c *Calls) Close(patience time.Duration) {
	impatient := time.AfterFunc(patience, c.shut)
	c.begun.Wait()
	impatient.Stop()
	c.shut()
}

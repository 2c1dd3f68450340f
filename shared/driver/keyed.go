package driver

import (
	"context"
	"sync"
)

// Keyed is a lock for each key, such as a sandbox's id: the gateway makes one mutating call for a sandbox at a time, and one
// that it has given up may still be under way in the driver when the next begins.
type Keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has an element while it is held
	users int
}

// Try takes the key's lock if nobody has it.
func (k *Keyed) Try(key string) (unlock func(), ok bool) {
	l, leave := k.join(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, true
	default:
		leave()
		return nil, false
	}
}

// Lock waits for the key's lock and returns what gives it up, or fails when ctx ends.
func (k *Keyed) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l, leave := k.join(key)
	if ctx.Err() == nil {
		select {
		case l.held <- struct{}{}:
			return func() { <-l.held; leave() }, nil
		case <-ctx.Done():
		}
	}
	leave()
	return nil, context.Cause(ctx)
}

// join counts the caller among the users of the key's lock, until it leaves.
func (k *Keyed) join(key string) (l *keyedLock, leave func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	if l = k.locks[key]; l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	return l, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}

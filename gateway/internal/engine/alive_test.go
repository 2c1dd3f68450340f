package engine

import (
	"testing"
	"time"
)

// A lock of the engine that is not given back is what the watchdog is for.
func TestAlive(t *testing.T) {
	for name, hang := range map[string]func(*Engine) (release func()){
		"what is published":   func(e *Engine) func() { e.mu.Lock(); return e.mu.Unlock },
		"what is to be begun": func(e *Engine) func() { e.spawning.Lock(); return e.spawning.Unlock },
	} {
		e := &Engine{}
		e.Alive()
		release := hang(e)
		done := make(chan struct{})
		go func() { e.Alive(); close(done) }()
		select {
		case <-done:
			t.Errorf("%s: it is said to be alive", name)
		case <-time.After(20 * time.Millisecond):
		}
		release()
		<-done
	}
}

package engine

import (
	"testing"

	"github.com/sandgate/sandgate/shared/sandbox"
)

// Who waits for one sandbox, or one operation, is woken by what becomes of it, and by nothing else.
func TestSubscribersAreWokenByTheirOwn(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		mine, err := r.create("mine")
		r.must(err)
		other, err := r.create("other")
		r.must(err)
		changed, stop := r.engine.Subscribe(mine.ID)
		woken := func() bool {
			select {
			case <-changed:
				return true
			default:
				return false
			}
		}
		r.must(r.wait(r.engine.StopSandbox(other.ID, sandbox.Origin{})))
		if woken() {
			t.Error("another sandbox was stopped, and it was woken")
		}
		r.must(r.wait(r.engine.StopSandbox(mine.ID, sandbox.Origin{})))
		if !woken() {
			t.Error("it was stopped, and nobody was woken")
		}
		h, err := r.engine.StartSandbox(mine.ID, nil, sandbox.Origin{})
		r.must(err)
		stop()
		operation, end := r.engine.Subscribe(h.op.ID)
		defer end()
		r.must(r.wait(h, nil))
		select {
		case <-operation:
		default:
			t.Error("the operation has ended, and who waits for it was not woken")
		}
		woken()
		r.must(r.wait(r.engine.StopSandbox(mine.ID, sandbox.Origin{})))
		if woken() || len(r.engine.waiting) != 1 {
			t.Errorf("it is woken after it has stopped to wait; %d things are waited for, want 1", len(r.engine.waiting))
		}
	})
}

package supervisor

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
)

// Flight is a call that has not been answered.
type Flight struct {
	Phase   phase.Phase
	Subject string // "sandbox ID", "workspace ID" or "bind ID"
	Key     string
	Since   time.Time
}

func (f Flight) String() string { return fmt.Sprintf("%s for %s", f.Phase, f.Subject) }

// patience is how long a cancelled call may go on where it had no deadline of its own.
const patience = 30 * time.Second

// flights knows the calls in flight, and the subjects whose last call was given up by us without an answer.
//
// An extension serves one call of a subject at a time, so it may still be busy with a call that we have cancelled,
// and gRPC does not say when it no longer is. The next call of that subject does: once it is answered, the one
// before it has ended. If calls of that subject go unanswered until the cancelled one has had its own timeout once
// more, the extension is taken to be stuck, and is restarted.
type flights struct {
	mu       sync.Mutex
	next     int
	active   map[int]Flight
	suspects map[string]suspect
	idle     chan struct{} // closed when active becomes empty; nil: nobody waits
}

type suspect struct {
	call    Flight
	since   time.Time     // of the cancellation
	timeout time.Duration // that the call had
}

func newFlights() *flights {
	return &flights{active: map[int]Flight{}, suspects: map[string]suspect{}}
}

func flightOf(call *extension.Call) Flight {
	f := Flight{Phase: call.Phase, Key: call.Key, Subject: "workspace " + call.Workspace.ID, Since: time.Now()}
	if call.Sandbox != nil {
		f.Subject = "sandbox " + call.Sandbox.ID
	}
	return f
}

// begin notes a call; the function that it returns forgets it.
func (f *flights) begin(flight Flight) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	id := f.next
	f.active[id] = flight
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.active, id)
		if len(f.active) == 0 && f.idle != nil {
			close(f.idle)
			f.idle = nil
		}
	}
}

// answered notes that a call of the subject was served to its end.
func (f *flights) answered(flight Flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.suspects, flight.Subject)
}

// unanswered notes that we gave a call up. It returns the earlier call that the extension must be stuck in, if so.
func (f *flights) unanswered(ctx context.Context, flight Flight) (stuck *suspect) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if s, ok := f.suspects[flight.Subject]; ok {
		if now.Sub(s.since) < s.timeout {
			return nil
		}
		delete(f.suspects, flight.Subject)
		return &s
	}
	timeout := patience
	if deadline, ok := ctx.Deadline(); ok {
		timeout = deadline.Sub(flight.Since)
	}
	for subject, s := range f.suspects { // nobody has called for these since: they matter to nobody
		if now.Sub(s.since) > time.Hour {
			delete(f.suspects, subject)
		}
	}
	f.suspects[flight.Subject] = suspect{call: flight, since: now, timeout: timeout}
	return nil
}

// renew forgets suspicions: there is a new process.
func (f *flights) renew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.suspects)
}

// list returns the calls in flight, oldest first.
func (f *flights) list() []Flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Flight, 0, len(f.active))
	for _, flight := range f.active {
		out = append(out, flight)
	}
	slices.SortFunc(out, func(a, b Flight) int { return a.Since.Compare(b.Since) })
	return out
}

// landed returns a channel that is closed when no call is in flight.
func (f *flights) landed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.idle == nil {
		f.idle = make(chan struct{})
		if len(f.active) == 0 {
			close(f.idle)
			done := f.idle
			f.idle = nil
			return done
		}
	}
	return f.idle
}

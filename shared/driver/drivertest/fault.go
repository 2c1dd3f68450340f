package drivertest

import (
	"context"
	"sync"

	"github.com/sandgate/sandgate/shared/fault"
)

// Call names a method of driver.Driver, or of driver.Logger.
type Call string

// The calls.
const (
	CallDescribe        Call = "Describe"
	CallLayers          Call = "Layers"
	CallWorkspaceLayers Call = "WorkspaceLayers"
	CallResolve         Call = "Resolve"
	CallCreate          Call = "Create"
	CallStart           Call = "Start"
	CallStop            Call = "Stop"
	CallDelete          Call = "Delete"
	CallGet             Call = "Get"
	CallList            Call = "List"
	CallWatch           Call = "Watch"
	CallEnsureWorkspace Call = "EnsureWorkspace"
	CallDeleteWorkspace Call = "DeleteWorkspace"
	CallLogs            Call = "Logs"
)

// Effects returns the calls that change something: those at which a crash matters.
func Effects() []Call {
	return []Call{CallCreate, CallStart, CallStop, CallDelete, CallEnsureWorkspace, CallDeleteWorkspace}
}

// How says what goes wrong with a call.
type How int

// The ways in which a call can go wrong.
const (
	// FailBefore answers the error; nothing happened.
	FailBefore How = iota
	// FailPartly does a part of it and then answers the error: of several objects the first is made, or the last is
	// left, of a run the preparations.
	FailPartly
	// FailAfter does all of it and then answers the error: the answer is lost.
	FailAfter
	// HoldBefore waits for Release, then goes on as if nothing had been. When its context ends first, nothing happened.
	HoldBefore
	// HoldAfter takes effect, then waits for Release or the end of its context before it answers.
	HoldAfter
	// HoldDeaf is HoldBefore that does not hear its context end: it takes effect and succeeds however late.
	HoldDeaf
	// FinishLate answers when its context ends, and takes effect at Release.
	FinishLate
)

// Fault is one thing that goes wrong. The zero value lets every call fail, for ever.
type Fault struct {
	Call  Call   // the method; "" for every one
	ID    string // of the sandbox or the workspace that is concerned; "" for every one
	Skip  int    // how many calls that match go well first
	Times int    // how many are struck after that; 0 for all until Remove
	How   How
	Err   error // what is answered; nil: Unavailable where nothing happened, DeadlineExceeded otherwise
}

// Injected is a fault that was given to a world. It is safe for concurrent use.
type Injected struct {
	fault    Fault
	world    *World
	reached  chan struct{} // closed at the first strike
	released chan struct{} // closed by Release

	mu    sync.Mutex
	seen  int // calls that matched
	hits  int // calls that were struck
	late  []func() error
	freed bool
}

// Inject adds a fault. Of several that match a call the one that was added first strikes.
func (w *World) Inject(f Fault) *Injected {
	i := &Injected{fault: f, world: w, reached: make(chan struct{}), released: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, i)
	return i
}

// Reached is closed when the fault has struck for the first time: with HoldBefore a call stands before its effect,
// with HoldAfter behind it.
func (i *Injected) Reached() <-chan struct{} { return i.reached }

// Hits returns how many calls the fault has struck.
func (i *Injected) Hits() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hits
}

// Release lets the calls that are held go on, lets what FinishLate has kept take effect, and removes the fault.
func (i *Injected) Release() {
	i.Remove()
	i.mu.Lock()
	late := i.late
	i.late = nil
	if !i.freed {
		i.freed = true
		close(i.released)
	}
	i.mu.Unlock()
	for _, effect := range late {
		_ = effect() // nobody is left to be told
	}
}

// Remove takes the fault out of the world. Calls that are held stay held.
func (i *Injected) Remove() {
	i.world.mu.Lock()
	defer i.world.mu.Unlock()
	for n, other := range i.world.faults {
		if other == i {
			i.world.faults = append(i.world.faults[:n:n], i.world.faults[n+1:]...)
			return
		}
	}
}

// take reports whether the fault strikes the call, and counts it.
func (i *Injected) take(m Moment) bool {
	if (i.fault.Call != "" && i.fault.Call != m.Call) || (i.fault.ID != "" && i.fault.ID != m.ID) {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen++
	if i.freed || i.seen <= i.fault.Skip || (i.fault.Times > 0 && i.hits >= i.fault.Times) {
		return false
	}
	i.hits++
	return true
}

// strike carries out a call in the way in which it is to go wrong.
func (i *Injected) strike(ctx context.Context, closed <-chan struct{}, effect func(partly bool) error) error {
	whole := func() error { return effect(false) }
	switch i.fault.How {
	case FailPartly, FailAfter:
		err := effect(i.fault.How == FailPartly)
		i.arrive()
		if err != nil {
			return err
		}
		return i.err(fault.DeadlineExceeded, "the answer was lost")
	case HoldBefore:
		i.arrive()
		if err := i.wait(ctx, closed); err != nil {
			return err
		}
		return whole()
	case HoldAfter:
		err := whole()
		i.arrive()
		if lost := i.wait(ctx, closed); lost != nil {
			return lost
		}
		return err
	case HoldDeaf:
		i.arrive()
		<-i.released
		return whole()
	case FinishLate:
		i.arrive()
		if err := i.wait(ctx, closed); err != nil {
			i.postpone(whole)
			return err
		}
		return whole()
	}
	i.arrive()
	return i.err(fault.Unavailable, "the driver does not answer")
}

func (i *Injected) arrive() {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.reached:
	default:
		close(i.reached)
	}
}

// postpone keeps an effect for Release, or carries it out if that was called meanwhile.
func (i *Injected) postpone(effect func() error) {
	i.mu.Lock()
	freed := i.freed
	if !freed {
		i.late = append(i.late, effect)
	}
	i.mu.Unlock()
	if freed {
		_ = effect() // nobody is left to be told
	}
}

func (i *Injected) err(code fault.Code, message string) error {
	if i.fault.Err != nil {
		return i.fault.Err
	}
	return fault.New(code, "%s: %s", i.fault.How, message)
}

func (i *Injected) wait(ctx context.Context, closed <-chan struct{}) error {
	select {
	case <-i.released:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-closed:
		return errClosed()
	}
}

// String names the way, for errors and test names.
func (h How) String() string {
	names := [...]string{"fail before", "fail partly", "fail after", "hold before", "hold after", "hold deaf", "finish late"}
	if h < 0 || int(h) >= len(names) {
		return "unknown fault"
	}
	return names[h]
}

package engine

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// clients are those who ask for something, and the operators.
type clients struct {
	made    int
	handles []*asked
}

// asked is an operation that a client asked for.
type asked struct {
	handle   *Handle
	kind     phase.Operation
	subject  string
	accepted bool
	ended    bool
	err      error
}

// crashed forgets the handles that died with the gateway. What was accepted is kept: it has to end all the same.
func (c *clients) crashed() {
	c.handles = slices.DeleteFunc(c.handles, func(a *asked) bool { return !a.accepted })
	for _, a := range c.handles {
		a.handle = nil
	}
}

var simWorkspaces = []string{"blue", "red"}

// client lets some client ask for something.
func (s *sim) client() {
	live := s.check.live()
	if len(live) == 0 || s.rng.IntN(4) == 0 {
		s.createSandbox()
		return
	}
	id := live[s.rng.IntN(len(live))]
	switch n := s.rng.IntN(20); {
	case n < 5:
		s.ask(phase.OpStop, id, func(e *Engine) (*Handle, error) { return e.StopSandbox(id, sandbox.Origin{Door: "sim"}) })
	case n < 11:
		s.ask(phase.OpStart, id, func(e *Engine) (*Handle, error) { return e.StartSandbox(id, nil, sandbox.Origin{Door: "sim"}) })
	case n < 15:
		s.deleteSandbox(id)
	case n < 16:
		s.ask(phase.OpWorkspaceEnsure, "", func(e *Engine) (*Handle, error) {
			return e.EnsureWorkspace(simName, simWorkspaces[id[1]%2], sandbox.Origin{Door: "client-ensure"})
		})
	case n < 17:
		s.deleteWorkspace(simWorkspaces[id[1]%2])
	case n < 18:
		s.abandon(id)
	case n < 19:
		s.preview()
	default:
		s.createSandbox()
	}
}

func (s *sim) createSandbox() {
	s.clients.made++
	id := fmt.Sprintf("s%d", s.clients.made)
	r := CreateRequest{ID: id, Driver: simName, Name: fmt.Sprintf("name-%d", s.rng.IntN(3)), Workspace: simWorkspaces[s.rng.IntN(2)],
		Spec: sandbox.Spec{Image: "alpine", Command: []string{"sleep"}}, Origin: sandbox.Origin{Door: "sim"}}
	if s.rng.IntN(8) == 0 {
		r.Spec.Command = []string{"exit", "3"}
	}
	s.ask(phase.OpCreate, id, func(e *Engine) (*Handle, error) {
		h, _, err := e.CreateSandbox(r)
		return h, err
	})
}

func (s *sim) deleteSandbox(id string) {
	s.ask(phase.OpDelete, id, func(e *Engine) (*Handle, error) { return e.DeleteSandbox(id, sandbox.Origin{Door: "sim"}) })
}

func (s *sim) deleteWorkspace(name string) {
	s.ask(phase.OpWorkspaceDelete, "", func(e *Engine) (*Handle, error) {
		return e.DeleteWorkspace(simName, name, sandbox.Origin{Door: "sim"})
	})
}

// ask makes one request in a goroutine of its own, as a connection would.
func (s *sim) ask(kind phase.Operation, subject string, fn func(*Engine) (*Handle, error)) {
	s.note("a client asks: %s %s", kind, subject)
	e := s.engine.Load()
	go func() {
		h, err := fn(e)
		if err != nil {
			s.refused(kind, subject, err)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clients.handles = append(s.clients.handles, &asked{handle: h, kind: kind, subject: subject})
	}()
}

// refused judges why a request was not even begun.
func (s *sim) refused(kind phase.Operation, subject string, err error) {
	switch fault.CodeOf(err) {
	case fault.AlreadyExists, fault.FailedPrecondition, fault.NotFound, fault.ResourceExhausted, fault.Unavailable, fault.Canceled:
		return
	}
	s.fail("C0", "%s of %s was refused with %v", kind, subject, err)
}

// poll sees what became of the requests.
func (c *clients) poll(s *sim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range c.handles {
		if a.handle == nil || a.ended {
			continue
		}
		select {
		case <-a.handle.accepted:
			a.handle.mu.Lock()
			a.accepted = a.handle.started
			a.handle.mu.Unlock()
		default:
		}
		select {
		case <-a.handle.ended:
			a.ended, a.err = true, a.handle.err
			s.check.answered(a)
		default:
		}
		if a.accepted && a.kind == phase.OpDelete {
			s.check.deleted[a.subject] = true
		}
	}
	c.handles = slices.DeleteFunc(c.handles, func(a *asked) bool { return a.ended && !a.accepted })
}

// waiting counts the requests that were not answered.
func (c *clients) waiting() int {
	n := 0
	for _, a := range c.handles {
		if a.handle != nil && !a.ended {
			n++
		}
	}
	return n
}

func (s *sim) preview() {
	s.note("a client asks for a preview")
	e, ctx := s.engine.Load(), s.life
	go func() {
		_, _ = e.Preview(ctx, CreateRequest{Driver: simName, Workspace: simWorkspaces[0], Spec: sandbox.Spec{Command: []string{"sleep"}}})
	}()
}

// toggle switches an extension off or on.
func (s *sim) toggle() {
	x := s.exts[s.rng.IntN(len(s.exts))]
	off, bypass := s.check.switchedOff(x.name), s.rng.IntN(2) == 0
	s.note("an operator: extension %s disabled: %v, bypass: %v", x.name, !off, bypass)
	e := s.engine.Load()
	if off {
		s.check.enabling(x.name)
		go func() { _ = e.Enable(x.name, "sim") }()
		return
	}
	go func() {
		if e.Disable(x.name, bypass, "sim") == nil {
			s.check.disabled(x.name)
		}
	}()
}

// abandon gives up what waits for a subject: a release, or the driver's part once the compute is gone.
func (s *sim) abandon(id string) {
	e, ctx := s.engine.Load(), s.life
	if ext, subject := s.check.owing(); ext != "" && s.rng.IntN(2) == 0 {
		s.note("an operator abandons the release of %s by %s", s.check.name(subject), ext)
		s.check.abandoning(ext, subject)
		go func() { _ = e.AbandonRelease(ctx, subject, ext, "the simulation says so", "sim") }()
		return
	}
	s.note("an operator says that the compute of %s is gone: %v", id, s.world.Vanish(id))
	s.check.abandoningDriver(id)
	go func() { _ = e.AbandonDriver(id, "the simulation says so", "sim") }()
}

// ceaseFaults lets everything work again.
func (s *sim) ceaseFaults() {
	s.tick(0) // what was decided last has had its effect
	s.note("the faults cease")
	s.mu.Lock()
	s.calm, s.full = true, false
	for _, it := range s.pending {
		it.hung = false
	}
	for _, x := range s.exts {
		x.frozen = false
	}
	s.mu.Unlock()
	s.world.BreakWatches()
	s.tick(0)
	e := s.engine.Load()
	for _, x := range s.exts {
		s.check.enabling(x.name)
		go func() { _ = e.Enable(x.name, "sim") }()
		s.tick(0)
	}
}

// settleDown lets everything that waits happen, and time pass, until nothing is left to do.
func (s *sim) settleDown() {
	quiet := 0
	for n := 0; n < 6000 && !s.failed(); n++ {
		s.tick(0)
		s.step++
		s.check.everyStep()
		if it := s.choose(); it != nil {
			s.decide(it)
			continue
		}
		for _, b := range s.world.Sandboxes() {
			if runsIn(b.State) && b.State != driver.Provisioning && b.State != driver.Ready {
				s.world.SetReady(b.Identity.ID)
				s.tick(0) // what that calls for is seen before it is asked whether all is settled
			}
		}
		pause := 70 * time.Second
		if s.check.settled() {
			if quiet++; quiet > 3 {
				return
			}
			pause = 5 * time.Minute
		} else {
			quiet = 0
		}
		if time.Since(s.clock) > 40*time.Hour {
			break
		}
		s.note("time passes: %v", pause)
		s.tick(pause)
	}
	s.check.stuck()
}

// removeAll asks that everything be removed: the sandboxes, and when there are none the workspaces.
func (s *sim) removeAll() {
	live := s.check.live()
	for _, id := range live {
		s.deleteSandbox(id)
		s.tick(0)
	}
	if len(live) == 0 {
		for _, name := range simWorkspaces {
			s.deleteWorkspace(name)
			s.tick(0)
		}
	}
}

// live returns the sandboxes that are not gone, or that clients do not know to be gone.
func (k *checker) live() []string {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	var out []string
	for _, id := range slices.SortedFunc(maps.Keys(k.sandboxes), func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }) {
		if k.sandboxes[id].Ended == nil {
			out = append(out, id)
		}
	}
	return out
}

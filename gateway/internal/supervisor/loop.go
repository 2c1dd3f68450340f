package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// One goroutine per extension owns its process: everything that changes the state, all events, every configuration
// and the end happen in it, one after another. Calls happen beside it.

// misses is how many health calls in a row a process may leave unanswered before it is replaced.
const misses = 3

// configuring is a request to hand over a configuration.
type configuring struct {
	ctx       context.Context
	config    json.RawMessage
	contracts []extension.Contract
	answer    chan error // buffered
}

// draining is a request to end in good order.
type draining struct {
	ctx    context.Context
	answer chan error // buffered
}

// restarting is a request for a new process.
type restarting struct {
	ctx   context.Context
	taken chan struct{} // closed once nobody takes the old process for one that serves
}

type stuckProcess struct {
	proc *process
	why  string
}

// launch makes the first process. On error the handle is stopped and nothing is left.
func (h *Handle) launch(ctx context.Context) error {
	p, err := h.start(ctx)
	if err != nil {
		h.note(err)
		h.finish(err.Error())
		return err
	}
	go h.run(p) // Close and Drain wait for it
	return nil
}

// run looks after the extension until it is stopped.
func (h *Handle) run(p *process) {
	l := &loop{h: h, budget: budget{restart: h.spec.Restart, first: h.cfg.Timing.BackoffFirst, max: h.cfg.Timing.BackoffMax, jitter: h.cfg.Jitter}}
	for p != nil {
		p = l.attend(p)
	}
	h.finish("")
}

// finish is the end of the handle.
func (h *Handle) finish(reason string) {
	h.move(Stopped, reason, nil)
	h.cancel()
	h.forget()
	close(h.over)
}

// loop is the state of the owning goroutine.
type loop struct {
	h        *Handle
	budget   budget
	accepted *configuring // the latest configuration that was accepted
}

// attend looks after one process. It returns the one that takes its place, or nil when there is to be none.
func (l *loop) attend(p *process) *process {
	h := l.h
	health := time.NewTicker(h.cfg.Timing.Health)
	defer health.Stop()
	missed := 0
	for {
		select {
		case <-p.dead.Done():
			return l.replace(p, "")
		case <-h.ctx.Done():
			l.end(p, h.cfg.Timing.Stop)
			return nil
		case req := <-h.drains:
			req.answer <- l.drain(req.ctx, p)
			return nil
		case req := <-h.configs:
			req.answer <- l.configure(req, p)
		case <-h.resets:
			l.budget.reset()
		case req := <-h.again:
			return l.recycle(req, p)
		case s := <-h.stuck:
			if s.proc == p {
				return l.replace(p, s.why)
			}
		case <-health.C:
			if l.accepted == nil {
				continue
			}
			if missed = l.probe(p, missed); missed >= misses {
				return l.replace(p, fmt.Sprintf("it left %d health calls unanswered", missed))
			}
		}
	}
}

// configure hands a configuration to the process. The first one that is accepted makes the extension ready.
func (l *loop) configure(req *configuring, p *process) error {
	h := l.h
	ctx, cancel := until(req.ctx, p.dead)
	defer cancel()
	ctx, cancel2 := until(ctx, h.ctx)
	defer cancel2()
	if h.spec.Attach == "" { // else somebody may be stepping through it
		var cancel3 context.CancelFunc
		ctx, cancel3 = context.WithTimeout(ctx, h.cfg.Timing.Configure)
		defer cancel3()
	}
	faults, err := p.Configure(ctx, req.config, req.contracts, h.cfg.Version)
	settle(ctx, err)
	switch {
	case err != nil && p.dead.Err() != nil:
		return h.died(req.ctx, p, Flight{Phase: "configure", Subject: "it"})
	case err != nil && req.ctx.Err() == nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fault.New(fault.DeadlineExceeded, "extension %q did not take its configuration within %s%s", h.spec.Name, h.cfg.Timing.Configure, tail(p.lines()))
	case err != nil:
		return fmt.Errorf("configure extension %q: %w", h.spec.Name, err)
	case len(faults) > 0:
		return fault.New(fault.Invalid, "extension %q does not accept its configuration", h.spec.Name).With(faults...)
	}
	l.accepted = req
	if h.current() == Negotiated {
		h.move(Configured, "", p)
		l.probe(p, 0)
	}
	return nil
}

// probe asks the process how it is, and moves between ready and degraded. It returns how many questions in a row
// went unanswered.
func (l *loop) probe(p *process, missed int) int {
	h := l.h
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Timing.HealthAnswer)
	defer cancel()
	ctx, cancel2 := until(ctx, p.dead)
	defer cancel2()
	ready, reason, err := p.Health(ctx)
	switch {
	case p.dead.Err() != nil || h.ctx.Err() != nil:
		return missed
	case fault.Is(err, fault.Unimplemented):
		h.move(Ready, "", p)
		return 0
	case err != nil:
		missed++
		h.move(Degraded, fmt.Sprintf("health call %d of %d unanswered: %v", missed, misses, err), p)
		return missed
	case !ready:
		if reason == "" {
			reason = "it says that it is not ready"
		}
		h.move(Degraded, shorten(reason), p)
	default:
		h.move(Ready, "", p)
	}
	return 0
}

// drain ends the process in good order, within ctx.
func (l *loop) drain(ctx context.Context, p *process) (err error) {
	h := l.h
	h.move(Draining, "", p)
	select {
	case <-h.calls.landed():
	case <-p.dead.Done():
	case <-h.ctx.Done():
	case <-ctx.Done():
		err = fault.New(fault.DeadlineExceeded, "drain extension %q: %d calls were cut off", h.spec.Name, len(h.calls.list()))
	}
	if err == nil && p.dead.Err() == nil && h.ctx.Err() == nil {
		left := h.cfg.Timing.Stop
		if deadline, ok := ctx.Deadline(); ok {
			left = time.Until(deadline)
		}
		bounded, cancel := until(ctx, p.dead)
		defer cancel()
		bounded, cancel2 := until(bounded, h.ctx)
		defer cancel2()
		if e := p.Drain(bounded, left); e != nil && !fault.Is(e, fault.Unimplemented) && p.dead.Err() == nil {
			h.log.Warn("the extension did not drain", "error", e)
		}
	}
	l.end(p, h.cfg.Timing.Stop)
	if err == nil {
		err = h.stopErr
	}
	return err
}

// end ends the process for good.
func (l *loop) end(p *process, grace time.Duration) {
	h := l.h
	if err := p.stop(grace); err != nil {
		h.mu.Lock()
		h.stopErr = fmt.Errorf("stop extension %q: %w", h.spec.Name, err)
		h.mu.Unlock()
		h.log.Error("the extension's process cannot be ended", "error", err)
		return // what it holds cannot be given back
	}
	h.exited(p, "")
	p.discard()
}

// replace reports the end of a process and makes the next one. One that has not ended by itself is ended, because of why.
func (l *loop) replace(p *process, why string) *process {
	h := l.h
	if why != "" {
		p.why.Store(&why) // those whose calls end with it are told
		_ = p.stop(h.cfg.Timing.Stop)
	}
	<-p.done
	h.exited(p, why)
	p.discard()
	h.calls.renew()
	reason := because(why)
	if exit := p.exit(); exit != nil {
		reason = exit.String() + reason
	}
	return l.renew(reason)
}

// recycle replaces a process in good order because an operator wants it. That is no crash: the budget is whole again.
func (l *loop) recycle(req *restarting, p *process) *process {
	h := l.h
	l.restarts(req)
	idle := make(chan struct{})
	go func() { p.busy.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-p.dead.Done():
	case <-h.ctx.Done():
	case <-req.ctx.Done():
	}
	if h.ctx.Err() == nil && p.dead.Err() == nil {
		bounded, cancel := context.WithTimeout(h.ctx, h.cfg.Timing.Stop)
		defer cancel()
		bounded, cancel2 := until(bounded, p.dead)
		defer cancel2()
		if e := p.Drain(bounded, h.cfg.Timing.Stop); e != nil && !fault.Is(e, fault.Unimplemented) && p.dead.Err() == nil {
			h.log.Warn("the extension did not drain", "error", e)
		}
	}
	_ = p.stop(h.cfg.Timing.Stop)
	<-p.done
	h.exited(p, "")
	p.discard()
	h.calls.renew()
	if h.ctx.Err() != nil {
		return nil
	}
	next, err := l.again()
	switch {
	case err == nil:
		return next
	case h.ctx.Err() != nil:
		return nil
	}
	h.note(err)
	h.log.Warn("the extension was not restarted", "error", err)
	return l.renew(err.Error())
}

// restarts takes a request for a new process.
func (l *loop) restarts(req *restarting) {
	l.budget.reset()
	l.h.move(Starting, "an operator restarts it", nil)
	close(req.taken)
}

// renew makes the next process, after a pause that grows, within the crash budget.
func (l *loop) renew(reason string) *process {
	h := l.h
	for {
		pause, ok := l.budget.spend(time.Now())
		if !ok {
			if !l.dormant(fmt.Sprintf("crashed more than %d times within %s; last: %s", h.spec.Restart.Budget, h.spec.Restart.Window, reason)) {
				return nil
			}
			pause = 0 // forgiven, and this start with it
		}
		h.move(Starting, "restart in "+round(pause).String()+" after "+reason, nil)
		if !l.pause(pause) {
			return nil
		}
		next, err := l.again()
		switch {
		case err == nil:
			return next
		case h.ctx.Err() != nil:
			return nil
		}
		h.note(err)
		h.log.Warn("the extension was not restarted", "error", err)
		reason = err.Error()
		if fault.Is(err, fault.Conflict) && !l.dormant(reason) { // it came back as another: no restart mends that
			return nil
		}
	}
}

// again makes a process that is as far as its predecessor was.
func (l *loop) again() (*process, error) {
	h := l.h
	before := h.Manifest()
	p, err := h.start(h.ctx)
	if err != nil {
		return nil, err
	}
	h.restarted()
	if err := same(&before, p.manifest); err != nil {
		l.end(p, 0)
		return nil, fault.New(fault.Conflict, "extension %q came back as another program: %w", h.spec.Name, err)
	}
	if l.accepted == nil {
		return p, nil
	}
	retry := *l.accepted
	retry.ctx = h.ctx
	if err := l.configure(&retry, p); err != nil {
		_ = p.stop(0)
		h.exited(p, "it could not be configured again")
		p.discard()
		return nil, err
	}
	return p, nil
}

// pause waits before a restart. It reports false when there is to be none.
func (l *loop) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.h.ctx.Done():
		return false
	case req := <-l.h.drains:
		req.answer <- nil
		return false
	case <-l.h.resets:
		l.budget.reset()
		return true
	case req := <-l.h.again:
		l.restarts(req)
		return true
	}
}

// dormant is the failed state. It reports whether the extension is to be started again.
func (l *loop) dormant(reason string) bool {
	h := l.h
	h.move(Failed, reason, nil)
	h.log.Error("the extension has failed for good", "reason", reason)
	for {
		select {
		case <-h.ctx.Done():
			return false
		case req := <-h.drains:
			req.answer <- nil
			return false
		case req := <-h.configs:
			req.answer <- h.gone()
		case <-h.resets:
			l.budget.reset()
			return true
		case req := <-h.again:
			l.restarts(req)
			return true
		}
	}
}

// same reports how a restarted extension differs from what was negotiated.
func same(was, is *extension.Manifest) error {
	sorted := func(m *extension.Manifest) []string {
		var out []string
		for _, p := range m.Phases {
			out = append(out, string(p))
		}
		slices.Sort(out)
		return out
	}
	switch {
	case was.Name != is.Name:
		return fmt.Errorf("its name was %q and is %q", was.Name, is.Name)
	case was.Version != is.Version:
		return fmt.Errorf("its version was %q and is %q", was.Version, is.Version)
	case !reflect.DeepEqual(sorted(was), sorted(is)):
		return fmt.Errorf("its phases were %v and are %v", sorted(was), sorted(is))
	}
	return nil
}

// start verifies the program and makes one process of it.
func (h *Handle) start(ctx context.Context) (*process, error) {
	h.mu.Lock()
	known := h.parts
	h.mu.Unlock()
	prog, err := h.via.verify(h.spec, known)
	if err != nil {
		return nil, err
	}
	if h.current() == "" {
		h.move(Verified, "", nil)
		h.move(Starting, "", nil)
	}
	p, err := h.via.launch(ctx, h.spec, prog, h.calls.list)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.parts = p.parts
	if h.manifest == nil {
		h.manifest = p.manifest
	}
	h.mu.Unlock()
	h.move(Negotiated, "", p)
	return p, nil
}

// move changes the state and tells everybody. A move that the state machine does not have is a fault of this
// package, which no test may miss.
func (h *Handle) move(to State, reason string, p *process) {
	h.mu.Lock()
	from := h.state
	if from != to && !may(from, to) {
		h.mu.Unlock()
		panic(fmt.Sprintf("supervisor: extension %q cannot go from %q to %q", h.spec.Name, from, to))
	}
	same := from == to && h.reason == reason && h.proc == p
	h.state, h.reason, h.proc = to, reason, p
	if !same {
		close(h.changed)
		h.changed = make(chan struct{})
	}
	h.mu.Unlock()
	if from != to {
		h.log.Debug("extension state", "from", string(from), "to", string(to), "reason", reason)
		h.cfg.Observe(Event{Extension: h.spec.Name, Time: h.cfg.Now(), From: from, To: to, Reason: reason})
	}
}

func (h *Handle) current() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// exited reports the end of a process.
func (h *Handle) exited(p *process, why string) {
	exit := p.exit()
	if exit == nil {
		return
	}
	h.mu.Lock()
	h.lastExit = exit
	if why == "" && !exit.Requested {
		why = exit.String() + tail(exit.Stderr)
	}
	if why != "" {
		h.lastErr = why
	}
	state := h.state
	h.mu.Unlock()
	if !exit.Requested || why != "" {
		h.log.Warn("the extension's process ended", "how", exit.String(), "oom", exit.OOM, "pid", exit.PID, "uptime", round(exit.Uptime),
			"digest", exit.Digest, "in_flight", exit.InFlight, "stderr", exit.Stderr, "why", why)
	}
	h.cfg.Observe(Event{Extension: h.spec.Name, Time: h.cfg.Now(), From: state, To: state, Reason: why, Exit: exit})
}

func (h *Handle) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastErr = shorten(err.Error())
}

func (h *Handle) restarted() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.restarts++
}

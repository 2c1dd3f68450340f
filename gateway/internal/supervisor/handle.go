package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// launcher makes processes.
type launcher interface {
	verify(spec Spec, known []Part) (*program, error)
	launch(ctx context.Context, spec Spec, prog *program, flying func() []Flight) (*process, error)
}

// Handle is one extension. It stays the same while its process is restarted. It is safe for concurrent use.
type Handle struct {
	cfg    Config
	spec   Spec
	via    launcher
	log    *slog.Logger
	forget func() // the supervisor's; called when the extension is stopped

	ctx     context.Context // ends when the handle is to be closed
	cancel  context.CancelFunc
	over    chan struct{} // closed when the extension is stopped and nothing is left of it
	configs chan *configuring
	drains  chan *draining
	resets  chan struct{}
	again   chan *restarting
	stuck   chan stuckProcess
	calls   *flights

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change of what follows
	state    State
	reason   string
	proc     *process
	restarts int
	parts    []Part
	manifest *extension.Manifest
	lastErr  string
	lastExit *Exit
	stopErr  error
}

var _ pipeline.Extension = (*Handle)(nil)

func newHandle(cfg Config, spec Spec, via launcher) *Handle {
	h := &Handle{cfg: cfg, spec: spec, via: via, log: cfg.Logger.With("extension", spec.Name), forget: func() {},
		over: make(chan struct{}), configs: make(chan *configuring), drains: make(chan *draining),
		resets: make(chan struct{}), again: make(chan *restarting), stuck: make(chan stuckProcess, 1), calls: newFlights(), changed: make(chan struct{})}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Name returns the name of the extension's block.
func (h *Handle) Name() string { return h.spec.Name }

// Manifest returns what the extension says of itself. It is the same after a restart.
func (h *Handle) Manifest() extension.Manifest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return *h.manifest
}

// Configure hands the configuration and the negotiated contracts over. After the first success the extension is
// ready; every restarted process is given the latest accepted ones before it serves. A refusal is Invalid and has a
// diagnostic for each fault; it leaves what was there before.
func (h *Handle) Configure(ctx context.Context, config json.RawMessage, contracts []extension.Contract) error {
	req := &configuring{ctx: ctx, config: config, contracts: contracts, answer: make(chan error, 1)}
	select {
	case h.configs <- req:
		return <-req.answer // the loop is bounded by ctx
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "configure extension %q, which is %s: %w", h.spec.Name, h.describe(), ctx.Err())
	case <-h.over:
		return h.gone()
	}
}

// Call makes one call. While the extension is being restarted it waits, within ctx's deadline. When the process
// dies under the call, the error is Unavailable at once and says how.
func (h *Handle) Call(ctx context.Context, call *extension.Call) (*extension.Answer, error) {
	flight := flightOf(call)
	var answer *extension.Answer
	err := h.serve(ctx, flight, func(ctx context.Context, p *process) (err error) {
		answer, err = p.Call(ctx, call)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// Reconcile sends the gateway's items and returns what the extension says that it holds for the bind.
func (h *Handle) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error) {
	var held []extension.Item
	flight := Flight{Phase: "reconcile", Subject: "bind " + bind, Key: operation, Since: time.Now()}
	err := h.serve(ctx, flight, func(ctx context.Context, p *process) (err error) {
		held, err = p.Reconcile(ctx, bind, operation, known)
		return err
	})
	if err != nil {
		return nil, err
	}
	return held, nil
}

// Reach makes one call of another service that the program serves, like Call: of a driver program's (wire.Reach).
func (h *Handle) Reach(ctx context.Context, call, subject string, fn func(context.Context, grpc.ClientConnInterface) error) error {
	flight := Flight{Phase: phase.Phase("driver " + call), Subject: "sandbox " + subject, Since: time.Now()}
	if call == "watch" || call == "logs" {
		return h.stream(ctx, flight, fn)
	}
	return h.serve(ctx, flight, func(ctx context.Context, p *process) error { return fn(ctx, p.conn) })
}

// stream runs a call that goes on until its caller has enough: nobody waits for its end, and that it was cut off makes
// nobody suspicious.
func (h *Handle) stream(ctx context.Context, flight Flight, fn func(context.Context, grpc.ClientConnInterface) error) error {
	p, leave, err := h.enter(ctx)
	if err != nil {
		return err
	}
	leave()
	bounded, cancel := until(ctx, p.dead)
	defer cancel()
	err = fn(bounded, p.conn)
	if p.dead.Err() != nil || fault.Is(err, fault.Unavailable) && ends(ctx, p) {
		return h.died(ctx, p, flight)
	}
	return err
}

// serve runs one call on the process that serves, and turns the ways in which it can be cut short into errors that
// say so.
func (h *Handle) serve(ctx context.Context, flight Flight, run func(context.Context, *process) error) error {
	defer h.calls.begin(flight)()
	p, leave, err := h.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	flight.Since = time.Now() // its timeout begins here: it has not been waiting for the extension before
	bounded, cancel := until(ctx, p.dead)
	err = run(bounded, p)
	cancel()
	settle(ctx, err)
	switch {
	case err == nil:
		h.calls.answered(flight)
		return nil
	case p.dead.Err() != nil || (fault.Is(err, fault.Unavailable) && ends(ctx, p)):
		return h.died(ctx, p, flight)
	case ctx.Err() != nil:
		if s := h.calls.unanswered(ctx, flight); s != nil {
			h.suspect(p, s)
		}
		return fault.New(fault.CodeOf(ctx.Err()), "extension %q did not answer %s within %s: %w", h.spec.Name, flight, round(time.Since(flight.Since)), ctx.Err())
	}
	h.calls.answered(flight)
	return fmt.Errorf("extension %q: %s: %w", h.spec.Name, flight, err)
}

// await waits until the extension serves: for a restart or the first configuration.
func (h *Handle) await(ctx context.Context) error {
	_, leave, err := h.enter(ctx)
	if err == nil {
		leave()
	}
	return err
}

// enter returns the process that serves, waiting for it, and counts the caller in until leave is called.
func (h *Handle) enter(ctx context.Context) (p *process, leave func(), err error) {
	for {
		h.mu.Lock()
		state, reason, p, changed := h.state, h.reason, h.proc, h.changed
		serves := state.serves() && p.dead.Err() == nil // an end that is not yet accounted for is waited for, too
		if serves {
			p.busy.Add(1) // nobody waits for it to be idle while the state says that it serves
		}
		h.mu.Unlock()
		switch {
		case serves:
			return p, p.busy.Done, nil
		case state.over():
			return nil, nil, fault.New(fault.Unavailable, "extension %q is %s%s", h.spec.Name, state, because(reason))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			code := fault.Unavailable // it was not even begun
			if errors.Is(ctx.Err(), context.Canceled) {
				code = fault.Canceled
			}
			return nil, nil, fault.New(code, "extension %q is %s%s, for longer than the call could wait: %w", h.spec.Name, state, because(reason), ctx.Err())
		}
	}
}

// ends waits a moment for the end of a process whose connection broke.
func ends(ctx context.Context, p *process) bool {
	t := time.NewTimer(afterExit)
	defer t.Stop()
	select {
	case <-p.dead.Done():
	case <-t.C:
	case <-ctx.Done():
	}
	return p.dead.Err() != nil
}

// died says how the process ended under a call.
func (h *Handle) died(ctx context.Context, p *process, flight Flight) error {
	t := time.NewTimer(2 * afterExit)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
	case <-ctx.Done():
	}
	if why := p.why.Load(); why != nil {
		return fault.New(fault.Unavailable, "extension %q was ended and is started again during %s: %s", h.spec.Name, flight, *why)
	}
	if exit := p.exit(); exit != nil {
		return fault.New(fault.Unavailable, "extension %q exited during %s: %s%s", h.spec.Name, flight, exit, tail(exit.Stderr))
	}
	return fault.New(fault.Unavailable, "extension %q exited during %s", h.spec.Name, flight)
}

// suspect has a stuck process replaced.
func (h *Handle) suspect(p *process, s *suspect) {
	why := fmt.Sprintf("it was still busy with %s %s after that call was cancelled", s.call, round(time.Since(s.since)))
	select {
	case h.stuck <- stuckProcess{p, why}:
	default: // one is on its way
	}
}

// Over reports whether the extension serves no more: it was stopped, is about to be, or has failed.
func (h *Handle) Over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state.over()
}

// Status returns a snapshot.
func (h *Handle) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Status{Name: h.spec.Name, State: h.state, Reason: h.reason, Restarts: h.restarts, Parts: slices.Clone(h.parts),
		LastError: h.lastErr, LastExit: h.lastExit, InFlight: h.calls.list()}
	if h.manifest != nil {
		s.Manifest = *h.manifest
	}
	if len(h.parts) > 0 {
		s.Digest = h.parts[0].Digest
	}
	if h.proc != nil {
		s.PID, s.Started, s.Uptime = h.proc.pid, h.proc.started, time.Since(h.proc.started)
		s.Stderr = h.proc.lines()
	}
	return s
}

// Reset forgives what an extension has crashed so far; a failed one is started again.
func (h *Handle) Reset() {
	select {
	case h.resets <- struct{}{}:
	case <-h.over:
	}
}

// Restart replaces the process by a new one in good order: calls that come wait for it, those in flight may finish
// within ctx, the process is told to end. What the extension has crashed so far is forgiven, and one that has failed is
// started again. It returns when the extension serves again, or says why it does not.
func (h *Handle) Restart(ctx context.Context) error {
	req := &restarting{ctx: ctx, taken: make(chan struct{})}
	select {
	case h.again <- req:
		<-req.taken // at once: the state is Starting from there on
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "restart extension %q, which is %s: %w", h.spec.Name, h.describe(), ctx.Err())
	case <-h.over:
		return h.gone()
	}
	if err := h.await(ctx); err != nil {
		return fmt.Errorf("restart extension %q: %w", h.spec.Name, err)
	}
	return nil
}

// Drain ends the extension in good order: new calls are refused, those in flight may finish, the process is told to
// end, all within ctx; then it is killed. The extension is stopped afterwards in any case; an error says that calls
// were cut off or that the process could not be ended.
func (h *Handle) Drain(ctx context.Context) error {
	req := &draining{ctx: ctx, answer: make(chan error, 1)}
	select {
	case h.drains <- req:
		err := <-req.answer
		<-h.over
		return err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), h.Close())
	case <-h.over:
		return nil
	}
}

// Close ends the extension without waiting for its calls: SIGTERM, then SIGKILL. Nothing is left when it returns.
func (h *Handle) Close() error {
	h.cancel()
	<-h.over
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stopErr
}

// gone is the error of what cannot be done any more.
func (h *Handle) gone() error {
	return fault.New(fault.Unavailable, "extension %q is %s", h.spec.Name, h.describe())
}

func (h *Handle) describe() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.state) + because(h.reason)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

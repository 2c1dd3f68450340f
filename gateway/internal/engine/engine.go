// Package engine carries out the operations of sandboxes and workspaces: it decides what comes next, writes it down,
// and makes it happen. It is the only writer of the journal and has the only way to resume. DESIGN.md says why it is
// built as it is.
package engine

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// Catalog has the generations of the configuration.
type Catalog interface {
	// Current returns the generation that new operations begin under.
	Current() *Generation
	// Generation returns a generation that is still referred to, current or stored, making what it needs.
	Generation(ctx context.Context, id string) (*Generation, error)
}

// Generation is one configuration, in force or kept for what began under it. Immutable.
type Generation struct {
	ID      string
	Drivers map[string]*Driver
}

// Driver is one configured driver of a generation, with its chain.
type Driver struct {
	Name              string
	Driver            driver.Driver
	Description       *driver.Description
	Schema            *plan.Schema
	Chain             *pipeline.Chain
	ChainTimeout      time.Duration // of the calls of one operation together
	DriverTimeout     time.Duration // of one driver call, which is then in doubt
	ReadyTimeout      time.Duration
	ReleaseTimeout    time.Duration
	ReconcileInterval time.Duration
	// Missing says why the driver of a stored generation cannot be used. Its chain can: to release, no driver is needed.
	Missing error
	// Split takes the parts for extensions out of a sandbox's driver_config. Nil: there are none.
	Split func(json.RawMessage) (map[string]json.RawMessage, error)
}

// Config is what an engine needs. What may be nil says so; all else is required.
type Config struct {
	Journal       journal.Journal
	Catalog       Catalog
	Logger        *slog.Logger
	Now           func() time.Time // wall clock, for what people read; durations are measured by the monotonic clock
	NewID         func() string    // ids that sort by time
	Jitter        func() float64   // in [0, 1), for backoff; nil: none
	MaxOperations int
	// AuditRetention is how long lines of the audit are kept; zero: for ever.
	AuditRetention time.Duration
	Tracer         trace.Tracer    // nil: none
	Unused         func(id string) // told when nothing uses a generation for now; it must not block; nil: nobody is told
	Ended          func(Operation) // told of every operation that has ended; it must not block; nil: nobody is told
}

// Engine carries out operations. It is safe for concurrent use.
type Engine struct {
	Config
	ctx    context.Context // ends when the engine stops; its cause says why
	cancel context.CancelCauseFunc
	slots  chan struct{}
	admit  func(context.Context, *Operation) // lets a simulation say who asks for a place next; nil: whoever comes first

	spawning sync.Mutex     // held while a goroutine is added, so that none is after Close has begun to wait
	wg       sync.WaitGroup // every goroutine of the engine

	mu         sync.Mutex
	closing    bool
	subjects   map[string]*subject
	names      map[string]string   // unique name of a live or arriving sandbox -> its id
	workspaces map[string]string   // driver/name of a live workspace -> its id
	arriving   map[string][]string // driver/name of a workspace -> the names of creates in flight in it
	operations map[string]*Operation
	steps      map[string][]*Step // of unfinished operations
	switches   map[string]Disabled
	using      map[string]int                    // how many use a generation at the moment
	changed    chan struct{}                     // closed and replaced whenever something is published
	waiting    map[string]map[chan struct{}]bool // id -> who waits for something of it
	watched    map[string]context.CancelFunc
	noticed    uint64                          // the number of the last notice
	passes     map[string]map[string]time.Time // bind -> differences that the last reconcile found, and since when
}

// Open reads the journal and goes on with every operation that was not finished.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Jitter == nil {
		cfg.Jitter = func() float64 { return 0 }
	}
	if cfg.Tracer == nil {
		cfg.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if cfg.Ended == nil {
		cfg.Ended = func(Operation) {}
	}
	if cfg.Unused == nil {
		cfg.Unused = func(string) {}
	}
	e := &Engine{
		Config:     cfg,
		slots:      make(chan struct{}, cfg.MaxOperations),
		subjects:   map[string]*subject{},
		names:      map[string]string{},
		workspaces: map[string]string{},
		arriving:   map[string][]string{},
		operations: map[string]*Operation{},
		steps:      map[string][]*Step{},
		switches:   map[string]Disabled{},
		using:      map[string]int{},
		changed:    make(chan struct{}),
		waiting:    map[string]map[chan struct{}]bool{},
		watched:    map[string]context.CancelFunc{},
		passes:     map[string]map[string]time.Time{},
	}
	e.ctx, e.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := e.load(ctx); err != nil {
		e.cancel(err)
		return nil, err
	}
	return e, nil
}

// Start resumes what was unfinished and begins to watch the drivers. It returns at once.
func (e *Engine) Start() {
	e.resume()
	e.Reconfigured()
	e.spawn(e.purgeLoop)
}

// Done is closed when the engine can go on no more: it was closed, or its store was taken over. Err says why.
func (e *Engine) Done() <-chan struct{} { return e.ctx.Done() }

// Err says why the engine stopped, or nil.
func (e *Engine) Err() error { return context.Cause(e.ctx) }

// Alive returns when the engine could do something: not as long as something hangs that all of it waits for.
func (e *Engine) Alive() {
	e.spawning.Lock()
	e.spawning.Unlock() //nolint:staticcheck // it was had: that is the answer
	e.mu.Lock()
	e.mu.Unlock() //nolint:staticcheck // as above
}

// Close stops the engine where it is. What is unfinished goes on when the journal is opened again. It returns when
// nothing of the engine runs any more.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	e.spawning.Lock()
	e.cancel(errClosed)
	e.spawning.Unlock()
	e.wg.Wait()
	return nil
}

// Drain waits until no operation is being carried out, or ctx ends. New operations are refused meanwhile.
func (e *Engine) Drain(ctx context.Context) error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	return e.await(ctx, func() bool {
		for _, s := range e.subjects {
			if s.busy() {
				return false
			}
		}
		return true
	})
}

var errClosed = fault.New(fault.Unavailable, "the gateway is stopping")

// spawn runs fn in a goroutine that Close waits for; not at all once the engine has stopped.
func (e *Engine) spawn(fn func()) {
	e.spawning.Lock()
	defer e.spawning.Unlock()
	if e.ctx.Err() == nil {
		e.wg.Go(fn)
	}
}

// await blocks until ok, asked under the lock whenever something was published, says yes.
func (e *Engine) await(ctx context.Context, ok func() bool) error {
	for {
		e.mu.Lock()
		done, changed := ok(), e.changed
		e.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		}
	}
}

// sleep waits, and says whether it waited to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff returns how long to wait before the n-th repetition, from 1: doubling from first to limit, with up to half
// of it added at random.
func (e *Engine) backoff(n int, first, limit time.Duration) time.Duration {
	d := limit
	if n < 20 {
		d = min(first<<(n-1), limit)
	}
	return d + time.Duration(e.Jitter()*float64(d)/2)
}

// acquire takes a place among max_operations for an operation.
func (e *Engine) acquire(ctx context.Context, op *Operation) error {
	if e.admit != nil {
		e.admit(ctx, op)
	}
	select {
	case e.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *Engine) release() { <-e.slots }

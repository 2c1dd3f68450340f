package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// scripted is an extension that holds one entry for each lifetime that it takes, and does otherwise as it is told.
type scripted struct {
	name   string
	phases phase.Set

	mu       sync.Mutex
	script   map[phase.Phase]func(ctx context.Context, c *extension.Call) (*extension.Answer, error)
	held     map[string]map[string]extension.Entry // subject|lifetime -> kind/id
	answered map[string]uint64                     // highest number answered, by subject
	log      *callLog
}

// callLog is every call that reached an extension, and every effect of the driver's, in order.
type callLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *callLog) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

// driven logs a call that the driver gets, where its place in the order matters.
func (l *callLog) driven(e drivertest.Entry) {
	if e.Verb == drivertest.Called && (e.Call == drivertest.CallResolve || slices.Contains(drivertest.Effects(), e.Call)) {
		l.add("driver.%s", e.Call)
	}
}

// take returns what was logged since the last time.
func (l *callLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.lines
	l.lines = nil
	return out
}

func newScripted(name string, log *callLog, phases ...phase.Phase) *scripted {
	if len(phases) == 0 {
		phases = phase.All()
	}
	return &scripted{name: name, phases: phases, log: log, held: map[string]map[string]extension.Entry{}, answered: map[string]uint64{},
		script: map[phase.Phase]func(context.Context, *extension.Call) (*extension.Answer, error){}}
}

func subjectKey(c *extension.Call) string {
	if c.Sandbox != nil {
		return c.Sandbox.ID
	}
	return c.Workspace.ID
}

// on sets what the extension does in a phase; nil: what it does by default.
func (x *scripted) on(p phase.Phase, fn func(context.Context, *extension.Call) (*extension.Answer, error)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.script[p] = fn
}

// Call implements pipeline.Extension.
func (x *scripted) Call(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	line := string(c.Phase) + " " + x.name
	if c.Cause != "" {
		line += " " + string(c.Cause)
	}
	x.log.add("%s", line)
	x.mu.Lock()
	fn := x.script[c.Phase]
	x.mu.Unlock()
	if fn != nil {
		return fn(ctx, c)
	}
	return x.effect(c)
}

// effect does what a phase is for: hold, release, or nothing.
func (x *scripted) effect(c *extension.Call) (*extension.Answer, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	subject := subjectKey(c)
	if c.Number < x.answered[subject] && !c.Phase.Pure() {
		return nil, fault.New(fault.Conflict, "number %d was overtaken by %d", c.Number, x.answered[subject])
	}
	if !c.Phase.Pure() {
		x.answered[subject] = c.Number
	}
	key := subject + "|" + string(c.Phase.Lifetime())
	a := &extension.Answer{}
	switch {
	case c.Phase == phase.Reconcile:
		key = subject + "|" + string(c.Lifetime)
		for _, e := range c.Orphans {
			delete(x.held[key], e.Kind+"/"+e.ID)
		}
		for _, e := range c.Lost {
			x.hold(key, e)
		}
		a.Entries = x.entries(key)
	case c.Phase.Takes() != phase.None && x.phases.MayHold(c.Phase.Takes()):
		x.hold(key, extension.Entry{Kind: "thing", ID: x.name + "-" + string(c.Phase) + "-" + subject})
		a.Entries = x.entries(key)
		a.State = &extension.State{SchemaVersion: 1, Payload: []byte(c.Key)}
	case c.Phase.Releases() != phase.None:
		delete(x.held, key)
	}
	return a, nil
}

func (x *scripted) hold(key string, e extension.Entry) {
	if x.held[key] == nil {
		x.held[key] = map[string]extension.Entry{}
	}
	x.held[key][e.Kind+"/"+e.ID] = e
}

func (x *scripted) entries(key string) []extension.Entry {
	var out []extension.Entry
	for _, k := range slices.Sorted(maps.Keys(x.held[key])) {
		out = append(out, x.held[key][k])
	}
	return out
}

// holds returns what the extension holds, of all subjects.
func (x *scripted) holds() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for key, m := range x.held {
		for id := range m {
			out = append(out, key+"|"+id)
		}
	}
	slices.Sort(out)
	return out
}

// Reconcile implements pipeline.Extension.
func (x *scripted) Reconcile(_ context.Context, _, _ string, known iter.Seq[extension.Item]) ([]extension.Item, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	subjects := map[string]extension.Item{}
	for item := range known {
		subjects[subjectID(item)] = item
	}
	var out []extension.Item
	for _, key := range slices.Sorted(maps.Keys(x.held)) {
		id, l, _ := strings.Cut(key, "|")
		item := extension.Item{Lifetime: phase.Lifetime(l), Number: x.answered[id], Entries: x.entries(key)}
		if k, ok := subjects[id]; ok {
			item.Sandbox, item.Workspace = k.Sandbox, k.Workspace
		} else if item.Lifetime == phase.Workspace {
			item.Workspace = sandbox.Workspace{ID: id, Driver: "fake"}
		} else {
			item.Sandbox, item.Workspace = &sandbox.Identity{ID: id, Driver: "fake"}, sandbox.Workspace{Driver: "fake"}
		}
		out = append(out, item)
	}
	return out, nil
}

// catalog is a Catalog of generations that a test makes.
type catalog struct {
	mu      sync.Mutex
	current *Generation
	all     map[string]*Generation
}

func (c *catalog) Current() *Generation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

func (c *catalog) Generation(_ context.Context, id string) (*Generation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.all[id]; g != nil {
		return g, nil
	}
	return nil, fault.New(fault.NotFound, "generation %q is not kept", id)
}

// rig is an engine over a fake world, with scripted extensions, in a bubble of fake time.
type rig struct {
	t       testing.TB
	world   *drivertest.World
	journal *journal.Memory
	catalog *catalog
	engine  *Engine
	exts    []*scripted
	log     *callLog
	opts    rigOptions
	ids     atomic.Int64
	began   time.Time
}

type rigOptions struct {
	policy    pipeline.FailurePolicy
	attempts  int
	max       int
	authority bool
	modes     map[string]pipeline.Mode
	interval  time.Duration
	audit     time.Duration // how long it is kept
	features  drivertest.Options
	phases    map[string][]phase.Phase // that an extension declares, where it is not all of them
	grants    []plan.Pattern           // what every bind is granted besides
	drives    bool                     // the calls of the driver that matter for the order are in the log too
}

// bubble runs a test in a bubble, with an engine over extensions a, b, … that declare every phase.
func bubble(t *testing.T, o rigOptions, names []string, fn func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, o, names...)
		defer r.close()
		fn(t, r)
	})
}

func newRig(t testing.TB, o rigOptions, names ...string) *rig {
	if o.policy == "" {
		o.policy = pipeline.FailClosed
	}
	if o.attempts == 0 {
		o.attempts = 3
	}
	if o.max == 0 {
		o.max = 64
	}
	if o.interval == 0 {
		o.interval = 10 * time.Minute
	}
	log := &callLog{}
	if o.drives {
		o.features.Observe = log.driven
	}
	r := &rig{t: t, world: drivertest.NewWorld(o.features), journal: journal.NewMemory(), log: log, opts: o, began: time.Now(),
		catalog: &catalog{all: map[string]*Generation{}}}
	for _, n := range names {
		r.exts = append(r.exts, newScripted(n, r.log, o.phases[n]...))
	}
	r.configure(r.exts...)
	r.open()
	return r
}

// configure makes a new generation with these extensions bound to the driver "fake".
func (r *rig) configure(exts ...*scripted) *Generation {
	fake := r.world.Open()
	about, err := fake.Describe(context.Background())
	r.must(err)
	schema, err := plan.NewSchema(drivertest.Kinds(), drivertest.Points(), func(v any) string {
		return fmt.Sprintf("(sensitive, %.4x)", sha256.Sum256(fmt.Append(nil, v)))
	})
	r.must(err)
	var binds []*pipeline.Bind
	for _, x := range exts {
		mode := r.opts.modes[x.name]
		if mode == "" {
			mode = pipeline.Enforce
		}
		binds = append(binds, &pipeline.Bind{Extension: x.name, ID: "fake/" + x.name, Source: "test.hcl:1", Mode: mode, Phases: x.phases,
			Grant:   plan.Grant{Mutate: []plan.Pattern{"Box.annotations", "Box.image", "Box.address", "Net.subnet", "Box.environment"}, Override: []plan.Pattern{"Box.image"}, Source: "test.hcl:1"},
			Default: pipeline.PhasePolicy{Timeout: 30 * time.Second, FailurePolicy: r.opts.policy, Attempts: r.opts.attempts},
			Program: x, Authoritative: r.opts.authority})
		b := binds[len(binds)-1]
		b.Grant.Mutate = append(b.Grant.Mutate, r.opts.grants...)
	}
	r.catalog.mu.Lock()
	defer r.catalog.mu.Unlock()
	g := &Generation{ID: fmt.Sprintf("g%04d", len(r.catalog.all)+1)}
	g.Drivers = map[string]*Driver{"fake": {Name: "fake", Driver: fake, Description: about, Schema: schema,
		Chain:        pipeline.New(binds, schema, switchOf{r}),
		ChainTimeout: 2 * time.Minute, DriverTimeout: 10 * time.Minute, ReadyTimeout: 5 * time.Minute,
		ReleaseTimeout: 5 * time.Minute, ReconcileInterval: r.opts.interval}}
	r.catalog.current, r.catalog.all[g.ID] = g, g
	return g
}

// switchOf asks the engine that is open at the moment.
type switchOf struct{ r *rig }

func (s switchOf) Disabled(name string) (bool, bool) { return s.r.engine.Disabled(name) }

func (r *rig) open() {
	e, err := Open(context.Background(), Config{Journal: r.journal, Catalog: r.catalog, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: r.newID, MaxOperations: r.opts.max, AuditRetention: r.opts.audit})
	r.must(err)
	r.engine = e
	e.Start()
}

// newID makes ids that sort by time.
func (r *rig) newID() string { return fmt.Sprintf("id-%06d", r.ids.Add(1)) }

// crash ends the engine as SIGKILL would, and opens it again on what was committed.
func (r *rig) crash() {
	old := r.journal
	r.journal = old.Crash()
	r.must(r.engine.Close())
	r.open()
}

func (r *rig) close() {
	r.must(r.engine.Close())
	for _, v := range r.world.Violations() {
		r.t.Errorf("the driver's contract was broken: %s", v)
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) create(name string) (sandbox.Identity, error) { return r.createAs("", name) }

// createAs is create of an id.
func (r *rig) createAs(id, name string) (sandbox.Identity, error) {
	h, made, err := r.engine.CreateSandbox(CreateRequest{ID: id, Driver: "fake", Name: name, Spec: sandbox.Spec{Image: "alpine", Command: []string{"sleep"}}})
	if err != nil {
		return made, err
	}
	_, err = h.Wait(context.Background())
	synctest.Wait()
	return made, err
}

func (r *rig) wait(h *Handle, err error) error {
	if err != nil {
		return err
	}
	_, err = h.Wait(context.Background())
	synctest.Wait()
	return err
}

func (r *rig) get(id string) Sandbox {
	r.t.Helper()
	sb, err := r.engine.Find(Ref{IDOrName: id})
	r.must(err)
	return sb
}

// nothingHeld fails unless every extension and the ledger hold nothing but what is of a workspace.
func (r *rig) nothingHeld() {
	r.t.Helper()
	for _, x := range r.exts {
		for _, h := range x.holds() {
			if !strings.Contains(h, "|workspace|") {
				r.t.Errorf("%s still holds %s", x.name, h)
			}
		}
	}
	for _, h := range r.engine.Holdings() {
		if !h.Workspace {
			r.t.Errorf("the ledger still has %+v", h)
		}
	}
	if left := r.world.Sandboxes(); len(left) > 0 {
		r.t.Errorf("the driver still has %d sandboxes", len(left))
	}
}

func deny(summary string) func(context.Context, *extension.Call) (*extension.Answer, error) {
	return func(context.Context, *extension.Call) (*extension.Answer, error) {
		return &extension.Answer{Denied: true, Diagnostics: []fault.Diagnostic{{Summary: summary}}}, nil
	}
}

func broken(context.Context, *extension.Call) (*extension.Answer, error) {
	return nil, fault.New(fault.Unavailable, "it is broken")
}

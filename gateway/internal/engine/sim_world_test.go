package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

const (
	simName         = "d" // the driver
	simTimeout      = 30 * time.Second
	simChain        = 2 * time.Minute
	simDriveTimeout = 10 * time.Minute
	simRelease      = 5 * time.Minute
)

// simJournal is the journal in memory, each commit of which waits for its turn.
type simJournal struct {
	*journal.Memory
	s *sim
}

func (j simJournal) Commit(ctx context.Context, writes []journal.Write) error {
	v, err := j.s.park(ctx, &item{kind: "commit", key: "commit " + j.s.check.describe(writes)})
	switch {
	case err != nil:
		return err
	case v.err != nil:
		return v.err
	}
	if err := j.Memory.Commit(ctx, writes); err != nil {
		j.s.fail("J1", "a commit was refused: %v", err)
		return err
	}
	j.s.check.committed(writes)
	if v.silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// simConfig is what a generation says, as the checker knows it.
type simConfig struct {
	order  []*simExt
	policy map[string]pipeline.FailurePolicy
	mode   map[string]pipeline.Mode
}

// simCatalog has the generations. It is changed by the scheduler only, while all is quiet.
type simCatalog struct {
	catalog
	all    map[string]*Generation
	config map[string]simConfig
}

func (c *simCatalog) Current() *Generation { return c.catalog.Current() }

func (c *simCatalog) Generation(_ context.Context, id string) (*Generation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.all[id]; g != nil {
		return g, nil
	}
	return nil, fault.New(fault.NotFound, "generation %q is not kept", id)
}

// reload makes a new generation: some of the extensions, with policies that the seed chooses.
func (s *sim) reload() {
	cfg := simConfig{policy: map[string]pipeline.FailurePolicy{}, mode: map[string]pipeline.Mode{}}
	id := fmt.Sprintf("g%04d", len(s.catalog.all)+1)
	schema, about := simSchema()
	var binds []*pipeline.Bind
	for _, x := range s.exts {
		if len(s.catalog.all) > 0 && s.rng.IntN(4) == 0 {
			continue
		}
		b := &pipeline.Bind{Extension: x.name, ID: simName + "/" + x.name, Source: "sim.hcl:1", Mode: pipeline.Enforce, Phases: x.phases,
			Grant:         plan.Grant{Mutate: []plan.Pattern{"Box.annotations", "Net.labels"}, Source: "sim.hcl:1"},
			Default:       pipeline.PhasePolicy{Timeout: simTimeout, FailurePolicy: pipeline.FailClosed, Attempts: 1 + s.rng.IntN(3)},
			Authoritative: s.rng.IntN(2) == 0}
		if s.rng.IntN(3) == 0 {
			b.Default.FailurePolicy = pipeline.FailOpen
		}
		if s.rng.IntN(8) == 0 {
			b.Mode = pipeline.Observe
		}
		b.Program = &simBind{ext: x, gen: id}
		cfg.order, cfg.policy[x.name], cfg.mode[x.name] = append(cfg.order, x), b.Default.FailurePolicy, b.Mode
		binds = append(binds, b)
	}
	s.catalog.mu.Lock()
	g := &Generation{ID: id, Drivers: map[string]*Driver{simName: {Name: simName, Driver: &simDriver{s.world.Open(), s, id},
		Description: about, Schema: schema, Chain: pipeline.New(binds, schema, s), ChainTimeout: simChain, DriverTimeout: simDriveTimeout,
		ReadyTimeout: 5 * time.Minute, ReleaseTimeout: simRelease, ReconcileInterval: 10 * time.Minute}}}
	s.catalog.current, s.catalog.all[id], s.catalog.config[id] = g, g, cfg
	s.catalog.mu.Unlock()
	var names []string
	for _, x := range cfg.order {
		names = append(names, fmt.Sprintf("%s(%s,%s)", x.name, cfg.policy[x.name], cfg.mode[x.name]))
	}
	s.note("generation %s: %s", id, strings.Join(names, " "))
	if e := s.engine.Load(); e != nil {
		e.Reconfigured()
	}
}

// Disabled is the pipeline's switch: the engine's that is open.
func (s *sim) Disabled(name string) (bool, bool) { return s.engine.Load().Disabled(name) }

// simDriver is the fake driver under one generation, each call of which waits for its turn.
type simDriver struct {
	*drivertest.Fake
	s   *sim
	gen string
}

// drive makes one call with effects.
func (d *simDriver) drive(ctx context.Context, c drivertest.Call, id string, effect func() error) error {
	name := d.s.check.name(id)
	end := d.s.check.driving(ctx, d, c, id)
	defer end()
	v, err := d.s.park(ctx, &item{kind: "drive", key: fmt.Sprintf("driver %s %s", c, name)})
	switch {
	case err != nil:
		if c == drivertest.CallCreate {
			d.s.lateCreate(name, effect)
		}
		return err
	case v.err != nil:
		return v.err
	}
	if v.partly {
		fault := d.s.world.Inject(drivertest.Fault{Call: c, ID: id, Times: 1, How: drivertest.FailPartly})
		defer fault.Remove()
	}
	err = effect()
	if v.twice && err == nil {
		err = effect()
	}
	if err == nil && v.hold {
		h, herr := d.s.park(ctx, &item{kind: "driven", key: fmt.Sprintf("driver %s %s answers", c, name)})
		if herr != nil {
			return herr
		}
		v.lost = h.lost
	}
	if err == nil && v.lost != nil {
		return v.lost
	}
	return err
}

// lateCreate keeps a create that nobody waits for any more: it may take effect yet, as a remote driver's may.
func (s *sim) lateCreate(name string, effect func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calm {
		return
	}
	s.pending = append(s.pending, &item{kind: "ghost", key: "late driver Create " + name, run: func(v verdict) {
		if v.err == nil {
			s.check.haunted(name)
			_ = effect()
		}
	}})
}

func (d *simDriver) Create(ctx context.Context, r *driver.CreateRequest) error {
	d.s.check.building(d.gen, r.Identity, r.Run, r.Plan)
	return d.drive(ctx, drivertest.CallCreate, r.Identity.ID, func() error {
		d.s.check.made(r.Identity)
		return d.Fake.Create(context.WithoutCancel(ctx), r)
	})
}

func (d *simDriver) Start(ctx context.Context, r *driver.StartRequest) error {
	d.s.check.building(d.gen, r.Identity, r.Run, r.Plan)
	return d.drive(ctx, drivertest.CallStart, r.Identity.ID, func() error { return d.Fake.Start(ctx, r) })
}

func (d *simDriver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.drive(ctx, drivertest.CallStop, id.ID, func() error { return d.Fake.Stop(ctx, id) })
}

func (d *simDriver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	return d.drive(ctx, drivertest.CallDelete, r.Identity.ID, func() error { return d.Fake.Delete(ctx, r) })
}

func (d *simDriver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	d.s.check.ensuring(d.gen, r.Workspace.ID)
	return d.drive(ctx, drivertest.CallEnsureWorkspace, r.Workspace.ID, func() error { return d.Fake.EnsureWorkspace(ctx, r) })
}

func (d *simDriver) DeleteWorkspace(ctx context.Context, ws sandbox.Workspace) error {
	return d.drive(ctx, drivertest.CallDeleteWorkspace, ws.ID, func() error { return d.Fake.DeleteWorkspace(ctx, ws) })
}

func (d *simDriver) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	v, err := d.s.park(ctx, &item{kind: "get", key: "driver Get " + d.s.check.name(id.ID)})
	switch {
	case err != nil:
		return nil, err
	case v.err != nil:
		return nil, fault.New(fault.Unavailable, "the driver cannot be asked")
	}
	return d.Fake.Get(ctx, id)
}

// WorkspaceLayers is the first that is heard of a workspace.
func (d *simDriver) WorkspaceLayers(ctx context.Context, ws sandbox.Workspace) ([]plan.Layer, error) {
	d.s.check.learn(ws.ID, ws.Name)
	return d.Fake.WorkspaceLayers(ctx, ws)
}

// Resolve may refuse a plan.
func (d *simDriver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	v, err := d.s.park(ctx, &item{kind: "get", key: "driver Resolve " + d.s.check.name(r.Identity.ID)})
	switch {
	case err != nil:
		return err
	case v.err != nil:
		return v.err
	}
	return d.Fake.Resolve(ctx, r)
}

// Watch delivers each event when its turn has come, some of them twice.
func (d *simDriver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return d.Fake.Watch(ctx, func(ev driver.Event) error {
		what := "synced"
		switch {
		case ev.Status != nil:
			what = fmt.Sprintf("%s is %s, run %d", d.s.check.name(ev.Status.Identity.ID), ev.Status.State, ev.Status.Run)
		case !ev.Synced:
			what = d.s.check.name(ev.Deleted.ID) + " is gone"
		}
		v, err := d.s.park(ctx, &item{kind: "event", key: "event (" + d.gen + "): " + what})
		switch {
		case err != nil:
			return err
		case v.err != nil:
			return v.err
		}
		if v.twice {
			if err := fn(ev); err != nil {
				return err
			}
		}
		return fn(ev)
	})
}

// disturb lets the world, the operator or a crash interfere, and reports whether anything did.
func (s *sim) disturb() bool {
	o, hit := s.odds, func(n int) bool { return s.rng.IntN(1000) < n }
	switch {
	case s.calm:
	case hit(o.client):
		s.client()
	case hit(o.advance):
		s.advance()
	case hit(o.crash / 2):
		s.crash("by itself")
	case hit(o.reload):
		s.reload()
	case hit(o.toggle):
		s.toggle()
	case hit(o.full):
		s.full = !s.full
		s.note("the disk is full: %v", s.full)
	case hit(o.extCrash):
		x := s.exts[s.rng.IntN(len(s.exts))]
		s.note("extension %s dies and comes back", x.name)
		x.die()
	case hit(o.freeze):
		x := s.exts[s.rng.IntN(len(s.exts))]
		x.frozen = !x.frozen
		s.note("extension %s stands still: %v", x.name, x.frozen)
	default:
		return s.happen()
	}
	return !s.calm
}

// happen lets something happen to a sandbox that the gateway did not ask for.
func (s *sim) happen() bool {
	boxes := s.world.Sandboxes()
	if len(boxes) == 0 {
		return false
	}
	id, hit := boxes[s.rng.IntN(len(boxes))].Identity.ID, func(n int) bool { return s.rng.IntN(1000) < n }
	switch o := s.odds; {
	case hit(o.exit):
		s.note("the process of %s exits: %v", id, s.world.Exit(id, 3))
	case hit(o.lose / 2):
		s.note("the host reboots: %d runs lost", s.world.LoseAll())
	case hit(o.lose):
		s.note("%s is lost: %v", id, s.world.Lose(id))
	case hit(o.vanish):
		s.note("someone removes %s: %v", id, s.world.Vanish(id))
	case hit(o.driverEvent):
		s.happenToWatch(id)
	case hit(20):
		if b := s.world.Sandbox(id); b.State == driver.Provisioning {
			return false
		}
		s.note("%s is ready: %v", id, s.world.SetReady(id))
	default:
		return false
	}
	return true
}

func (s *sim) happenToWatch(id string) {
	switch s.rng.IntN(5) {
	case 0:
		s.world.BreakWatches()
		s.note("the driver's watches break")
	case 1:
		s.note("%s is said to be gone: %v", id, s.world.AnnounceDeleted(id))
	case 2:
		s.note("%s fails: %v", id, s.world.SetFailed(id, "Broken", "it is broken"))
	case 3:
		s.note("%s is not ready: %v", id, s.world.SetNotReady(id, "Waiting", "it waits"))
	default:
		s.note("%s is announced again: %v", id, s.world.Announce(id))
	}
}

// runsIn reports whether something of a run exists in a state of the world.
func runsIn(st driver.State) bool {
	return slices.Contains([]driver.State{driver.Provisioning, driver.Running, driver.Ready, driver.Failed}, st)
}

var errGhost = fault.New(fault.Canceled, "it came to nothing")

// declares is what an extension may declare, so that every mix is met: its partners are complete where it holds.
var declares = []phase.Set{
	phase.All(), phase.All(), phase.All(),
	{phase.PreparePlan, phase.BeforeCreate, phase.AfterDelete, phase.OnCreateFailed, phase.Reconcile},
	{phase.ValidateRequest, phase.BeforeStart, phase.AfterStop},
	{phase.BeforeStart, phase.AfterReady, phase.AfterStop, phase.Reconcile},
	{phase.AfterStop, phase.AfterDelete},
	{phase.EnsureWorkspace, phase.DeleteWorkspace, phase.Reconcile},
	{phase.BeforeCreate, phase.AfterCreate, phase.BeforeStop, phase.BeforeDelete},
	{phase.AfterCreate, phase.AfterDelete, phase.OnCreateFailed, phase.BeforeStop},
	{phase.PreparePlan, phase.ValidateRequest, phase.OnCreateFailed, phase.BeforeDelete},
}

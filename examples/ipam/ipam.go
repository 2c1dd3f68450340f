package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/sandgate/sandgate/examples/ipam/lease"
	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The features that it uses where a driver has them. It requires none.
const (
	featureSubnet      = "network.subnet"
	featureAddress     = "network.address"
	featureEnvironment = "environment"
)

var features = slices.Concat([]string{featureSubnet, featureAddress, featureEnvironment}, clusterFeatures)

// addressVariable is how a sandbox learns its address from a driver that has no place for it.
const addressVariable = "SANDGATE_ADDRESS"

// ipam is the extension.
type ipam struct {
	mu    sync.Mutex
	dir   string
	store *lease.Store
	pools *pools
}

// What it takes part in.
var (
	_ plugin.Configurer          = (*ipam)(nil)
	_ plugin.HealthChecker       = (*ipam)(nil)
	_ plugin.WorkspaceEnsurer    = (*ipam)(nil)
	_ plugin.WorkspaceDeleter    = (*ipam)(nil)
	_ plugin.BeforeCreator       = (*ipam)(nil)
	_ plugin.AfterDeleter        = (*ipam)(nil)
	_ plugin.CreateFailedHandler = (*ipam)(nil)
	_ plugin.Reconciler          = (*ipam)(nil)
)

// Info implements plugin.Extension.
func (x *ipam) Info() plugin.Info {
	return plugin.Info{Name: "ipam", Version: "1.0.0", Uses: features,
		Provides: []string{"address"}, Config: &config{}}
}

// Configure implements plugin.Configurer. The pools may change while leases are held; the store may not.
func (x *ipam) Configure(ctx context.Context, c *plugin.Config) error {
	cfg := c.Value.(*config)
	pools, wrong := cfg.check()
	for _, w := range wrong {
		c.Invalid(w.Path, w.Summary, w.Detail)
	}
	if len(wrong) > 0 {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.store != nil && x.dir != cfg.Store {
		c.Invalid("store", "cannot be changed while the extension runs", "Restart the gateway, with the leases moved to the new directory.")
		return nil
	}
	if x.store == nil {
		store, err := lease.Open(ctx, cfg.Store)
		if err != nil {
			c.Invalid("store", err.Error(), "")
			return nil
		}
		x.store, x.dir = store, cfg.Store
	}
	x.pools = pools
	return nil
}

func (x *ipam) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.store != nil {
		_ = x.store.Close() // every lease is on disk already
	}
}

func (x *ipam) configured() (*lease.Store, *pools) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.store, x.pools
}

// Health implements plugin.HealthChecker.
func (x *ipam) Health(ctx context.Context) error {
	store, _ := x.configured()
	if store == nil {
		return errors.New("it is not configured yet")
	}
	return store.Check(ctx)
}

func owner(r *plugin.Request) lease.Owner {
	w := r.Workspace()
	o := lease.Owner{Driver: r.Driver(), WorkspaceID: w.ID, Workspace: w.Name}
	if sb, ok := r.Sandbox(); ok {
		o.Sandbox, o.Name = sb.ID, sb.Name
	}
	return o
}

// EnsureWorkspace implements plugin.WorkspaceEnsurer: a subnet for the workspace's network, where there is one.
func (x *ipam) EnsureWorkspace(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	f, ok := r.Feature(featureSubnet)
	if !ok {
		return nil
	}
	store, pools := x.configured()
	pool := pools.of(r.Workspace().Name)
	if pool == nil {
		s.DenyField("workspace", "no pool is for this workspace", "Name it, or a glob that fits it, in the workspaces of a pool.")
		return nil
	}
	got, err := store.Subnet(ctx, pool, owner(r), netip.Prefix{})
	if refused(err, &s.Verdict) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Hold(string(got.Kind), got.ID(), "subnet of "+got.Pool)
	return s.Set(f, got.ID())
}

// refused turns what is the pool's, and no failure, into a denial.
func refused(err error, v *plugin.Verdict) bool {
	var full *lease.FullError
	if errors.As(err, &full) {
		v.Deny(full.Error(), "Release sandboxes, or give the pool more addresses.")
		return true
	}
	return false
}

// BeforeCreate implements plugin.BeforeCreator: an address of the workspace's subnet, or where the driver has no
// subnets of the pool itself.
func (x *ipam) BeforeCreate(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	store, pools := x.configured()
	pool := pools.of(r.Workspace().Name)
	if pool == nil {
		s.DenyField("workspace", "no pool is for this workspace", "Name it, or a glob that fits it, in the workspaces of a pool.")
		return nil
	}
	_, subnets := r.Feature(featureSubnet)
	got, err := store.Address(ctx, pool, owner(r), !subnets)
	if refused(err, &s.Verdict) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Hold(string(got.Kind), got.ID(), "address in "+got.Pool)
	if f, ok := r.Feature(featureAddress); ok {
		return s.Set(f, got.Prefix.String())
	}
	if f, ok := r.Feature(featureEnvironment); ok {
		return s.Set(f, map[string]string{addressVariable: got.Prefix.Addr().String()})
	}
	return writeDown(r, s, got.Prefix)
}

func (x *ipam) release(ctx context.Context, r *plugin.Request) error {
	store, _ := x.configured()
	freed, err := store.Release(ctx, owner(r))
	if err == nil && len(freed) > 0 {
		r.Logger().Info("released", "what", freed[0].ID(), "count", len(freed))
	}
	return err
}

// AfterDelete implements plugin.AfterDeleter.
func (x *ipam) AfterDelete(ctx context.Context, r *plugin.Request) error { return x.release(ctx, r) }

// OnCreateFailed implements plugin.CreateFailedHandler.
func (x *ipam) OnCreateFailed(ctx context.Context, r *plugin.Request) error { return x.release(ctx, r) }

// DeleteWorkspace implements plugin.WorkspaceDeleter.
func (x *ipam) DeleteWorkspace(ctx context.Context, r *plugin.Request) error {
	return x.release(ctx, r)
}

// Holdings implements plugin.Reconciler.
func (x *ipam) Holdings(ctx context.Context, bind string) ([]plugin.Holding, error) {
	store, _ := x.configured()
	driver, _ := splitBind(bind)
	holds, err := store.Holds(ctx, driver)
	if err != nil {
		return nil, err
	}
	var out []plugin.Holding
	for _, h := range holds {
		item := plugin.Holding{Workspace: sandbox.Workspace{ID: h.WorkspaceID, Driver: h.Driver, Name: h.Workspace}, Lifetime: phase.Workspace}
		if h.Sandbox != "" {
			item.Sandbox = &sandbox.Identity{ID: h.Sandbox, Driver: h.Driver, Workspace: h.Workspace, WorkspaceID: h.WorkspaceID, Name: h.Name}
			item.Lifetime = phase.Sandbox
		}
		item.Entries = []plugin.Entry{{Kind: string(h.Kind), ID: h.ID()}}
		out = append(out, item)
	}
	return out, nil
}

// splitBind takes a bind's name, "driver/extension", apart.
func splitBind(bind string) (driver, extension string) {
	for i := len(bind) - 1; i >= 0; i-- {
		if bind[i] == '/' {
			return bind[:i], bind[i+1:]
		}
	}
	return bind, ""
}

// Repair implements plugin.Reconciler.
func (x *ipam) Repair(ctx context.Context, r *plugin.Request, h *plugin.Hold) error {
	store, pools := x.configured()
	orphans, err := holdsOf(r.Orphans())
	if err != nil {
		return err
	}
	lost, err := holdsOf(r.Lost())
	if err != nil {
		return err
	}
	held, err := store.Repair(ctx, pools.all, owner(r), orphans, lost)
	if err != nil {
		return err
	}
	for _, g := range held {
		h.Hold(string(g.Kind), g.ID(), "")
	}
	return nil
}

func holdsOf(entries []plugin.Entry) ([]lease.Hold, error) {
	var out []lease.Hold
	for _, e := range entries {
		h, err := lease.ParseID(lease.Kind(e.Kind), e.ID)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s %q: %w", e.Kind, e.ID, err)
		}
		out = append(out, h)
	}
	return out, nil
}

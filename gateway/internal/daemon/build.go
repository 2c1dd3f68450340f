package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/drivers/compose"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// generation is one configuration, launched and negotiated. Once it is in use nothing of it changes but retired.
type generation struct {
	engine.Generation
	config     *config.Config
	extensions map[string]*running
	bases      map[string]*openDriver // base drivers, by name
	copies     map[string]string      // extension -> the gateway's own copy of its program
	stored     bool
	retired    bool // what it had was given back; guarded by Daemon.mu
}

func newGeneration(cfg *config.Config) *generation {
	g := &generation{config: cfg, extensions: map[string]*running{}, bases: map[string]*openDriver{}, copies: map[string]string{}}
	g.Drivers = map[string]*engine.Driver{}
	return g
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:10]
}

func jitter() float64 { return rand.Float64() }

// build launches what the configuration names and negotiates. What is wrong goes to the findings, at its place; an
// error is what has no place there. After either, nothing that was launched for it is left.
func (d *Daemon) build(ctx context.Context, cfg *config.Config, f *config.Findings) (_ *generation, err error) {
	gen := newGeneration(cfg)
	if gen.ID, err = d.catalog.next(ctx); err != nil {
		return gen, err
	}
	defer func() {
		if err != nil || f.HasErrors() {
			err = errors.Join(err, d.retire(gen))
		}
	}()
	checkListener(cfg.Gateway, f)
	if d.openDrivers(ctx, gen, f); f.HasErrors() {
		return gen, nil
	}
	return gen, d.populate(ctx, gen, f)
}

// populate gives a generation its extensions and its chains: launched, negotiated, configured. What is wrong goes to
// the findings.
func (d *Daemon) populate(ctx context.Context, gen *generation, f *config.Findings) (err error) {
	list := d.launch(ctx, gen, f)
	defer func() { err = errors.Join(err, discard(list)) }()
	if f.HasErrors() {
		return nil
	}
	binds := d.negotiate(gen, list, f)
	if d.decode(gen, list, f); f.HasErrors() {
		return nil
	}
	if d.configure(ctx, gen, list, f); f.HasErrors() {
		return nil
	}
	for name, chain := range binds {
		for _, b := range chain {
			b.Program = d.program(name, b.Extension, gen.extensions[b.Extension].handle)
		}
		gen.Drivers[name].Chain = pipeline.New(chain, gen.Drivers[name].Schema, d)
	}
	return nil
}

// program is an extension as the chain of a driver calls it.
func (d *Daemon) program(driver, name string, x pipeline.Extension) pipeline.Extension {
	if put := d.opts.between.extension; put != nil {
		x = put(name, x)
	}
	return d.telemetry.Extension(driver, name, x)
}

// refuseChanged refuses a reload that changes what is fixed while the gateway runs: it would be ignored quietly.
func refuseChanged(was, is *config.Config, f *config.Findings) {
	for _, x := range []struct {
		name    string
		differs bool
	}{
		{"data_dir", was.Gateway.DataDir != is.Gateway.DataDir},
		{"listen", was.Gateway.Listen != is.Gateway.Listen},
		{"max_operations", was.Gateway.MaxOperations != is.Gateway.MaxOperations},
		{"audit_retention", was.Gateway.Audit != is.Gateway.Audit},
		{"metrics", was.Gateway.Metrics != is.Gateway.Metrics},
		{"tracing", was.Gateway.Tracing != is.Gateway.Tracing},
		{"tls", (was.Gateway.TLS == nil) != (is.Gateway.TLS == nil) || was.Gateway.TLS != nil && was.Gateway.TLS.Files() != is.Gateway.TLS.Files()},
	} {
		if x.differs {
			f.Add(is.Gateway.Range, "Setting cannot be changed while the gateway runs", fmt.Sprintf("%s differs from what the gateway was started with: restart the gateway.", x.name))
		}
	}
	if was.Store.Type != is.Store.Type || was.Store.URL != is.Store.URL {
		f.Add(is.Store.Range, "Setting cannot be changed while the gateway runs", "The store differs from the one that the gateway was started with: restart the gateway.")
	}
}

// openDrivers opens the base drivers that are not open yet, side by side, and makes the composed ones.
func (d *Daemon) openDrivers(ctx context.Context, gen *generation, f *config.Findings) {
	roots := slices.DeleteFunc(slices.Clone(gen.config.Drivers), func(c config.Driver) bool { return c.Base != "" })
	opened, found := make([]driver.Driver, len(roots)), make([]*config.Findings, len(roots))
	var group sync.WaitGroup
	for i, c := range roots {
		found[i] = config.NewFindings()
		group.Go(func() { opened[i] = d.openBase(ctx, gen, c, found[i]) })
	}
	group.Wait()
	bases := map[string]driver.Driver{}
	for i, c := range roots {
		bases[c.Name] = opened[i]
		f.Join(found[i])
	}
	for _, c := range gen.config.Drivers {
		root := bases[gen.config.Root(c.Name).Name]
		if root == nil {
			continue
		}
		drv, err := d.driver(ctx, gen.config, c, root)
		if err != nil {
			f.Add(c.Range, "Unusable driver", err.Error())
			continue
		}
		gen.Drivers[c.Name] = drv
	}
}

// driver is a configured driver over the one at its bottom. It has no chain yet.
func (d *Daemon) driver(ctx context.Context, cfg *config.Config, c config.Driver, root driver.Driver) (*engine.Driver, error) {
	drv := d.layers(cfg, c, root)
	about, err := drv.Describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	schema, err := plan.NewSchema(about.Kinds, about.Points, d.redact)
	if err != nil {
		return nil, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	return &engine.Driver{Name: c.Name, Driver: d.telemetry.Driver(c.Name, drv), Description: about, Schema: schema,
		ChainTimeout: c.Timeouts.Chain, DriverTimeout: c.Timeouts.Call, ReadyTimeout: c.Timeouts.Ready,
		ReleaseTimeout: c.Timeouts.Release, ReconcileInterval: c.Timeouts.Reconcile, Split: compose.Splitter(drv)}, nil
}

// layers composes a driver over its bases.
func (d *Daemon) layers(cfg *config.Config, c config.Driver, root driver.Driver) driver.Driver {
	if c.Base == "" {
		return compose.Named(c.Name, root)
	}
	base, _ := cfg.Driver(c.Base)
	return compose.New(c.Name, d.layers(cfg, base, root))
}

// redact is how a sensitive value is shown: by a digest that says whether it changed, and nothing else.
func (d *Daemon) redact(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "(sensitive)"
	}
	return "(sensitive, " + d.journal.Digest(raw)[:4] + "…)"
}

// negotiate intersects manifest, driver and grant for each bind of every driver. The binds have no program yet.
func (d *Daemon) negotiate(gen *generation, list []*candidate, f *config.Findings) map[string][]*pipeline.Bind {
	candidates := map[string]*candidate{}
	for _, c := range list {
		candidates[c.block.Name] = c
	}
	binds := map[string][]*pipeline.Bind{}
	for _, c := range gen.config.Drivers {
		drv := gen.Drivers[c.Name]
		binds[c.Name] = nil
		for _, b := range gen.config.Chain(c.Name) {
			x := candidates[b.Extension]
			bind := bindOf(gen.config, c.Name, b)
			m := x.handle.Manifest()
			contract, wrong := pipeline.Negotiate(&m, bind, c.Name, drv.Description.Features, drv.Schema)
			for _, w := range wrong {
				f.Add(b.Range, w.Summary, w.Detail)
			}
			if contract != nil {
				if idle := bind.Uncalled(); len(idle) > 0 {
					f.Warn(b.Range, "Phase is not called", fmt.Sprintf("Extension %q declares %s, and its activation is on_request: a workspace is prepared by those alone that take part in every sandbox of it.",
						b.Extension, strings.Join(words(idle), ", ")))
				}
				x.contracts = append(x.contracts, *contract)
				binds[c.Name] = append(binds[c.Name], bind)
			}
		}
	}
	return binds
}

// Disabled is the operators' switch, as the pipeline asks for it.
func (d *Daemon) Disabled(extension string) (disabled, bypass bool) {
	if d.engine == nil {
		return false, false
	}
	return d.engine.Disabled(extension)
}

func policy(open bool) pipeline.FailurePolicy {
	if open {
		return pipeline.FailOpen
	}
	return pipeline.FailClosed
}

// bindOf is the operator's part of a bind.
func bindOf(cfg *config.Config, driverName string, b config.Bind) *pipeline.Bind {
	source := fmt.Sprintf("%s:%d", b.Range.Filename, b.Range.Start.Line)
	out := &pipeline.Bind{Extension: b.Extension, ID: driverName + "/" + b.Extension, Source: source, Mode: pipeline.Enforce,
		OnRequest: b.OnRequest, Authoritative: b.Authoritative,
		Grant:    plan.Grant{Mutate: b.Mutate, Read: b.Read, Override: b.Override, Source: source},
		Policies: map[phase.Phase]pipeline.PhasePolicy{},
		Default:  pipeline.PhasePolicy{Timeout: b.Timeout, FailurePolicy: policy(b.FailOpen), Attempts: config.DefaultAttempts}}
	if b.Observe {
		out.Mode = pipeline.Observe
	}
	for p, x := range b.Phases {
		out.Policies[p] = pipeline.PhasePolicy{Timeout: x.Timeout, FailurePolicy: policy(x.FailOpen), Attempts: x.Attempts}
	}
	one := func(glob string) []string {
		if glob == "" {
			return nil
		}
		return []string{glob}
	}
	for _, a := range cfg.Activations {
		if a.Extension == b.Extension {
			out.Rules = append(out.Rules, pipeline.Rule{Default: a.Default, Driver: one(a.Driver), Workspace: one(a.Workspace), Image: one(a.Image), Caller: a.Caller})
		}
	}
	return out
}

// admit refuses a configuration that what lives cannot live with: a driver that still has sandboxes is gone or is
// another one, or an extension does not read the state that it keeps.
func (d *Daemon) admit(refs engine.References, gen *generation, f *config.Findings) {
	for name, r := range refs.Drivers {
		drv := gen.Drivers[name]
		count := fmt.Sprintf("%d sandboxes and %d workspaces", r.Sandboxes, r.Workspaces)
		if r.Sandboxes+r.Workspaces > 0 {
			switch {
			case drv == nil:
				f.Add(gen.config.Gateway.Range, "Driver is still in use", fmt.Sprintf("Driver %q has %s, and the configuration does not have it any more.", name, count))
				continue
			case len(r.Instances) > 0 && !r.Instances[drv.Description.Instance]:
				c, _ := gen.config.Driver(name)
				f.Add(c.Range, "Driver is another one", fmt.Sprintf("Driver %q has %s on another instance than the configuration now names (%s).", name, count, drv.Description.Instance))
			}
		}
		if drv == nil {
			continue
		}
		for _, b := range drv.Chain.Binds() {
			for version, n := range r.States[b.Extension] {
				if len(b.StateReads) > 0 && !slices.Contains(b.StateReads, version) {
					x, _ := gen.config.Extension(b.Extension)
					f.Add(x.Range, "State cannot be read", fmt.Sprintf("%d sandboxes or workspaces of driver %q carry state of version %d of extension %q, and the program reads %v.",
						n, name, version, b.Extension, b.StateReads))
				}
			}
		}
	}
}

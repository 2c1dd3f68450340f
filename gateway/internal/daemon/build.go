package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/drivers/compose"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// generation is one configuration, launched and negotiated.
type generation struct {
	engine.Generation
	config     *config.Config
	extensions map[string]*running
	copies     map[string]string // extension -> the gateway's own copy of its program
	stored     bool
}

// running is an extension of a generation.
type running struct {
	handle    *supervisor.Handle
	spec      supervisor.Spec
	config    json.RawMessage
	contracts []extension.Contract
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:10]
}

func jitter() float64 { return rand.Float64() }

// build launches what the configuration names and negotiates. What is wrong goes to the findings, at its place; an
// error is what has no place there. After either, nothing that was launched for it is left.
func (d *Daemon) build(ctx context.Context, cfg *config.Config, f *config.Findings) (_ *generation, err error) {
	gen := &generation{config: cfg, extensions: map[string]*running{}, copies: map[string]string{}}
	gen.ID = newID()
	gen.Drivers = map[string]*engine.Driver{}
	defer func() {
		if err != nil || f.HasErrors() {
			err = errors.Join(err, d.retire(gen))
		}
	}()
	refuseUnserved(cfg, f)
	if err := d.openDrivers(ctx, gen, f); err != nil || f.HasErrors() {
		return gen, err
	}
	if err := d.launch(ctx, gen, f, nil); err != nil || f.HasErrors() {
		return gen, err
	}
	d.negotiate(gen, f)
	if f.HasErrors() {
		return gen, nil
	}
	return gen, d.configure(ctx, gen, f)
}

// refuseUnserved refuses what the configuration may ask for and this gateway does not do yet: something that an
// operator relies on must not be missing quietly.
func refuseUnserved(cfg *config.Config, f *config.Findings) {
	const summary = "Not supported yet"
	if !strings.HasPrefix(cfg.Gateway.Listen, "unix://") {
		f.Add(cfg.Gateway.Range, summary, "This gateway serves its API on a Unix socket only.")
	}
	for _, d := range cfg.Drivers {
		if d.Expose != nil {
			f.Add(d.Range, summary, fmt.Sprintf("This gateway does not serve drivers to others: leave the expose block of %q out.", d.Name))
		}
	}
}

// openDrivers opens the base drivers that are not open yet, and makes the composed ones.
func (d *Daemon) openDrivers(ctx context.Context, gen *generation, f *config.Findings) error {
	for _, c := range gen.config.Drivers {
		base := gen.config.Root(c.Name)
		if base.Type == "" {
			f.Add(c.Range, "Driver is not supported yet", "This gateway runs built-in drivers and drivers composed over them.")
			continue
		}
		root, err := d.openBase(gen.config, base, f)
		if err != nil {
			return err
		}
		if root == nil {
			continue
		}
		drv := d.layers(gen.config, c, root)
		about, err := drv.Describe(ctx)
		if err != nil {
			return fmt.Errorf("driver %q: %w", c.Name, err)
		}
		schema, err := plan.NewSchema(about.Kinds, about.Points, d.redact)
		if err != nil {
			return fmt.Errorf("driver %q: %w", c.Name, err)
		}
		gen.Drivers[c.Name] = &engine.Driver{Name: c.Name, Driver: d.telemetry.Driver(c.Name, drv), Description: about, Schema: schema,
			ChainTimeout: c.Timeouts.Chain, DriverTimeout: c.Timeouts.Call, ReadyTimeout: c.Timeouts.Ready,
			ReleaseTimeout: c.Timeouts.Release, ReconcileInterval: c.Timeouts.Reconcile, Split: compose.Splitter(drv)}
	}
	return nil
}

// layers composes a driver over its bases.
func (d *Daemon) layers(cfg *config.Config, c config.Driver, root driver.Driver) driver.Driver {
	if c.Base == "" {
		return compose.Named(c.Name, root)
	}
	base, _ := cfg.Driver(c.Base)
	return compose.New(c.Name, d.layers(cfg, base, root))
}

func (d *Daemon) openBase(cfg *config.Config, c config.Driver, f *config.Findings) (driver.Driver, error) {
	typ := drivers.Types()[c.Type]
	setting, diags := config.DecodeBody(c.Config, typ.Schema, cfg.Context(), c.Range, fmt.Sprintf("driver %q", c.Name))
	f.AddDiagnostics(diags)
	if diags.HasErrors() {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o, ok := d.open[c.Name]; ok {
		if o.setting == string(setting) && o.typ == c.Type {
			return o.driver, nil
		}
		f.Add(c.Range, "Driver cannot be changed while the gateway runs", fmt.Sprintf("The settings of driver %q differ from those that it was opened with: restart the gateway.", c.Name))
		return nil, nil
	}
	data, err := filepath.Abs(cfg.Gateway.DataDir)
	if err != nil {
		return nil, err
	}
	drv, err := typ.Open(drivers.Config{Name: c.Name, Dir: filepath.Join(data, "drivers", c.Name), Hide: []string{data}, Shim: d.opts.Shim,
		Logger: d.log.With("driver", c.Name), Setting: setting})
	if fault.Is(err, fault.Invalid) {
		f.Add(d.at(c.Config, typ.Schema, err, c.Range), "Invalid driver configuration", err.Error())
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open driver %q: %w", c.Name, err)
	}
	d.open[c.Name] = openDriver{driver: drv, setting: string(setting), typ: c.Type}
	return drv, nil
}

// at finds the place of a configuration that an error is about.
func (d *Daemon) at(body hcl.Body, schema extension.ConfigSchema, err error, block hcl.Range) hcl.Range {
	for _, x := range fault.DiagnosticsOf(err) {
		return config.RangeOf(body, schema, x.Path, block)
	}
	return block
}

// redact is how a sensitive value is shown: by a digest that says whether it changed, and nothing else.
func (d *Daemon) redact(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "(sensitive)"
	}
	return "(sensitive, " + d.journal.Digest(raw)[:4] + "…)"
}

// launch launches every extension of the generation, side by side. Those that the generation before runs with the
// same program and environment are shared with it. Copies, where given, are run instead of the programs.
func (d *Daemon) launch(ctx context.Context, gen *generation, f *config.Findings, copies map[string]string) error {
	list := gen.config.Extensions
	handles, errs := make([]*running, len(list)), make([]error, len(list))
	var group errgroup.Group
	for i, x := range list {
		spec := specOf(x, d.opts.Dev)
		if copies != nil {
			if spec.Copy = copies[x.Name]; spec.Copy == "" {
				errs[i] = fault.New(fault.Unavailable, "no copy of its program was kept")
				continue
			}
		}
		group.Go(func() error {
			h, err := d.supervisor.Launch(ctx, spec)
			if err != nil {
				errs[i] = err
				return nil
			}
			handles[i] = &running{handle: h, spec: spec}
			return nil
		})
	}
	_ = group.Wait() // its functions say what is wrong through errs
	for i, x := range list {
		if handles[i] != nil {
			gen.extensions[x.Name] = handles[i]
		}
		if errs[i] != nil {
			f.Add(x.Range, "Extension cannot be launched", errs[i].Error())
			continue
		}
		if m := handles[i].handle.Manifest(); m.Name != x.Name {
			f.Add(x.Range, "Another extension", fmt.Sprintf("%s says that it is the extension %q, version %s. The label of the block has to be that name.", x.Command, m.Name, m.Version))
		}
		d.keepCopy(gen, x.Name, handles[i])
	}
	return nil
}

// keepCopy keeps the program for later releases. One that cannot be kept is said so, and runs all the same.
func (d *Daemon) keepCopy(gen *generation, name string, r *running) {
	ref, err := d.supervisor.Keep(r.spec)
	if err != nil {
		d.log.Warn("no copy of the program could be kept for later releases", "extension", name, "err", err)
		return
	}
	gen.copies[name] = ref
}

func specOf(x config.Extension, dev bool) supervisor.Spec {
	return supervisor.Spec{Name: x.Name, Command: x.Command, Args: x.Args, Checksum: x.Checksum, Unpinned: dev, Interpreter: x.Interpreter,
		Files: x.Files, Env: x.Env, User: x.User, Group: x.Group,
		Limits:  supervisor.Limits{Memory: x.Limits.Memory, CPU: x.Limits.CPU, PIDs: x.Limits.PIDs, Files: uint64(x.Limits.Files)},
		Restart: supervisor.Restart{Budget: x.Restart.Budget, Window: x.Restart.Window}}
}

// negotiate makes the chain of every driver: manifest, driver and grant intersected for each bind.
func (d *Daemon) negotiate(gen *generation, f *config.Findings) {
	for _, c := range gen.config.Drivers {
		drv := gen.Drivers[c.Name]
		var binds []*pipeline.Bind
		for _, b := range gen.config.Chain(c.Name) {
			r := gen.extensions[b.Extension]
			bind := bindOf(gen.config, c.Name, b)
			bind.Program = d.telemetry.Extension(c.Name, b.Extension, r.handle)
			m := r.handle.Manifest()
			contract, wrong := pipeline.Negotiate(&m, bind, c.Name, drv.Description.Features, drv.Schema)
			for _, w := range wrong {
				f.Add(b.Range, w.Summary, w.Detail)
			}
			if contract != nil {
				r.contracts = append(r.contracts, *contract)
				binds = append(binds, bind)
			}
		}
		drv.Chain = pipeline.New(binds, drv.Schema, d)
	}
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

// configure hands every extension its configuration, decoded with its own schema, and its contracts.
func (d *Daemon) configure(ctx context.Context, gen *generation, f *config.Findings) error {
	for _, x := range gen.config.Extensions {
		r := gen.extensions[x.Name]
		m := r.handle.Manifest()
		var schema extension.ConfigSchema
		if len(m.ConfigSchema) > 0 {
			if err := json.Unmarshal(m.ConfigSchema, &schema); err != nil {
				f.Add(x.Range, "Unusable schema", fmt.Sprintf("Extension %q %s describes its configuration in a way that cannot be read: %v.", m.Name, m.Version, err))
				continue
			}
		}
		raw, diags := config.DecodeBody(x.Config, schema, gen.config.Context(), x.Range, fmt.Sprintf("extension %q %s", m.Name, m.Version))
		f.AddDiagnostics(diags)
		if diags.HasErrors() {
			continue
		}
		r.config = raw
		err := r.handle.Configure(ctx, raw, r.contracts)
		switch {
		case fault.Is(err, fault.Invalid) && len(fault.DiagnosticsOf(err)) > 0:
			for _, w := range fault.DiagnosticsOf(err) {
				f.Add(config.RangeOf(x.Config, schema, w.Path, x.Range), "Invalid configuration", strings.TrimSpace(w.Path+" "+w.Summary+"\n"+w.Detail))
			}
		case err != nil:
			f.Add(x.Range, "Extension cannot be configured", err.Error())
		}
	}
	return nil
}

// retire ends the extensions of a generation that nothing refers to.
func (d *Daemon) retire(gen *generation) error {
	var errs []error
	for _, r := range gen.extensions {
		errs = append(errs, r.handle.Close())
	}
	return errors.Join(errs...)
}

// admit refuses a configuration that what lives cannot live with: a driver that still has sandboxes is gone or is
// another one, or an extension does not read the state that it keeps.
func (d *Daemon) admit(gen *generation, f *config.Findings) {
	refs := d.engine.References()
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

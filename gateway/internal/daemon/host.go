package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// Version implements api.Host.
func (d *Daemon) Version() *gatewayv1.GetVersionResponse {
	v := &gatewayv1.GetVersionResponse{Version: d.opts.Version, Generation: d.catalog.current().ID}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.GoVersion = info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}

// reload loads the configuration anew. d.reloading is held.
func (d *Daemon) reload(ctx context.Context, caller string) (*gatewayv1.ReloadResponse, error) {
	cfg, f := config.Load(d.opts.Paths, config.Options{Dev: d.opts.Dev, Types: drivers.Names()})
	if cfg == nil {
		return nil, fault.New(fault.Invalid, "the configuration is wrong, and nothing was changed: %s", f)
	}
	if d.opts.DataDir != "" {
		cfg.Gateway.DataDir = d.opts.DataDir
	}
	if refuseChanged(d.catalog.current().config, cfg, f); f.HasErrors() {
		return nil, fault.New(fault.Invalid, "the configuration is wrong, and nothing was changed: %s", f)
	}
	before := d.catalog.current().parts()
	gen, err := d.build(ctx, cfg, f)
	if err != nil {
		return nil, err
	}
	if err := d.switchTo(ctx, gen, f); err != nil {
		return nil, errors.Join(err, d.retire(gen))
	}
	if err := d.catalog.collect(ctx); err != nil {
		d.log.Warn("what nothing refers to any more could not all be removed; the next reload tries again", "err", err)
	}
	changes := difference(before, gen.parts())
	if err := d.engine.Reloaded(gen.ID, changes, caller); err != nil {
		d.log.Warn("the reload was not written to the audit", "err", err)
	}
	d.log.Info("the configuration was reloaded", "generation", gen.ID, "changes", changes)
	return &gatewayv1.ReloadResponse{Generation: gen.ID, Changes: changes}, nil
}

// switchTo puts a generation into force, with its doors. Where what lives, or is just being asked for, cannot live with it,
// nothing has changed.
func (d *Daemon) switchTo(ctx context.Context, gen *generation, f *config.Findings) error {
	refused := func() error {
		return fault.New(fault.Invalid, "the configuration is wrong, and nothing was changed: %s", f)
	}
	if !f.HasErrors() {
		d.admit(d.engine.References(), gen, f)
	}
	if f.HasErrors() {
		return refused()
	}
	fresh := d.doors.open(gen, f)
	if f.HasErrors() {
		return refused()
	}
	if err := d.catalog.keep(ctx, gen); err != nil {
		return errors.Join(err, discardDoors(fresh))
	}
	allowed := func(refs engine.References) bool {
		d.admit(refs, gen, f)
		return !f.HasErrors()
	}
	var before *generation
	if !d.engine.Switch(allowed, func() { before = d.catalog.use(gen) }) {
		return errors.Join(refused(), discardDoors(fresh))
	}
	d.engine.Reconfigured()
	d.doors.serve(gen, fresh)
	if before == nil {
		return nil
	}
	if err := d.retire(before); err != nil {
		d.log.Warn("what the configuration before had, and this one has not, was not ended in order", "err", err)
	}
	return nil
}

// Extensions implements api.Host.
func (d *Daemon) Extensions() []*gatewayv1.Extension {
	gen := d.catalog.current()
	var out []*gatewayv1.Extension
	for _, name := range slices.Sorted(maps.Keys(gen.extensions)) {
		out = append(out, describeExtension(name, gen.extensions[name]))
	}
	return out
}

// Program implements api.Host.
func (d *Daemon) Program(name string) *gatewayv1.Extension {
	if r := d.catalog.current().extensions[name]; r != nil {
		return describeExtension(name, r)
	}
	if o := d.openAs(name); o != nil && o.program != nil {
		return describeExtension(name, &running{handle: o.program, spec: o.spec})
	}
	return nil
}

func describeExtension(name string, r *running) *gatewayv1.Extension {
	st := r.handle.Status()
	m := &gatewayv1.Extension{Name: name, Version: st.Manifest.Version, State: string(st.State), Reason: st.Reason, Pid: int32(st.PID),
		Restarts: int32(st.Restarts), Digest: st.Digest, Stderr: st.Stderr, Isolation: r.spec.Isolation(), LastError: st.LastError}
	if !st.Started.IsZero() {
		m.Since, m.Uptime = timestamppb.New(st.Started), durationpb.New(st.Uptime)
	}
	if raw, err := json.Marshal(st.Manifest); err == nil {
		m.ManifestJson = string(raw)
	}
	for _, c := range r.contracts {
		m.Binds = append(m.Binds, c.Bind)
		if raw, err := json.Marshal(c); err == nil {
			m.ContractsJson = append(m.ContractsJson, string(raw))
		}
	}
	for _, p := range st.Parts {
		m.Pinned = append(m.Pinned, fmt.Sprintf("%s %s", p.Path, p.Digest))
	}
	return m
}

// restartTimeout is how long calls in flight may take to end, and the new process to serve.
const restartTimeout = time.Minute

// RestartExtension implements api.Host: of every configuration that is in use, and of a driver that is a program. A caller who goes away cuts nothing off.
func (d *Daemon) RestartExtension(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTimeout)
	defer cancel()
	d.mu.Lock()
	var handles []*supervisor.Handle
	for _, r := range d.running {
		if r.spec.Name == name {
			handles = append(handles, r.handle)
		}
	}
	if o := d.open[name]; len(handles) == 0 && o != nil && o.program != nil {
		handles = append(handles, o.program)
	}
	d.mu.Unlock()
	if len(handles) == 0 {
		return fault.New(fault.NotFound, "there is no extension %q, nor a driver of that name which is a program", name)
	}
	errs := make([]error, len(handles))
	var all sync.WaitGroup
	for i, h := range handles {
		all.Go(func() { errs[i] = h.Restart(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// ExtensionLogs implements api.Host.
func (d *Daemon) ExtensionLogs(ctx context.Context, name string, follow bool, each func([]*gatewayv1.ExtensionLogLine) error) error {
	return d.supervisor.Logs(ctx, name, follow, func(lines []supervisor.Line) error {
		out := make([]*gatewayv1.ExtensionLogLine, 0, len(lines))
		for _, l := range lines {
			out = append(out, &gatewayv1.ExtensionLogLine{Time: timestamppb.New(l.Time), Level: strings.ToLower(l.Level.String()), Message: l.Message,
				Attributes: l.Attributes, Stream: l.Stream, Pid: int32(l.PID)})
		}
		return each(out)
	})
}

// Drivers implements api.Host.
func (d *Daemon) Drivers() []*gatewayv1.Driver {
	gen := d.catalog.current()
	var out []*gatewayv1.Driver
	for _, c := range gen.config.Drivers {
		drv := gen.Drivers[c.Name]
		m := &gatewayv1.Driver{Name: c.Name, Type: drv.Description.Type, Base: c.Base, Version: drv.Description.Version,
			Instance: drv.Description.Instance, Missing: drv.Description.Missing}
		for _, f := range drv.Description.Features {
			m.Features = append(m.Features, &gatewayv1.DriverFeature{Name: f.Name, Attributes: f.Attributes, Point: string(f.Point)})
		}
		for _, p := range drv.Description.Points {
			m.Points = append(m.Points, &gatewayv1.DriverPoint{Pattern: string(p.Pattern), Phases: words(p.Phases), Overridable: p.Overridable, Feature: p.Feature, Doc: p.Doc})
		}
		for _, b := range drv.Chain.Binds() {
			m.Chain = append(m.Chain, describeBind(b))
		}
		out = append(out, m)
	}
	return out
}

func describeBind(b *pipeline.Bind) *gatewayv1.DriverBind {
	m := &gatewayv1.DriverBind{Extension: b.Extension, Mode: string(b.Mode), OnRequest: b.OnRequest, FailurePolicy: string(b.Default.FailurePolicy),
		Phases: words(b.Phases), Mutate: words(b.Grant.Mutate), Read: words(b.Grant.Read), Override: words(b.Grant.Override), Source: b.Source, Reconcile: "advisory"}
	if b.Authoritative {
		m.Reconcile = "authoritative"
	}
	return m
}

func words[T ~string](list []T) []string {
	var out []string
	for _, w := range list {
		out = append(out, string(w))
	}
	return out
}

// Logs implements api.Host.
func (d *Daemon) Logs(ctx context.Context, sb engine.Sandbox, follow bool, out io.Writer) error {
	drv := d.catalog.current().Drivers[sb.Driver]
	if drv == nil {
		return fault.New(fault.FailedPrecondition, "driver %q is not configured", sb.Driver)
	}
	l, ok := driver.As[driver.Logger](drv.Driver)
	if !ok {
		return fault.New(fault.Unimplemented, "driver %q keeps no logs", sb.Driver)
	}
	return l.Logs(ctx, sb.Identity, follow, out)
}

// Check validates a configuration as far as New would, on a directory of its own, so that it may be called beside a
// gateway that runs. What it launches it ends again.
func Check(ctx context.Context, opts Options) (_ *config.Findings, err error) {
	if opts.DataDir, err = os.MkdirTemp("", "sandgate-check-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(opts.DataDir)) }()
	opts.schemas = schemas{ownSchemas()}
	d, f, err := New(ctx, opts)
	if d == nil || err != nil {
		return f, err
	}
	return f, d.close()
}

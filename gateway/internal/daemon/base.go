package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/hcl/v2"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/wire"
)

// base is a driver that others may be composed over, about to be opened: built in, behind a socket, or a program.
type base struct {
	kind    string // what it is; it does not change while the driver is open
	schema  extension.ConfigSchema
	program *supervisor.Handle // nil: it is none
	spec    supervisor.Spec    // of the program
	open    func(drivers.Config) (driver.Driver, error)
	drop    func() error // gives it up before it was opened
}

// openBase takes a base driver for a generation, and opens it where it is not open yet. What is wrong goes to the findings,
// and then there is none.
func (d *Daemon) openBase(ctx context.Context, gen *generation, c config.Driver, f *config.Findings) driver.Driver {
	d.closing.RLock()
	defer d.closing.RUnlock()
	turn := d.turn(c.Name)
	turn.Lock()
	defer turn.Unlock()
	d.mu.Lock()
	o := gen.bases[c.Name]
	d.mu.Unlock()
	if o != nil {
		return o.driver
	}
	if gen.stored { // its settings may have been others; what began under it goes on with the driver as it is now
		o = d.openAs(c.Name)
	}
	if o == nil {
		var err error
		if o, err = d.findBase(ctx, gen.config, c, f); err != nil {
			f.Add(c.Range, "Driver cannot be opened", err.Error())
		}
		if o == nil {
			return nil
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o.users++
	d.open[c.Name], gen.bases[c.Name] = o, o
	return o.driver
}

// turn is what whoever opens the driver of that name holds: a stored generation may be revived meanwhile.
func (d *Daemon) turn(name string) *sync.Mutex {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turns[name] == nil {
		d.turns[name] = &sync.Mutex{}
	}
	return d.turns[name]
}

// openAs returns the driver that is open under a name, or nil.
func (d *Daemon) openAs(name string) *openDriver {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[name]
}

// findBase returns the driver of a block: the one that is open, where its settings are these, or one that it opens.
func (d *Daemon) findBase(ctx context.Context, cfg *config.Config, c config.Driver, f *config.Findings) (*openDriver, error) {
	b, err := d.base(ctx, c)
	if err != nil {
		f.Add(c.Range, "Driver cannot be launched", err.Error())
		return nil, nil
	}
	setting, diags := config.DecodeBody(c.Config, b.schema, cfg.Context(), c.Range, fmt.Sprintf("driver %q", c.Name))
	f.AddDiagnostics(diags)
	if diags.HasErrors() {
		return nil, b.drop()
	}
	if o := d.openAs(c.Name); o != nil {
		if o.setting != string(setting) || o.kind != b.kind {
			f.Add(c.Range, "Driver cannot be changed while the gateway runs", fmt.Sprintf("The settings of driver %q differ from those that it was opened with: restart the gateway.", c.Name))
			return nil, b.drop()
		}
		return o, b.drop()
	}
	data, err := filepath.Abs(cfg.Gateway.DataDir)
	if err != nil {
		return nil, errors.Join(err, b.drop())
	}
	drv, err := b.open(drivers.Config{Name: c.Name, Dir: filepath.Join(data, "drivers", c.Name), Hide: []string{data}, Shim: d.opts.Shim,
		Logger: d.log.With("driver", c.Name), Version: d.opts.Version, Setting: setting})
	if err != nil {
		err = errors.Join(err, b.drop())
	}
	if fault.Is(err, fault.Invalid) {
		f.Add(d.at(c.Config, b.schema, err, c.Range), "Invalid driver configuration", err.Error())
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if put := d.opts.between.driver; put != nil {
		drv = put(drv)
	}
	return &openDriver{driver: drv, setting: string(setting), kind: b.kind, schema: b.schema, program: b.program, spec: b.spec}, nil
}

func nothing() error { return nil }

// base says what kind of driver a block names. A program is launched, since it has its own schema.
func (d *Daemon) base(ctx context.Context, c config.Driver) (*base, error) {
	switch {
	case c.Socket != "":
		t := drivers.Remote(strings.TrimPrefix(c.Socket, "unix://"))
		return &base{kind: c.Socket, schema: t.Schema, open: t.Open, drop: nothing}, nil
	case c.Command != "":
		return d.driverProgram(ctx, c)
	}
	t := drivers.Types()[c.Type]
	return &base{kind: c.Type, schema: t.Schema, open: t.Open, drop: nothing}, nil
}

// driverProgram launches a driver's program, as an extension is launched: pinned, with mutual TLS, restarted when it dies. One
// that runs already speaks for itself.
func (d *Daemon) driverProgram(ctx context.Context, c config.Driver) (*base, error) {
	spec := driverSpec(c, d.opts.Dev)
	kind := hash(fmt.Sprintf("%+v", spec)) // it has the environment's secrets
	if o := d.openAs(c.Name); o != nil && o.kind == kind {
		return &base{kind: kind, schema: o.schema, drop: nothing}, nil
	}
	h, err := d.supervisor.Launch(ctx, spec)
	if err != nil {
		return nil, err
	}
	b := &base{kind: kind, program: h, spec: spec, drop: h.Close}
	m := h.Manifest()
	if len(m.ConfigSchema) > 0 {
		if err := json.Unmarshal(m.ConfigSchema, &b.schema); err != nil {
			return nil, errors.Join(fmt.Errorf("%s %s describes its configuration in a way that cannot be read: %w", m.Name, m.Version, err), h.Close())
		}
	}
	b.open = func(x drivers.Config) (driver.Driver, error) {
		if err := giveDirectory(spec, x.Dir); err != nil {
			return nil, err
		}
		told, err := json.Marshal(wire.DriverConfig{Name: x.Name, Dir: x.Dir, Config: x.Setting})
		if err != nil {
			return nil, err
		}
		if err := h.Configure(ctx, told, nil); err != nil {
			return nil, err
		}
		return wire.NewDriver(ctx, h.Reach, h.Close)
	}
	return b, nil
}

func driverSpec(c config.Driver, dev bool) supervisor.Spec {
	return withProcess(c.Process, supervisor.Spec{Name: c.Name, Command: c.Command, Checksum: c.Checksum, Unpinned: dev, Privileged: true})
}

// giveDirectory makes the directory of a driver's program. Where that runs as another user it is that user's, who comes
// through the gateway's own on the way: what lies there is closed to others each for itself.
func giveDirectory(spec supervisor.Spec, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if spec.User == "" && spec.Group == "" {
		return nil
	}
	for _, on := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		info, err := os.Stat(on)
		if err == nil {
			err = os.Chmod(on, info.Mode().Perm()|0o011)
		}
		if err != nil {
			return err
		}
	}
	return spec.Give(dir)
}

// at finds the place of a configuration that an error is about.
func (d *Daemon) at(body hcl.Body, schema extension.ConfigSchema, err error, block hcl.Range) hcl.Range {
	for _, x := range fault.DiagnosticsOf(err) {
		return config.RangeOf(body, schema, x.Path, block)
	}
	return block
}

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// stored is what is kept, sealed, of a generation.
type stored struct {
	Snapshot  json.RawMessage                 `json:"snapshot"`
	Copies    map[string]string               `json:"copies"`    // by extension
	Contracts map[string][]extension.Contract `json:"contracts"` // what was agreed with each
}

func (g *generation) contracts() map[string][]extension.Contract {
	out := map[string][]extension.Contract{}
	for name, r := range g.extensions {
		out[name] = r.contracts
	}
	return out
}

// revive makes a stored generation anew, each of its parts for itself: an extension is launched when it is first
// called, and where that does not work, or a driver cannot be opened, all others go on.
func (c *catalog) revive(ctx context.Context, id string) (_ *generation, err error) {
	r, err := c.d.journal.Get(ctx, kindGeneration, id)
	if err != nil {
		return nil, fmt.Errorf("configuration %q is not stored: %w", id, err)
	}
	var s stored
	if err := json.Unmarshal(r.Sealed, &s); err != nil {
		return nil, fmt.Errorf("read configuration %q: %w", id, err)
	}
	cfg, err := config.FromSnapshot(s.Snapshot, drivers.Names())
	if err != nil {
		return nil, err
	}
	g := newGeneration(cfg)
	g.ID, g.stored, g.copies = id, true, s.Copies
	ways := map[string]*onDemand{}
	for _, x := range cfg.Extensions {
		ways[x.Name] = &onDemand{d: c.d, gen: g, block: x, contracts: s.Contracts[x.Name], launching: make(chan struct{}, 1)}
	}
	for _, one := range cfg.Drivers {
		drv := c.d.storedDriver(ctx, g, one)
		var chain []*pipeline.Bind
		for _, b := range cfg.Chain(one.Name) {
			bind := bindOf(cfg, one.Name, b)
			bind.Phases = ways[b.Extension].phases(bind.ID)
			bind.Program = c.d.program(one.Name, b.Extension, ways[b.Extension])
			chain = append(chain, bind)
		}
		drv.Chain = pipeline.New(chain, drv.Schema, c.d)
		g.Drivers[one.Name] = drv
	}
	return g, nil
}

// storedDriver is a driver of a stored generation. One that cannot be opened has its chain still: no compute is left of
// it, else no configuration without it would be in force, and a release needs no driver.
func (d *Daemon) storedDriver(ctx context.Context, gen *generation, c config.Driver) *engine.Driver {
	f := config.NewFindings()
	root := d.openBase(ctx, gen, gen.config.Root(c.Name), f)
	err := error(fault.New(fault.FailedPrecondition, "%s", f))
	if root != nil {
		var drv *engine.Driver
		if drv, err = d.driver(ctx, gen.config, c, root); err == nil {
			return drv
		}
	}
	d.log.Warn("a driver of an earlier configuration cannot be opened; what its extensions owe is released without it", "driver", c.Name, "generation", gen.ID, "err", err)
	return &engine.Driver{Name: c.Name, Missing: fmt.Errorf("driver %q of configuration %s: %w", c.Name, gen.ID, err)}
}

// onDemand is an extension of a stored generation. It is launched when it is called, from the gateway's own copy of its
// program, with the configuration and the contracts that it had.
type onDemand struct {
	d         *Daemon
	gen       *generation
	block     config.Extension
	contracts []extension.Contract
	launching chan struct{} // holds an element while somebody looks for it or launches it
	running   *running      // nil: not launched yet
}

var _ pipeline.Extension = (*onDemand)(nil)

// phases returns what it declared for a bind. A record without contracts, of an earlier version of this program, does
// not say; then nothing goes on without asking it.
func (o *onDemand) phases(bind string) phase.Set {
	for _, c := range o.contracts {
		if c.Bind == bind {
			return phase.Set(c.Phases)
		}
	}
	return phase.Set(phase.All())
}

// Call implements pipeline.Extension.
func (o *onDemand) Call(ctx context.Context, call *extension.Call) (*extension.Answer, error) {
	h, err := o.handle(ctx)
	if err != nil {
		return nil, err
	}
	return h.Call(ctx, call)
}

// Reconcile implements pipeline.Extension.
func (o *onDemand) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error) {
	h, err := o.handle(ctx)
	if err != nil {
		return nil, err
	}
	return h.Reconcile(ctx, bind, operation, known)
}

// handle returns what runs, launching it where nothing does. A launch that fails is tried again by the next call.
func (o *onDemand) handle(ctx context.Context) (*supervisor.Handle, error) {
	select {
	case o.launching <- struct{}{}:
		defer func() { <-o.launching }()
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "extension %q is being launched as it was in configuration %s, for longer than the call could wait: %w", o.block.Name, o.gen.ID, ctx.Err())
	}
	if o.running != nil {
		return o.running.handle, nil
	}
	r, err := o.launch(ctx)
	if err == nil {
		err = o.d.add(o.gen, o.block.Name, r)
	}
	if err != nil {
		return nil, fmt.Errorf("extension %q cannot be launched as it was in configuration %s: %w", o.block.Name, o.gen.ID, err)
	}
	o.running = r
	return r.handle, nil
}

func (o *onDemand) launch(ctx context.Context) (_ *running, err error) {
	spec := o.d.specOf(o.block)
	if spec.Attach == "" {
		if spec, err = o.d.spared(spec, o.gen.copies[o.block.Name]); err != nil {
			return nil, err
		}
	}
	c, err := o.d.candidate(ctx, o.block, spec)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, discard([]*candidate{c})) }()
	c.contracts = o.contracts
	f := config.NewFindings()
	if o.d.decode(o.gen, []*candidate{c}, f); f.HasErrors() {
		return nil, fault.New(fault.FailedPrecondition, "%s", f)
	}
	return o.d.take(ctx, c)
}

// spared says how a program that was kept can still be run: the gateway's own copy, or the program itself where it is
// what it was.
func (d *Daemon) spared(spec supervisor.Spec, ref string) (supervisor.Spec, error) {
	var lost error
	if ref != "" {
		kept := spec
		kept.Copy = ref
		if lost = d.supervisor.Verify(kept); lost == nil {
			return kept, nil
		}
	}
	now, err := supervisor.Reference(spec)
	switch {
	case err == nil && (now == ref || ref == "" && spec.Checksum != ""):
		return spec, nil
	case err == nil && ref != "":
		err = fault.New(fault.FailedPrecondition, "%s is another program now: %s", spec.Command, now)
	case err == nil:
		err = fault.New(fault.FailedPrecondition, "%s may be another program now: no checksum was configured", spec.Command)
	}
	if lost == nil {
		return spec, fault.New(fault.Unavailable, "no copy of its program was kept, and %w", err)
	}
	if lost.Error() == err.Error() { // what both need, as an interpreter
		return spec, lost
	}
	return spec, fault.New(fault.Unavailable, "%w; and %w. Put that program back where it was: it is tried again", lost, err)
}

// add gives a generation what was launched for it. One that was replaced meanwhile by the same configuration shares what
// that has; where nobody has it, it is ended.
func (d *Daemon) add(gen *generation, name string, r *running) error {
	d.mu.Lock()
	if !gen.retired {
		gen.extensions[name] = r
		d.mu.Unlock()
		return nil
	}
	last := d.dismiss(r)
	d.mu.Unlock()
	if !last {
		return nil
	}
	return errors.Join(fault.New(fault.Unavailable, "the configuration is being ended"), r.handle.Close())
}

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// running is an extension that runs: one program, one configuration, one set of contracts. Generations in which all
// of that is the same share it; where anything differs the next one gets a process of its own, so that what began
// under a generation ends with the process, the configuration and the contracts that it began with.
type running struct {
	handle    *supervisor.Handle
	spec      supervisor.Spec
	copy      string // the reference of the gateway's own copy; "" where none could be kept, and then it is not shared
	config    json.RawMessage
	contracts []extension.Contract
	users     int // generations; guarded by Daemon.mu
}

// same reports whether it runs that program in that way. One that has failed for good is shared with nobody: the next
// configuration begins anew.
func (r *running) same(spec supervisor.Spec, copy string) bool {
	// Where the program lies does not matter: its digest says what it is.
	bare := func(s supervisor.Spec) supervisor.Spec {
		s.Command, s.Checksum, s.Unpinned, s.Files, s.Copy, s.Kept = "", "", false, nil, "", ""
		return s
	}
	return r.copy != "" && r.copy == copy && !r.handle.Over() && reflect.DeepEqual(bare(r.spec), bare(spec))
}

// candidate is an extension of a configuration that is being built: running already for another generation, or new.
type candidate struct {
	block  config.Extension
	spec   supervisor.Spec
	copy   string
	handle *supervisor.Handle // speaks for it while contracts are negotiated
	fresh  bool               // it was launched for this configuration, and serves nobody yet
	schema extension.ConfigSchema

	config    json.RawMessage
	contracts []extension.Contract
}

// launch finds or launches every extension of the generation, side by side. The candidates are in the order of the
// configuration; those with findings are left out.
func (d *Daemon) launch(ctx context.Context, gen *generation, f *config.Findings) []*candidate {
	list := gen.config.Extensions
	found, errs := make([]*candidate, len(list)), make([]error, len(list))
	var group errgroup.Group
	for i, x := range list {
		group.Go(func() error {
			found[i], errs[i] = d.candidate(ctx, x, d.specOf(x))
			return nil
		})
	}
	_ = group.Wait() // its functions say what is wrong through errs
	var out []*candidate
	for i, x := range list {
		if errs[i] != nil {
			f.Add(x.Range, "Extension cannot be launched", errs[i].Error())
			continue
		}
		out = append(out, found[i])
		if m := found[i].handle.Manifest(); m.Name != x.Name {
			f.Add(x.Range, "Another extension", fmt.Sprintf("%s says that it is the extension %q, version %s. The label of the block has to be that name.", x.Command, m.Name, m.Version))
		}
	}
	return out
}

func (d *Daemon) candidate(ctx context.Context, x config.Extension, spec supervisor.Spec) (*candidate, error) {
	c := &candidate{block: x, spec: spec}
	ref, err := d.supervisor.Keep(c.spec) // of one that is attached there is none
	if err != nil {
		d.log.Warn("no copy of the program could be kept for later releases", "extension", x.Name, "err", err)
	}
	c.copy, c.spec.Kept = ref, ref
	if r := d.find(func(r *running) bool { return r.same(c.spec, ref) }); r != nil {
		c.handle = r.handle
		return c, nil
	}
	c.fresh = true
	c.handle, err = d.supervisor.Launch(ctx, c.spec)
	return c, err
}

// find returns what runs already and fits.
func (d *Daemon) find(fits func(*running) bool) *running {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.IndexFunc(d.running, fits); i >= 0 {
		return d.running[i]
	}
	return nil
}

// specOf is what a block says about its program and process, and what the command line adds.
func (d *Daemon) specOf(x config.Extension) supervisor.Spec {
	spec := specOf(x, d.opts.Dev)
	spec.Attach = d.opts.Attach[x.Name]
	return spec
}

func specOf(x config.Extension, dev bool) supervisor.Spec {
	return withProcess(x.Process, supervisor.Spec{Name: x.Name, Command: x.Command, Args: x.Args, Checksum: x.Checksum, Unpinned: dev, Interpreter: x.Interpreter,
		Files: x.Files, Capabilities: x.Capabilities, Sandbox: x.Sandbox, Read: x.Read, Write: x.Write,
		Restart: supervisor.Restart{Budget: x.Restart.Budget, Window: x.Restart.Window}})
}

// withProcess adds what the blocks of extensions and drivers say alike.
func withProcess(p config.Process, s supervisor.Spec) supervisor.Spec {
	s.Env, s.User, s.Group = p.Env, p.User, p.Group
	s.Limits = supervisor.Limits{Memory: p.Limits.Memory, CPU: p.Limits.CPU, PIDs: p.Limits.PIDs, Files: uint64(p.Limits.Files)}
	return s
}

// decode reads the configuration of every candidate with its own schema.
func (d *Daemon) decode(gen *generation, list []*candidate, f *config.Findings) {
	for _, c := range list {
		m := c.handle.Manifest()
		if len(m.ConfigSchema) > 0 {
			if err := json.Unmarshal(m.ConfigSchema, &c.schema); err != nil {
				f.Add(c.block.Range, "Unusable schema", fmt.Sprintf("Extension %q %s describes its configuration in a way that cannot be read: %v.", m.Name, m.Version, err))
				continue
			}
		}
		said := described{Name: m.Name, Version: m.Version, Schema: c.schema}
		if err := d.schemas.keep(c.copy, said); err != nil {
			d.log.Warn("what the extension says of its configuration was not kept for validating offline", "extension", m.Name, "err", err)
		}
		c.config = decodeExtension(gen.config, c.block, said, f)
	}
}

// configure hands every extension its configuration and its contracts, and gives the generation what runs with just
// those: what was there already, or a process of its own.
func (d *Daemon) configure(ctx context.Context, gen *generation, list []*candidate, f *config.Findings) {
	errs := make([]error, len(list))
	taken := make([]*running, len(list))
	var group errgroup.Group
	for i, c := range list {
		group.Go(func() error {
			taken[i], errs[i] = d.take(ctx, c)
			return nil
		})
	}
	_ = group.Wait() // its functions say what is wrong through errs
	for i, c := range list {
		if errs[i] == nil {
			gen.extensions[c.block.Name], gen.copies[c.block.Name] = taken[i], taken[i].copy
			continue
		}
		if said := fault.DiagnosticsOf(errs[i]); fault.Is(errs[i], fault.Invalid) && len(said) > 0 {
			for _, w := range said {
				f.Add(config.RangeOf(c.block.Config, c.schema, w.Path, c.block.Range), "Invalid configuration", d.discreet(c, hinted(c.spec, strings.TrimSpace(w.Path+" "+w.Summary+"\n"+w.Detail))))
			}
			continue
		}
		f.Add(c.block.Range, "Extension cannot be configured", d.discreet(c, hinted(c.spec, errs[i].Error())))
	}
}

// hinted says what a program that is denied a file may be missing.
func hinted(spec supervisor.Spec, text string) string {
	if spec.Confined() && strings.Contains(text, "ermission denied") {
		text += "\nIts sandbox lets it reach the files that the block's paths { read, write } name, and few others."
	}
	return text
}

// discreet puts digests in the place of sensitive values that an extension quotes from its configuration.
func (d *Daemon) discreet(c *candidate, text string) string {
	for _, secret := range config.Secrets(c.config, c.schema) {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, d.redact(secret))
		}
	}
	return text
}

// take returns what runs for the candidate, counted in. A candidate that fails leaves nothing behind.
func (d *Daemon) take(ctx context.Context, c *candidate) (_ *running, err error) {
	if !c.fresh {
		if r := d.share(c); r != nil {
			return r, nil
		}
		if c.handle, err = d.supervisor.Launch(ctx, c.spec); err != nil {
			return nil, err
		}
		c.fresh = true
	}
	if err := c.handle.Configure(ctx, c.config, c.contracts); err != nil {
		return nil, err
	}
	r := &running{handle: c.handle, spec: c.spec, copy: c.copy, config: c.config, contracts: c.contracts, users: 1}
	c.fresh = false // from here on it is the generation's
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = append(d.running, r)
	return r, nil
}

// share counts a further generation in on what runs with the same program, configuration and contracts.
func (d *Daemon) share(c *candidate) *running {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.running {
		if r.same(c.spec, c.copy) && string(r.config) == string(c.config) && text(r.contracts) == text(c.contracts) {
			r.users++
			return r
		}
	}
	return nil
}

// text is a form in which contracts can be compared, whether they were stored meanwhile or not.
func text(contracts []extension.Contract) string {
	raw, err := json.Marshal(contracts)
	if err != nil {
		return fmt.Sprint(contracts)
	}
	return string(raw)
}

// discard ends what was launched for a configuration that is not used after all.
func discard(list []*candidate) error {
	var errs []error
	for _, c := range list {
		if c.fresh {
			errs = append(errs, c.handle.Close())
		}
	}
	return errors.Join(errs...)
}

// dismiss counts a generation out of what runs, and reports whether it was the last: then it is the caller's to end.
// d.mu is held.
func (d *Daemon) dismiss(r *running) bool {
	r.users--
	if r.users > 0 {
		return false
	}
	d.running = slices.DeleteFunc(d.running, func(o *running) bool { return o == r })
	return true
}

// retire ends those extensions of a generation that no other one shares, and closes such drivers.
func (d *Daemon) retire(gen *generation) error {
	d.closing.Lock() // what is being closed is not opened meanwhile
	defer d.closing.Unlock()
	d.mu.Lock()
	if gen.retired {
		d.mu.Unlock()
		return nil
	}
	gen.retired = true
	var last []*running
	var unused []driver.Driver
	for _, r := range gen.extensions {
		if d.dismiss(r) {
			last = append(last, r)
		}
	}
	for name, o := range gen.bases {
		if o.users--; o.users == 0 {
			unused = append(unused, o.driver)
			delete(d.open, name)
		}
	}
	d.mu.Unlock()
	var errs []error
	for _, r := range last {
		errs = append(errs, r.handle.Close())
	}
	for _, drv := range unused {
		errs = append(errs, drv.Close())
	}
	return errors.Join(errs...)
}

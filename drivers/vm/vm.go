// Package vm runs sandboxes as virtual machines: each is a QEMU with a kernel, a small first process of ours, a root file
// system that many share, and a disk of its own for what it changes.
//
// A sandbox is a directory, and while it runs a QEMU that works there. QEMU needs nobody: it outlives the gateway, holds a
// lock on the directory for as long as it lives, and what its guest reports is in files. Whoever opens the driver again
// finds all of that. DESIGN.md has the layout, the marks, the order of effects, and what a guest and the driver say to
// each other.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Kernel is what a machine boots: an image, and the directory of its modules, if it needs any.
type Kernel struct{ Image, Modules string }

// Config is what the driver needs.
type Config struct {
	Dir    string   // its data directory
	Images string   // where what machines boot from is kept, if several drivers share it; "": in Dir
	Hide   []string // directories of the host from which nothing is booted, besides Dir
	Logger *slog.Logger

	QEMU         string            // the program; it is looked up
	Init         string            // the program that is a machine's first process
	Kernel       Kernel            // of a machine whose plan names none
	Kernels      map[string]Kernel // by the name that a plan may give as its kernel_profile
	Roots        map[string]string // root file systems by image: directories, tar files, OCI image layouts
	DefaultImage string

	VCPUs, MemMiB int64 // of a machine where nobody says
	DiskBytes     int64 // how much a machine may change of its image
	MaxMachines   int   // that run at once; 0: as many as there are

	Accel    string // AccelAuto, AccelKVM or AccelTCG
	Network  string // NetworkNone, NetworkUser or NetworkTAP
	Outbound bool   // with NetworkUser: a machine reaches what the host reaches, and the host's own loopback
	PCI      bool   // devices of the host may be passed on
	Sysfs    string // where the host's devices show; "" for /sys

	StopTimeout time.Duration          // how long a command has to end after SIGTERM; zero: 10 s
	BootID      func() (string, error) // names this run of the host; nil: the kernel's
}

// Driver implements driver.Driver.
type Driver struct {
	cfg      Config
	about    *driver.Description
	missing  map[string]string // feature to why the host does not give it
	hide     []string
	instance string
	store    *image.Store
	ones     driver.Keyed // one mutating call for a sandbox at a time

	mu       sync.Mutex
	starting map[string]*meta // sandboxes that are being started

	trial     sync.Mutex // held while KVM is tried
	trialTime time.Duration
	decided   string // accelerator, once one was tried
}

var _ interface {
	driver.Driver
	driver.Logger
} = (*Driver)(nil)

// Open opens the driver on its directory.
func Open(cfg Config) (*Driver, error) {
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.BootID == nil {
		cfg.BootID = host.BootID
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Sysfs == "" {
		cfg.Sysfs = "/sys"
	}
	qemu, err := exec.LookPath(cfg.QEMU)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "open the vm driver: QEMU is not there: %w; install qemu-system-x86, or set qemu", err)
	}
	cfg.QEMU = qemu
	for what, path := range map[string]string{"the kernel": cfg.Kernel.Image, "a machine's first process": cfg.Init} {
		if _, err := os.Stat(path); err != nil {
			return nil, fault.New(fault.FailedPrecondition, "open the vm driver: %s is not there: %w", what, err)
		}
	}
	d := &Driver{cfg: cfg, missing: map[string]string{}, starting: map[string]*meta{}, trialTime: trialTime}
	// Closed to everybody else: a machine's disk and what it writes are its own.
	if err := errors.Join(os.MkdirAll(d.sandboxes(), 0o700), os.Chmod(d.sandboxes(), 0o700)); err != nil {
		return nil, fmt.Errorf("open the vm driver: %w", err)
	}
	if d.instance, err = host.Instance(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open the vm driver: %w", err)
	}
	if err := d.sweep(); err != nil {
		return nil, err
	}
	if err := d.openStore(); err != nil {
		return nil, err
	}
	for _, dir := range append([]string{cfg.Dir}, cfg.Hide...) {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			real = dir // it is not there yet
		}
		d.hide = append(d.hide, real)
	}
	d.probe()
	d.about = d.describe()
	return d, nil
}

// openStore opens what machines are made from, and lets go of root file systems that none lies over any more.
func (d *Driver) openStore() error {
	metas, err := d.metas()
	if err != nil {
		return err
	}
	if d.cfg.Images != "" {
		d.store, err = image.Open(d.cfg.Images)
		return err
	}
	if d.store, err = image.Open(filepath.Join(d.cfg.Dir, "images")); err != nil {
		return err
	}
	return d.store.Prune(func(path string) bool {
		return slices.ContainsFunc(metas, func(m *meta) bool { return m.Root != nil && m.Root.Path == path })
	})
}

// probe finds out what this host does not give.
func (d *Driver) probe() {
	if why := d.probePCI(); why != "" {
		d.missing[featurePCI] = why
	}
	why := "the driver's network is " + d.cfg.Network
	if d.cfg.Network == NetworkTAP {
		why = probeTAP()
	}
	if why != "" {
		d.missing[featureTAP] = why
	}
	if d.cfg.Network == NetworkNone || d.cfg.Network == NetworkTAP && why != "" {
		d.missing["network.address"], d.missing["network.subnet"] = why, why
	}
}

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// Close implements driver.Driver.
func (d *Driver) Close() error { return nil }

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	unlock, err := d.ones.Lock(ctx, r.Identity.ID)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := d.load(r.Identity.ID)
	switch {
	case fault.Is(err, fault.NotFound):
		return d.createNew(ctx, r)
	case err != nil:
		return err
	case m.Operation != r.Operation || m.Identity != r.Identity:
		return fault.New(fault.AlreadyExists, "there is a sandbox %q of another operation", r.Identity.ID)
	}
	if st, err := d.status(m); err != nil || underWay(st) || st.State == driver.Exited {
		return err
	}
	return d.begin(ctx, m, (*driver.StartRequest)(r))
}

func underWay(st *driver.Status) bool { return st.State == driver.Running || st.State == driver.Ready }

// createNew makes the directory, with the sandbox's disk, and starts the machine.
func (d *Driver) createNew(ctx context.Context, r *driver.CreateRequest) error {
	w, err := d.judge(r.Identity, r.Plan, r.Workspace, nil)
	if err != nil {
		return err
	}
	root, err := d.store.Root(ctx, w.root)
	if err != nil {
		return err
	}
	m := &meta{Identity: r.Identity, Operation: r.Operation, Run: r.Run, Root: root, Since: time.Now()}
	if err := d.make(ctx, m); err != nil {
		return err
	}
	return d.begin(ctx, m, (*driver.StartRequest)(r))
}

// make makes the directory: under another name at first, so that there is none without its marks.
func (d *Driver) make(ctx context.Context, m *meta) error {
	to := d.dir(m.Identity.ID)
	if _, err := os.Lstat(to); err == nil {
		return fault.New(fault.AlreadyExists, "%s is in the way: it bears no marks of a sandbox; move it away", to)
	}
	tmp := d.dir(makingPrefix + m.Identity.ID)
	err := errors.Join(host.RemoveTree(tmp), os.Mkdir(tmp, 0o700))
	if err == nil {
		err = host.WriteJSON(filepath.Join(tmp, metaFile), m)
	}
	if err == nil {
		err = image.Disk(ctx, filepath.Join(tmp, diskFile), d.cfg.DiskBytes)
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	if err == nil {
		err = host.SyncDir(d.sandboxes())
	}
	if err != nil {
		return errors.Join(host.Classify(err, "make the sandbox's directory"), host.RemoveTree(tmp))
	}
	return nil
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	unlock, err := d.ones.Lock(ctx, r.Identity.ID)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := d.load(r.Identity.ID)
	if err != nil {
		return err
	}
	if m.Operation != r.Operation {
		return fault.New(fault.AlreadyExists, "there is a sandbox %q of another operation", r.Identity.ID)
	}
	st, err := d.status(m)
	if err != nil {
		return err
	}
	switch {
	case m.Run == r.Run && (underWay(st) || st.State == driver.Exited):
		return nil
	case underWay(st):
		return fault.New(fault.FailedPrecondition, "sandbox %q still runs, as run %d", r.Identity.ID, m.Run)
	}
	return d.begin(ctx, m, r)
}

// begin begins a run in a directory that is there.
func (d *Driver) begin(ctx context.Context, m *meta, r *driver.StartRequest) error {
	w, err := d.judge(r.Identity, r.Plan, r.Workspace, nil)
	if err != nil {
		return err
	}
	// What an earlier attempt has started is ended first, since nobody knows any more what it was told.
	if err := d.end(ctx, m, 0); err != nil {
		return err
	}
	last := m.Run
	m.Run, m.Stopped, m.Since, m.Address, m.Devices, m.TAP = r.Run, 0, time.Now(), "", w.devices, w.TAP
	if m.BootID, err = d.cfg.BootID(); err != nil {
		return err
	}
	if w.address.IsValid() {
		m.Address = w.address.String()
		if d.cfg.Network == NetworkTAP && w.TAP == "" {
			m.TAP = d.tapName(m.Identity.ID)
		}
	}
	done, err := d.reserve(m)
	if err != nil {
		return err
	}
	defer done()
	if err := d.save(m); err != nil {
		return err
	}
	for _, name := range []string{eventsFile(last), eventsFile(m.Run), machineFile} {
		if err := os.Remove(d.file(m.Identity.ID, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return host.Classify(err, "begin the run")
		}
	}
	// What the console of the run before shows would be taken for how this one ends.
	console := d.file(m.Identity.ID, consoleFile)
	if err := os.Rename(console, console+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return host.Classify(err, "begin the run")
	}
	return d.launch(ctx, m, w, r)
}

// reserve sees to it that what a run wants is nobody else's, until done is called; from then on the run itself has it.
func (d *Driver) reserve(m *meta) (done func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	metas, err := d.metas()
	if err != nil {
		return nil, err
	}
	running := 0
	for _, other := range metas {
		if other.Identity.ID == m.Identity.ID {
			continue
		}
		if now := d.starting[other.Identity.ID]; now != nil {
			other = now
		} else if alive, err := d.alive(other); err != nil {
			return nil, err
		} else if !alive {
			continue
		}
		running++
		if m.Address != "" && other.Address == m.Address && other.Identity.WorkspaceID == m.Identity.WorkspaceID {
			return nil, fault.New(fault.Conflict, "the address %s is another sandbox's of workspace %q", m.Address, m.Identity.Workspace)
		}
		for _, bdf := range m.Devices {
			if slices.Contains(other.Devices, bdf) {
				return nil, fault.New(fault.ResourceExhausted, "the device %s is another sandbox's", bdf)
			}
		}
	}
	if d.cfg.MaxMachines > 0 && running >= d.cfg.MaxMachines {
		return nil, fault.New(fault.ResourceExhausted, "%d machines run, and this driver runs no more at once", running)
	}
	d.starting[m.Identity.ID] = m
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.starting, m.Identity.ID)
	}, nil
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	if sandbox.CheckID("id", id.ID) != nil {
		return nil
	}
	unlock, err := d.ones.Lock(ctx, id.ID)
	if err != nil {
		return err
	}
	defer unlock()
	m, st, err := d.look(id.ID)
	switch {
	case fault.Is(err, fault.NotFound):
		return d.endStrays(ctx, id.ID, "")
	case err != nil:
		return err
	}
	if m.Stopped != m.Run && st.State != driver.Exited {
		m.Stopped = m.Run
		if err := d.save(m); err != nil {
			return err
		}
	}
	return d.finish(ctx, m, st)
}

// finish ends a run: in order, where its guest can.
func (d *Driver) finish(ctx context.Context, m *meta, st *driver.Status) error {
	grace := time.Duration(0)
	if st.State == driver.Ready {
		grace = d.cfg.StopTimeout
	}
	return d.end(ctx, m, grace)
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	if sandbox.CheckID("id", r.Identity.ID) != nil {
		return nil
	}
	unlock, err := d.ones.Lock(ctx, r.Identity.ID)
	if err != nil {
		return err
	}
	defer unlock()
	gone := d.dir(gonePrefix + r.Identity.ID)
	if err := errors.Join(host.RemoveTree(d.dir(makingPrefix+r.Identity.ID)), host.RemoveTree(gone)); err != nil {
		return host.Classify(err, "remove what was left of the sandbox's directory")
	}
	m, st, err := d.look(r.Identity.ID)
	switch {
	case m != nil && m.Operation != r.Operation:
		return nil // it is not what was asked for
	case fault.Is(err, fault.NotFound):
		return d.endStrays(ctx, r.Identity.ID, r.Operation)
	case err == nil:
		err = d.finish(ctx, m, st)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(d.dir(r.Identity.ID), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return host.Classify(err, "remove the sandbox's directory")
	}
	return host.Classify(errors.Join(host.SyncDir(d.sandboxes()), host.RemoveTree(gone)), "remove the sandbox's directory")
}

// Get implements driver.Driver.
func (d *Driver) Get(_ context.Context, id sandbox.Identity) (*driver.Status, error) {
	_, st, err := d.look(id.ID)
	return st, err
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]*driver.Status, error) {
	metas, err := d.metas()
	if err != nil {
		return nil, err
	}
	var out []*driver.Status
	for _, m := range metas {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		st, err := d.status(m)
		switch {
		case fault.Is(err, fault.NotFound): // it went meanwhile
		case err != nil:
			return nil, err
		default:
			out = append(out, st)
		}
	}
	return out, nil
}

// Logs implements driver.Logger.
func (d *Driver) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	if _, err := d.load(id.ID); err != nil {
		return err
	}
	return host.CopyLog(ctx, d.dir(id.ID), follow, func() bool {
		st, err := d.Get(ctx, id)
		return err == nil && (underWay(st) || st.State == driver.Provisioning)
	}, out)
}

// environment is what the command gets: the image's own, and over it the plan's.
func environment(root *image.Root, w *machine) map[string]string {
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, from := range []map[string]string{root.Environment, w.Environment} {
		for k, v := range from {
			env[k] = v
		}
	}
	if w.GatewayPort != 0 {
		env["SANDGATE_GATEWAY"] = fmt.Sprintf("%s:%d", w.HostIP, w.GatewayPort)
	}
	return env
}

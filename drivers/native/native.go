// Package native runs sandboxes as processes of this host, each in namespaces of its own, without a daemon.
//
// A sandbox is a directory. A small process, the shim, holds each running one: it outlives the gateway, keeps a lock
// on the directory for as long as it lives, and writes down how the command ended. Whoever opens the driver again
// finds all of that. A run that is told to have ended has left nothing: no process, no link, no control group.
// DESIGN.md has the layout, the marks, the order of effects and what a sandbox sees.
package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Config is what the driver needs.
type Config struct {
	Dir    string   // its data directory
	Shim   []string // the command that runs ShimMain, which gets further arguments
	Hide   []string // directories of the host that no sandbox sees, besides Dir
	Logger *slog.Logger
	// StopTimeout is how long a command has to end after SIGTERM; zero: 10 s.
	StopTimeout time.Duration
	// Roots are directories that a sandbox may run in, by image. Where there are none, an image is a word that means
	// nothing here, and every sandbox has a view of the host's root.
	Roots map[string]string
	// BootID names this run of the host; nil: the kernel's.
	BootID func() (string, error)
}

// Driver implements driver.Driver.
type Driver struct {
	cfg   Config
	about *driver.Description
	host  abilities
	ones  driver.Keyed // one mutating call for a sandbox at a time

	mu     sync.Mutex
	claims map[claim]string // addresses of sandboxes that are being started, by id of the sandbox
}

// claim is an address in a workspace.
type claim struct{ workspace, address string }

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
	if len(cfg.Shim) == 0 {
		return nil, fault.New(fault.Internal, "the native driver needs a shim")
	}
	d := &Driver{cfg: cfg, claims: map[claim]string{}}
	// Closed to everybody else: what a sandbox leaves in its work directory may be a program with the set-user-id bit.
	if err := errors.Join(os.MkdirAll(d.sandboxes(), 0o700), os.Chmod(d.sandboxes(), 0o700)); err != nil {
		return nil, fmt.Errorf("open the native driver: %w", err)
	}
	instance, err := host.Instance(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the native driver: %w", err)
	}
	if d.cfg.Hide, err = realPaths(append([]string{cfg.Dir}, cfg.Hide...)); err != nil {
		return nil, err
	}
	if err := d.sweep(); err != nil {
		return nil, err
	}
	if d.host, err = probe(cfg.Shim); err != nil {
		return nil, err
	}
	d.about = describe(instance, d.host)
	return d, nil
}

// realPaths resolves symbolic links: a directory is hidden where it is. One that is not there yet stays as it is.
func realPaths(dirs []string) ([]string, error) {
	out := make([]string, len(dirs))
	for i, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("hide %s: %w", dir, err)
		}
		out[i] = abs
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			out[i] = real
		}
	}
	return out, nil
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
	if st, err := d.status(m); err != nil || st.State == driver.Ready || st.State == driver.Exited {
		return err
	}
	return d.begin(ctx, m, (*driver.StartRequest)(r))
}

// createNew makes the directory and starts the sandbox, while the directory's entry becomes durable.
func (d *Driver) createNew(ctx context.Context, r *driver.CreateRequest) error {
	m := &meta{Identity: r.Identity, Operation: r.Operation, Run: r.Run, Since: time.Now()}
	unclaim, err := d.place(m, r.Plan, r.Workspace)
	if err != nil {
		return err
	}
	defer unclaim()
	if m.BootID, err = d.cfg.BootID(); err != nil {
		return err
	}
	if err := d.make(m); err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- errors.Join(host.SyncDir(d.dir(m.Identity.ID)), host.SyncDir(d.sandboxes())) }()
	err = d.launch(ctx, m, (*driver.StartRequest)(r))
	return errors.Join(err, host.Classify(<-synced, "make the sandbox's directory"))
}

// make makes the directory: under another name at first, so that there is none without its marks.
func (d *Driver) make(m *meta) error {
	to := d.dir(m.Identity.ID)
	if _, err := os.Lstat(to); err == nil {
		return fault.New(fault.AlreadyExists, "%s is in the way: it bears no marks of a sandbox; move it away", to)
	}
	tmp := d.dir(makingPrefix + m.Identity.ID)
	err := errors.Join(host.RemoveTree(tmp), os.Mkdir(tmp, 0o755), os.Mkdir(filepath.Join(tmp, workDir), 0o755), os.Mkdir(filepath.Join(tmp, rootDir), 0o755))
	if err == nil {
		err = host.WriteJSON(filepath.Join(tmp, metaFile), m)
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
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
	if m.Run == r.Run && (st.State == driver.Ready || st.State == driver.Exited) {
		return nil
	}
	if m.Run != r.Run && st.State == driver.Ready {
		return fault.New(fault.FailedPrecondition, "sandbox %q still runs, as run %d", r.Identity.ID, m.Run)
	}
	return d.begin(ctx, m, r)
}

// begin begins a run in a directory that is there.
func (d *Driver) begin(ctx context.Context, m *meta, r *driver.StartRequest) error {
	boot, err := d.cfg.BootID()
	if err != nil {
		return err
	}
	// What an earlier attempt has started is ended first, since nobody knows any more what it was told.
	if err := errors.Join(d.end(ctx, m, 0), d.release(m)); err != nil {
		return err
	}
	// An earlier attempt at the same run may have been ready, before the host was restarted; this one is not.
	if err := os.Remove(d.file(m.Identity.ID, readyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return host.Classify(err, "begin the run")
	}
	m.BootID, m.Run, m.Since = boot, r.Run, time.Now()
	unclaim, err := d.place(m, r.Plan, r.Workspace)
	if err != nil {
		return err
	}
	defer unclaim()
	if err := d.save(m); err != nil {
		return err
	}
	return d.launch(ctx, m, r)
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	unlock, err := d.ones.Lock(ctx, id.ID)
	if err != nil {
		return err
	}
	defer unlock()
	m, st, err := d.look(id.ID)
	switch {
	case m == nil && fault.Is(err, fault.NotFound):
		return nil
	case fault.Is(err, fault.NotFound):
		return d.endStrays(ctx, id.ID, m.Operation)
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

// finish ends the run of a sandbox and removes what it had outside of its directory.
func (d *Driver) finish(ctx context.Context, m *meta, st *driver.Status) error {
	grace := d.cfg.StopTimeout
	if st.State != driver.Ready {
		grace = 0 // there is no command yet that could end in order
	}
	if err := d.end(ctx, m, grace); err != nil {
		return err
	}
	return d.release(m)
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
	case fault.Is(err, fault.NotFound): // its directory does not say any more what it had
		if err := d.endStrays(ctx, r.Identity.ID, r.Operation); err != nil {
			return err
		}
		err = d.release(&meta{Identity: r.Identity, Operation: r.Operation, Bridge: bridgeName(r.Identity.WorkspaceID)})
	case err == nil:
		err = d.finish(ctx, m, st)
	}
	if err != nil || m == nil {
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

// place finds the network of the sandbox in the plans and claims its address until unclaim is called; from then on
// the run that was started has it.
func (d *Driver) place(m *meta, p, ws *plan.Plan) (unclaim func(), err error) {
	m.Address, m.Bridge = "", ""
	address, subnet := processOf(p).Network.Address, networkOf(ws).Subnet
	switch {
	case address == "":
		return func() {}, nil
	case !d.host.network:
		return nil, fault.New(fault.FailedPrecondition, "this host gives sandboxes no network: %s", d.about.Missing["network.address"])
	case subnet == "":
		return nil, fault.New(fault.FailedPrecondition, "the address %s needs a workspace with a network, and workspace %q has none", address, m.Identity.Workspace)
	}
	if address, err = addressIn(address, subnet); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := claim{m.Identity.WorkspaceID, address}
	taken := d.claims[c] != ""
	if !taken {
		if taken, err = d.inUse(m.Identity, address); err != nil {
			return nil, err
		}
	}
	if taken {
		return nil, fault.New(fault.Conflict, "the address %s is another sandbox's of workspace %q", address, m.Identity.Workspace)
	}
	d.claims[c] = m.Identity.ID
	m.Address, m.Bridge = address, bridgeName(m.Identity.WorkspaceID)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.claims, c)
	}, nil
}

// inUse reports whether another sandbox of the workspace runs, or is being started, with the address.
func (d *Driver) inUse(id sandbox.Identity, address string) (bool, error) {
	metas, err := d.metas()
	if err != nil {
		return false, err
	}
	for _, m := range metas {
		if m.Identity.ID == id.ID || m.Identity.WorkspaceID != id.WorkspaceID || m.Address != address {
			continue
		}
		st, err := d.status(m)
		if fault.Is(err, fault.NotFound) {
			continue // it went meanwhile
		}
		if err != nil || st.State == driver.Ready || st.State == driver.Provisioning {
			return true, err
		}
	}
	return false, nil
}

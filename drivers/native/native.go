// Package native runs sandboxes as processes of this host, each in namespaces of its own, without a daemon.
//
// A sandbox is a directory. A small process, the shim, holds each running one: it outlives the gateway, keeps a lock
// on the directory for as long as it lives, and writes down how the command ended. Whoever opens the driver again
// finds all of that. DESIGN.md has the layout and the order of effects.
package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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

	mu   sync.Mutex // held while the addresses of a workspace are compared
	ones keyed      // one mutating call for a sandbox at a time
}

// Open opens the driver on its directory.
func Open(cfg Config) (*Driver, error) {
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.BootID == nil {
		cfg.BootID = bootID
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Shim) == 0 {
		return nil, fault.New(fault.Internal, "the native driver needs a shim")
	}
	d := &Driver{cfg: cfg}
	if err := os.MkdirAll(d.sandboxes(), 0o711); err != nil {
		return nil, fmt.Errorf("open the native driver: %w", err)
	}
	instance, err := d.instance()
	if err != nil {
		return nil, err
	}
	d.host = probe()
	d.about = describe(instance, d.host)
	return d, nil
}

func (d *Driver) sandboxes() string { return filepath.Join(d.cfg.Dir, "sandboxes") }

func (d *Driver) dir(id string) string { return filepath.Join(d.sandboxes(), id) }

// instance reads the name of this data directory, or gives it one.
func (d *Driver) instance() (string, error) {
	path := filepath.Join(d.cfg.Dir, "instance")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = []byte(randomName())
		err = writeFile(path, raw, 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("open the native driver: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// bootID names this run of the host.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// Close implements driver.Driver.
func (d *Driver) Close() error { return nil }

// meta is what the driver knows of a sandbox: the marks, and what is to be found again. It holds no secret.
type meta struct {
	Identity  sandbox.Identity `json:"identity"`
	Operation string           `json:"operation"`
	Run       int              `json:"run"`
	Stopped   int              `json:"stopped,omitempty"` // the run that Stop ended
	BootID    string           `json:"boot_id"`
	Address   string           `json:"address,omitempty"`
	Bridge    string           `json:"bridge,omitempty"`
	Since     time.Time        `json:"since"`
}

const (
	metaFile  = "meta.json"  // by the driver
	lockFile  = "lock"       // held by the shim
	shimFile  = "shim.json"  // by the shim, before it starts anything
	readyFile = "ready.json" // by the shim, when the command was executed
	exitFile  = "exit.json"  // by the shim, when the command has ended
	logFile   = "log"
	workDir   = "work"
	rootDir   = "root"
)

func (d *Driver) load(id string) (*meta, error) {
	if sandbox.CheckID("id", id) != nil {
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	m := &meta{}
	err := readJSON(filepath.Join(d.dir(id), metaFile), m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return m, err
}

func (d *Driver) save(m *meta) error {
	return writeJSON(filepath.Join(d.dir(m.Identity.ID), metaFile), m)
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	defer d.ones.lock(r.Identity.ID)()
	m, err := d.load(r.Identity.ID)
	switch {
	case err == nil && (m.Operation != r.Operation || m.Identity != r.Identity):
		return fault.New(fault.AlreadyExists, "there is a sandbox %q of another operation", r.Identity.ID)
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case err != nil:
		if m, err = d.make(r); err != nil {
			return err
		}
	}
	if st, err := d.status(m); err == nil && (st.State == driver.Ready || st.State == driver.Exited) {
		return nil
	}
	return d.launch(ctx, m, r.Plan, r.Workspace, r.Token)
}

// make makes the directory with its marks.
func (d *Driver) make(r *driver.CreateRequest) (*meta, error) {
	boot, err := d.cfg.BootID()
	if err != nil {
		return nil, err
	}
	m := &meta{Identity: r.Identity, Operation: r.Operation, Run: r.Run, BootID: boot, Since: time.Now()}
	if err := d.place(m, r.Plan, r.Workspace); err != nil {
		return nil, err
	}
	// What exists without marks is a directory that was begun and never marked: nothing in it was ever used.
	tmp := d.dir(r.Identity.ID) + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(filepath.Join(tmp, workDir), 0o755), os.MkdirAll(filepath.Join(tmp, rootDir), 0o755)); err != nil {
		return nil, classify(err, "make the sandbox's directory")
	}
	if err := writeJSON(filepath.Join(tmp, metaFile), m); err != nil {
		return nil, classify(err, "mark the sandbox's directory")
	}
	if err := os.Rename(tmp, d.dir(r.Identity.ID)); err != nil {
		return nil, classify(err, "make the sandbox's directory")
	}
	return m, classify(syncDir(d.sandboxes()), "make the sandbox's directory")
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	defer d.ones.lock(r.Identity.ID)()
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
	if m.BootID, err = d.cfg.BootID(); err != nil {
		return err
	}
	m.Run, m.Since = r.Run, time.Now()
	if err := d.place(m, r.Plan, r.Workspace); err != nil {
		return err
	}
	if err := d.save(m); err != nil {
		return classify(err, "mark the new run")
	}
	return d.launch(ctx, m, r.Plan, r.Workspace, r.Token)
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	defer d.ones.lock(id.ID)()
	m, err := d.load(id.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Stopped != m.Run {
		if st, err := d.status(m); err == nil && st.State == driver.Exited {
			return nil
		}
		m.Stopped = m.Run
		if err := d.save(m); err != nil {
			return classify(err, "mark the stop")
		}
	}
	return d.end(ctx, m, d.cfg.StopTimeout)
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	defer d.ones.lock(r.Identity.ID)()
	if sandbox.CheckID("id", r.Identity.ID) != nil {
		return nil
	}
	m, err := d.load(r.Identity.ID)
	switch {
	case fault.Is(err, fault.NotFound):
		return errors.Join(os.RemoveAll(d.dir(r.Identity.ID)+".new"), os.RemoveAll(d.dir(r.Identity.ID)+".gone"))
	case err != nil:
		return err
	case m.Operation != r.Operation:
		return nil // it is not what was asked for
	}
	if err := d.end(ctx, m, d.cfg.StopTimeout); err != nil {
		return err
	}
	if err := d.removeLink(m); err != nil {
		return err
	}
	gone := d.dir(r.Identity.ID) + ".gone"
	if err := errors.Join(os.RemoveAll(gone), os.Rename(d.dir(r.Identity.ID), gone)); err != nil {
		return classify(err, "remove the sandbox's directory")
	}
	return classify(errors.Join(syncDir(d.sandboxes()), os.RemoveAll(gone)), "remove the sandbox's directory")
}

// Get implements driver.Driver.
func (d *Driver) Get(_ context.Context, id sandbox.Identity) (*driver.Status, error) {
	m, err := d.load(id.ID)
	if err != nil {
		return nil, err
	}
	return d.status(m)
}

// List implements driver.Driver.
func (d *Driver) List(context.Context) ([]*driver.Status, error) {
	entries, err := os.ReadDir(d.sandboxes())
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var out []*driver.Status
	for _, e := range entries {
		m, err := d.load(e.Name())
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st, err := d.status(m)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// exited is what the shim writes when the command has ended.
type exited struct {
	Run  int       `json:"run"`
	Code int       `json:"code"`
	Text string    `json:"text,omitempty"`
	When time.Time `json:"when"`
}

// begun is what the shim writes of itself.
type begun struct {
	Run   int    `json:"run"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot: with the pid it names the process
}

// status says what a sandbox is, from what its directory shows.
func (d *Driver) status(m *meta) (*driver.Status, error) {
	st := &driver.Status{Identity: m.Identity, Operation: m.Operation, Run: m.Run, Since: m.Since, State: driver.Provisioning,
		Objects: []driver.RealObject{{Kind: "directory", Name: d.dir(m.Identity.ID)}}}
	if m.Address != "" {
		st.Addresses = []string{strings.Split(m.Address, "/")[0]}
	}
	alive, err := locked(filepath.Join(d.dir(m.Identity.ID), lockFile))
	if err != nil {
		return nil, err
	}
	var ready, shim begun
	var end exited
	has := func(name string, v any) bool { return readJSON(filepath.Join(d.dir(m.Identity.ID), name), v) == nil }
	switch {
	case alive:
		if has(readyFile, &ready) && ready.Run == m.Run {
			st.State = driver.Ready
			st.Objects = append(st.Objects, driver.RealObject{Kind: "process", Name: fmt.Sprint(ready.PID)})
			if m.Bridge != "" {
				st.Objects = append(st.Objects, driver.RealObject{Kind: "link", Name: linkName(m.Identity.ID)})
			}
		}
	case has(exitFile, &end) && end.Run == m.Run:
		st.State, st.Reason, st.Message, st.ExitCode, st.Since = driver.Exited, "Exited", fmt.Sprintf("the command ended with %d", end.Code), &end.Code, end.When
		if end.Text != "" {
			st.Message = end.Text
		}
		if m.Stopped == m.Run {
			st.State = driver.Stopped
		}
	case m.Stopped == m.Run:
		st.State = driver.Stopped
	case has(shimFile, &shim) && shim.Run == m.Run:
		killed := 137
		st.State, st.Reason, st.Message, st.ExitCode = driver.Exited, "ShimKilled", "the process that held it was killed, and the sandbox with it", &killed
		if boot, err := d.cfg.BootID(); err == nil && boot != m.BootID {
			st.State, st.Reason, st.Message, st.ExitCode = driver.Lost, "HostRestarted", "the host was restarted", nil
		}
	}
	return st, nil
}

var _ interface {
	driver.Driver
	driver.Logger
} = (*Driver)(nil)

// place finds the network of the sandbox in the plans, and compares its address with those of its neighbours.
func (d *Driver) place(m *meta, p, ws *plan.Plan) error {
	address := processOf(p).Network.Address
	m.Address, m.Bridge = "", ""
	if address == "" {
		return nil
	}
	if !d.host.network {
		return fault.New(fault.FailedPrecondition, "this host gives sandboxes no network: %s", d.about.Missing["network.address"])
	}
	if networkOf(ws).Subnet == "" {
		return fault.New(fault.FailedPrecondition, "the address %s needs a workspace with a network, and workspace %q has none", address, m.Identity.Workspace)
	}
	address, err := addressIn(address, networkOf(ws).Subnet)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all, err := d.List(context.Background())
	if err != nil {
		return err
	}
	taken := slices.ContainsFunc(all, func(st *driver.Status) bool {
		return st.Identity.ID != m.Identity.ID && st.Identity.WorkspaceID == m.Identity.WorkspaceID && st.State != driver.Stopped &&
			slices.Contains(st.Addresses, strings.Split(address, "/")[0])
	})
	if taken {
		return fault.New(fault.Conflict, "the address %s is another sandbox's of workspace %q", address, m.Identity.Workspace)
	}
	m.Address, m.Bridge = address, bridgeName(m.Identity.WorkspaceID)
	return nil
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

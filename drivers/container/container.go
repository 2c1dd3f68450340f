// Package container is what the drivers of container engines share: a sandbox is a container with its volumes, a
// workspace has networks, and everything that is made bears marks in labels.
//
// An engine is told by its own driver through the interface Engine. What the engine cannot keep, since labels never
// change, is noted in the driver's directory: which run a container is in and how it ended. DESIGN.md has the marks, the
// order of effects, and how an exit is told from an engine that went away.
package container

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The policies for images.
const (
	PolicyMissing = "missing" // fetch what is not there
	PolicyAlways  = "always"  // fetch before every create
	PolicyNever   = "never"
)

// Config is what a driver of an engine needs.
type Config struct {
	Type         string // "docker" or "podman"
	Dir          string // its data directory
	Logger       *slog.Logger
	DefaultImage string
	ImagePolicy  string        // "" for missing
	StopTimeout  time.Duration // how long a command has to end after SIGTERM; zero: 10 s
	Network      string        // of sandboxes whose workspace has none: an engine's word, "" for its default
	BindMounts   bool          // whether a request may mount directories of the host
}

// Driver implements driver.Driver over an engine.
type Driver struct {
	cfg    Config
	engine Engine
	about  *driver.Description
	owner  string        // the mark of this data directory
	other  atomic.Bool   // another engine answers in the place of the one that was opened
	calls  *driver.Calls // those that change something, by sandbox or workspace
	pens   [32]sync.Mutex
}

var _ interface {
	driver.Driver
	driver.Logger
} = (*Driver)(nil)

// openPatience is how long an engine may take to say what it is.
const openPatience = 30 * time.Second

// Open opens the driver on its directory. It closes the engine where it fails.
func Open(cfg Config, engine Engine) (*Driver, error) {
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.ImagePolicy == "" {
		cfg.ImagePolicy = PolicyMissing
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{cfg: cfg, engine: engine, calls: driver.NewCalls()}
	ctx, cancel := context.WithTimeout(context.Background(), openPatience) // nobody's call
	defer cancel()
	about, err := engine.About(ctx)
	if err == nil {
		d.about = describe(cfg.Type, about)
		d.about.DefaultImage = cfg.DefaultImage
		d.owner, err = prepare(cfg.Dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the %s driver: %w", cfg.Type, err), engine.Close())
	}
	return d, nil
}

// prepare makes the directory, and returns the name that it has, or gives it one.
func prepare(dir string) (string, error) {
	runs := filepath.Join(dir, "runs")
	if err := errors.Join(os.MkdirAll(runs, 0o700), os.MkdirAll(filepath.Join(dir, "asked"), 0o700)); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(runs)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") {
			err = errors.Join(err, os.Remove(filepath.Join(runs, e.Name())))
		}
	}
	path := filepath.Join(dir, "owner")
	raw, missing := os.ReadFile(path)
	if errors.Is(missing, fs.ErrNotExist) {
		name := make([]byte, 8)
		_, _ = rand.Read(name) // it never fails
		raw = []byte(hex.EncodeToString(name))
		missing = replace(path, raw, true)
	}
	return strings.TrimSpace(string(raw)), errors.Join(err, missing)
}

// The marks of what the driver makes, as labels. That of the operation is not in the plan, which is older.
const (
	ownerLabel       = "sandgate.dev/owner" // the data directory of the gateway
	driverLabel      = "sandgate.dev/driver"
	sandboxLabel     = "sandgate.dev/sandbox"
	nameLabel        = "sandgate.dev/name"
	workspaceLabel   = "sandgate.dev/workspace"
	workspaceIDLabel = "sandgate.dev/workspace-id"
	operationLabel   = "sandgate.dev/operation"
)

func (d *Driver) marks(id sandbox.Identity) map[string]string {
	m := d.workspaceMarks(sandbox.Workspace{ID: id.WorkspaceID, Driver: id.Driver, Name: id.Workspace})
	m[sandboxLabel], m[nameLabel] = id.ID, id.Name
	return m
}

func (d *Driver) workspaceMarks(w sandbox.Workspace) map[string]string {
	return map[string]string{ownerLabel: d.owner, driverLabel: w.Driver, workspaceLabel: w.Name, workspaceIDLabel: w.ID}
}

// identity reads the marks.
func identity(labels map[string]string) sandbox.Identity {
	return sandbox.Identity{ID: labels[sandboxLabel], Driver: labels[driverLabel], Workspace: labels[workspaceLabel],
		WorkspaceID: labels[workspaceIDLabel], Name: labels[nameLabel]}
}

// bears reports whether a container is the sandbox's, of whichever operation.
func (d *Driver) bears(c *Found, id sandbox.Identity) bool {
	return c.Labels[ownerLabel] == d.owner && c.Labels[sandboxLabel] == id.ID
}

// realName begins with what people know and ends with what nothing else has.
func (d *Driver) realName(unique string, words ...string) string {
	sum := sha256.Sum256([]byte(d.owner + "/" + unique))
	return "sandgate-" + strings.Join(words, "-") + "-" + hex.EncodeToString(sum[:6])
}

func (d *Driver) containerName(id sandbox.Identity) string {
	return d.realName("sandbox/"+id.ID, id.Workspace, id.Name)
}

func (d *Driver) volumeName(id sandbox.Identity, name string) string {
	return d.realName("volume/"+id.ID+"/"+name, id.Workspace, id.Name, plain(name))
}

func (d *Driver) networkName(w sandbox.Workspace, name string) string {
	return d.realName("network/"+w.ID+"/"+name, w.Name, plain(name))
}

// plain makes a word of a plan's name that an engine takes.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, name[:min(len(name), 40)])
}

// find returns the container of a sandbox, also one that somebody has renamed.
func (d *Driver) find(ctx context.Context, id sandbox.Identity) (*Found, error) {
	c, err := d.engine.FindContainer(ctx, d.containerName(id))
	if err == nil && d.bears(c, id) {
		return c, nil
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	c, err = d.findMarked(ctx, id)
	if fault.Is(err, fault.NotFound) { // which proves nothing where another engine says it
		if other := d.sameEngine(ctx); other != nil {
			return nil, other
		}
	}
	return c, err
}

// sameEngine refuses an engine that is another one than the driver was opened on: one that was given another storage, or
// another host that has taken the address over. What it does not have may run on where it was.
func (d *Driver) sameEngine(ctx context.Context) error {
	about, err := d.engine.About(ctx)
	if err != nil {
		return err
	}
	d.other.Store(about.Instance != d.about.Instance)
	if !d.other.Load() {
		return nil
	}
	return fault.New(fault.Unavailable, "another %s engine answers (%s) than the one that the sandboxes are on (%s): nothing is taken for gone until that is back",
		d.cfg.Type, about.Instance, d.about.Instance)
}

func (d *Driver) findMarked(ctx context.Context, id sandbox.Identity) (*Found, error) {
	ids, err := d.engine.ListContainers(ctx, map[string]string{ownerLabel: d.owner, sandboxLabel: id.ID})
	if err != nil {
		return nil, err
	}
	for _, one := range ids {
		c, err := d.engine.FindContainer(ctx, one)
		if fault.Is(err, fault.NotFound) {
			continue // it went meanwhile
		}
		return c, err
	}
	return nil, fault.New(fault.NotFound, "there is no sandbox %q", id.ID)
}

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// Get implements driver.Driver.
func (d *Driver) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	c, err := d.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return d.status(ctx, c)
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]*driver.Status, error) {
	ids, err := d.engine.ListContainers(ctx, map[string]string{ownerLabel: d.owner})
	if err != nil {
		return nil, err
	}
	all := make([]*driver.Status, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, id := range ids {
		g.Go(func() error {
			c, err := d.engine.FindContainer(ctx, id)
			if err == nil {
				all[i], err = d.status(ctx, c)
			}
			if fault.Is(err, fault.NotFound) {
				return nil // it went meanwhile
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []*driver.Status
	for _, st := range all {
		if st != nil {
			out = append(out, st)
		}
	}
	return out, nil
}

// Logs implements driver.Logger.
func (d *Driver) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	c, err := d.find(ctx, id)
	if err != nil {
		return err
	}
	if err := d.engine.Logs(ctx, c.ID, follow, out); err != nil {
		return err
	}
	return context.Cause(ctx)
}

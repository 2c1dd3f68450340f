package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// noopProgram is the extension program, built once; shortDir has room for the sockets of supervisors.
var noopProgram, shortDir string

func TestMain(m *testing.M) {
	report := flag.Bool("report", false, "print the report instead of running the tests")
	flag.Parse()
	os.Exit(run(m, *report)) // a testing.M has no other way to say that it failed
}

func run(m *testing.M, report bool) int {
	dir, err := os.MkdirTemp("/tmp", "sgbench") // short: sockets lie in it
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	noopProgram, shortDir = filepath.Join(dir, "noop"), dir
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", noopProgram, "github.com/sandgate/sandgate/gateway/internal/bench/noop")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the examples are built
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the extension: %v\n%s", err, out)
		return 1
	}
	if !report {
		return m.Run()
	}
	if err := printReport(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// programs are extension processes under a real supervisor.
type programs struct {
	*supervisor.Supervisor
	handles []*supervisor.Handle
}

func newPrograms(dir string) (*programs, error) {
	sup, err := supervisor.New(supervisor.Config{Dir: dir, Version: "bench"})
	return &programs{Supervisor: sup}, err
}

// spec is the noop program, told by its environment what to be.
func spec(name string, env ...string) supervisor.Spec {
	s := supervisor.Spec{Name: name, Command: noopProgram, Unpinned: true, Env: map[string]string{"NOOP_NAME": name}}
	for i := 0; i < len(env); i += 2 {
		s.Env[env[i]] = env[i+1]
	}
	return s
}

// launch starts n programs side by side and configures them. It returns how long each took to be negotiated, from the
// verification of the program on and from the start of its process on.
func (p *programs) launch(ctx context.Context, n int, env ...string) (whole, ready times, err error) {
	whole, ready = make(times, n), make(times, n)
	errs := make([]error, n)
	handles := make([]*supervisor.Handle, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			began := time.Now()
			handles[i], errs[i] = p.Launch(ctx, spec(fmt.Sprintf("noop-%02d", i), env...))
			negotiated := time.Now()
			whole[i] = negotiated.Sub(began)
			if errs[i] == nil {
				ready[i] = negotiated.Sub(handles[i].Status().Started)
				errs[i] = handles[i].Configure(ctx, nil, nil)
			}
		})
	}
	wg.Wait()
	p.handles = handles
	return whole, ready, errors.Join(errs...)
}

// end stops the programs that were launched last.
func (p *programs) end() error {
	errs := make([]error, len(p.handles))
	var wg sync.WaitGroup
	for i, h := range p.handles {
		if h != nil {
			wg.Go(func() { errs[i] = h.Close() })
		}
	}
	wg.Wait()
	p.handles = nil
	return errors.Join(errs...)
}

// counted counts the commits of a journal.
type counted struct {
	journal.Journal
	commits atomic.Int64
}

func (c *counted) Commit(ctx context.Context, w []journal.Write) error {
	c.commits.Add(1)
	return c.Journal.Commit(ctx, w)
}

// ids numbers what is made, across gateways: programs remember the sandboxes of all of them.
var ids atomic.Int64

// catalog has the one generation there is.
type catalog struct{ gen *engine.Generation }

func (c catalog) Current() *engine.Generation { return c.gen }

func (c catalog) Generation(context.Context, string) (*engine.Generation, error) { return c.gen, nil }

// gateway is an engine over a chain of programs and the driver that does nothing.
type gateway struct {
	*engine.Engine
	journal *counted
	driver  *idle
	chain   *pipeline.Chain
	schema  *plan.Schema
	dir     string
	made    atomic.Int64
}

// store says where the journal of a gateway is.
type store string

const (
	disk   store = "disk"
	memory store = "memory"
)

// newGateway opens an engine with the programs as its chain.
func newGateway(ctx context.Context, st store, exts []*supervisor.Handle) (*gateway, error) {
	return newGatewayOver(ctx, &idle{}, st, exts)
}

func newGatewayOver(ctx context.Context, d *idle, st store, exts []*supervisor.Handle) (_ *gateway, err error) {
	g := &gateway{driver: d}
	about, err := g.driver.Describe(ctx)
	if err != nil {
		return nil, err
	}
	if g.schema, err = plan.NewSchema(about.Kinds, about.Points, nil); err != nil {
		return nil, err
	}
	g.chain, err = chainOf(g.schema, exts)
	if err != nil {
		return nil, err
	}
	if st == memory {
		g.journal = &counted{Journal: journal.NewMemory()}
	} else {
		if g.dir, err = os.MkdirTemp("", "sgbenchdb"); err != nil {
			return nil, err
		}
		j, err := journal.Open(ctx, journal.Config{Dir: g.dir})
		if err != nil {
			return nil, err
		}
		g.journal = &counted{Journal: j}
	}
	gen := &engine.Generation{ID: "g1", Drivers: map[string]*engine.Driver{"idle": {Name: "idle", Driver: g.driver, Description: about,
		Schema: g.schema, Chain: g.chain, ChainTimeout: 2 * time.Minute, DriverTimeout: 10 * time.Minute, ReadyTimeout: 5 * time.Minute,
		ReleaseTimeout: 5 * time.Minute}}}
	g.Engine, err = engine.Open(ctx, engine.Config{Journal: g.journal, Catalog: catalog{gen}, Logger: slog.New(slog.DiscardHandler), Now: time.Now,
		NewID: func() string { return fmt.Sprintf("id-%010d", ids.Add(1)) }, MaxOperations: 64})
	if err != nil {
		return nil, err
	}
	g.Start()
	_, err = g.create(ctx) // the workspace is ensured by the first
	return g, err
}

// chainOf binds the programs in order. None may change anything; each sees the labels of the sandbox.
func chainOf(schema *plan.Schema, exts []*supervisor.Handle) (*pipeline.Chain, error) {
	var binds []*pipeline.Bind
	for _, h := range exts {
		b := &pipeline.Bind{Extension: h.Name(), ID: "idle/" + h.Name(), Mode: pipeline.Enforce, Program: h,
			Grant:   plan.Grant{Read: []plan.Pattern{"Box.labels", "Box.image"}},
			Default: pipeline.PhasePolicy{Timeout: 30 * time.Second, FailurePolicy: pipeline.FailClosed, Attempts: 1}}
		m := h.Manifest()
		if _, wrong := pipeline.Negotiate(&m, b, "idle", nil, schema); len(wrong) > 0 {
			return nil, fmt.Errorf("negotiate %s: %s", h.Name(), wrong[0].Detail)
		}
		binds = append(binds, b)
	}
	return pipeline.New(binds, schema, nil), nil
}

// create makes one sandbox and returns the operation that made it.
func (g *gateway) create(ctx context.Context) (string, error) {
	h, _, err := g.CreateSandbox(engine.CreateRequest{Driver: "idle", Name: "box-" + strconv.FormatInt(g.made.Add(1), 10), Spec: sandbox.Spec{
		Image: "registry.example/agents/base:1.4.2", Command: []string{"/usr/bin/agent", "--serve"},
		Environment: map[string]string{"MODE": "batch", "REGION": "eu-1", "TOKEN_FILE": "/run/token", "LOG_LEVEL": "info"},
		Labels:      map[string]string{"team": "research", "tier": "standard", "cost-center": "4711"}},
		Origin: sandbox.Origin{Door: "api", Caller: "uid:1000"}})
	if err != nil {
		return "", err
	}
	op, err := h.Wait(ctx)
	return op.ID, err
}

func (g *gateway) close() error {
	err := errors.Join(g.Engine.Close(), g.journal.Close())
	if g.dir != "" {
		err = errors.Join(err, os.RemoveAll(g.dir))
	}
	return err
}

package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What the crash test runs as processes of their own: this program, built without the race detector, by its first
// argument. Every one of them has the directory of its site among its arguments, by which the checker knows it.
const (
	victimSwitch  = "crash-gateway" // DIR [KIND WHEN N]: a gateway that may end itself
	witnessSwitch = "crash-witness" // DIR: the extension that declares every phase
	heldSwitch    = "crash-shim"    // DIR and what the driver says: the driver's shim
)

// crashMain is what of the crash test runs in a process of its own. It reports whether there was something.
func crashMain(args []string) bool {
	if filepath.Base(args[0]) == standInName {
		unix.Exit(standIn(args))
	}
	if len(args) < 3 {
		return false
	}
	switch args[1] {
	case victimSwitch:
		if err := victim(args[2], args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			unix.Exit(1)
		}
	case witnessSwitch:
		_ = plugin.Serve(&witness{dir: filepath.Join(args[2], "witness")}) // it has said what was wrong
	default:
		return false
	}
	return true
}

// trap ends the process at one chosen moment.
type trap struct {
	mu    sync.Mutex
	kind  string // "commit" or "call"; "": none is set
	when  string // "before" or "after" what it stands at, or "during"
	n     int    // the how many-th
	what  string // of those that are called this; "": of all
	count int
	fired bool // it is about to end the process

	looked map[string]bool // binds that were reconciled since the start, and whether the driver has told what there is
}

// note says that something was looked at once.
func (t *trap) note(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looked[what] = true
}

func (t *trap) noted(what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.looked[what]
}

func (t *trap) set(kind, when string, n int, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kind, t.when, t.n, t.count, t.what = kind, when, n, 0, what
}

// at is passed at each moment. It returns if it is not the chosen one.
func (t *trap) at(kind, when, what string) {
	if t.hit(kind, when, what) {
		die(kind + " " + when + " " + what)
	}
}

func (t *trap) hit(kind, when, what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kind != kind || t.when != when || t.what != "" && t.what != what {
		return false
	}
	t.count++
	t.fired = t.fired || t.count == t.n
	return t.count == t.n
}

// die says where, and ends the process as a power cut would: nothing runs after it.
func die(where string) {
	fmt.Fprintf(os.Stderr, "KILLED %s\n", where)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// around lets a call pass by the trap. A call that is killed while it is made gets a moment first, another one each
// time.
func (t *trap) around(what string, call func() error) error {
	t.at("call", "before", what)
	if t.hit("call", "during", what) {
		time.AfterFunc(time.Duration(t.n*7%19)*time.Millisecond, func() { die("call during " + what) })
		_ = call() // nobody is told of it
		die("call during " + what + " (at its end)")
	}
	err := call()
	t.at("call", "after", what)
	return err
}

type trappedJournal struct {
	journal.Journal
	*trap
}

func (j trappedJournal) Commit(ctx context.Context, writes []journal.Write) error {
	what := ""
	for _, w := range writes {
		what += " " + w.Record.Kind
	}
	j.at("commit", "before", what)
	err := j.Journal.Commit(ctx, writes)
	j.at("commit", "after", what)
	return err
}

type trappedExtension struct {
	next pipeline.Extension
	name string
	dir  string
	*trap
}

// tell writes down that a call is made, for the tests to read.
func (x trappedExtension) tell(c *extension.Call) {
	f, err := os.OpenFile(filepath.Join(x.dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		subject := c.Workspace.ID
		if c.Sandbox != nil {
			subject = c.Sandbox.ID
		}
		_, err = fmt.Fprintf(f, "%s %s %s %s %d %s\n", subject, c.Phase, x.name, c.Key, c.Number, c.Cause)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (x trappedExtension) Call(ctx context.Context, c *extension.Call) (a *extension.Answer, err error) {
	x.tell(c)
	return a, x.around(string(c.Phase)+" of "+x.name, func() error {
		a, err = x.next.Call(ctx, c)
		return err
	})
}

func (x trappedExtension) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) (held []extension.Item, err error) {
	defer x.note(bind)
	return held, x.around("reconcile of "+x.name, func() error {
		held, err = x.next.Reconcile(ctx, bind, operation, known)
		return err
	})
}

type trappedDriver struct {
	driver.Driver
	*trap
}

func (d trappedDriver) Unwrap() driver.Driver { return d.Driver }

func (d trappedDriver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return d.Driver.Watch(ctx, func(ev driver.Event) error {
		if ev.Synced {
			defer d.note("driver")
		}
		return fn(ev)
	})
}

func (d trappedDriver) Layers(ctx context.Context, r *driver.Request) (l []plan.Layer, err error) {
	return l, d.around("driver.Layers", func() error { l, err = d.Driver.Layers(ctx, r); return err })
}

func (d trappedDriver) WorkspaceLayers(ctx context.Context, w sandbox.Workspace) (l []plan.Layer, err error) {
	return l, d.around("driver.WorkspaceLayers", func() error { l, err = d.Driver.WorkspaceLayers(ctx, w); return err })
}

func (d trappedDriver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	return d.around("driver.Resolve", func() error { return d.Driver.Resolve(ctx, r) })
}

func (d trappedDriver) Create(ctx context.Context, r *driver.CreateRequest) error {
	return d.around("driver.Create", func() error { return d.Driver.Create(ctx, r) })
}

func (d trappedDriver) Start(ctx context.Context, r *driver.StartRequest) error {
	return d.around("driver.Start", func() error { return d.Driver.Start(ctx, r) })
}

func (d trappedDriver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.around("driver.Stop", func() error { return d.Driver.Stop(ctx, id) })
}

func (d trappedDriver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	return d.around("driver.Delete", func() error { return d.Driver.Delete(ctx, r) })
}

func (d trappedDriver) Get(ctx context.Context, id sandbox.Identity) (st *driver.Status, err error) {
	return st, d.around("driver.Get", func() error { st, err = d.Driver.Get(ctx, id); return err })
}

func (d trappedDriver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	return d.around("driver.EnsureWorkspace", func() error { return d.Driver.EnsureWorkspace(ctx, r) })
}

func (d trappedDriver) DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error {
	return d.around("driver.DeleteWorkspace", func() error { return d.Driver.DeleteWorkspace(ctx, w) })
}

// said is what a victim answers to one line of its input.
type said struct {
	Error string `json:"error,omitempty"`
	State string `json:"state,omitempty"`
	Count int    `json:"count,omitempty"`
}

// victim runs a gateway on the site in dir, and does what its standard input says until that ends.
func victim(dir string, armed []string) error {
	t := &trap{looked: map[string]bool{}}
	if len(armed) == 3 {
		n, _ := strconv.Atoi(armed[2])
		t.set(armed[0], armed[1], n, "")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "gateway.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	opts := Options{Paths: []string{filepath.Join(dir, "site.hcl")}, Version: "test", Dev: true, Shim: []string{self, heldSwitch, dir},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:  func(string) { close(ready) },
		between: between{
			journal: func(j journal.Journal) journal.Journal { return trappedJournal{j, t} },
			driver: func(d driver.Driver) driver.Driver {
				return trappedDriver{d, t}
			},
			extension: func(name string, x pipeline.Extension) pipeline.Extension { return trappedExtension{x, name, dir, t} },
		}}
	began := time.Now()
	d, f, err := New(context.Background(), opts)
	if err != nil || d == nil {
		return fmt.Errorf("%w %s", err, f)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		return err
	}
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(said{State: "ready", Count: int(time.Since(began).Milliseconds())})
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		answer, err := obey(ctx, d, t, words)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	stop()
	return <-done
}

func obey(ctx context.Context, d *Daemon, t *trap, words []string) (said, error) {
	var h *engine.Handle
	var err error
	arg := func(i int) string { return words[i] }
	switch arg(0) {
	case "arm":
		n, err := strconv.Atoi(arg(3))
		t.set(arg(1), arg(2), n, strings.Join(words[4:], " "))
		return said{}, err
	case "disarm":
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.fired {
			select {} // it was too late to disarm it
		}
		t.kind = ""
		return said{Count: t.count}, nil
	case "settle":
		return said{}, settle(ctx, d, t)
	case "state":
		sb, err := d.engine.Find(engine.Ref{IDOrName: arg(1)})
		if fault.Is(err, fault.NotFound) {
			return said{State: "absent"}, nil
		}
		if sb.Run.ExitCode != nil {
			return said{State: string(sb.State), Count: *sb.Run.ExitCode}, err
		}
		return said{State: string(sb.State)}, err
	case "reload":
		_, err := d.Reload(ctx, "test")
		return said{}, err
	case "create", "begin":
		h, err = create(d, arg(1), arg(2), arg(len(words)-1), lives)
	case "create-bad":
		h, err = create(d, arg(1), arg(2), arg(2), "")
	case "start":
		h, err = d.engine.StartSandbox(arg(1), nil, sandbox.Origin{})
	case "stop":
		h, err = d.engine.StopSandbox(arg(1), sandbox.Origin{})
	case "delete":
		h, err = d.engine.DeleteSandbox(arg(1), sandbox.Origin{})
	case "delete-workspace":
		h, err = d.engine.DeleteWorkspace(arg(1), crashWorkspace, sandbox.Origin{})
		if fault.Is(err, fault.NotFound) {
			return said{}, nil
		}
	default:
		return said{}, fmt.Errorf("%q is no command", words)
	}
	if err == nil && arg(0) != "begin" {
		_, err = h.Wait(ctx)
	}
	return said{}, err
}

const crashWorkspace = "team-crash"

// lives is what a sandbox of the crash test runs: it writes down what it sees, and stays. Its last argument names its
// site to the checker.
const lives = `{ cat /proc/net/fib_trie; env; } >seen.tmp 2>/dev/null; mv seen.tmp seen; cat seen; mkfifo gate 2>/dev/null; : <gate`

func create(d *Daemon, driverName, id, name, script string) (*engine.Handle, error) {
	dir := filepath.Dir(d.catalog.current().config.Gateway.DataDir)
	spec := sandbox.Spec{Command: []string{"/bin/sh", "-c", script, dir + "/" + id}}
	_, cluster := os.Stat(dir + "/cluster")  // whose nodes limit processes, if anybody does
	if os.Geteuid() == 0 && cluster != nil { // only then the host keeps limits, by control groups
		spec.Resources.PIDs = 64
	}
	if script == "" {
		spec.Command[0] = "/nowhere"
	}
	h, _, err := d.engine.CreateSandbox(engine.CreateRequest{ID: id, Driver: driverName, Workspace: crashWorkspace, Name: name, Spec: spec})
	return h, err
}

// settle waits until the gateway has nothing more to do: every bind is reconciled, every operation has ended, every
// release is acknowledged.
func settle(ctx context.Context, d *Daemon, t *trap) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	look := time.NewTicker(5 * time.Millisecond) // for what no change of a record tells of
	defer look.Stop()
	for {
		changed := d.engine.Changed()
		busy, err := unsettled(ctx, d, t)
		if busy == "" || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			return errors.New("it does not come to rest: " + busy)
		}
	}
}

func unsettled(ctx context.Context, d *Daemon, t *trap) (string, error) {
	ops, err := d.engine.Operations(ctx, "")
	if err != nil || len(ops) > 0 {
		return fmt.Sprintf("%+v", ops), err
	}
	for _, h := range d.engine.Holdings() {
		if len(h.Releases) > 0 {
			return fmt.Sprintf("%s has not released %s: %+v", h.Extension, h.Subject, h.Releases), nil
		}
	}
	for _, sb := range d.engine.Sandboxes(false) {
		switch sb.State {
		case sandbox.Ready, sandbox.Stopped, sandbox.Exited:
		default:
			return fmt.Sprintf("%s is %s %s", sb.ID, sb.State, sb.Reason), nil
		}
	}
	for _, drv := range d.catalog.current().Drivers {
		for _, b := range drv.Chain.Binds() {
			if b.Phases.Has(phase.Reconcile) && !t.noted(b.ID) {
				return b.ID + " is not reconciled", nil
			}
		}
	}
	if !t.noted("driver") {
		return "the driver has not said what there is", nil
	}
	return "", nil
}

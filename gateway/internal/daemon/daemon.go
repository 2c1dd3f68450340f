// Package daemon is where the gateway is put together: it reads the configuration, opens the store and the drivers,
// launches and negotiates with extensions, and runs, reloads and stops all of it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/gateway/internal/api"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/gateway/internal/telemetry"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Options says how a gateway is run.
type Options struct {
	Paths     []string          // of the configuration
	Dev       bool              // checksums may be left out
	Attach    map[string]string // extensions that were started by hand, and the files that their processes write; with Dev only
	DataDir   string            // instead of the configuration's; "" for that
	Throwaway bool              // when it ends, it takes every sandbox and workspace with it
	Version   string
	Shim      []string // the command that runs what a driver needs of this program besides the daemon
	Logger    *slog.Logger
	Ready     func(address string) // called once the gateway serves; nil: nobody is told
	Reload    <-chan os.Signal     // nil: only the API reloads
	Manager   Manager              // is told how the gateway is

	schemas schemas // where what extensions say of their configuration is kept; none: in the data directory
	between between // for tests of this package
}

// between is what stands between the engine and what it calls. A test puts something there that fails, waits or ends
// the process at a chosen moment; a gateway has nothing there.
type between struct {
	journal   func(journal.Journal) journal.Journal
	driver    func(driver.Driver) driver.Driver
	extension func(name string, x pipeline.Extension) pipeline.Extension
	alive     func(func()) func()
	timing    supervisor.Timing // of extensions; zero: as it is
	now       func() time.Time  // the wall clock; nil: that of the host
}

// Daemon is a gateway.
type Daemon struct {
	opts       Options
	log        *slog.Logger
	journal    journal.Journal
	supervisor *supervisor.Supervisor
	telemetry  *telemetry.Telemetry
	engine     *engine.Engine
	catalog    *catalog
	doors      *doors
	schemas    schemas

	reloading sync.Mutex   // one reload at a time
	closing   sync.RWMutex // read: a driver is being opened; written: some are being closed
	mu        sync.Mutex
	turns     map[string]*sync.Mutex // by driver: it is opened once
	open      map[string]*openDriver // base drivers, by name
	running   []*running             // extensions, each of at least one generation
	idle      chan struct{}          // has an element when a generation may be ended
}

// openDriver is a base driver and the settings that it was opened with. It is closed when no generation has it any more.
type openDriver struct {
	users   int // generations; guarded by Daemon.mu
	driver  driver.Driver
	setting string
	kind    string
	schema  extension.ConfigSchema
	program *supervisor.Handle // nil: it is no program
	spec    supervisor.Spec    // of the program
}

// drainTimeout is how long operations in flight have to end when the gateway is stopped; what has not ended goes on
// when it is started again.
const drainTimeout = 10 * time.Second

// answerTimeout is how long whoever waits for an answer of the stopping gateway has to take it.
const answerTimeout = 2 * time.Second

// clearTimeout is how long a throwaway gateway has to remove what it made.
const clearTimeout = 30 * time.Second

// lingering is how long the processes of an earlier configuration are kept after their last use: another release may
// need them.
const lingering = time.Second

// flushTimeout is how long the last spans have to reach their collector.
const flushTimeout = 2 * time.Second

// New puts a gateway together: everything is validated, launched and negotiated before it returns. Findings say what
// is wrong with the configuration; with errors among them there is no daemon.
func New(ctx context.Context, opts Options) (_ *Daemon, findings *config.Findings, err error) {
	if err := enoughFiles(); err != nil {
		return nil, nil, err
	}
	cfg, findings := config.Load(opts.Paths, config.Options{Dev: opts.Dev, Types: drivers.Names()})
	if cfg == nil {
		return nil, findings, nil
	}
	if opts.DataDir != "" {
		cfg.Gateway.DataDir = opts.DataDir
	}
	if opts.between.now == nil {
		opts.between.now = time.Now
	}
	for name := range opts.Attach {
		if !slices.ContainsFunc(cfg.Extensions, func(x config.Extension) bool { return x.Name == name }) {
			return nil, findings, fault.New(fault.Invalid, "there is no extension %q to attach for: its block says where it takes part", name)
		}
	}
	d := &Daemon{opts: opts, log: opts.Logger, schemas: opts.schemas, turns: map[string]*sync.Mutex{}, open: map[string]*openDriver{}, idle: make(chan struct{}, 1)}
	if d.schemas == nil {
		d.schemas = schemas{filepath.Join(cfg.Gateway.DataDir, schemasDir)}
	}
	defer func() {
		if err != nil || findings.HasErrors() {
			err = errors.Join(err, d.close())
		}
	}()
	if err := d.openJournal(ctx, cfg); err != nil {
		return nil, findings, err
	}
	if d.telemetry, err = telemetry.New(cfg.Gateway.Tracing, opts.Version); err != nil {
		return nil, findings, err
	}
	if err := d.supervise(cfg); err != nil {
		return nil, findings, err
	}
	d.catalog, d.doors = newCatalog(d), &doors{d: d, at: map[string]*door{}}
	gen, err := d.build(ctx, cfg, findings)
	if err != nil || findings.HasErrors() {
		return nil, findings, err
	}
	d.catalog.use(gen)
	d.engine, err = engine.Open(ctx, engine.Config{Journal: d.telemetry.Journal(d.journal), Catalog: d.catalog, Logger: d.log, Now: d.opts.between.now,
		NewID: newID, Jitter: jitter, MaxOperations: cfg.Gateway.MaxOperations, AuditRetention: cfg.Gateway.Audit, Tracer: d.telemetry.Tracer(), Ended: d.operationEnded, Unused: d.unused})
	if err != nil {
		return nil, findings, err
	}
	if d.admit(d.engine.References(), gen, findings); findings.HasErrors() {
		return nil, findings, nil
	}
	if err := d.catalog.keep(ctx, gen); err != nil {
		return nil, findings, err
	}
	d.catalog.use(gen) // by the id that it has now
	return d, findings, nil
}

// fewestFiles is how many files a gateway may need to have open before it has a sandbox.
const fewestFiles = 256

// enoughFiles refuses a limit with which a gateway would fail later, at whatever it opens next.
func enoughFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit on open files: %w", err)
	}
	if limit.Cur < fewestFiles {
		return fault.New(fault.FailedPrecondition, "this process may have %d files open, and a gateway needs %d at least, and some more for each extension and sandbox: "+
			"raise the hard limit (ulimit -n, or LimitNOFILE= of its systemd unit)", limit.Cur, fewestFiles)
	}
	return nil
}

func (d *Daemon) operationEnded(op engine.Operation) {
	d.telemetry.OperationEnded(op.Driver, string(op.Kind), op.Code, op.Ended.Sub(op.Started))
}

func (d *Daemon) openJournal(ctx context.Context, cfg *config.Config) error {
	store, err := journal.Open(ctx, journal.Config{Dir: cfg.Gateway.DataDir, URL: storeURL(cfg)})
	if err != nil {
		return err
	}
	d.journal = store
	if put := d.opts.between.journal; put != nil {
		d.journal = put(store)
	}
	return nil
}

func storeURL(cfg *config.Config) string {
	if cfg.Store.Type == "postgres" {
		return cfg.Store.URL
	}
	return ""
}

// newID makes an id that sorts by the time at which it was made (UUID version 7, RFC 9562).
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// supervise makes the supervisor. Sockets need a short path, so they do not lie in the data directory.
func (d *Daemon) supervise(cfg *config.Config) error {
	dir, err := runtimeDir(cfg.Gateway.DataDir)
	if err != nil {
		return err
	}
	d.supervisor, err = supervisor.New(supervisor.Config{Dir: dir, Store: filepath.Join(cfg.Gateway.DataDir, "programs"),
		Logger: d.log, Version: d.opts.Version, Now: d.opts.between.now, Timing: d.opts.between.timing})
	return err
}

// Run serves until ctx ends or the gateway can go on no more.
func (d *Daemon) Run(ctx context.Context) error {
	cfg := d.catalog.current().config
	listener, credentials, err := listen(cfg.Gateway)
	if err != nil {
		return errors.Join(err, d.close())
	}
	unmeasure, err := d.serveMetrics(cfg.Gateway.Metrics)
	if err != nil {
		return errors.Join(err, listener.Close(), d.close())
	}
	f := config.NewFindings()
	fresh := d.doors.open(d.catalog.current(), f)
	if f.HasErrors() {
		return errors.Join(fault.New(fault.FailedPrecondition, "%s", f), unmeasure(), listener.Close(), d.close())
	}
	d.engine.Start()
	d.doors.serve(d.catalog.current(), fresh)
	sweeping, stopSweeping := context.WithCancel(context.WithoutCancel(ctx))
	var sweeper sync.WaitGroup
	sweeper.Go(func() { d.sweep(sweeping) })
	server, door := api.New(d.engine, d, credentials)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	address := cfg.Gateway.Listen
	if strings.HasPrefix(address, tcpScheme) {
		address = tcpScheme + listener.Addr().String() // port 0 takes any that is free
	}
	d.log.Info("the gateway is ready", "address", address, "generation", d.catalog.current().ID)
	if d.opts.Ready != nil {
		d.opts.Ready(address)
	}
	d.tell("READY=1", statusLine("serving configuration %s", d.catalog.current().ID))
	guarding, stopGuarding := context.WithCancel(context.WithoutCancel(ctx))
	var guard sync.WaitGroup
	guard.Go(func() { d.guard(guarding) })
	err = d.wait(ctx, served)
	d.tell("STOPPING=1", statusLine("what is in flight ends"))
	door.Shutdown()
	stopSweeping()
	sweeper.Wait()
	err = errors.Join(err, unmeasure(), d.stop(server))
	stopGuarding()
	guard.Wait()
	return err
}

// unused is told by the engine when nothing uses a generation for now.
func (d *Daemon) unused(id string) {
	if id == d.catalog.current().ID {
		return
	}
	select {
	case d.idle <- struct{}{}:
	default: // it is known already
	}
}

// sweep ends what earlier configurations have left running, some while after the last use of it.
func (d *Daemon) sweep(ctx context.Context) {
	for {
		select {
		case <-d.idle:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(lingering):
		case <-ctx.Done():
			return
		}
		d.reloading.Lock()
		err := d.catalog.collect(ctx)
		d.reloading.Unlock()
		if err != nil && ctx.Err() == nil {
			d.log.Warn("what nothing refers to any more could not all be removed; it is tried again", "err", err)
		}
	}
}

// wait returns when the gateway is to end, and says why where nobody asked for it.
func (d *Daemon) wait(ctx context.Context, served <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("serve the API: %w", err)
		case <-d.engine.Done():
			return d.engine.Err()
		case <-d.opts.Reload:
			if _, err := d.Reload(ctx, "SIGHUP"); err != nil {
				d.log.Error("the configuration was not reloaded; the one before stays in force", "err", err)
			}
		}
	}
}

// stop ends everything in order: no new operations, those in flight get a while, then the doors, the engine, the
// extensions.
func (d *Daemon) stop(server *grpc.Server) error {
	if d.opts.Throwaway {
		d.clear()
	}
	d.log.Info("the gateway is stopping: it takes no new operations, and waits for those in flight", "timeout", drainTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := d.engine.Drain(ctx); err != nil {
		d.log.Warn("operations are in flight still; they go on when the gateway is started again")
	}
	err := d.engine.Close() // which ends the streams
	late := time.AfterFunc(answerTimeout, server.Stop)
	server.GracefulStop()
	late.Stop()
	d.doors.close() // nothing waits there any more: the engine has ended whatever was in flight
	return errors.Join(err, d.close())
}

// clear deletes what a throwaway gateway has made: nobody could find it again.
func (d *Daemon) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), clearTimeout)
	defer cancel()
	wait := func(h *engine.Handle, err error) {
		if err == nil {
			_, err = h.Wait(ctx)
		}
		if err != nil {
			d.log.Warn("something that this gateway made is left behind", "err", err)
		}
	}
	var all sync.WaitGroup
	for _, sb := range d.engine.Sandboxes(false) {
		all.Go(func() { wait(d.engine.DeleteSandbox(sb.ID, sandbox.Origin{})) })
	}
	all.Wait()
	for _, ws := range d.engine.Workspaces(false) {
		all.Go(func() { wait(d.engine.DeleteWorkspace(ws.Driver, ws.Name, sandbox.Origin{})) })
	}
	all.Wait()
}

// close ends whatever is open, the latest first.
func (d *Daemon) close() error {
	var errs []error
	if d.engine != nil {
		errs = append(errs, d.engine.Close())
	}
	if d.supervisor != nil {
		errs = append(errs, d.supervisor.Close())
	}
	for _, o := range d.open {
		errs = append(errs, o.driver.Close())
	}
	if d.telemetry != nil {
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		if err := d.telemetry.Close(ctx); err != nil {
			d.log.Warn("the last spans were not sent", "err", err)
		}
	}
	if d.journal != nil {
		errs = append(errs, d.journal.Close())
	}
	return errors.Join(errs...)
}

// runtimeDir returns where the sockets of extensions lie: below /run for root, below the user's runtime directory or
// the temporary one otherwise. It is named after the data directory, so that each gateway has its own.
func runtimeDir(dataDir string) (string, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	base := "/run"
	if os.Geteuid() != 0 {
		if base = os.Getenv("XDG_RUNTIME_DIR"); base == "" || len(base) > 24 {
			base = "/tmp"
		}
	}
	return filepath.Join(base, "sandgate-"+hash(abs)), nil
}

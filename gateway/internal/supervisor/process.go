package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/wire"
)

// What a launch's private directory has, beside go-plugin's own directory for the socket.
const (
	workDir  = "w" // the process's working directory
	filesDir = "f" // a script's files
)

// remote is the extension at the other end of the connection.
type remote interface {
	Describe(ctx context.Context) (*extension.Manifest, error)
	Configure(ctx context.Context, config json.RawMessage, contracts []extension.Contract, gatewayVersion string) ([]fault.Diagnostic, error)
	Call(ctx context.Context, call *extension.Call) (*extension.Answer, error)
	Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error)
	Health(ctx context.Context) (ready bool, reason string, err error)
	Drain(ctx context.Context, deadline time.Duration) error
}

// process is one process of an extension that has answered an authenticated call.
type process struct {
	remote
	conn     grpc.ClientConnInterface
	name     string
	pid      int
	started  time.Time
	parts    []Part
	manifest *extension.Manifest
	dead     context.Context // ends at the moment at which the process does
	done     <-chan struct{} // closed when exit can be asked for
	exit     func() *Exit
	lines    func() []string           // last lines of standard error so far
	stop     func(time.Duration) error // see child.stop
	busy     sync.WaitGroup            // the calls that it serves; see Handle.enter
	discard  func()                    // gives back what the process had; after its end
	why      atomic.Pointer[string]    // why it is ended, where that is not its own doing
}

// launch starts a process and returns when it has proved itself and said what it is. It takes the program over. On
// error nothing is left.
func (s *Supervisor) launch(ctx context.Context, spec Spec, prog *program, flying func() []Flight) (_ *process, err error) {
	if spec.Attach != "" {
		return s.attach(ctx, spec)
	}
	l := &launching{s: s, spec: spec, prog: prog, flying: flying}
	defer func() {
		if err != nil {
			l.discard()
		}
	}()
	if err := l.prepare(); err != nil {
		return nil, err
	}
	return l.connect(ctx)
}

// launching is a launch in progress, and afterwards what has to be given back.
type launching struct {
	s      *Supervisor
	spec   Spec
	prog   *program
	flying func() []Flight // the calls in flight, for the report of an exit
	dir    string
	child  *child
	client *goplugin.Client

	mu       sync.Mutex
	conn     *grpc.ClientConn // go-plugin's; it loses it in some failures
	stranger error            // who listened instead
}

// prepare makes what the process needs, up to the go-plugin client.
func (l *launching) prepare() (err error) {
	spec := l.spec
	cred, err := spec.credential()
	if err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp(l.s.cfg.Dir, launchPrefix); err != nil {
		return fmt.Errorf("extension %q: make its directory: %w", spec.Name, err)
	}
	work := filepath.Join(l.dir, workDir)
	if err := os.Mkdir(work, 0o700); err != nil {
		return fmt.Errorf("extension %q: make its working directory: %w", spec.Name, err)
	}
	if err := l.prog.lay(filepath.Join(l.dir, filesDir)); err != nil {
		return spec.precondition("%v", err)
	}
	if cred != nil {
		for _, dir := range []string{l.dir, work} {
			if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
				return fmt.Errorf("extension %q: give it its directory: %w", spec.Name, err)
			}
		}
	}
	launch, tlsConfig, err := wire.NewLaunch()
	if err != nil {
		return fmt.Errorf("extension %q: %w", spec.Name, err)
	}
	log := l.s.cfg.Logger.With("extension", spec.Name)
	out := newOutput(log, l.s.book(spec.Name), l.s.cfg.Now)
	l.child = newChild(spec, l.prog, launch, l.dir, out, l.flying)
	l.child.cred = cred
	if l.child.keep, err = spec.capabilities(); err != nil {
		return err
	}
	if spec.Confined() {
		if err := spec.makeWritable(cred); err != nil {
			return err
		}
		if l.child.rules, err = newRuleset(spec, l.prog, l.dir); err != nil {
			return err
		}
	}
	switch group := filepath.Base(l.dir); {
	case spec.Limits.cgroup():
		if spec.Privileged {
			group = stays + spec.Name
		}
		if l.child.group, err = l.s.groups.make(group, spec.Limits); err != nil {
			return spec.precondition("%v", err)
		}
	case !spec.Privileged: // what a driver's program starts outlives it
		l.child.group = l.s.groups.contain(group)
	}
	l.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  wire.Handshake(),
		VersionedPlugins: wire.Plugins(nil),
		RunnerFunc:       l.runner,
		TLSConfig:        tlsConfig,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		SkipHostEnv:      true,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: l.dir},
		StartTimeout:     l.s.cfg.Timing.Start,
		Logger:           hclog.NewNullLogger(), // what it would say, our errors and events say
		SyncStdout:       &lineWriter{out: out, stream: "stdout"},
		SyncStderr:       &lineWriter{out: out, stream: "stderr"},
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(extension.MaxAnswer), grpc.MaxCallSendMsgSize(wire.MaxRequest)),
			grpc.WithChainStreamInterceptor(l.capture),
			grpc.WithContextDialer(l.connectSocket),
		},
	})
	return nil
}

// runner is called by go-plugin with the environment that it wants the process to find.
func (l *launching) runner(_ hclog.Logger, cmd *exec.Cmd, socketDir string) (runner.Runner, error) {
	if c := l.child.cred; c != nil {
		if err := os.Chown(socketDir, int(c.Uid), int(c.Gid)); err != nil {
			return nil, fmt.Errorf("give it its socket directory: %w", err)
		}
	}
	l.child.env = cmd.Env
	return l.child, nil
}

// capture notes the connection that go-plugin dials: where it fails half way it forgets to close it. Its first use
// is a stream of go-plugin's own.
func (l *launching) capture(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l.mu.Lock()
	l.conn = cc
	l.mu.Unlock()
	return next(ctx, desc, cc, method, opts...)
}

// connect starts the process and talks to it until it has described itself.
func (l *launching) connect(ctx context.Context) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, l.s.cfg.Timing.Start)
	defer cancel()
	// go-plugin's start takes no context; what ends it early is the end of the process.
	undo := context.AfterFunc(ctx, func() { l.child.signal(sigKill) })
	defer undo()
	conn, err := l.dial()
	if err != nil {
		return nil, l.explain(ctx, "start", err)
	}
	ctx, cancel = until(ctx, l.child.dead)
	defer cancel()
	if err := authenticate(ctx, conn); err != nil {
		return nil, l.explain(ctx, "answer a first, authenticated call", err)
	}
	p := &process{remote: l.s.cfg.dial(conn), conn: conn, name: l.spec.Name, pid: l.child.pid, started: l.child.started,
		parts: l.prog.parts, dead: l.child.dead, done: l.child.done, lines: l.child.out.last, exit: l.child.ending,
		stop: l.child.stop, discard: l.discard}
	if p.manifest, err = p.Describe(ctx); err != nil {
		return nil, l.explain(ctx, "describe itself", err)
	}
	return p, nil
}

// dial runs go-plugin's handshake and returns the connection. That it succeeds says nothing about TLS.
func (l *launching) dial() (grpc.ClientConnInterface, error) {
	client, err := l.client.Client()
	if err != nil {
		return nil, err
	}
	return wire.Dispense(client)
}

// authenticate makes the call that shows who is at the other end.
func authenticate(ctx context.Context, conn grpc.ClientConnInterface) error {
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: wire.HealthService})
	if err != nil {
		return fault.FromStatus(err)
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("its health service says %s", answer.GetStatus())
	}
	return nil
}

// explain says why a launch came to nothing: what the process did counts for more than what go-plugin or gRPC saw.
func (l *launching) explain(ctx context.Context, step string, err error) error {
	settle(ctx, err)
	late := ctx.Err()
	if late == nil {
		l.child.ended(afterExit) // an end that is under way counts for more than what broke because of it
	}
	seen := l.child.dead.Err() != nil && !l.child.wasAsked()
	_ = l.child.stop(0)
	exit := l.child.ending()
	name := l.spec.Name
	l.mu.Lock()
	stranger := l.stranger
	l.mu.Unlock()
	switch {
	case exit == nil: // it was never started
		return l.spec.precondition("%v", err)
	case stranger != nil:
		return stranger
	case seen:
		return fault.New(fault.Unavailable, "extension %q exited before it was ready (%s): %s%s", name, step, exit, tail(exit.Stderr))
	case errors.Is(late, context.DeadlineExceeded):
		return fault.New(fault.DeadlineExceeded, "extension %q did not %s in time%s", name, step, tail(exit.Stderr))
	case late != nil:
		return fault.New(fault.Canceled, "start of extension %q was cancelled: %w", name, late)
	case strings.Contains(err.Error(), "tls:") || strings.Contains(err.Error(), "authentication handshake"):
		return fault.New(fault.Unauthenticated, "extension %q did not prove with its certificate that it is the program that was started; "+
			"does it use the pair from descriptor %d? (%v)", name, wire.LaunchFD, err)
	}
	return fault.New(fault.Unavailable, "extension %q did not %s: %s%s", name, step, firstLine(err), tail(exit.Stderr))
}

// discard gives back what a launch had. It is called once the process is gone, or was never started.
func (l *launching) discard() {
	if l.child != nil {
		if l.child.ID() != "" {
			_ = l.child.stop(0)
		} else {
			l.child.group.remove()
			l.child.rules.close()
			l.child.died()
		}
	}
	if l.client != nil {
		l.client.Kill() // bookkeeping: with the process gone it waits for nothing
	}
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	l.prog.close()
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// until returns a context that also ends when other does.
func until(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(other, cancel)
	return ctx, func() { stop(); cancel() }
}

// settle lets our own clock have its say where the other side's was a moment quicker: a deadline travels with a call,
// and may end it over there first.
func settle(ctx context.Context, err error) {
	const moment = 200 * time.Millisecond
	deadline, ok := ctx.Deadline()
	if ok && time.Until(deadline) < moment && (fault.Is(err, fault.DeadlineExceeded) || fault.Is(err, fault.Canceled)) {
		<-ctx.Done()
	}
}

// tail is the last of what a process printed, for the end of a message.
func tail(lines []string) string {
	const shown = 3
	if len(lines) == 0 {
		return "; it printed nothing to standard error"
	}
	return "; last stderr: " + strings.Join(lines[max(0, len(lines)-shown):], " ⏎ ")
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	return line
}

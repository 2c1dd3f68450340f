package plugin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/extension"
	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// lingering is how long Serve waits, once it was told to end, for handlers that are still at work.
const lingering = 5 * time.Second

// Serve is the whole main of an extension: it serves ext to the gateway that started the process, and returns when
// the gateway is done with it or is gone. Phases are the interfaces of this package that ext implements.
//
// Serve takes over the process. Standard output carries one line for the gateway and is then part of the log, as
// standard error is: print freely. Calls that are being served when the process is told to end get cancelled and
// have a few seconds to return; what main deferred runs after that.
//
// Run by hand with SANDGATE_ATTACH set to a file, under a debugger for example, the process serves a gateway that is
// started with --dev --attach NAME=FILE, until it is interrupted.
//
// An error means that nothing was served: the program was run by hand, or ext implements nothing. It has been
// printed to standard error already, so that a main may ignore it; one that wants an exit status can test it.
func Serve(ext any) error {
	if err := serve(ext); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return err
	}
	return nil
}

func serve(ext any) error {
	server, err := NewServer(ext)
	if err != nil && (os.Getenv(wire.CookieKey) == wire.CookieValue || os.Getenv(wire.EnvAttach) != "") {
		return err
	}
	return serveWith(server, nil)
}

// serveWith serves what a gateway started this process for; driver is nil but for a driver.
func serveWith(server extensionv1.ExtensionServer, driver driverv1.DriverServer) error {
	if os.Getenv(wire.CookieKey) != wire.CookieValue {
		if file := os.Getenv(wire.EnvAttach); file != "" {
			return serveAttached(server, driver, file)
		}
		return byHand(os.Args[0])
	}
	if err := divertStdout(); err != nil {
		return err
	}
	host, launch, err := openLaunch()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()

	p := &process{server: server, driver: driver, own: sync.OnceFunc(ownOutput(os.Stderr))}
	end, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	gone := make(chan struct{})
	go func() { // ends with the host, or when host is closed on return
		defer close(gone)
		_, _ = io.Copy(io.Discard, host)
	}()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.serve(launch)
	}()
	select {
	case <-served:
		if !p.started() {
			return errors.New("serve the extension: its gRPC server did not start; the reason is above")
		}
	case <-gone:
	case <-end.Done():
	}
	p.stop(served)
	return nil
}

// process is one extension process at work.
type process struct {
	server extensionv1.ExtensionServer
	driver driverv1.DriverServer
	own    func() // takes the output back from go-plugin

	mu      sync.Mutex
	grpc    *grpc.Server
	stopped bool
	calls   sync.WaitGroup
}

// serve blocks until the gRPC server has stopped.
func (p *process) serve(launch *wire.Launch) {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  wire.Handshake(),
		VersionedPlugins: wire.Plugins(p.server, p.drivers()...),
		TLSProvider:      func() (*tls.Config, error) { return launch.ServerTLS() },
		GRPCServer:       p.newGRPC,
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr, JSONFormat: true}),
	})
}

func (p *process) drivers() []driverv1.DriverServer {
	if p.driver == nil {
		return nil
	}
	return []driverv1.DriverServer{p.driver}
}

// newGRPC makes the gRPC server, with the limits of the contract and a count of the calls at work.
func (p *process) newGRPC(opts []grpc.ServerOption) *grpc.Server {
	scrubEnvironment()
	opts = append(opts,
		grpc.MaxRecvMsgSize(wire.MaxRequest),
		grpc.MaxSendMsgSize(extension.MaxAnswer),
		grpc.ChainUnaryInterceptor(p.unary),
		grpc.ChainStreamInterceptor(p.stream),
	)
	s := grpc.NewServer(opts...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grpc = s
	if p.stopped {
		s.Stop()
	}
	return s
}

// begin counts a call of the contract's service; go-plugin's own streams live as long as the connection.
func (p *process) begin(method string) bool {
	if !strings.HasPrefix(method, "/"+extensionv1.Extension_ServiceDesc.ServiceName+"/") && !strings.HasPrefix(method, "/"+driverv1.Driver_ServiceDesc.ServiceName+"/") {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false // its context is being cancelled; nobody waits for it
	}
	p.calls.Add(1)
	return true
}

func (p *process) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	p.own()
	if p.begin(info.FullMethod) {
		defer p.calls.Done()
	}
	return next(ctx, req)
}

func (p *process) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if p.begin(info.FullMethod) {
		defer p.calls.Done()
	}
	return next(srv, ss)
}

func (p *process) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.grpc != nil
}

// stop cancels what is being served and waits, within limits, for handlers and server.
func (p *process) stop(served <-chan struct{}) {
	p.mu.Lock()
	p.stopped = true
	s := p.grpc
	p.mu.Unlock()
	idle := make(chan struct{})
	go func() { // a handler that never returns ends with the process, which is about to end
		defer close(idle)
		if s != nil {
			s.Stop()
			<-served
		}
		p.calls.Wait()
	}()
	limit := time.NewTimer(lingering)
	defer limit.Stop()
	select {
	case <-idle:
	case <-limit.C:
	}
}

// openLaunch reads what the gateway handed over, and returns the pipe that ends when the gateway does.
func openLaunch() (*os.File, *wire.Launch, error) {
	if err := unix.SetNonblock(wire.LaunchFD, true); err != nil { // so that Close wakes a reader
		return nil, nil, fmt.Errorf("open descriptor %d, where the gateway's launch should be: %w", wire.LaunchFD, err)
	}
	unix.CloseOnExec(wire.LaunchFD)
	host := os.NewFile(wire.LaunchFD, "launch")
	launch, err := wire.ReadLaunch(host)
	if err != nil {
		_ = host.Close()
		return nil, nil, err
	}
	return host, launch, nil
}

// divertStdout keeps the real standard output for the handshake and lets descriptor 1 go where standard error goes,
// so that neither this program nor a child of it can print into the handshake.
func divertStdout() error {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return fmt.Errorf("duplicate standard output: %w", err)
	}
	if err := unix.Dup2(2, 1); err != nil {
		return fmt.Errorf("divert standard output to standard error: %w", err)
	}
	os.Stdout = os.NewFile(uintptr(fd), "handshake")
	return nil
}

// ownOutput lets what is printed go to descriptor 2 again, from the first call on: go-plugin puts a stream of its own
// in its place, in which the last words of a process that exits are lost.
func ownOutput(stderr *os.File) func() {
	return func() { os.Stdout, os.Stderr = stderr, stderr }
}

// scrubEnvironment removes what was meant for this process alone, so that a program that it starts, perhaps an
// extension itself, does not take it for its own. It runs when go-plugin has read the last of it.
func scrubEnvironment() {
	for _, name := range wire.LaunchVariables() {
		_ = os.Unsetenv(name)
	}
}

func byHand(program string) error {
	name := filepath.Base(program)
	return fmt.Errorf(`%s is a Sandgate extension. It is started by a gateway, not by hand.
Name it in the gateway's configuration:

  extension %q {
    command  = "/absolute/path/to/%s"
    checksum = "sha256:…"
  }

or check it against the contract with: sandgate extension verify %s
or run it by hand, with %s set to a file, for a gateway that is to attach to it`, name, name, name, program, wire.EnvAttach)
}

package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/wire"
)

// launch says how a process is started, where that is not as a gateway does it.
type launch struct {
	byHand   bool   // without anything of a gateway
	versions string // "": those that a gateway sends
	slow     bool   // the launch comes in two pieces, with a member that nobody knows
}

// process is one process of the program.
type process struct {
	cmd      *exec.Cmd
	dir      string
	launch   *wire.Launch
	tls      *tls.Config
	lifeline *os.File
	out, err *buffer
	done     chan struct{} // closed when it has ended and its output is read
	conn     *grpc.ClientConn
}

// start starts the program, and does not wait for it to say anything.
func start(p Program, how launch) (_ *process, err error) {
	x := &process{out: newBuffer(), err: newBuffer(), done: make(chan struct{})}
	if x.dir, err = os.MkdirTemp("", "sgv"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(x.dir)
		}
	}()
	if x.launch, x.tls, err = wire.NewLaunch(); err != nil {
		return nil, err
	}
	if err := x.command(p, how); err != nil {
		return nil, err
	}
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	x.lifeline = pipeW
	if how.byHand {
		x.cmd.ExtraFiles = nil
	} else {
		x.cmd.ExtraFiles = append([]*os.File{pipeR}, x.cmd.ExtraFiles...)
	}
	err = x.cmd.Start()
	for _, f := range append(x.cmd.ExtraFiles, pipeR) {
		_ = f.Close()
	}
	if err != nil {
		_ = pipeW.Close()
		return nil, fault.New(fault.FailedPrecondition, "start %s: %w", p.Command, err)
	}
	go func() {
		defer close(x.done)
		_ = x.cmd.Wait() // cmd.ProcessState says how
		x.out.close()
	}()
	return x, x.hand(how)
}

// command prepares the process as a gateway does: an environment of its own, a directory of its own, a group of its own.
func (x *process) command(p Program, how launch) error {
	path, err := filepath.Abs(p.Command)
	if err != nil {
		return err
	}
	work := filepath.Join(x.dir, "w")
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	x.cmd = &exec.Cmd{Path: path, Args: []string{path}, Dir: work, Stdout: x.out, Stderr: x.err,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, WaitDelay: time.Second}
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		x.cmd.Env = append(x.cmd.Env, name+"="+p.Env[name])
	}
	if !how.byHand {
		versions := how.versions
		if versions == "" {
			versions = fmt.Sprint(wire.Protocol)
		}
		x.cmd.Env = append(x.cmd.Env, wire.CookieKey+"="+wire.CookieValue, "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000",
			"PLUGIN_PROTOCOL_VERSIONS="+versions, "PLUGIN_UNIX_SOCKET_DIR="+x.dir)
	}
	if p.Interpreter != "" {
		if err := x.script(p, path, how); err != nil {
			return err
		}
	}
	x.cmd.Args = append(x.cmd.Args, p.Args...)
	return nil
}

// script lets the interpreter read the script from a descriptor, and lays its files out, as a gateway does.
func (x *process) script(p Program, path string, how launch) error {
	x.cmd.Path = p.Interpreter
	x.cmd.Args = []string{p.Interpreter, fmt.Sprintf("/proc/self/fd/%d", wire.LaunchFD+1)}
	if how.byHand {
		x.cmd.Args[1] = path
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fault.New(fault.NotFound, "open the script: %w", err)
	}
	x.cmd.ExtraFiles = []*os.File{f}
	if len(p.Files) == 0 {
		return nil
	}
	dir := filepath.Join(x.dir, "f")
	x.cmd.Env = append(x.cmd.Env, wire.EnvProgramDir+"="+dir)
	for _, file := range p.Files {
		from, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return fault.New(fault.NotFound, "read a file of the script: %w", err)
		}
		name := filepath.Base(from)
		if rel, err := filepath.Rel(filepath.Dir(path), from); err == nil && filepath.IsLocal(rel) {
			name = rel
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o444); err != nil {
			return err
		}
	}
	return nil
}

// hand writes the launch.
func (x *process) hand(how launch) error {
	var line bytes.Buffer
	if err := x.launch.Write(&line); err != nil {
		return err
	}
	text := line.Bytes()
	if how.byHand {
		return nil
	}
	if how.slow {
		text = append([]byte(`{"of_a_later_version":{"a":[1]},`), text[1:]...)
		if _, err := x.lifeline.Write(text[:100]); err != nil {
			return nil // it has ended; whoever waits for it sees that
		}
		x.drained(10 * time.Second)
		text = text[100:]
	}
	_, _ = x.lifeline.Write(text)
	return nil
}

// drained waits until the program has read all that stands in the launch pipe.
func (x *process) drained(within time.Duration) {
	raw, err := x.lifeline.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(within); time.Now().Before(limit) && !x.ended(0); <-tick.C {
		left := 0
		_ = raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) // FIONREAD
		if err != nil || left == 0 {
			return
		}
	}
}

// handshake waits for the first line that the process prints, and returns it with its end.
func (x *process) handshake(within time.Duration) (string, error) {
	line, ok := x.out.line(within)
	if ok {
		return line, nil
	}
	if x.ended(0) {
		return "", fmt.Errorf("%s before it printed a handshake%s", x.ending(), x.tail())
	}
	return "", fmt.Errorf("it printed no line to standard output within %s; what it printed so far is %q%s", within, line, x.tail())
}

// connect dials the socket of a handshake, and proves that the program answers with its certificate.
func (x *process) connect(ctx context.Context, socket string, within time.Duration) error {
	conn, err := dial(socket, x.tls)
	if err != nil {
		return err
	}
	x.conn = conn
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	status, err := serving(ctx, conn)
	if err != nil {
		return x.why(fmt.Errorf("the first call, of its health, failed: %w", err))
	}
	if status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("its health service says %s of %q", status, wire.HealthService)
	}
	go x.stdio()
	return nil
}

// stdio reads what a program prints by way of go-plugin's own stream, which programs that use go-plugin do: it would
// stand still if nobody read it. It ends with the connection.
func (x *process) stdio() {
	stream, err := x.conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio")
	if err != nil {
		return
	}
	if err := errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.CloseSend()); err != nil {
		return
	}
	for {
		var chunk emptypb.Empty // its fields are unknown to it: a channel, and bytes
		if stream.RecvMsg(&chunk) != nil {
			return
		}
		for rest := []byte(chunk.ProtoReflect().GetUnknown()); len(rest) > 0; {
			number, kind, n := protowire.ConsumeTag(rest)
			if n < 0 {
				break
			}
			value := protowire.ConsumeFieldValue(number, kind, rest[n:])
			if value < 0 {
				break
			}
			if data, ok := protowire.ConsumeBytes(rest[n:]); number == 2 && kind == protowire.BytesType && ok >= 0 {
				_, _ = x.err.Write(data)
			}
			rest = rest[n+value:]
		}
	}
}

func dial(socket string, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(extension.MaxAnswer), grpc.MaxCallSendMsgSize(wire.MaxRequest)))
}

func serving(ctx context.Context, conn *grpc.ClientConn) (grpc_health_v1.HealthCheckResponse_ServingStatus, error) {
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: wire.HealthService})
	return answer.GetStatus(), err
}

// ended waits for the end of the process.
func (x *process) ended(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-x.done:
		return true
	case <-t.C:
		return false
	}
}

// why puts the end of the process into an error, if it has ended or is about to.
func (x *process) why(err error) error {
	if err == nil || !fault.Is(fault.FromStatus(err), fault.Unavailable) && !x.ended(0) {
		return err
	}
	if x.ended(200 * time.Millisecond) {
		return fmt.Errorf("%w; the program %s%s", err, x.ending(), x.tail())
	}
	return err
}

func (x *process) ending() string {
	ws, ok := x.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return "was ended by signal " + ws.Signal().String()
	}
	return fmt.Sprintf("ended with exit status %d", x.cmd.ProcessState.ExitCode())
}

// tail is the last of what the process printed to standard error.
func (x *process) tail() string {
	lines := strings.Split(strings.TrimSpace(x.err.String()), "\n")
	if lines[0] == "" {
		return "; it printed nothing to standard error"
	}
	return "; last of its standard error:\n" + strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// signal sends a signal to the process alone; kill ends its whole group.
func (x *process) signal(sig syscall.Signal) { _ = x.cmd.Process.Signal(sig) }

func (x *process) kill() {
	_ = unix.Kill(-x.cmd.Process.Pid, unix.SIGKILL)
	<-x.done
}

// close leaves nothing of the process.
func (x *process) close() error {
	x.kill()
	err := errors.Join(x.lifeline.Close(), os.RemoveAll(x.dir))
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if x.conn != nil {
		err = errors.Join(err, x.conn.Close())
	}
	return err
}

// buffer keeps the first of what a process prints, and lets somebody wait for its first line.
type buffer struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first chan struct{} // closed when there is a line, or will be none
	once  sync.Once
}

var _ io.Writer = (*buffer)(nil)

// maxOutput bounds what is kept of one stream.
const maxOutput = 4 << 20

func newBuffer() *buffer { return &buffer{first: make(chan struct{})} }

// Write takes what is printed; what is too much is lost.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p[:min(len(p), max(0, maxOutput-b.text.Len()))])
	if bytes.IndexByte(p, '\n') >= 0 {
		b.close()
	}
	return len(p), nil
}

func (b *buffer) close() { b.once.Do(func() { close(b.first) }) }

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// line returns the first line with its end, or what there is of it.
func (b *buffer) line(within time.Duration) (string, bool) {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-b.first:
	case <-t.C:
	}
	line, _, ok := strings.Cut(b.String(), "\n")
	if ok {
		line += "\n"
	}
	return line, ok
}

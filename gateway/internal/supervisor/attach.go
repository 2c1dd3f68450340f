package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/wire"
)

// attachPatience is how long a process may take to be there, and to be there again after its end: a person starts it.
const attachPatience = 5 * time.Minute

// attached is a process that somebody else has started. It is never ended by us, and while it stands at a breakpoint
// it is not taken for one that hangs.
type attached struct {
	remote
	pid     int
	started time.Time
	digest  string
	conn    *grpc.ClientConn
	dead    context.Context
	over    context.CancelFunc
}

// Health says that all is well: a process under a debugger answers when it is let.
func (a *attached) Health(context.Context) (bool, string, error) { return true, "", nil }

// attach waits for the file of a process that was started by hand, and speaks to that.
func (s *Supervisor) attach(ctx context.Context, spec Spec) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, attachPatience)
	defer cancel()
	told := false
	for {
		p, err := s.tryAttach(ctx, spec)
		if err == nil {
			return p, nil
		}
		if !told {
			s.cfg.Logger.Info("waiting for the process to attach to: start it with "+wire.EnvAttach+"="+spec.Attach, "extension", spec.Name, "why", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "extension %q: there is nothing to attach to (%w): start its program with %s=%s", spec.Name, err, wire.EnvAttach, spec.Attach)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *Supervisor) tryAttach(ctx context.Context, spec Spec) (_ *process, err error) {
	said, err := readAttachment(spec.Attach)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := said.ClientTLS()
	if err != nil {
		return nil, err
	}
	gone, err := watchPID(said.PID)
	if err != nil {
		return nil, err
	}
	a := &attached{pid: said.PID, started: time.Now(), digest: digestOf(said.PID)}
	a.dead, a.over = context.WithCancel(context.Background())
	go func() { gone(a.dead); a.over() }() // ends with the process, or when it is let go
	defer func() {
		if err != nil {
			a.letGo()
		}
	}()
	a.conn, err = grpc.NewClient("passthrough:///attached", grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialPeer(ctx, spec.Name, said.Socket, uint32(os.Geteuid()), said.PID)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(extension.MaxAnswer), grpc.MaxCallSendMsgSize(wire.MaxRequest)))
	if err != nil {
		return nil, err
	}
	if err := authenticate(ctx, a.conn); err != nil {
		return nil, err
	}
	a.remote = s.cfg.dial(a.conn)
	p := &process{remote: a, conn: a.conn, name: spec.Name, pid: a.pid, started: a.started, dead: a.dead, done: a.dead.Done(), exit: a.exit,
		parts: []Part{{Role: "program", Path: fmt.Sprintf("/proc/%d/exe", a.pid), Digest: a.digest}},
		lines: func() []string { return nil }, stop: func(time.Duration) error { a.letGo(); return nil }, discard: a.letGo}
	p.manifest, err = a.Describe(ctx)
	return p, err
}

// letGo leaves the process to whoever has started it.
func (a *attached) letGo() {
	a.over()
	if a.conn != nil {
		_ = a.conn.Close()
	}
}

func (a *attached) exit() *Exit {
	return &Exit{PID: a.pid, Code: -1, Uptime: time.Since(a.started), Digest: a.digest}
}

// readAttachment reads a file that only its owner, and no other than the gateway's user, may have written.
func readAttachment(path string) (*wire.Attachment, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return nil, fault.New(fault.Denied, "%s has to belong to the gateway's user, and to be closed to others (chmod 600)", path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	return wire.ReadAttachment(raw)
}

// watchPID returns a function that returns when the process has ended, or the context.
func watchPID(pid int) (func(context.Context), error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d, which has written the file: %w", pid, err)
	}
	return func(ctx context.Context) {
		defer func() { _ = unix.Close(fd) }()
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}, nil
}

// digestOf returns the digest of what a process runs, or nothing where that cannot be read.
func digestOf(pid int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil && !errors.Is(err, fs.ErrClosed) {
		return ""
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// connectSocket connects to the socket that the process listens on, and hangs up where the kernel says that the one who
// listens is another user, or no process of its tree. The certificate says the same of who has the key; this holds for
// one that has lost it, and for a program that goes on in the background, out of the reach of its end.
func (l *launching) connectSocket(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", l.child.socketPath())
	if err != nil {
		return nil, err
	}
	if err := l.checkPeer(conn.(*net.UnixConn)); err != nil {
		_ = conn.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stranger = err
		return nil, err
	}
	return conn, nil
}

func (l *launching) checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, asked); err != nil {
		return fmt.Errorf("ask who listens on its socket: %w", err)
	}
	want := uint32(os.Geteuid())
	if l.child.cred != nil {
		want = l.child.cred.Uid
	}
	switch {
	case peer.Uid != want:
		return fault.New(fault.Unauthenticated, "extension %q: user %d listens on its socket, and it was started as user %d; "+
			"name the user in its block instead of changing to it", l.spec.Name, peer.Uid, want)
	case !descends(int(peer.Pid), l.child.pid):
		return fault.New(fault.Unauthenticated, "extension %q: process %d listens on its socket, which is neither the process that was started, %d, "+
			"nor one of its children; an extension stays in the foreground", l.spec.Name, peer.Pid, l.child.pid)
	}
	return nil
}

// descends reports whether a process is the other one, or a child of it, however far down.
func descends(pid, of int) bool {
	for range 64 { // a tree that changes meanwhile is not followed for ever
		if pid == of {
			return true
		}
		if pid <= 1 {
			return false
		}
		pid = parent(pid)
	}
	return false
}

// parent returns the parent of a process, 0 where it is gone (proc_pid_stat(5)).
func parent(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // a name may have anything in it
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return ppid
}

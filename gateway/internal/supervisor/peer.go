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
	user := uint32(os.Geteuid())
	if l.child.cred != nil {
		user = l.child.cred.Uid
	}
	conn, err := dialPeer(ctx, l.spec.Name, l.child.socketPath(), user, l.child.pid)
	if fault.Is(err, fault.Unauthenticated) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stranger = err
	}
	return conn, err
}

// dialPeer connects to a socket where that process, or a child of it, listens as that user.
func dialPeer(ctx context.Context, name, socket string, user uint32, pid int) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn.(*net.UnixConn), name, user, pid); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func checkPeer(conn *net.UnixConn, name string, user uint32, pid int) error {
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
	switch {
	case peer.Uid != user:
		return fault.New(fault.Unauthenticated, "extension %q: user %d listens on its socket, and it was started as user %d; "+
			"name the user in its block instead of changing to it", name, peer.Uid, user)
	case !descends(int(peer.Pid), pid):
		return fault.New(fault.Unauthenticated, "extension %q: process %d listens on its socket, which is neither the process that was started, %d, "+
			"nor one of its children; an extension stays in the foreground", name, peer.Pid, pid)
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

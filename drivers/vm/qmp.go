package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sandgate/sandgate/shared/fault"
)

// monitor is a connection to a machine's QEMU, over its machine protocol (QMP). QEMU serves one at a time.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

// reply is any message of QEMU: the answer to a command, or an event, which are of no use here: that a machine has ended
// shows otherwise, also to who was not there.
type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// dialIn connects to a socket in a directory, whose path may be longer than the name of a socket.
func dialIn(ctx context.Context, dir, name string) (net.Conn, error) {
	at, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), name))
}

// listenIn makes a socket in a directory for a program that is about to be started.
func listenIn(dir, name string) (*os.File, error) {
	at, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}

// openMonitor connects to the QEMU of the machine in a directory, and returns when it takes commands.
func openMonitor(ctx context.Context, dir string) (*monitor, error) {
	conn, err := dialIn(ctx, dir, qmpSocket)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, in: json.NewDecoder(conn)}
	var greeting struct{ QMP json.RawMessage }
	err = m.within(ctx, func() error { return m.in.Decode(&greeting) })
	if err == nil {
		err = m.execute(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

func (m *monitor) close() { _ = m.conn.Close() }

// within does something with the connection, no longer than until ctx ends.
func (m *monitor) within(ctx context.Context, fn func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := fn()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// execute has QEMU do something, and reads its answer into result, if there is one.
func (m *monitor) execute(ctx context.Context, command string, arguments, result any) error {
	order := map[string]any{"execute": command}
	if arguments != nil {
		order["arguments"] = arguments
	}
	var r reply
	err := m.within(ctx, func() error {
		if err := json.NewEncoder(m.conn).Encode(order); err != nil {
			return err
		}
		for r.Return == nil && r.Error == nil {
			if err := m.in.Decode(&r); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", command, err)
	case r.Error != nil:
		return fault.New(fault.Internal, "%s: QEMU says %q", command, r.Error.Desc)
	case result != nil:
		return json.Unmarshal(r.Return, result)
	}
	return nil
}

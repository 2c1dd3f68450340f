package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// proc names one process: a pid is given again, but not with the same start time.
type proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

func procOf(pid int) proc { return proc{PID: pid, Start: startTime(pid)} }

// startTime returns when a process was started (proc_pid_stat(5), field 22), or 0 when there is none.
func startTime(pid int) uint64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is the name in parentheses, which may hold anything, parentheses too.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return start
}

// held is a process by its descriptor, which never comes to mean another one.
type held struct {
	file *os.File
	conn syscall.RawConn
}

// hold returns the process, or nil when it has ended.
func (p proc) hold() (*held, error) {
	if p.PID <= 0 || p.Start == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil // there is none, or the pid is now a thread's
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	h := &held{file: f, conn: conn}
	if startTime(p.PID) != p.Start || h.ended() {
		return nil, h.close()
	}
	return h, nil
}

func (h *held) close() error { return h.file.Close() }

func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// ended reports whether all threads of the process have ended, and all processes of its pid namespace if it was the
// first of one.
func (h *held) ended() bool {
	over := false
	_ = h.conn.Control(func(fd uintptr) { over = readable(fd) }) // it is open
	return over
}

// wait returns when the process has ended, or with an error when ctx has.
func (h *held) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := h.conn.Read(readable)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// signal sends a signal; a process that has ended needs none.
func (h *held) signal(sig unix.Signal) error {
	var err error
	_ = h.conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }) // it is open
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// finish ends a process: SIGTERM, and after the grace, or at once without one, SIGKILL. It returns when the process
// is gone.
func (p proc) finish(ctx context.Context, grace time.Duration) error {
	h, err := p.hold()
	if h == nil || err != nil {
		return err
	}
	defer func() { _ = h.close() }()
	if grace > 0 {
		if err := h.signal(unix.SIGTERM); err != nil {
			return fmt.Errorf("end process %d: %w", p.PID, err)
		}
		limited, cancel := context.WithTimeout(ctx, grace)
		err := h.wait(limited)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		// The deadline is used up; the next wait is a new one.
		if err := h.file.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	if err := h.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end process %d: %w", p.PID, err)
	}
	return h.wait(ctx)
}

// endStrays ends what still runs of a sandbox whose directory somebody else has removed. Its shim ends by itself, but
// not in the same moment, and one that is starting may bring about another process meanwhile: so it looks until there
// is none.
func (d *Driver) endStrays(ctx context.Context, id, operation string) error {
	for {
		shims, err := d.marked("shim", id, operation)
		if err != nil {
			return err
		}
		inits, err := d.marked("init", id, operation)
		if err != nil || len(shims)+len(inits) == 0 {
			return err
		}
		for _, p := range shims {
			if err := p.finish(ctx, d.cfg.StopTimeout); err != nil {
				return err
			}
		}
		for _, p := range inits {
			if err := p.finish(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// marked finds the processes of a sandbox by the marks among their arguments.
func (d *Driver) marked(role, id, operation string) ([]proc, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []proc
	marks := "\x00" + strings.Join([]string{role, id, operation}, "\x00") + "\x00"
	for _, path := range lines {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		p := procOf(pid) // before its arguments: they are this process's or a later one's, which is then not held
		raw, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(raw), d.cfg.Shim[0]+"\x00") || !strings.HasSuffix(string(raw), marks) {
			continue // it has ended meanwhile, or is none of the sandbox
		}
		out = append(out, p)
	}
	return out, nil
}

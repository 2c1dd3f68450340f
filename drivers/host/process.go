package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process: a pid is given again, but not with the same start time.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// ProcessOf names the process that has the pid now.
func ProcessOf(pid int) Process { return Process{PID: pid, Start: startTime(pid)} }

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

// Held is a process by its descriptor, which never comes to mean another one.
type Held struct {
	file *os.File
	conn syscall.RawConn
}

// Hold returns the process, or nil when it has ended.
func (p Process) Hold() (*Held, error) {
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
	h := &Held{file: f, conn: conn}
	if startTime(p.PID) != p.Start || h.Ended() {
		return nil, h.Close()
	}
	return h, nil
}

// Close lets the process go.
func (h *Held) Close() error { return h.file.Close() }

func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Ended reports whether all threads of the process have ended, and all processes of its pid namespace if it was the
// first of one.
func (h *Held) Ended() bool {
	over := false
	_ = h.conn.Control(func(fd uintptr) { over = readable(fd) }) // it is open
	return over
}

// Wait returns when the process has ended, or with an error when ctx has.
func (h *Held) Wait(ctx context.Context) error {
	if err := h.file.SetReadDeadline(time.Time{}); err != nil { // an earlier wait may have used it up
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = h.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := h.conn.Read(readable)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Signal sends a signal; a process that has ended needs none.
func (h *Held) Signal(sig unix.Signal) error {
	var err error
	_ = h.conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }) // it is open
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Finish ends a process: SIGTERM, and after the grace, or at once without one, SIGKILL. It returns when the process
// is gone.
func (p Process) Finish(ctx context.Context, grace time.Duration) error {
	h, err := p.Hold()
	if h == nil || err != nil {
		return err
	}
	defer func() { _ = h.Close() }()
	if grace > 0 {
		if err := h.Signal(unix.SIGTERM); err != nil {
			return fmt.Errorf("end process %d: %w", p.PID, err)
		}
		limited, cancel := context.WithTimeout(ctx, grace)
		err := h.Wait(limited)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end process %d: %w", p.PID, err)
	}
	return h.Wait(ctx)
}

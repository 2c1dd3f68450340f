package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// processes is the driver. A sandbox is a directory with a note, and while it runs the leader of a session.
type processes struct {
	dir      string
	instance string
	patience time.Duration

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
}

// note is what is known of a sandbox. It bears both marks, and is durable before anything is made.
type note struct {
	Identity  sandbox.Identity `json:"identity"`
	Operation string           `json:"operation"`
	Run       int              `json:"run"`
	PID       int              `json:"pid"`     // 0: not begun yet
	Started   string           `json:"started"` // when the process began: a pid alone may come to mean another
	Boot      string           `json:"boot"`    // of the host
	Stopped   bool             `json:"stopped"` // by Stop
}

func open(dir string, s *settings) (*processes, error) {
	patience, err := time.ParseDuration(s.StopTimeout)
	if err != nil || patience <= 0 {
		return nil, fault.New(fault.Invalid, "stop_timeout %q is no duration, for example \"5s\"", s.StopTimeout).
			With(fault.Diagnostic{Path: "stop_timeout", Summary: "is no duration"})
	}
	p := &processes{dir: filepath.Join(dir, "sandboxes"), patience: patience, changed: make(chan struct{})}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	p.instance = dir
	return p, nil
}

func (p *processes) place(id string) string { return filepath.Join(p.dir, id) }
func (p *processes) file(id string) string  { return filepath.Join(p.place(id), "note.json") }

func (p *processes) read(id string) (*note, error) {
	raw, err := os.ReadFile(p.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no sandbox %s", id)
	}
	if err != nil {
		return nil, err
	}
	n := &note{}
	return n, json.Unmarshal(raw, n)
}

// write replaces a note, durably, and tells whoever watches.
func (p *processes) write(n *note) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.place(n.Identity.ID), 0o700); err != nil {
		return err
	}
	path := p.file(n.Identity.ID)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	defer p.notify()
	return os.Rename(path+".new", path)
}

func (p *processes) notify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

func boot() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one every boot is the same
	return strings.TrimSpace(string(raw))
}

// born returns when a process was started, in clock ticks after boot (proc_pid_stat(5)), or "" when it has ended.
func born(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

func (n *note) alive() bool { return n.PID != 0 && n.Boot == boot() && born(n.PID) == n.Started }

func (p *processes) status(n *note) *driver.Status {
	s := &driver.Status{Identity: n.Identity, Operation: n.Operation, Run: n.Run,
		Objects: []driver.RealObject{{Kind: "Directory", Name: p.place(n.Identity.ID)}}}
	switch {
	case n.PID == 0:
		s.State = driver.Provisioning
	case n.alive():
		s.State = driver.Ready
	case n.Stopped:
		s.State = driver.Stopped
	case n.Boot != boot():
		s.State, s.Reason = driver.Lost, "HostRestarted"
	default:
		s.State, s.Reason = driver.Exited, "ProcessExited"
	}
	return s
}

// Create implements driver.Driver.
func (p *processes) Create(_ context.Context, r *driver.CreateRequest) error {
	n, err := p.read(r.Identity.ID)
	switch {
	case err == nil && n.Operation != r.Operation:
		return fault.New(fault.AlreadyExists, "sandbox %s was made by another operation", r.Identity.ID)
	case err == nil && n.PID != 0:
		return nil
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	}
	n = &note{Identity: r.Identity, Operation: r.Operation, Run: r.Run}
	if err := p.write(n); err != nil {
		return err
	}
	return p.begin(n, commandOf(r.Plan))
}

// Start implements driver.Driver.
func (p *processes) Start(_ context.Context, r *driver.StartRequest) error {
	n, err := p.read(r.Identity.ID)
	if err != nil {
		return err
	}
	if n.alive() {
		if n.Run == r.Run {
			return nil
		}
		return fault.New(fault.FailedPrecondition, "sandbox %s runs already, as run %d", r.Identity.ID, n.Run)
	}
	n.Run, n.PID, n.Stopped = r.Run, 0, false
	if err := p.write(n); err != nil {
		return err
	}
	return p.begin(n, commandOf(r.Plan))
}

// marks are what each process of a sandbox bears in its environment.
func (n *note) marks() []string {
	return []string{"SANDGATE_SANDBOX_ID=" + n.Identity.ID, "SANDGATE_OPERATION=" + n.Operation, "SANDGATE_RUN=" + strconv.Itoa(n.Run)}
}

// adopt finds the leader that was begun when this program died before it noted it.
func (n *note) adopt() {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // somebody else's, or ended
		}
		has := strings.Split(string(raw), "\x00")
		if slices.ContainsFunc(n.marks(), func(m string) bool { return !slices.Contains(has, m) }) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if leader, serr := unix.Getsid(pid); err == nil && serr == nil && leader == pid {
			n.PID, n.Started, n.Boot = pid, born(pid), boot()
			return
		}
	}
}

// begin runs the command as the leader of a session of its own.
func (p *processes) begin(n *note, c command) error {
	if n.adopt(); n.PID != 0 {
		return p.write(n)
	}
	if len(c.Command) == 0 {
		return fault.New(fault.Invalid, "command: it is empty")
	}
	out, err := os.OpenFile(filepath.Join(p.place(n.Identity.ID), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(c.Command[0], c.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.place(n.Identity.ID), out, out
	cmd.Env = append(c.environment(), n.marks()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fault.New(fault.FailedPrecondition, "run %s: %w", c.Command[0], err)
	}
	n.PID, n.Started, n.Boot = cmd.Process.Pid, born(cmd.Process.Pid), boot()
	go func() {
		_ = cmd.Wait() // how it ended is not kept
		p.notify()
	}()
	return p.write(n)
}

// Stop implements driver.Driver.
func (p *processes) Stop(ctx context.Context, id sandbox.Identity) error {
	n, err := p.read(id.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if n.alive() {
		n.Stopped = true // first: an end that is seen from here on was asked for
		if err := p.write(n); err != nil {
			return err
		}
	}
	return p.end(ctx, n)
}

// end ends the session of a sandbox: SIGTERM, and after a while SIGKILL. It returns when its leader is gone.
func (p *processes) end(ctx context.Context, n *note) error {
	patience := time.NewTimer(p.patience)
	defer patience.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for signal := unix.SIGTERM; n.alive(); {
		if err := unix.Kill(-n.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		select {
		case <-look.C:
		case <-patience.C:
			signal = unix.SIGKILL
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if n.PID != 0 && n.Boot == boot() {
		_ = unix.Kill(-n.PID, unix.SIGKILL) // what its leader has left of the session's first group
	}
	return nil
}

// Delete implements driver.Driver.
func (p *processes) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	n, err := p.read(r.Identity.ID)
	if fault.Is(err, fault.NotFound) || err == nil && n.Operation != r.Operation {
		return nil
	}
	if err != nil {
		return err
	}
	if n.PID == 0 {
		n.adopt()
	}
	if err := p.end(ctx, n); err != nil {
		return err
	}
	defer p.notify()
	return os.RemoveAll(p.place(r.Identity.ID))
}

// Close implements driver.Driver. Sandboxes go on.
func (p *processes) Close() error { return nil }

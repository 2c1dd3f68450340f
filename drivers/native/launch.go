package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// order is what a shim is told, through a pipe: it holds the environment and the token, which no file ever does.
type order struct {
	Dir     string        `json:"dir"`
	ID      string        `json:"id"`
	Run     int           `json:"run"`
	Root    string        `json:"root"`
	Process process       `json:"process"`
	Mounts  []mount       `json:"mounts,omitempty"`
	Hide    []string      `json:"hide"`
	Token   []byte        `json:"token,omitempty"`
	Bridge  string        `json:"bridge,omitempty"`
	Address string        `json:"address,omitempty"`
	Alias   string        `json:"alias"` // the marks, for the link
	Shim    []string      `json:"shim"`
	Grace   time.Duration `json:"grace"`
	Group   *group        `json:"group,omitempty"`
	User    bool          `json:"user"` // a user namespace is needed
}

// reply is what a shim answers once the command was executed, or why it was not.
type reply struct {
	OK    bool   `json:"ok"`
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// The descriptors that a shim inherits, besides the three of every process.
const (
	orderFD = 3
	replyFD = 4
	lockFD  = 5 // the sandbox's lock, taken by the driver: it passes on with the description, so there is no gap
)

// launch starts a shim and returns when the command was executed.
func (d *Driver) launch(ctx context.Context, m *meta, p, ws *plan.Plan, token []byte) error {
	proc := processOf(p)
	root, err := d.root(proc.Image)
	if err != nil {
		return err
	}
	dir := d.dir(m.Identity.ID)
	o := order{Dir: dir, ID: m.Identity.ID, Run: m.Run, Root: root, Process: proc, Mounts: mountsOf(p), Token: token,
		Hide: append([]string{d.cfg.Dir}, d.cfg.Hide...), Bridge: m.Bridge, Address: m.Address, Alias: marks(m.Identity.ID, m.Operation),
		Shim: d.cfg.Shim, Grace: d.cfg.StopTimeout, User: d.host.userNamespace, Group: d.host.groupFor(m.Identity.ID, proc.Limits)}
	if alive, err := locked(filepath.Join(dir, lockFile)); err != nil || alive {
		// An earlier attempt's shim: it is ended first, since what it was told is not known any more.
		if err := errors.Join(err, d.end(ctx, m, 0)); err != nil {
			return err
		}
	}
	return d.spawn(ctx, &o)
}

func (d *Driver) spawn(ctx context.Context, o *order) error {
	lock, err := takeLock(filepath.Join(o.Dir, lockFile))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return classify(err, "start the shim")
	}
	replyR, replyW, err := os.Pipe()
	if err != nil {
		return errors.Join(classify(err, "start the shim"), orderR.Close(), orderW.Close())
	}
	log, err := os.OpenFile(filepath.Join(o.Dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(classify(err, "open the log"), orderR.Close(), orderW.Close(), replyR.Close(), replyW.Close())
	}
	cmd := exec.Command(d.cfg.Shim[0], append(append([]string{}, d.cfg.Shim[1:]...), "shim")...)
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{orderR, replyW, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	err = errors.Join(err, orderR.Close(), replyW.Close(), log.Close(), lock.Close())
	if err != nil {
		return errors.Join(classify(err, "start the shim"), orderW.Close(), replyR.Close())
	}
	go func() { _ = cmd.Wait() }() // it reaps; the shim outlives the driver, and its lock says when it ends
	defer func() { _ = replyR.Close() }()
	raw, err := json.Marshal(o)
	if err == nil {
		_, err = orderW.Write(raw)
	}
	if err := errors.Join(err, orderW.Close()); err != nil {
		return classify(err, "tell the shim")
	}
	return await(ctx, replyR)
}

// takeLock takes the sandbox's lock for a shim that is about to be started.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, classify(err, "take the sandbox's lock")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Unavailable, "the sandbox is held by another shim: %w", err), f.Close())
	}
	return f, nil
}

// await reads the shim's answer, until it comes or ctx ends.
func await(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var a reply
	if err != nil || json.Unmarshal(raw, &a) != nil {
		return fault.New(fault.Internal, "the shim ended before it had started the command; its log may say why")
	}
	if !a.OK {
		return fault.New(fault.ParseCode(a.Code), "%s", a.Error)
	}
	return nil
}

// end ends the shim, and with it all processes of the sandbox, and waits until it is gone: SIGTERM, and after the
// grace SIGKILL, which a shim cannot refuse and its sandbox cannot outlive.
func (d *Driver) end(ctx context.Context, m *meta, grace time.Duration) error {
	dir := d.dir(m.Identity.ID)
	lock := filepath.Join(dir, lockFile)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	told := false
	for deadline := time.Now().Add(grace + 2*time.Second); ; {
		alive, err := locked(lock)
		if err != nil || !alive {
			return err
		}
		var b begun
		if err := readJSON(filepath.Join(dir, shimFile), &b); err == nil && b.PID > 0 && startTime(b.PID) == b.Start {
			switch {
			case grace == 0 || time.Now().After(deadline):
				err = unix.Kill(b.PID, unix.SIGKILL)
			case !told:
				told, err = true, unix.Kill(b.PID, unix.SIGTERM)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end the shim: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// startTime returns when a process was started, in clock ticks after boot (proc_pid_stat(5), field 22), or 0.
func startTime(pid int) uint64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	for i := len(raw) - 1; i >= 0; i-- {
		if raw[i] != ')' { // the name may hold anything, also a parenthesis
			continue
		}
		var skip string
		var start uint64
		fields := make([]any, 20)
		for j := range fields {
			fields[j] = &skip
		}
		fields[19] = &start
		if _, err := fmt.Sscan(string(raw[i+1:]), fields...); err != nil {
			return 0
		}
		return start
	}
	return 0
}

func marks(id, operation string) string { return "sandgate " + id + " " + operation }

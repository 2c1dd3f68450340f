package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What is in a sandbox's directory.
const (
	metaFile  = "meta.json"  // by the driver
	lockFile  = "lock"       // held by the shim, and by a first process that waits for its order
	shimFile  = "shim.json"  // by the shim, before it starts anything
	readyFile = "ready.json" // by the shim, when the command was executed
	exitFile  = "exit.json"  // by the shim, when the command has ended
	workDir   = "work"
	rootDir   = "root"
)

// Directories that are being made or removed. No id begins with a dot, so they are nobody's sandbox.
const (
	makingPrefix = ".new-"
	gonePrefix   = ".gone-"
)

func (d *Driver) sandboxes() string { return filepath.Join(d.cfg.Dir, "sandboxes") }

func (d *Driver) dir(id string) string { return filepath.Join(d.sandboxes(), id) }

func (d *Driver) file(id, name string) string { return filepath.Join(d.sandboxes(), id, name) }

// meta is what the driver knows of a sandbox: the marks, and what is to be found again. It holds no secret.
type meta struct {
	Identity  sandbox.Identity `json:"identity"`
	Operation string           `json:"operation"`
	Run       int              `json:"run"`
	Stopped   int              `json:"stopped,omitempty"` // the run that Stop ended
	BootID    string           `json:"boot_id"`
	Address   string           `json:"address,omitempty"`
	Bridge    string           `json:"bridge,omitempty"`
	Since     time.Time        `json:"since"`
}

// begun is what the shim writes of itself and of the sandbox's first process.
type begun struct {
	Run int `json:"run"`
	host.Process
	Init host.Process `json:"init,omitzero"`
}

// exited is what the shim writes when the command has ended.
type exited struct {
	Run    int       `json:"run"`
	Code   int       `json:"code"`
	Reason string    `json:"reason"`
	Text   string    `json:"text"`
	When   time.Time `json:"when"`
}

func (d *Driver) load(id string) (*meta, error) {
	if sandbox.CheckID("id", id) != nil {
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	m := &meta{}
	err := host.ReadJSON(d.file(id, metaFile), m)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) { // ENOTDIR: a file that somebody has put there
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return m, err
}

func (d *Driver) save(m *meta) error {
	return host.Classify(host.WriteJSON(d.file(m.Identity.ID, metaFile), m), "mark the sandbox's run")
}

// metas returns what is known of every sandbox.
func (d *Driver) metas() ([]*meta, error) {
	entries, err := os.ReadDir(d.sandboxes())
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var out []*meta
	for _, e := range entries {
		m, err := d.load(e.Name())
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return nil, err
		default:
			out = append(out, m)
		}
	}
	return out, nil
}

// has reads a file that the shim has written for the run of m, and reports whether there is one.
func has[T any](d *Driver, m *meta, name string, run func(T) int) (T, bool) {
	var v T
	err := host.ReadJSON(d.file(m.Identity.ID, name), &v)
	return v, err == nil && run(v) == m.Run
}

func runOf(b begun) int { return b.Run }

// alive reports whether anything of a sandbox runs: its shim, or what a shim that was killed has not taken along yet.
func (d *Driver) alive(m *meta) (bool, error) {
	held, err := host.Locked(d.file(m.Identity.ID, lockFile))
	if held || err != nil {
		return held, err
	}
	h, err := d.orphan(m)
	if h == nil || err != nil {
		return false, err
	}
	return true, h.Close()
}

// orphan returns what goes on of a sandbox whose lock is free: its first process, or a shim whose lock somebody removed.
func (d *Driver) orphan(m *meta) (*host.Held, error) {
	if boot, err := d.cfg.BootID(); err != nil || boot != m.BootID {
		return nil, err
	}
	var b begun
	if host.ReadJSON(d.file(m.Identity.ID, shimFile), &b) != nil {
		return nil, nil // there was no shim
	}
	if h, err := b.Hold(); h != nil || err != nil {
		return h, err
	}
	return b.Init.Hold()
}

// look returns what is known of a sandbox and what it is. One whose directory is being removed is known, and not found.
func (d *Driver) look(id string) (*meta, *driver.Status, error) {
	m, err := d.load(id)
	if err != nil {
		return nil, nil, err
	}
	st, err := d.status(m)
	return m, st, err
}

// status says what a sandbox is, from what its directory shows.
func (d *Driver) status(m *meta) (*driver.Status, error) {
	st := &driver.Status{Identity: m.Identity, Operation: m.Operation, Run: m.Run, Since: m.Since, State: driver.Provisioning,
		Objects: []driver.RealObject{{Kind: "directory", Name: d.dir(m.Identity.ID)}}}
	if m.Address != "" {
		st.Addresses = []string{strings.Split(m.Address, "/")[0]}
	}
	alive, err := d.alive(m)
	if err != nil {
		return nil, err
	}
	ready, was := has(d, m, readyFile, runOf)
	if alive {
		if was {
			st.State = driver.Ready
			st.Objects = append(st.Objects, d.objects(m, ready)...)
		}
		return st, nil
	}
	return st, d.ended(m, st, was)
}

func (d *Driver) objects(m *meta, ready begun) []driver.RealObject {
	out := []driver.RealObject{{Kind: "process", Name: fmt.Sprint(ready.PID)}}
	if m.Bridge != "" {
		out = append(out, driver.RealObject{Kind: "link", Name: linkName(m.Identity.ID)})
	}
	return out
}

// ended completes the status of a sandbox of which nothing runs.
func (d *Driver) ended(m *meta, st *driver.Status, wasReady bool) error {
	boot, err := d.cfg.BootID()
	if err != nil {
		return err
	}
	end, noted := has(d, m, exitFile, func(e exited) int { return e.Run })
	switch {
	case !noted && m.Stopped == m.Run:
		st.State = driver.Stopped
		return nil
	case !noted && boot != m.BootID:
		st.State, st.Reason, st.Message = driver.Lost, "HostRestarted", "the host was restarted"
		return nil
	case !noted && !wasReady:
		return nil // the start was cut short
	case !noted:
		if end, err = d.settle(m); err != nil {
			return err
		}
	}
	st.State, st.Reason, st.Message, st.ExitCode, st.Since = driver.Exited, end.Reason, end.Text, &end.Code, end.When
	if m.Stopped == m.Run {
		st.State = driver.Stopped
	}
	return nil
}

// settle does what a shim that was killed could not: it removes what the run had outside the directory and notes how
// it ended. While another call works on the sandbox, that is left to it. One that was ready and of which no shim is
// noted is being removed by somebody else: it is gone, and its shim ends it.
func (d *Driver) settle(m *meta) (exited, error) {
	e := exited{Run: m.Run, Code: 137, Reason: "ShimKilled", Text: "the process that held it was killed, and the sandbox with it", When: time.Now()}
	gone := fault.New(fault.NotFound, "there is no sandbox %q: somebody removes its directory", m.Identity.ID)
	if _, err := os.Lstat(d.file(m.Identity.ID, shimFile)); errors.Is(err, fs.ErrNotExist) {
		return e, gone
	}
	unlock, ok := d.ones.Try(m.Identity.ID)
	if !ok {
		return e, nil
	}
	defer unlock()
	if now, err := d.load(m.Identity.ID); err != nil || now.Run != m.Run {
		return e, nil // it went on while nobody held the lock
	}
	if err := d.release(m); err != nil {
		return e, err
	}
	err := host.WriteJSON(d.file(m.Identity.ID, exitFile), e)
	if errors.Is(err, fs.ErrNotExist) {
		return e, gone
	}
	return e, host.Classify(err, "note the end of the run")
}

// release removes what a run has outside of its directory. Nothing of the run is alive.
func (d *Driver) release(m *meta) error {
	return errors.Join(d.removeLink(m), d.host.groupOf(m.Identity.ID, m.Operation).remove())
}

// end ends the shim and everything of the sandbox, and returns when it is gone: SIGTERM, and after the grace SIGKILL,
// which a shim cannot refuse and its sandbox cannot outlive.
func (d *Driver) end(ctx context.Context, m *meta, grace time.Duration) error {
	if grace > 0 {
		grace += 10 * time.Second // the shim itself kills the command after the grace; a loaded host lets it wait
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var b begun
		if err := host.ReadJSON(d.file(m.Identity.ID, shimFile), &b); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := b.Finish(ctx, grace); err != nil {
			return err
		}
		if err := b.Init.Finish(ctx, 0); err != nil {
			return err
		}
		held, err := host.Locked(d.file(m.Identity.ID, lockFile))
		if err != nil || !held {
			return err
		}
		// A shim that was just started has not said yet who it is; nor has one that was killed told of a first process,
		// which ends by itself.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// sweep removes the directories that an interrupted Create or Delete has left.
func (d *Driver) sweep() error {
	entries, err := os.ReadDir(d.sandboxes())
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), makingPrefix) || strings.HasPrefix(e.Name(), gonePrefix) {
			err = errors.Join(err, host.RemoveTree(d.dir(e.Name())))
		}
	}
	return host.Classify(err, "remove what was left of a sandbox")
}

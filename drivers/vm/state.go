package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What is in a sandbox's directory, besides its log.
const (
	metaFile      = "meta.json"    // the marks
	lockFile      = "lock"         // held by QEMU
	machineFile   = "machine.json" // QEMU's pid, once it was heard of
	exitFile      = "exit.json"    // how the last run ended
	diskFile      = "disk"         // what the sandbox has changed of its image
	consoleFile   = "console"      // what the guest's kernel and its first process say
	qemuFile      = "qemu"         // what QEMU says
	qmpSocket     = "qmp"
	controlSocket = "control"
)

// eventsFile is what the guest has reported in a run. Each run has its own, so that none is taken for another's.
func eventsFile(run int) string { return "events." + strconv.Itoa(run) }

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
	Root      *image.Root      `json:"root"`              // what its disk lies over
	Address   string           `json:"address,omitempty"` // of the run
	Devices   []string         `json:"devices,omitempty"` // of the host, of the run
	TAP       string           `json:"tap,omitempty"`
	Since     time.Time        `json:"since"`
}

// begun is what is noted of a run whose QEMU was heard of, before its guest runs.
type begun struct {
	Run int `json:"run"`
	host.Process
	Backend string `json:"backend"`
	Accel   string `json:"accel"`
	Runs    bool   `json:"runs"` // its guest was let go
}

// exited is how a run ended.
type exited struct {
	Run    int       `json:"run"`
	Code   *int      `json:"code,omitempty"`
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
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
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

// begunOf returns what is noted of the run of m, if its QEMU was heard of.
func (d *Driver) begunOf(m *meta) (begun, bool) {
	var b begun
	err := host.ReadJSON(d.file(m.Identity.ID, machineFile), &b)
	return b, err == nil && b.Run == m.Run
}

// hold returns the QEMU of a machine, or nil where none runs. The lock alone does not say that all of it has ended: a
// process gives its files back one by one.
func (d *Driver) hold(m *meta) (*host.Held, error) {
	boot, err := d.cfg.BootID()
	if err != nil || boot != m.BootID {
		return nil, err
	}
	b, ok := d.begunOf(m)
	if !ok {
		return nil, nil
	}
	return b.Hold()
}

// alive reports whether anything of a machine runs.
func (d *Driver) alive(m *meta) (bool, error) {
	locked, err := host.Locked(d.file(m.Identity.ID, lockFile))
	if locked || err != nil {
		return locked, err
	}
	h, err := d.hold(m)
	if h == nil || err != nil {
		return false, err
	}
	return true, h.Close()
}

// look returns what is known of a sandbox and what it is.
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
	alive, err := d.alive(m)
	if err != nil {
		return nil, err
	}
	b, begun := d.begunOf(m)
	if !alive {
		return st, d.ended(m, st, begun && b.Runs)
	}
	if !begun {
		return st, nil
	}
	switch r := d.report(m); {
	case r.ready:
		st.State = driver.Ready
	case b.Runs:
		st.State = driver.Running
	}
	st.Objects = append(st.Objects, driver.RealObject{Kind: "process", Name: strconv.Itoa(b.PID)})
	if m.TAP == d.tapName(m.Identity.ID) { // not one of somebody else's
		st.Objects = append(st.Objects, driver.RealObject{Kind: "link", Name: m.TAP})
	}
	if m.Address != "" {
		st.Addresses = []string{m.Address}
	}
	return st, nil
}

// report is what a guest has said of a run.
type report struct {
	ready        bool
	exit, failed *guest.Event
}

// maxEvents is how much of a guest's report is read. One that is longer is no report of our first process.
const maxEvents = 64 << 10

func (d *Driver) report(m *meta) report {
	var r report
	f, err := os.Open(d.file(m.Identity.ID, eventsFile(m.Run)))
	if err != nil {
		return r
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxEvents))
	if err != nil {
		return r
	}
	var lines guest.Lines
	lines.Add(raw, func(line []byte) {
		e, err := guest.ParseEvent(line)
		if err != nil || e.Run != m.Run {
			return
		}
		switch e.Type {
		case guest.Ready:
			r.ready = true
		case guest.Failed:
			r.failed = &e
		case guest.Exit:
			r.exit = &e
		}
	})
	return r
}

// ended completes the status of a sandbox of which nothing runs.
func (d *Driver) ended(m *meta, st *driver.Status, begun bool) error {
	boot, err := d.cfg.BootID()
	if err != nil {
		return err
	}
	var end exited
	noted := host.ReadJSON(d.file(m.Identity.ID, exitFile), &end) == nil && end.Run == m.Run
	switch {
	case !noted && m.Stopped == m.Run && d.report(m).exit == nil:
		st.State = driver.Stopped
		return nil
	case !noted && boot != m.BootID && d.report(m).exit == nil:
		st.State, st.Reason, st.Message = driver.Lost, "HostRestarted", "the host was restarted"
		return nil
	case !noted && !begun && d.report(m) == report{}:
		return nil // the start was cut short
	case !noted:
		if end, err = d.settle(m); err != nil {
			return err
		}
	}
	st.State, st.Reason, st.Message, st.ExitCode, st.Since = driver.Exited, end.Reason, end.Text, end.Code, end.When
	if m.Stopped == m.Run {
		st.State = driver.Stopped
	}
	return nil
}

// settle notes how a run ended. While another call works on the sandbox, that is left to it.
func (d *Driver) settle(m *meta) (exited, error) {
	e := d.judgeEnd(m)
	unlock, ok := d.ones.Try(m.Identity.ID)
	if !ok {
		return e, nil
	}
	defer unlock()
	if now, err := d.load(m.Identity.ID); err != nil || now.Run != m.Run {
		return e, nil // it went on meanwhile
	}
	err := host.WriteJSON(d.file(m.Identity.ID, exitFile), e)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fault.New(fault.NotFound, "there is no sandbox %q: somebody removes its directory", m.Identity.ID)
	}
	return e, host.Classify(err, "note the end of the run")
}

// judgeEnd says how a run ended whose QEMU is gone: as the guest has reported, or else as its console shows.
func (d *Driver) judgeEnd(m *meta) exited {
	e := exited{Run: m.Run, When: time.Now()}
	r := d.report(m)
	switch {
	case r.exit != nil:
		e.Code, e.Reason, e.Text = &r.exit.Code, r.exit.Reason, r.exit.Message
	case r.failed != nil:
		e.Reason, e.Text = r.failed.Reason, r.failed.Message
	default:
		if said := d.panicked(m); said != "" {
			e.Reason, e.Text = "GuestPanicked", said
			break
		}
		code := 137
		e.Code, e.Reason, e.Text = &code, "MachineKilled", "QEMU ended, and its guest had not reported an end"
	}
	e.Reason = cmp.Or(e.Reason, "Exited")
	return e
}

var panicLine = regexp.MustCompile(`(?m)Kernel panic - not syncing: [^\r\n]*`)

// panicked returns what a kernel said that gave up, if the console's end shows it. It is the guest's word, and shown only.
func (d *Driver) panicked(m *meta) string {
	raw, err := tail(d.file(m.Identity.ID, consoleFile), 16<<10)
	if err != nil {
		return ""
	}
	found := panicLine.FindAll(raw, -1)
	if len(found) == 0 {
		return ""
	}
	return strings.Map(printable, string(found[len(found)-1]))
}

// tail reads the end of a file.
func tail(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r == 0xfffd {
		return -1
	}
	return r
}

// processes finds the QEMU of a sandbox by the marks among its arguments, also one that nobody was told of. Without an
// operation it is that of any.
func (d *Driver) processes(id, operation string) ([]host.Process, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	want := d.marks(id, operation)
	var out []host.Process
	for _, path := range lines {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		p := host.ProcessOf(pid) // before its arguments: they are this process's or a later one's, which is then not held
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		args := bytes.Split(raw, []byte{0})
		i := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "-name" })
		if i < 0 || i+1 == len(args) {
			continue
		}
		if name := string(args[i+1]); name == want || operation == "" && d.ours(name, id) {
			out = append(out, p)
		}
	}
	return out, nil
}

// endStrays ends what runs of a sandbox whose directory does not say so: somebody has removed it, or its QEMU was started
// by a gateway that did not live to note it.
func (d *Driver) endStrays(ctx context.Context, id, operation string) error {
	for {
		found, err := d.processes(id, operation)
		if err != nil || len(found) == 0 {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, p := range found {
			if err := p.Finish(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// sweep removes the directories that an interrupted Create or Delete has left.
func (d *Driver) sweep() error {
	entries, err := os.ReadDir(d.sandboxes())
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // nobody's call
	defer cancel()
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trialPrefix) {
			err = errors.Join(err, d.endStrays(ctx, e.Name(), trialOperation))
		}
		if strings.HasPrefix(e.Name(), makingPrefix) || strings.HasPrefix(e.Name(), gonePrefix) {
			err = errors.Join(err, host.RemoveTree(d.dir(e.Name())))
		}
	}
	return host.Classify(err, "remove what was left of a sandbox")
}

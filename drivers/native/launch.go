package native

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// order is what a shim is told, through a pipe: it holds the environment and the token, which no file ever does.
type order struct {
	Dir       string        `json:"dir"`
	ID        string        `json:"id"`
	Operation string        `json:"operation"`
	Run       int           `json:"run"`
	Root      string        `json:"root"`
	Process   process       `json:"process"`
	Mounts    []mount       `json:"mounts,omitempty"`
	Hide      []string      `json:"hide"`
	Token     []byte        `json:"token,omitempty"`
	Bridge    string        `json:"bridge,omitempty"`
	Address   string        `json:"address,omitempty"`
	Shim      []string      `json:"shim"`
	Grace     time.Duration `json:"grace"`
	Group     *group        `json:"group,omitempty"`
	User      bool          `json:"user"` // a user namespace is needed
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

// launch starts a shim in a directory where nothing runs, and returns when the command was executed.
func (d *Driver) launch(ctx context.Context, m *meta, r *driver.StartRequest) error {
	proc := processOf(r.Plan)
	root, err := d.root(proc.Image)
	if err != nil {
		return err
	}
	if err := bridgeOf(m); err != nil {
		return err
	}
	return d.spawn(ctx, &order{Dir: d.dir(m.Identity.ID), ID: m.Identity.ID, Run: m.Run, Root: root, Process: proc, Mounts: mountsOf(r.Plan),
		Token: r.Token, Hide: d.cfg.Hide, Bridge: m.Bridge, Address: m.Address, Operation: m.Operation, Shim: d.cfg.Shim,
		Grace: d.cfg.StopTimeout, User: d.host.userNamespace, Group: d.host.groupFor(m.Identity.ID, m.Operation, proc.Limits)})
}

func (d *Driver) spawn(ctx context.Context, o *order) error {
	lock, err := host.TakeLock(filepath.Join(o.Dir, lockFile))
	if err != nil {
		return err
	}
	orderW, replyR, err := d.execShim(o, lock)
	if err = errors.Join(err, lock.Close()); err != nil {
		return host.Classify(err, "start the shim")
	}
	defer func() { _ = replyR.Close() }()
	raw, err := json.Marshal(o)
	if err == nil {
		_, err = orderW.Write(raw)
	}
	// A shim that has ended already says why, if it can.
	if err = errors.Join(err, orderW.Close()); err != nil && !errors.Is(err, syscall.EPIPE) {
		return host.Classify(err, "tell the shim")
	}
	return await(ctx, replyR)
}

// execShim starts the shim, to which the lock passes on, and returns the two ends of the talk with it.
func (d *Driver) execShim(o *order, lock *os.File) (orderW, replyR *os.File, err error) {
	var open []*os.File
	defer func() {
		for _, f := range open {
			err = errors.Join(err, f.Close())
		}
	}()
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	open = append(open, orderR, orderW)
	replyR, replyW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	open = append(open, replyR, replyW)
	log, err := openLog(o.Dir)
	if err != nil {
		return nil, nil, err
	}
	open = append(open, log)
	// The marks stand among the arguments, for whoever looks at the processes of the host.
	cmd := exec.Command(d.cfg.Shim[0], slices.Concat(d.cfg.Shim[1:], []string{"shim", o.ID, o.Operation})...)
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{orderR, replyW, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	go func() { _ = cmd.Wait() }() // it reaps; the shim outlives the driver, and its lock says when it ends
	open = []*os.File{orderR, replyW, log}
	return orderW, replyR, nil
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

func marks(id, operation string) string { return "sandgate " + id + " " + operation }

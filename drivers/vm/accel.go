package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// trialTime is how long a trial machine has to come up. Where KVM works it takes a fraction of a second.
const trialTime = 10 * time.Second

// What bears these marks is a trial: one that a gateway did not live to end is ended when the driver is opened.
const (
	trialPrefix    = makingPrefix + "trial-"
	trialOperation = "trial"
)

// unusable is why KVM does not work, as QEMU or a machine has shown.
type unusable struct{ error }

// accelerator says what machines run on. That /dev/kvm can be opened does not say that it works; so the first machine
// waits for a trial one to come up.
func (d *Driver) accelerator(ctx context.Context) (string, error) {
	if d.cfg.Accel == AccelTCG {
		return AccelTCG, nil
	}
	d.trial.Lock()
	defer d.trial.Unlock()
	if d.decided != "" {
		return d.decided, nil
	}
	err := d.tryKVM(ctx)
	var no unusable
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err == nil:
		d.decided = AccelKVM
	case !errors.As(err, &no):
		return "", host.Classify(err, "try KVM") // that says nothing about KVM
	case d.cfg.Accel == AccelKVM:
		return "", fault.New(fault.FailedPrecondition, "KVM does not work on this host: %v", err)
	default:
		d.cfg.Logger.Warn("KVM does not work on this host; machines are emulated", "reason", err)
		d.decided = AccelTCG
	}
	return d.decided, nil
}

// tryKVM boots a machine without disks until its first process says that it has begun.
func (d *Driver) tryKVM(ctx context.Context) (err error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return unusable{err}
	}
	if err := kvm.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d.trialTime)
	defer cancel()
	dir, err := os.MkdirTemp(d.sandboxes(), trialPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.RemoveTree(dir)) }()
	kernel, err := d.store.Kernel(ctx, d.cfg.Kernel.Image)
	if err != nil {
		return err
	}
	initrd, err := d.initrd(ctx, d.cfg.Kernel.Modules, &guest.Config{Run: 1, Hostname: "trial", Command: []string{"true"}})
	if err != nil {
		return err
	}
	defer func() { _ = initrd.Close() }()
	lock, err := host.TakeLock(filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	m := &meta{Identity: sandbox.Identity{ID: filepath.Base(dir)}, Operation: trialOperation, Run: 1, Root: &image.Root{Path: filepath.Join(dir, "root")}}
	for _, disk := range []string{m.Root.Path, filepath.Join(dir, diskFile)} { // with nothing on them
		if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
			return err
		}
	}
	q := &qemu{dir: dir, args: d.arguments(m, &machine{on: backends[0], launch: launch{MemMiB: d.cfg.MemMiB, VCPUs: 1}}, kernel, AccelKVM, nil), inherit: []*os.File{lock, initrd}}
	if err := q.start(ctx, d.cfg.QEMU); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.process.Finish(context.WithoutCancel(ctx), 0)) }()
	mon, err := openMonitor(ctx, dir)
	if err != nil {
		return unusable{q.failed(err)}
	}
	defer mon.close()
	if err := mon.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return begins(ctx, filepath.Join(dir, eventsFile(1)), q)
}

// begins waits until a guest's report has begun.
func begins(ctx context.Context, events string, q *qemu) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if info, err := os.Stat(events); err == nil && info.Size() > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return unusable{errors.New("a trial machine did not come up")}
		case <-q.ended:
			return unusable{q.failed(errors.New("a trial machine ended"))}
		case <-tick.C:
		}
	}
}

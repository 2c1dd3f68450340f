package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// The descriptors that QEMU inherits, besides the three of every process.
const (
	lockFD    = 3 // the sandbox's lock, which it has no other use for than to hold it
	initrdFD  = 4 // what its guest boots with: it holds secrets, and is in no file
	qmpFD     = 5
	controlFD = 6
	tapFD     = 7
)

// onError has a guest see what goes wrong with its disks. By itself QEMU holds it for ever when the host's disk is full.
const onError = "werror=report,rerror=report"

// The accelerators.
const (
	AccelAuto = "auto" // KVM where a trial has shown that it works
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// launch starts a QEMU in a directory where nothing runs. It comes up with its guest held; that is let go when the run is
// noted, so that no guest runs of which nobody knows.
func (d *Driver) launch(ctx context.Context, m *meta, w *machine, r *driver.StartRequest) error {
	accel, err := d.accelerator(ctx)
	if err != nil {
		return err
	}
	options, to, tap, err := d.interfaceOf(m, w)
	if err != nil {
		return err
	}
	files := []*os.File{tap}
	defer func() { closeAll(files) }()
	config := &guest.Config{Run: m.Run, Hostname: w.Hostname, Network: to, DropIns: w.dropins, Command: w.Command, Environment: environment(m.Root, w),
		Directory: cmp.Or(w.Directory, m.Root.Directory, "/work"), User: cmp.Or(w.User, m.Root.User), PIDs: w.PIDs, Token: r.Token}
	if len(config.Command) == 0 {
		config.Command = m.Root.Command
	}
	if err := config.Check(); err != nil {
		return fault.New(fault.Invalid, "the machine cannot be configured: %v", err)
	}
	kernel, err := d.store.Kernel(ctx, w.kernel.Image)
	if err != nil {
		return err
	}
	initrd, err := d.initrd(ctx, w.kernel.Modules, config)
	if err != nil {
		return err
	}
	files = append(files, initrd)
	lock, err := host.TakeLock(d.file(m.Identity.ID, lockFile))
	if err != nil {
		return err
	}
	files = append(files, lock)
	q := &qemu{dir: d.dir(m.Identity.ID), args: d.arguments(m, w, kernel, accel, options), inherit: []*os.File{lock, initrd}, tap: tap}
	if err := q.start(ctx, d.cfg.QEMU); err != nil {
		return host.Classify(err, "start QEMU")
	}
	return d.letGo(ctx, m, begun{Run: m.Run, Process: q.process, Backend: w.on.name, Accel: accel}, q)
}

// letGo notes a machine that came up, and lets its guest run.
func (d *Driver) letGo(ctx context.Context, m *meta, b begun, q *qemu) error {
	mon, err := openMonitor(ctx, q.dir)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return q.failed(err)
	}
	defer mon.close()
	if err := d.limit(b.PID); err != nil {
		return err
	}
	if err := host.NoteJSON(d.file(m.Identity.ID, machineFile), b); err != nil {
		return host.Classify(err, "note the machine")
	}
	if err := mon.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	b.Runs = true
	return host.Classify(host.NoteJSON(d.file(m.Identity.ID, machineFile), b), "note the machine")
}

// limit keeps a QEMU from writing more into any file than a disk has, whatever its guest does and nobody watches; and
// its memory, which holds secrets, out of a core file.
func (d *Driver) limit(pid int) error {
	size := uint64(max(d.cfg.DiskBytes, 4*maxLog))
	for resource, most := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: size} {
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: most, Max: most}, nil); err != nil {
			return fmt.Errorf("limit what QEMU writes: %w", err)
		}
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// initrd makes what a guest boots with: what all have in common, and after it the configuration of this one run. It is a
// file in memory, since it holds secrets, and goes with QEMU.
func (d *Driver) initrd(ctx context.Context, modules string, config *guest.Config) (*os.File, error) {
	base, err := d.store.Initramfs(ctx, d.cfg.Init, modules)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	in, err := os.Open(base)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, host.Classify(err, "make the machine's configuration")
	}
	out := os.NewFile(uintptr(fd), "initrd")
	_, err = io.Copy(out, in)
	if err == nil {
		err = image.WriteCPIO(out, []image.File{{Name: strings.TrimPrefix(guest.ConfigPath, "/"), Mode: 0o600, Contents: raw}})
	}
	if err != nil {
		return nil, errors.Join(host.Classify(err, "make the machine's configuration"), out.Close())
	}
	return out, nil
}

// arguments returns QEMU's. It works in the sandbox's directory, so that no name in them is long or secret.
func (d *Driver) arguments(m *meta, w *machine, kernel, accel string, network []string) []string {
	args := []string{
		"-name", d.marks(m.Identity.ID, m.Operation), // for whoever looks at the processes of the host
		"-machine", w.on.name + ",dump-guest-core=off", "-accel", accel, "-m", fmt.Sprint(w.MemMiB), "-smp", fmt.Sprint(w.VCPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-kernel", kernel, "-initrd", fmt.Sprintf("/dev/fd/%d", initrdFD), "-append", kernelLine(accel),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-chardev", "file,id=console,append=on,path=" + consoleFile, "-serial", "chardev:console",
		"-chardev", "file,id=events,append=on,path=" + eventsFile(m.Run),
		"-chardev", "file,id=log,append=on,path=" + host.LogFile,
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d,server=on,wait=off", controlFD),
		"-drive", "id=root,if=none,format=raw,read-only=on," + onError + ",file.filename=" + option(m.Root.Path),
		"-drive", "id=disk,if=none,format=raw," + onError + ",file.filename=" + diskFile,
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	device := func(kind, options string) { args = append(args, "-device", kind+"-"+w.on.bus+options) }
	device("virtio-serial", "")
	for _, p := range [][2]string{{"events", guest.EventPort}, {"log", guest.LogPort}, {"control", guest.ControlPort}} {
		args = append(args, "-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", p[0], p[1]))
	}
	device("virtio-blk", ",drive=root")
	device("virtio-blk", ",drive=disk")
	device("virtio-rng", "")
	if network != nil {
		args = append(args, "-netdev", strings.Join(network, ","))
		device("virtio-net", ",netdev=net,mac="+w.mac.String())
	}
	if w.VsockCID != 0 {
		device("vhost-vsock", fmt.Sprintf(",guest-cid=%d", w.VsockCID))
	}
	for _, bdf := range w.devices {
		args = append(args, "-device", "vfio-pci,sysfsdev="+option(d.device(bdf)))
	}
	return args
}

// option is a value as it stands in a list of options.
func option(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// kernelLine returns the guest kernel's own arguments. A kernel that is emulated cannot measure its clock where the host is
// busy, and then hangs: it is told how fast that is.
func kernelLine(accel string) string {
	line := "console=ttyS0 quiet panic=-1 rcupdate.rcu_expedited=1 audit=0 cryptomgr.notests"
	if accel != AccelTCG {
		return line
	}
	line += " mitigations=off" // there is nothing that they would keep from whom
	if khz := clock(); khz > 0 {
		line += fmt.Sprintf(" tsc_early_khz=%d", khz)
	}
	return line
}

var nominal = regexp.MustCompile(`(?m)^model name.*@ ([0-9.]+)GHz`)

// clock returns how fast the clock of this host's processors is, in kHz: what they are sold as, since the frequency of the
// moment may be another one.
func clock() int {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	if found := nominal.FindSubmatch(raw); found != nil {
		if ghz, err := strconv.ParseFloat(string(found[1]), 64); err == nil {
			return int(ghz * 1e6)
		}
	}
	_, after, found := bytes.Cut(raw, []byte("cpu MHz"))
	if !found {
		return 0
	}
	line, _, _ := bytes.Cut(after, []byte("\n"))
	var mhz float64
	if _, err := fmt.Sscanf(strings.TrimLeft(string(line), "\t :"), "%f", &mhz); err != nil {
		return 0
	}
	return int(mhz * 1000)
}

// qemu is a QEMU that is being started.
type qemu struct {
	dir     string
	args    []string
	inherit []*os.File // lock and initrd
	tap     *os.File   // nil: none
	process host.Process
	ended   chan struct{} // closed when it has ended
}

// start starts it, with its sockets open: who connects to them waits until it answers, or learns that it has ended.
func (q *qemu) start(ctx context.Context, program string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	qmp, err := listenIn(q.dir, qmpSocket)
	if err != nil {
		return err
	}
	defer func() { _ = qmp.Close() }()
	control, err := listenIn(q.dir, controlSocket)
	if err != nil {
		return err
	}
	defer func() { _ = control.Close() }()
	said, err := os.OpenFile(filepath.Join(q.dir, qemuFile), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = said.Close() }()
	cmd := exec.Command(program, q.args...)
	cmd.Env = []string{}
	cmd.Dir = q.dir
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = append(slices.Clone(q.inherit), qmp, control)
	if q.tap != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, q.tap)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	q.process, q.ended = host.ProcessOf(cmd.Process.Pid), make(chan struct{})
	go func() {
		_ = cmd.Wait() // it reaps; QEMU outlives the driver
		close(q.ended)
	}()
	return nil
}

// failed says why a QEMU did not come up.
func (q *qemu) failed(err error) error {
	raw, _ := tail(filepath.Join(q.dir, qemuFile), 4<<10)
	said := strings.Map(printable, strings.ReplaceAll(strings.TrimSpace(string(raw)), "\n", "; "))
	code := fault.FailedPrecondition
	for _, full := range []string{"Cannot allocate memory", "No space left on device", "Resource temporarily unavailable", "Too many open files"} {
		if strings.Contains(said, full) {
			code = fault.ResourceExhausted
		}
	}
	if said == "" {
		return fault.New(fault.Internal, "QEMU ended before its guest ran: %w", err)
	}
	return fault.New(code, "QEMU could not make the machine: %s", said)
}

// patience is how long QEMU, or a guest that was told to end, has besides the grace of its command.
const patience = 10 * time.Second

// end ends everything that runs of a sandbox, and returns when it is gone. With a grace the guest is asked to end first;
// then QEMU is, and then it is killed.
func (d *Driver) end(ctx context.Context, m *meta, grace time.Duration) error {
	h, err := d.hold(m)
	if err != nil {
		return err
	}
	if h != nil {
		defer func() { _ = h.Close() }()
		if grace > 0 {
			if over, err := d.ask(ctx, m, h, grace); over || err != nil {
				return err
			}
		}
		d.quit(ctx, m, h)
		if err := errors.Join(h.Signal(unix.SIGKILL), h.Wait(ctx)); err != nil {
			return err
		}
	}
	return d.endStrays(ctx, m.Identity.ID, m.Operation)
}

// ask tells the guest to end and waits until it has. One that is stuck, or will not, is not waited for any longer.
func (d *Driver) ask(ctx context.Context, m *meta, h *host.Held, grace time.Duration) (over bool, err error) {
	limited, cancel := context.WithTimeout(ctx, grace+patience)
	defer cancel()
	conn, err := dialIn(limited, d.dir(m.Identity.ID), controlSocket)
	if err != nil {
		return false, nil
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(guest.Line(guest.Order{Stop: &guest.Stop{Grace: grace.Milliseconds()}})); err != nil {
		return false, nil
	}
	err = h.Wait(limited)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return err == nil, nil
}

// quit tells QEMU to end, which closes its disks in order.
func (d *Driver) quit(ctx context.Context, m *meta, h *host.Held) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := openMonitor(limited, d.dir(m.Identity.ID))
	if err != nil {
		return
	}
	defer mon.close()
	if mon.execute(limited, "quit", nil, nil) == nil {
		_ = h.Wait(limited)
	}
}

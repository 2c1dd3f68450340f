package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// initMain is the first process of a sandbox: it makes the world that the command sees, executes it, passes on the
// word to stop, and reaps. Its exit status is the command's.
func initMain() int {
	runtime.LockOSThread() // capabilities and namespaces are the thread's
	stop := make(chan os.Signal, 8)
	signal.Notify(stop, unix.SIGTERM)
	up := os.NewFile(replyFD, "up")
	o, err := readOrder()
	pid := 0
	if err == nil {
		pid, err = enter(o)
	}
	if err != nil {
		tell(up, err)
		return 255
	}
	tell(up, nil)
	go func() {
		for range stop {
			_ = unix.Kill(-pid, unix.SIGTERM) // the group may be gone
		}
	}()
	return reap(pid)
}

func readOrder() (*order, error) {
	in := os.NewFile(orderFD, "order")
	raw, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	o := &order{}
	return o, json.Unmarshal(raw, o)
}

// reap waits for every process of the sandbox, which all become its children, until the command has ended.
func reap(command int) int {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 255
		case pid != command:
			continue
		case status.Signaled():
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// enter makes the sandbox's world and executes the command in it.
func enter(o *order) (int, error) {
	if err := unix.Sethostname([]byte(o.Process.Hostname)); err != nil {
		return 0, fmt.Errorf("set the host name: %w", err)
	}
	if err := loopback(); err != nil {
		return 0, err
	}
	if err := o.world(); err != nil {
		return 0, err
	}
	env := o.environment()
	path, err := find(o.Process.Command[0], o.Process.Environment["PATH"])
	if err != nil {
		return 0, fault.New(fault.FailedPrecondition, "the command cannot be executed: %v", err)
	}
	if err := o.confine(); err != nil {
		return 0, err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(path, o.Process.Command, &syscall.ProcAttr{Dir: o.Process.Directory, Env: env,
		Files: []uintptr{null.Fd(), 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}})
	if err != nil {
		return 0, fault.New(fault.FailedPrecondition, "the command %q cannot be executed: %v", o.Process.Command[0], err)
	}
	return pid, null.Close()
}

// tokenPath is where the sandbox finds its token.
const tokenPath = "/run/sandgate/token"

func (o *order) environment() []string {
	var env []string
	for k, v := range o.Process.Environment {
		env = append(env, k+"="+v)
	}
	if len(o.Token) > 0 {
		env = append(env, "SANDGATE_TOKEN_FILE="+tokenPath)
	}
	slices.Sort(env)
	return env
}

// find looks a command up as a shell would.
func find(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// world makes the tree of files: a root of its own in which every entry of the source root is bound read-only, with
// private /proc, /dev, /tmp and /run, and the work directory.
func (o *order) world() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := filepath.Join(o.Dir, rootDir)
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	if err := o.entries(root); err != nil {
		return err
	}
	if err := o.private(root); err != nil {
		return err
	}
	for _, m := range o.Mounts {
		if err := m.apply(root); err != nil {
			return err
		}
	}
	for _, dir := range o.Hide {
		if err := hide(root, dir); err != nil {
			return err
		}
	}
	return pivot(root)
}

// entries binds what the source root has, but for what the sandbox has of its own.
func (o *order) entries(root string) error {
	list, err := os.ReadDir(o.Root)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "the root %s cannot be read: %v", o.Root, err)
	}
	for _, e := range list {
		if slices.Contains([]string{"proc", "dev", "sys", "tmp", "run", "work"}, e.Name()) {
			continue
		}
		from, to := filepath.Join(o.Root, e.Name()), filepath.Join(root, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(from)
			if err == nil {
				err = os.Symlink(target, to)
			}
			if err != nil {
				return fmt.Errorf("make the root: %w", err)
			}
		case e.IsDir():
			if err := bind(from, to, true, true); err != nil {
				return err
			}
		case e.Type().IsRegular():
			if err := bind(from, to, false, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// bind shows a file or directory at another place.
func bind(from, to string, dir, readOnly bool) error {
	if dir {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fmt.Errorf("bind %s: %w", from, err)
		}
	} else if err := os.WriteFile(to, nil, 0o644); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fault.New(fault.FailedPrecondition, "bind %s: %w", from, err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("protect %s: %w", from, err)
	}
	return nil
}

// devices are what /dev has.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// private makes what the sandbox has of its own.
func (o *order) private(root string) error {
	tmpfs := func(name, data string) error {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make /%s: %w", name, err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
			return fmt.Errorf("make /%s: %w", name, err)
		}
		return nil
	}
	if err := errors.Join(tmpfs("tmp", "mode=1777"), tmpfs("run", "mode=0755"), tmpfs("dev", "mode=0755")); err != nil {
		return err
	}
	for _, name := range devices {
		to := filepath.Join(root, "dev", name)
		if err := os.WriteFile(to, nil, 0o666); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := unix.Mount("/dev/"+name, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	proc := filepath.Join(root, "proc")
	if err := os.MkdirAll(proc, 0o755); err != nil {
		return fmt.Errorf("make /proc: %w", err)
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /proc: %w", err)
	}
	if len(o.Token) > 0 {
		path := filepath.Join(root, tokenPath)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, o.Token, 0o400)); err != nil {
			return fmt.Errorf("hand over the token: %w", err)
		}
	}
	return bind(filepath.Join(o.Dir, workDir), filepath.Join(root, "work"), true, false)
}

// apply makes a Mount of the plan.
func (m mount) apply(root string) error {
	to, err := within(root, m.Target)
	if err != nil {
		return err
	}
	if m.Type == "tmpfs" {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
		}
		return unix.Mount("tmpfs", to, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "")
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
	}
	return bind(m.Source, to, info.IsDir(), m.ReadOnly)
}

// within resolves a path below root whose symbolic links must not lead out.
func within(root, path string) (string, error) {
	to := filepath.Join(root, path)
	for dir := to; dir != root; dir = filepath.Dir(dir) {
		if info, err := os.Lstat(dir); err == nil && info.Mode()&os.ModeSymlink != 0 {
			return "", fault.New(fault.FailedPrecondition, "mount %s: there is a symbolic link on the way", path)
		}
	}
	return to, nil
}

// hide covers a directory of the host with an empty one.
func hide(root, dir string) error {
	to := filepath.Join(root, dir)
	if info, err := os.Stat(to); err != nil || !info.IsDir() {
		return nil // the sandbox does not see it
	}
	if err := unix.Mount("tmpfs", to, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0555"); err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return nil
}

// pivot makes the new tree the root and lets go of the old one.
func pivot(root string) error {
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return os.Chdir("/")
}

// kept are the capabilities that a command keeps where the gateway is root: what a program needs to change its user
// and its own files, and none that reaches the host.
var kept = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_NET_BIND_SERVICE}

// confine takes privileges from this thread, and so from the command: limits, capabilities, new privileges.
func (o *order) confine() error {
	if n := o.Process.Limits.Files; n > 0 {
		if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
			return fmt.Errorf("limit files: %w", err)
		}
	}
	var mask [2]uint32
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(kept, c) {
			mask[c/32] |= 1 << (c % 32)
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: mask[0], Permitted: mask[0]}, {Effective: mask[1], Permitted: mask[1]}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	return nil
}

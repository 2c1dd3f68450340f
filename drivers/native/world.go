package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/fault"
)

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
	if err := o.hide(o.Root, root); err != nil {
		return err
	}
	for _, m := range o.Mounts {
		if err := o.apply(m, root); err != nil {
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
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
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
	for _, fs := range []struct{ dir, kind, data string }{
		{"tmp", "tmpfs", "mode=1777,size=25%"},
		{"run", "tmpfs", "mode=0755,size=16m"},
		{"dev", "tmpfs", "mode=0755,size=1m"},
		{"dev/shm", "tmpfs", "mode=1777,size=25%"},
		{"dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"},
		{"proc", "proc", ""},
	} {
		if err := mountNew(filepath.Join(root, fs.dir), fs.kind, fs.data); err != nil {
			return fmt.Errorf("make /%s: %w", fs.dir, err)
		}
	}
	if err := makeDevices(filepath.Join(root, "dev")); err != nil {
		return err
	}
	if err := guardProc(filepath.Join(root, "proc")); err != nil {
		return err
	}
	if len(o.Token) > 0 {
		path := filepath.Join(root, tokenPath)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, o.Token, 0o400)); err != nil {
			return fmt.Errorf("hand over the token: %w", err)
		}
	}
	return bind(filepath.Join(o.Dir, workDir), filepath.Join(root, "work"), true, false)
}

func mountNew(dir, kind, data string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NOEXEC)
	if kind != "devpts" {
		flags |= unix.MS_NODEV
	}
	if kind == "tmpfs" {
		flags &^= unix.MS_NOEXEC
	}
	return unix.Mount(kind, dir, kind, flags, data)
}

func makeDevices(dev string) error {
	for _, name := range devices {
		to := filepath.Join(dev, name)
		if err := os.WriteFile(to, nil, 0o666); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := unix.Mount("/dev/"+name, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return nil
}

// What of /proc is the host's and not the sandbox's: a root without capabilities could still write the first ones,
// the core pattern say, which the kernel executes outside of every sandbox.
var (
	procReadOnly = []string{"sys", "sysrq-trigger", "irq", "bus", "fs"}
	procHidden   = []string{"kcore", "keys", "key-users", "latency_stats", "timer_list", "sched_debug", "kmsg", "kpagecount", "kpageflags", "kpagecgroup"}
	procCovered  = []string{"acpi", "asound", "scsi"}
)

func guardProc(proc string) error {
	protect := func(name, from string, readOnly bool) error {
		to := filepath.Join(proc, name)
		if from == "" {
			from = to
		}
		err := unix.Mount(from, to, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOENT) {
			return nil // this kernel does not have it
		}
		if err == nil && readOnly {
			err = unix.MountSetattr(unix.AT_FDCWD, to, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err != nil {
			return fmt.Errorf("protect /proc/%s: %w", name, err)
		}
		return nil
	}
	for _, name := range procReadOnly {
		if err := protect(name, "", true); err != nil {
			return err
		}
	}
	for _, name := range procHidden {
		if err := protect(name, "/dev/null", false); err != nil {
			return err
		}
	}
	for _, name := range procCovered {
		if err := cover(filepath.Join(proc, name)); err != nil {
			return err
		}
	}
	return nil
}

// apply makes a Mount of the plan. What sandboxes may not see is hidden there too.
func (o *order) apply(m mount, root string) error {
	to, err := within(root, m.Target)
	if err != nil {
		return err
	}
	if m.Type == "tmpfs" {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
		}
		return host.Classify(unix.Mount("tmpfs", to, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""), "mount "+m.Target)
	}
	source, err := filepath.EvalSymlinks(m.Source)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
	}
	if slices.ContainsFunc(o.Hide, func(dir string) bool { return inside(source, dir) }) {
		return fault.New(fault.FailedPrecondition, "mount %s: %s is the gateway's, and no sandbox may see it", m.Target, m.Source)
	}
	info, err := os.Stat(source)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err != nil {
		return fault.New(fault.FailedPrecondition, "mount %s: %v", m.Target, err)
	}
	if err := bind(source, to, info.IsDir(), m.ReadOnly); err != nil {
		return err
	}
	return o.hide(source, to)
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

// hide covers what no sandbox may see of a directory of the host that is shown at another place.
func (o *order) hide(source, at string) error {
	for _, dir := range o.Hide {
		rel, err := filepath.Rel(source, dir)
		if err != nil || !filepath.IsLocal(rel) {
			continue // it does not lie within
		}
		if err := cover(filepath.Join(at, rel)); err != nil {
			return err
		}
	}
	return nil
}

// cover shows an empty directory in the place of one.
func cover(dir string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0555,size=4k")
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES):
		return nil // or the sandbox cannot see it
	}
	return fmt.Errorf("hide %s: %w", dir, err)
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

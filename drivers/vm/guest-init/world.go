package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

// Where the initramfs has the parts of the root file system.
const (
	lowerDir = "/sandgate/lower" // the image
	upperDir = "/sandgate/upper" // the machine's own disk
	rootDir  = "/sandgate/root"  // both
)

// mount is a file system that has no disk.
type mount struct {
	kind, at string
	flags    uintptr
	data     string
}

var devices = mount{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"}

// prepare makes what the first process itself needs: its file systems, and the kernel's modules.
func prepare() error {
	for _, m := range []mount{devices, {"proc", "/proc", 0, ""}, {"sysfs", "/sys", 0, ""}} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	modules, err := filepath.Glob(guest.ModuleDir + "/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(modules)
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("module %s: %w", filepath.Base(path), err)
		}
		if err := os.Remove(path); err != nil { // the initramfs is memory
			return err
		}
	}
	return nil
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.at, err)
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// root mounts the sandbox's root file system and enters it.
func root(c *guest.Config) error {
	for _, disk := range []struct {
		dev, at, kind string
		flags         uintptr
	}{{guest.RootDisk, lowerDir, "squashfs", unix.MS_RDONLY}, {guest.OverlayDisk, upperDir, "ext4", 0}} {
		if !appear(func() bool { _, err := os.Stat(disk.dev); return err == nil }) {
			return fmt.Errorf("there is no disk %s", disk.dev)
		}
		if err := os.MkdirAll(disk.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(disk.dev, disk.at, disk.kind, disk.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", disk.dev, err)
		}
	}
	for _, dir := range []string{upperDir + "/upper", upperDir + "/work", rootDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	parts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lowerDir, upperDir, upperDir)
	if err := unix.Mount("overlay", rootDir, "overlay", 0, parts); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	var err error
	if outer, err = os.Open("/"); err != nil {
		return err
	}
	if err := unix.Chroot(rootDir); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, m := range []mount{devices, {"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"}} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return limit(c.PIDs)
}

// group is the control group of everything that the sandbox runs.
const group = "/sys/fs/cgroup/sandbox"

// limit makes the group, and bounds how many processes it has.
func limit(pids int64) error {
	if pids <= 0 {
		return nil
	}
	err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+pids"), 0o644)
	if err == nil {
		err = os.Mkdir(group, 0o755)
	}
	if err == nil {
		err = os.WriteFile(group+"/pids.max", fmt.Appendln(nil, pids), 0o644)
	}
	if err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	return nil
}

// settle writes the files that the sandbox finds in its root.
func settle(c *guest.Config, who *user) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
	for _, a := range addresses(c) {
		bare, _, _ := strings.Cut(a, "/")
		hosts += bare + "\t" + c.Hostname + "\n"
	}
	if err := replace("/etc/hosts", hosts); err != nil {
		return err
	}
	if err := replace("/etc/hostname", c.Hostname+"\n"); err != nil {
		return err
	}
	if c.Network != nil && len(c.Network.Nameservers) > 0 {
		if err := replace("/etc/resolv.conf", "nameserver "+strings.Join(c.Network.Nameservers, "\nnameserver ")+"\n"); err != nil {
			return err
		}
	}
	if c.Directory != "" {
		if _, err := os.Stat(c.Directory); err != nil {
			if err := os.MkdirAll(c.Directory, 0o755); err != nil {
				return err
			}
			if err := os.Chown(c.Directory, who.uid, who.gid); err != nil {
				return err
			}
		}
	}
	if len(c.Token) == 0 {
		return nil
	}
	if err := replace(guest.TokenPath, string(c.Token)); err != nil {
		return err
	}
	if err := os.Chmod(guest.TokenPath, 0o400); err != nil {
		return err
	}
	return os.Chown(guest.TokenPath, who.uid, who.gid)
}

// replace writes a file, whatever the image has there.
func replace(path, contents string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(contents), 0o644)
}

// outer is the root that this process began with, while it is in the sandbox's.
var outer *os.File

// leave takes the file systems that are on disks apart, as far as it can: what is not taken apart is synced.
func leave() {
	if outer == nil {
		return
	}
	err := outer.Chdir()
	if err == nil {
		err = unix.Chroot(".")
	}
	if err != nil {
		console("leave the root: %v", err)
		return
	}
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		console("leave the root: %v", err)
		return
	}
	var at []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "/sandgate/") {
			at = append(at, f[1])
		}
	}
	for _, path := range slices.Backward(at) {
		if err := unix.Unmount(path, 0); err != nil {
			console("unmount %s: %v", path, err)
		}
	}
}

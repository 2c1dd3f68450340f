package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What an extension block can say of the process's sandbox. Where it says nothing, the process has Landlock if the
// kernel does.
const (
	SandboxLandlock = "landlock" // it is to have it, or is not started
	SandboxNone     = "none"     // it is to have none
)

// Rights are those of landlock(7).
const (
	mayRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	mayRun   = mayRead | unix.LANDLOCK_ACCESS_FS_EXECUTE
	mayWrite = mayRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_REFER |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	ofFiles = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// What every program may reach: the system's programs and libraries, and what names, certificates and time need. Of
// /etc no more, since a gateway that runs as root has its secrets there.
var (
	systemRun  = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}
	systemRead = []string{"/proc", "/sys", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/alternatives",
		"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
		"/etc/resolv.conf", "/run/systemd/resolve", "/run/NetworkManager/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf",
		"/etc/services", "/etc/protocols", "/etc/mime.types", "/dev/random", "/dev/urandom"}
	systemWrite = []string{"/dev/null", "/dev/zero", "/dev/full"}
)

// landlockVersion is the version of Landlock that the kernel has, 0 where it has none.
var landlockVersion = sync.OnceValue(func() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
})

// Confined reports whether a process of the spec has Landlock.
func (s Spec) Confined() bool {
	return !s.Privileged && s.Attach == "" && s.Sandbox != SandboxNone && landlockVersion() > 0
}

// checkSandbox says what of a sandbox that is asked for cannot be given.
func (s Spec) checkSandbox() error {
	switch {
	case s.Sandbox != "" && s.Sandbox != SandboxLandlock && s.Sandbox != SandboxNone:
		return s.invalid("sandbox %q is neither %q nor %q", s.Sandbox, SandboxLandlock, SandboxNone)
	case s.Sandbox == SandboxLandlock && landlockVersion() == 0:
		return s.precondition("sandbox is %q, and this kernel has no Landlock, or its lsm= parameter leaves it out; leave it out of the block, or say %q", s.Sandbox, SandboxNone)
	case s.Sandbox == SandboxNone && len(s.Read)+len(s.Write) > 0:
		return s.invalid("paths are those of a sandbox, and sandbox is %q", SandboxNone)
	}
	for _, path := range slices.Concat(s.Read, s.Write) {
		if !filepath.IsAbs(path) {
			return s.invalid("%q in paths is not absolute", path)
		}
	}
	return nil
}

// makeWritable makes the directories that the process is to write to and that are missing. Those above are not made: a
// path that was mistyped is told.
func (s Spec) makeWritable(cred *syscall.Credential) error {
	for _, path := range s.Write {
		err := os.Mkdir(path, 0o700)
		if err == nil && cred != nil {
			err = os.Chown(path, int(cred.Uid), int(cred.Gid))
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return s.precondition("make a directory that paths names: %v", err)
		}
	}
	return nil
}

// ruleset is what a process may reach. It is made before the process, and taken on by the thread that forks it.
type ruleset struct {
	fd      int
	handled uint64
	closed  sync.Once
}

// newRuleset makes the rules for a program whose launch has the directory dir.
func newRuleset(spec Spec, prog *program, dir string) (_ *ruleset, err error) {
	version := landlockVersion()
	r := &ruleset{handled: unix.LANDLOCK_ACCESS_FS_REFER - 1} // those of version 1 lie below it
	for at, right := range map[int]uint64{2: unix.LANDLOCK_ACCESS_FS_REFER, 3: unix.LANDLOCK_ACCESS_FS_TRUNCATE, 5: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV} {
		if version >= at {
			r.handled |= right
		}
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: r.handled}
	if version >= 7 { // before that, threads of one process could not signal each other either
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, spec.precondition("make its sandbox: %v", errno)
	}
	r.fd = int(fd)
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	for rights, paths := range map[uint64][]string{mayRun: systemRun, mayRead: systemRead, mayWrite: systemWrite} {
		for _, path := range paths {
			if err := r.allow(path, rights); err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, spec.precondition("%v", err)
			}
		}
	}
	for rights, paths := range map[uint64][]string{mayRead: spec.Read, mayWrite: append([]string{dir}, spec.Write...)} {
		for _, path := range paths {
			if err := r.allow(path, rights); err != nil {
				return nil, spec.precondition("%v; it is named in paths, and has to be there", err)
			}
		}
	}
	return r, r.program(spec, prog)
}

// program allows a program to run itself.
func (r *ruleset) program(spec Spec, prog *program) error {
	own := []*os.File{prog.file}
	if prog.interpreter != nil {
		own = append(own, prog.interpreter)
	}
	for _, f := range own {
		if err := r.add(int(f.Fd()), mayRun&ofFiles); err != nil {
			return spec.precondition("make its sandbox: %s: %v", f.Name(), err)
		}
	}
	return nil
}

// allow gives rights to what lies at and below a path.
func (r *ruleset) allow(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make its sandbox: %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("make its sandbox: %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= ofFiles
	}
	if err := r.add(fd, rights); err != nil {
		return fmt.Errorf("make its sandbox: %s: %w", path, err)
	}
	return nil
}

func (r *ruleset) add(fd int, rights uint64) error {
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// enter confines this thread, and what it forks, for good. A library would confine every thread of the gateway.
func (r *ruleset) enter() error {
	if r == nil {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0); errno != 0 {
		return fmt.Errorf("enter its sandbox: %w", errno)
	}
	return nil
}

func (r *ruleset) close() {
	if r != nil {
		r.closed.Do(func() { _ = unix.Close(r.fd) })
	}
}

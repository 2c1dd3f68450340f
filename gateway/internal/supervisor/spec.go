package supervisor

import (
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/wire"
)

// Spec is what an `extension` block says about a program and its process.
type Spec struct {
	Name        string   // of the block; it names the extension in every message
	Command     string   // absolute path
	Args        []string // after the program's own name
	Checksum    string   // "sha256:" and 64 hex digits
	Unpinned    bool     // allows an empty Checksum; for --dev only
	Interpreter string   // absolute path; set when Command is a script
	Files       []string // absolute paths; what a script needs beside it
	Env         map[string]string
	// Capabilities are those of the gateway's that the process keeps (capabilities(7)); it has no other, and gains none.
	Capabilities []string
	// Privileged lets the process have all that its user has: for a driver's program, which makes what the host keeps
	// to privileged ones. What it starts outlives it; Limits hold for both together.
	Privileged bool
	// Sandbox is SandboxLandlock or SandboxNone; empty: Landlock where the kernel has it. Read and Write are absolute paths
	// that the process may reach then, besides the system's own files, its own program and its working directory. Of
	// Write, a directory that is missing is made, for the process's user.
	Sandbox     string
	Read, Write []string
	User, Group string // names or numbers; empty: those of the gateway
	Limits      Limits
	Restart     Restart
	// Attach, when set, is the file of a process that somebody else starts, under a debugger for example (wire.EnvAttach).
	// Nothing of it is verified, limited or ended. For --dev only.
	Attach string
	// Copy, when set, runs the gateway's own copy that Keep returned this reference for, instead of Command.
	// Checksum and Files are then those of the copy.
	Copy string
	// Kept is the copy that Keep made of Command. A restart runs it where Command is not any more what was started: an
	// upgrade puts a new file in its place before the configuration names that.
	Kept string
}

// Limits bounds the process. Zero means no limit. What is asked for and cannot be given fails the launch.
type Limits struct {
	Memory int64   // bytes, of the process and its children
	CPU    float64 // processors
	PIDs   int64   // processes and threads
	Files  uint64  // open descriptors
}

// Restart is the crash budget: how many restarts within Window before the extension is given up.
type Restart struct {
	Budget int
	Window time.Duration
}

// What is used where a Spec leaves the crash budget empty.
const (
	DefaultBudget = 5
	DefaultWindow = 10 * time.Minute
)

func (l Limits) cgroup() bool { return l.Memory > 0 || l.CPU > 0 || l.PIDs > 0 }
func (l Limits) any() bool    { return l.cgroup() || l.Files > 0 }

// checked returns the spec with its defaults, or says what in it cannot work.
func (s Spec) checked() (Spec, error) {
	if s.Name == "" {
		return s, fault.New(fault.Invalid, "an extension needs a name")
	}
	if s.Restart.Budget <= 0 {
		s.Restart.Budget = DefaultBudget
	}
	if s.Restart.Window <= 0 {
		s.Restart.Window = DefaultWindow
	}
	if s.Attach != "" {
		return s, nil // the rest is about a process of ours
	}
	if s.Copy == "" && !filepath.IsAbs(s.Command) {
		return s, s.invalid("command %q is not an absolute path", s.Command)
	}
	if s.Interpreter != "" && !filepath.IsAbs(s.Interpreter) {
		return s, s.invalid("interpreter %q is not an absolute path", s.Interpreter)
	}
	if len(s.Files) > 0 && s.Interpreter == "" {
		return s, s.invalid("files belong to a script: name its interpreter")
	}
	for _, f := range s.Files {
		if !filepath.IsAbs(f) {
			return s, s.invalid("file %q is not an absolute path", f)
		}
	}
	switch {
	case s.Checksum == "" && s.Copy == "" && !s.Unpinned:
		return s, s.invalid("checksum is required; %s", hintChecksum(s.Command))
	case s.Checksum != "" && !digestForm.MatchString(s.Checksum):
		return s, s.invalid("checksum %q is not \"sha256:\" and 64 hexadecimal digits", s.Checksum)
	case s.Copy != "" && !digestForm.MatchString(s.Copy):
		return s, s.invalid("copy %q is not \"sha256:\" and 64 hexadecimal digits", s.Copy)
	}
	if err := s.checkSandbox(); err != nil {
		return s, err
	}
	return s, s.checkEnv()
}

func (s Spec) checkEnv() error {
	reserved := append(wire.LaunchVariables(), wire.EnvProgramDir)
	for name, value := range s.Env {
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			return s.invalid("environment variable name %q cannot be used", name)
		case strings.Contains(value, "\x00"):
			return s.invalid("the value of environment variable %q has a zero byte", name)
		case slices.Contains(reserved, name):
			return s.invalid("environment variable %q is the launch's own", name)
		}
	}
	return nil
}

// environ returns the operator's variables in a stable order.
func (s Spec) environ() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		out = append(out, name+"="+s.Env[name])
	}
	return out
}

func (s Spec) invalid(format string, args ...any) error {
	return fault.New(fault.Invalid, "extension %q: %s", s.Name, fmt.Sprintf(format, args...))
}

func (s Spec) precondition(format string, args ...any) error {
	return fault.New(fault.FailedPrecondition, "extension %q: %s", s.Name, fmt.Sprintf(format, args...))
}

func hintChecksum(path string) string {
	return fmt.Sprintf("sha256sum %s prints it", path)
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// credential returns the identity of the process, or nil for the gateway's own.
func (s Spec) credential() (*syscall.Credential, error) {
	c, err := s.identity()
	if c == nil || err != nil {
		return nil, err
	}
	own := c.Uid == uint32(syscall.Geteuid()) && c.Gid == uint32(syscall.Getegid())
	if syscall.Geteuid() != 0 {
		if own {
			return nil, nil
		}
		return nil, s.precondition("running it as user %q, group %q needs a gateway that runs as root", s.User, s.Group)
	}
	return c, nil // without supplementary groups
}

// identity looks up who the process is to be; nil where nobody is named.
func (s Spec) identity() (*syscall.Credential, error) {
	if s.User == "" && s.Group == "" {
		return nil, nil
	}
	c := &syscall.Credential{Uid: uint32(syscall.Geteuid()), Gid: uint32(syscall.Getegid())}
	if s.User != "" {
		u, err := user.Lookup(s.User)
		if err != nil {
			u, err = user.LookupId(s.User)
		}
		if err != nil {
			return nil, s.precondition("user %q does not exist on this host: make it (useradd --system %s), or correct user", s.User, s.User)
		}
		c.Uid, c.Gid = number(u.Uid), number(u.Gid)
	}
	if s.Group != "" {
		g, err := user.LookupGroup(s.Group)
		if err != nil {
			g, err = user.LookupGroupId(s.Group)
		}
		if err != nil {
			return nil, s.precondition("group %q does not exist on this host: make it (groupadd --system %s), or correct group", s.Group, s.Group)
		}
		c.Gid = number(g.Gid)
	}
	return c, nil
}

// Give makes a directory the process's user's, and says what keeps that user from reaching it.
func (s Spec) Give(dir string) error {
	c, err := s.credential()
	if err != nil || c == nil {
		return err
	}
	for up := filepath.Dir(dir); up != filepath.Dir(up); up = filepath.Dir(up) {
		var st unix.Stat_t
		if err := unix.Stat(up, &st); err != nil {
			return fmt.Errorf("examine %s: %w", up, err)
		}
		enter := uint32(0o001)
		if st.Uid == c.Uid {
			enter = 0o100
		} else if st.Gid == c.Gid {
			enter = 0o010
		}
		if c.Uid != 0 && st.Mode&enter == 0 {
			return s.precondition("its user cannot reach its directory %s: %s lets only its owner through (mode %04o); chmod o+x %s, or move data_dir", dir, up, st.Mode&0o7777, up)
		}
	}
	return os.Chown(dir, int(c.Uid), int(c.Gid))
}

func number(id string) uint32 {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return ^uint32(0) // no host gives this id away: setting it fails
	}
	return uint32(n)
}

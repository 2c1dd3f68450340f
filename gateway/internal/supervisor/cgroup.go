package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// confine puts limits on the process, which stands still before its first instruction, and lets it go. It runs on
// the thread that started the process, as ptrace wants.
func (c *child) confine() error {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &ws, unix.WALL|unix.WUNTRACED, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d to stand still: %w", c.pid, err)
		}
	}
	if !ws.Stopped() {
		return fmt.Errorf("process %d ended before its limits were set", c.pid)
	}
	if n := c.spec.Limits.Files; n > 0 {
		if err := unix.Prlimit(c.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
			if errors.Is(err, unix.EPERM) {
				return fmt.Errorf("limit it to %d open files: %w; for a process of another user the gateway needs CAP_SYS_RESOURCE", n, err)
			}
			return fmt.Errorf("limit it to %d open files: %w", n, err)
		}
	}
	if c.group != nil {
		var err error
		elsewhere(func() { err = c.group.add(c.pid) })
		switch {
		case err != nil && c.spec.Limits.cgroup():
			return err
		case err != nil: // then its process group is all there is
			elsewhere(c.group.remove)
			c.group = nil
		}
	}
	if err := unix.PtraceDetach(c.pid); err != nil {
		return fmt.Errorf("let process %d go on: %w", c.pid, err)
	}
	return nil
}

// cgroups is the place in the host's control groups under which extensions get theirs: one directory with version
// 2, one per controller with version 1. It belongs to one supervisor.
type cgroups struct {
	v2   bool
	dirs map[string]string // by controller
}

// cgroup is the group of one process. A nil cgroup does nothing.
type cgroup struct {
	v2    bool
	dirs  map[string]string
	stays bool
	ooms  int // before it was this process's
}

// stays begins the names of groups whose processes outlive the one that they were made for, and the gateway: what a
// driver's program has started. The next process of the driver joins them.
const stays = "driver-"

const cgroupRoot = "/sys/fs/cgroup"

// findCgroups finds where name can be made beneath the gateway's own groups. It makes nothing yet.
func findCgroups(name string) *cgroups {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return &cgroups{}
	}
	g := &cgroups{dirs: map[string]string{}}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[1] == "" && isDir(filepath.Join(cgroupRoot, parts[2])) && exists(filepath.Join(cgroupRoot, "cgroup.controllers")) {
			base := delegated(filepath.Join(cgroupRoot, parts[2]))
			return &cgroups{v2: true, dirs: map[string]string{"": filepath.Join(base, name)}}
		}
		for _, controller := range strings.Split(parts[1], ",") {
			switch controller {
			case "memory", "pids", "cpu":
				if dir := firstDir(filepath.Join(cgroupRoot, parts[1], parts[2]), filepath.Join(cgroupRoot, parts[1])); dir != "" {
					g.dirs[controller] = filepath.Join(dir, name)
				}
			}
		}
	}
	return g
}

// delegated returns the directory of version 2 beneath which we may make groups: our own group if it holds no
// process, which only the root may, or the one above, where systemd puts us into a subgroup of what it delegates.
func delegated(own string) string {
	if own == cgroupRoot || filepath.Dir(own) == cgroupRoot {
		return own
	}
	if unix.Access(filepath.Dir(own), unix.W_OK) == nil && unix.Access(filepath.Join(filepath.Dir(own), "cgroup.subtree_control"), unix.W_OK) == nil {
		return filepath.Dir(own)
	}
	return own
}

// make makes the group of one process with its limits. What the host does not give is an error that names it.
func (g *cgroups) make(name string, l Limits) (_ *cgroup, err error) {
	settings := g.settings(l)
	c := &cgroup{v2: g.v2, dirs: map[string]string{}, stays: strings.HasPrefix(name, stays)}
	defer func() {
		if err != nil {
			c.remove()
		}
	}()
	for _, s := range settings {
		base, ok := g.dirs[s.controller]
		if g.v2 {
			base, ok = g.dirs[""]
		}
		if !ok {
			return nil, fmt.Errorf("the limit on %s needs the %s controller, which this host does not have", s.what, s.controller)
		}
		if g.v2 {
			if err := enable(base, s.controller); err != nil {
				return nil, fmt.Errorf("the limit on %s needs the %s controller, which the gateway was not given (with systemd: Delegate=yes and DelegateSubgroup=): %w", s.what, s.controller, err)
			}
		}
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("the limit on %s needs a control group: %w", s.what, err)
		}
		c.dirs[s.controller] = dir
		if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0o600); err != nil {
			return nil, fmt.Errorf("set the limit on %s: %w", s.what, err)
		}
	}
	c.ooms = c.killed()
	return c, nil
}

// contain makes a group without limits, by which a child that has left the process's own process group is found at its
// end. It is nil where the host lets us make none.
func (g *cgroups) contain(name string) *cgroup {
	controller := "pids"
	if g.v2 {
		controller = ""
	}
	base, ok := g.dirs[controller]
	if !ok {
		return nil
	}
	dir := filepath.Join(base, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil
	}
	return &cgroup{v2: g.v2, dirs: map[string]string{controller: dir}}
}

type cgroupSetting struct{ what, controller, file, value string }

func (g *cgroups) settings(l Limits) []cgroupSetting {
	var out []cgroupSetting
	add := func(what, controller, v1, v2, value1, value2 string) {
		if g.v2 {
			out = append(out, cgroupSetting{what, controller, v2, value2})
		} else {
			out = append(out, cgroupSetting{what, controller, v1, value1})
		}
	}
	if l.Memory > 0 {
		n := strconv.FormatInt(l.Memory, 10)
		add("memory", "memory", "memory.limit_in_bytes", "memory.max", n, n)
	}
	if l.PIDs > 0 {
		n := strconv.FormatInt(l.PIDs, 10)
		add("pids", "pids", "pids.max", "pids.max", n, n)
	}
	if l.CPU > 0 {
		const period = 100_000 // microseconds; the kernel's default
		quota := strconv.FormatInt(max(1000, int64(l.CPU*period)), 10)
		add("cpu", "cpu", "cpu.cfs_quota_us", "cpu.max", quota, quota+" "+strconv.Itoa(period))
	}
	return out
}

// enable hands a controller of version 2 down to base and to what is made in it.
func enable(base, controller string) error {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(base), base} {
		file := filepath.Join(dir, "cgroup.subtree_control")
		have, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+controller+" ") {
			continue
		}
		if err := os.WriteFile(file, []byte("+"+controller), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what an earlier supervisor of the same name left.
func (g *cgroups) sweep() {
	for _, base := range g.dirs {
		left, err := os.ReadDir(base)
		if err != nil {
			continue
		}
		for _, e := range left {
			if e.IsDir() {
				old := &cgroup{v2: g.v2, dirs: map[string]string{"": filepath.Join(base, e.Name())}, stays: strings.HasPrefix(e.Name(), stays)}
				old.kill()
				old.remove()
			}
		}
	}
}

// close removes the place itself.
func (g *cgroups) close() {
	for _, base := range g.dirs {
		_ = unix.Rmdir(base)
	}
}

func (c *cgroup) add(pid int) error {
	for controller, dir := range c.dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			return fmt.Errorf("put process %d into its %s control group: %w", pid, controller, err)
		}
	}
	return nil
}

// kill kills whatever is left in the group, also what has left the process's own process group.
func (c *cgroup) kill() {
	if c == nil || c.stays {
		return
	}
	for _, dir := range c.dirs {
		if c.v2 && os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o600) == nil {
			continue
		}
		for range 10 { // what is forked meanwhile
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if len(procs) == 0 {
				break
			}
			for _, field := range strings.Fields(string(procs)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
	}
}

// oom reports whether the kernel killed a process of the group for want of memory.
func (c *cgroup) oom() bool { return c != nil && c.killed() > c.ooms }

// killed is how many processes of the group were.
func (c *cgroup) killed() int {
	if c.dirs["memory"] == "" {
		return 0
	}
	file := "memory.oom_control"
	if c.v2 {
		file = "memory.events"
	}
	text, _ := os.ReadFile(filepath.Join(c.dirs["memory"], file))
	for line := range strings.Lines(string(text)) {
		if field, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.Atoi(field)
			return n
		}
	}
	return 0
}

func (c *cgroup) remove() {
	if c == nil {
		return
	}
	for _, dir := range c.dirs {
		_ = unix.Rmdir(dir) // what is still busy is swept by the next start
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func firstDir(paths ...string) string {
	for _, p := range paths {
		if isDir(p) {
			return p
		}
	}
	return ""
}

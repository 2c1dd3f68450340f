package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits are kept by control groups, of the unified hierarchy (v2) or of the older ones (v1). A sandbox's group bears
// its marks as its name, in a directory that is there while a sandbox needs it.
const groupsRoot = "/sys/fs/cgroup"

// ownProcesses is what the first process of a sandbox takes of the sandbox's processes: its threads.
const ownProcesses = 12

// controllers are the ones that limits need.
var controllers = []string{"memory", "pids", "cpu"}

// findControllers returns the directory of ours for each controller, if groups can be made there.
func findControllers() (map[string]string, error) {
	out := map[string]string{}
	parent := func(c string) string { return filepath.Join(groupsRoot, c) }
	if raw, err := os.ReadFile(filepath.Join(groupsRoot, "cgroup.controllers")); err == nil {
		parent = func(string) string { return groupsRoot }
		for _, c := range controllers {
			if !strings.Contains(" "+strings.TrimSpace(string(raw))+" ", " "+c+" ") {
				return nil, fmt.Errorf("the host's control groups have no controller %s", c)
			}
		}
		if err := delegate(groupsRoot); err != nil {
			return nil, fmt.Errorf("control groups cannot be made: %w", err)
		}
	}
	for _, c := range controllers {
		if err := unix.Access(parent(c), unix.W_OK); err != nil {
			return nil, fmt.Errorf("control groups cannot be made in %s: %w", parent(c), err)
		}
		out[c] = filepath.Join(parent(c), "sandgate")
		_ = unix.Rmdir(out[c]) // where a shim was killed before it had made its group in there
	}
	return out, nil
}

// delegate lets the groups in a directory of the unified hierarchy have the controllers.
func delegate(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
}

// group is the control group of one sandbox: a directory per hierarchy, and what is written into each.
type group struct {
	Dirs   []string    `json:"dirs"`
	Values [][2]string `json:"values"` // path and value, in order
}

func (g *group) add(dir string, values [][2]string) {
	if !slices.Contains(g.Dirs, dir) {
		g.Dirs = append(g.Dirs, dir)
	}
	for _, v := range values {
		g.Values = append(g.Values, [2]string{filepath.Join(dir, v[0]), v[1]})
	}
}

// groupOf returns what a sandbox may have of control groups.
func (a abilities) groupOf(id, operation string) *group {
	g := &group{}
	if a.cgroups {
		for _, c := range controllers {
			g.add(filepath.Join(a.roots[c], id+"."+operation), nil)
		}
	}
	return g
}

// groupFor returns the group that keeps a sandbox within limits, or nil where there are none.
func (a abilities) groupFor(id, operation string, l limits) *group {
	if !a.cgroups || l.Memory <= 0 && l.PIDs <= 0 && l.MilliCPU <= 0 {
		return nil
	}
	g := &group{}
	unified := a.roots["memory"] == a.roots["cpu"]
	add := func(controller string, values ...[2]string) {
		g.add(filepath.Join(a.roots[controller], id+"."+operation), values)
	}
	if l.Memory > 0 {
		file := "memory.limit_in_bytes"
		if unified {
			file = "memory.max"
		}
		add("memory", [2]string{file, strconv.FormatInt(l.Memory, 10)})
	}
	if l.PIDs > 0 {
		add("pids", [2]string{"pids.max", strconv.FormatInt(l.PIDs+ownProcesses, 10)})
	}
	if l.MilliCPU > 0 {
		const period = 100_000 // microseconds
		quota := max(1000, l.MilliCPU*period/1000)
		if unified {
			add("cpu", [2]string{"cpu.max", fmt.Sprintf("%d %d", quota, period)})
		} else {
			add("cpu", [2]string{"cpu.cfs_period_us", strconv.Itoa(period)}, [2]string{"cpu.cfs_quota_us", strconv.FormatInt(quota, 10)})
		}
	}
	return g
}

// make makes the group's directories. The one above them goes with its last group, perhaps in this moment: then it
// is made again.
func (g *group) make() error {
	for _, dir := range g.Dirs {
		err := fs.ErrNotExist
		for range 10 {
			if err = makeParent(filepath.Dir(dir)); err != nil {
				break
			}
			if err = os.Mkdir(dir, 0o755); err == nil || errors.Is(err, fs.ErrExist) {
				err = nil
				break
			}
		}
		if err != nil {
			return fmt.Errorf("control groups cannot be made: %w", err)
		}
	}
	return nil
}

func makeParent(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	if filepath.Dir(dir) != groupsRoot {
		return nil // of an older hierarchy, which is for one controller
	}
	return delegate(dir)
}

// join makes the group and puts a process into it.
func (g *group) join(pid int) error {
	if g == nil {
		return nil
	}
	if err := g.make(); err != nil {
		return err
	}
	for _, v := range g.Values {
		if err := os.WriteFile(v[0], []byte(v[1]), 0); err != nil {
			return fmt.Errorf("set %s: %w", filepath.Base(v[0]), err)
		}
	}
	for _, dir := range g.Dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join the control group: %w", err)
		}
	}
	return nil
}

// remove removes the group, whose processes have ended, and the directory above it with its last group.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	var failed error
	for _, dir := range g.Dirs {
		err := unix.Rmdir(dir)
		for range 100 { // the kernel counts a process for a moment after its end
			if !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(time.Millisecond)
			err = unix.Rmdir(dir)
		}
		switch {
		case err == nil:
			_ = unix.Rmdir(filepath.Dir(dir)) // others may have groups there
		case !errors.Is(err, unix.ENOENT):
			failed = errors.Join(failed, fmt.Errorf("remove the control group %s: %w", dir, err))
		}
	}
	return failed
}

package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// abilities is what this host gives, found out by trying.
type abilities struct {
	userNamespace bool // sandboxes need one: the gateway is not root
	network       bool
	cgroups       bool
	roots         map[string]string // controller -> directory of ours
	missing       map[string]string // feature -> why
}

func probe() abilities {
	a := abilities{userNamespace: os.Geteuid() != 0, missing: map[string]string{}}
	if a.userNamespace {
		why := "the gateway is not root"
		a.missing["network.address"], a.missing["network.subnet"], a.missing["limits"] = why, why, why
		return a
	}
	if err := probeNetwork(); err != nil {
		a.missing["network.address"], a.missing["network.subnet"] = err.Error(), err.Error()
	} else {
		a.network = true
	}
	var err error
	if a.roots, err = findControllers(); err != nil {
		a.missing["limits"] = err.Error()
	}
	a.cgroups = err == nil
	return a
}

// controllers are the ones that limits need.
var controllers = []string{"memory", "pids", "cpu"}

// findControllers finds, for each controller, a directory in which groups of ours can be made: of the unified
// hierarchy where it has them, else of the older ones.
func findControllers() (map[string]string, error) {
	const base = "/sys/fs/cgroup"
	out := map[string]string{}
	if raw, err := os.ReadFile(filepath.Join(base, "cgroup.controllers")); err == nil {
		for _, c := range controllers {
			if !strings.Contains(" "+strings.TrimSpace(string(raw))+" ", " "+c+" ") {
				return nil, fmt.Errorf("the host's control groups have no controller %s", c)
			}
			out[c] = filepath.Join(base, "sandgate")
		}
		if err := os.MkdirAll(out["memory"], 0o755); err != nil {
			return nil, fmt.Errorf("control groups cannot be made: %w", err)
		}
		for _, dir := range []string{base, out["memory"]} {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0); err != nil {
				return nil, fmt.Errorf("control groups cannot be made: %w", err)
			}
		}
		return out, nil
	}
	for _, c := range controllers {
		dir := filepath.Join(base, c, "sandgate")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("control groups cannot be made: %w", err)
		}
		out[c] = dir
	}
	return out, nil
}

// group is the control group of one run: a directory per hierarchy, and what is written into each.
type group struct {
	Dirs   []string          `json:"dirs"`
	Values map[string]string `json:"values"` // path -> value
}

// groupFor returns the group that keeps a sandbox within limits, or nil where there are none.
func (a abilities) groupFor(id string, l limits) *group {
	if !a.cgroups || l.Memory <= 0 && l.PIDs <= 0 && l.MilliCPU <= 0 {
		return nil
	}
	g := &group{Values: map[string]string{}}
	unified := a.roots["memory"] == a.roots["cpu"]
	add := func(controller string, values map[string]string) {
		dir := filepath.Join(a.roots[controller], id)
		if len(g.Dirs) == 0 || g.Dirs[0] != dir {
			g.Dirs = append(g.Dirs, dir)
		}
		for file, v := range values {
			g.Values[filepath.Join(dir, file)] = v
		}
	}
	const period = 100_000 // microseconds
	if l.Memory > 0 {
		file := "memory.limit_in_bytes"
		if unified {
			file = "memory.max"
		}
		add("memory", map[string]string{file: strconv.FormatInt(l.Memory, 10)})
	}
	if l.PIDs > 0 {
		add("pids", map[string]string{"pids.max": strconv.FormatInt(l.PIDs, 10)})
	}
	if l.MilliCPU > 0 {
		quota := max(1000, l.MilliCPU*period/1000)
		values := map[string]string{"cpu.cfs_period_us": strconv.Itoa(period), "cpu.cfs_quota_us": strconv.FormatInt(quota, 10)}
		if unified {
			values = map[string]string{"cpu.max": fmt.Sprintf("%d %d", quota, period)}
		}
		add("cpu", values)
	}
	return g
}

// join makes the group and puts a process into it.
func (g *group) join(pid int) error {
	if g == nil {
		return nil
	}
	for _, dir := range g.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the control group: %w", err)
		}
	}
	for path, v := range g.Values {
		if err := os.WriteFile(path, []byte(v), 0); err != nil {
			return fmt.Errorf("set %s: %w", filepath.Base(path), err)
		}
	}
	for _, dir := range g.Dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join the control group: %w", err)
		}
	}
	return nil
}

// remove removes the group, whose processes have ended.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	var failed error
	for _, dir := range g.Dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			failed = errors.Join(failed, fmt.Errorf("remove the control group %s: %w", dir, err))
		}
	}
	return failed
}

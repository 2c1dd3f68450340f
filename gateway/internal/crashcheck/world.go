package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// networks reports whether this host gives sandboxes a network: the driver says so of root.
func networks() bool { return os.Geteuid() == 0 }

// process is one of the site's.
type process struct {
	pid, parent int
	args        []string
	space       string // its pid namespace
}

func (p process) String() string {
	return fmt.Sprintf("process %d (child of %d) %q", p.pid, p.parent, p.args)
}

// readProcesses returns every process that has the site's directory among its arguments.
func readProcesses(dir string) map[int]process {
	out := map[int]process{}
	files, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range files {
		raw, err := os.ReadFile(d + "/cmdline")
		if err != nil || !bytes.Contains(raw, []byte(dir)) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		stat, err := os.ReadFile(d + "/stat")
		if err != nil || pid == os.Getpid() {
			continue
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		parent, _ := strconv.Atoi(string(fields[1]))
		space, _ := os.Readlink(d + "/ns/pid")
		out[pid] = process{pid: pid, parent: parent, args: strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00"), space: space}
	}
	return out
}

// role says what a process is: what it was started as, and for which sandbox.
func (s site) role(p process) (role, id string) {
	for i, a := range p.args {
		switch {
		case a == "crash-shim" && len(p.args) > i+3:
			return p.args[i+2], p.args[i+3] // shim or init, ID
		case strings.HasPrefix(a, s.dir+"/"+s.driver+"-") && i == len(p.args)-1:
			return "command", filepath.Base(a)
		case a == "-name" && s.qemu != "" && len(p.args) > i+1 && strings.HasPrefix(p.args[i+1], "sandgate "):
			role := "machine"
			if p.args[0] == s.qemu {
				role = "stand-in"
			}
			return role, strings.Fields(p.args[i+1])[1]
		}
	}
	return "", ""
}

func (s site) judgeProcesses(l *ledger, procs map[int]process, r *report) {
	count := map[string]int{}
	extensions := 0
	for _, p := range procs {
		role, id := s.role(p)
		switch {
		case p.pid == s.gateway && s.gateway != 0:
		case role == "" && p.parent == s.gateway && s.gateway != 0:
			extensions++
		case role == "":
			r.add("nobody's: %s", p)
		default:
			count[role+" "+id]++
			if !l.sandboxes[id].runs() {
				r.add("sandbox %s does not run, and there is %s", id, p)
			}
			if up := procs[p.parent]; role != "shim" && role != "stand-in" && up.pid != 0 {
				if _, of := s.role(up); of != id {
					r.add("%s of sandbox %s is the child of %s", role, id, up)
				}
			}
		}
	}
	want, roles := 3, []string{"shim", "init", "command"}
	switch {
	case s.cluster != "":
		want, roles = 2, nil // nothing runs in the tests' clusters
	case s.engine != "":
		want, roles = 2, []string{"command"}
	case s.qemu != "":
		want, roles = 2, []string{"stand-in", "machine"}
	}
	if s.gateway != 0 && extensions != want {
		r.add("%d extensions run, want %d", extensions, want)
	}
	for id, sb := range l.sandboxes {
		for _, role := range roles {
			if n := count[role+" "+id]; sb.runs() && n != 1 {
				r.add("sandbox %s runs, and has %d processes that are its %s", id, n, role)
			}
		}
	}
}

func (s site) sandboxes() string {
	if s.qemu != "" {
		return s.dir + "/data/drivers/vm/sandboxes"
	}
	return s.dir + "/data/drivers/native/sandboxes"
}

// judgeDirectories looks at what the driver keeps: a directory for each sandbox, which bears its marks.
func (s site) judgeDirectories(l *ledger, r *report) {
	entries, err := os.ReadDir(s.sandboxes())
	if err != nil {
		r.add("%v", err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		sb, ok := l.sandboxes[e.Name()]
		if !ok {
			r.add("nobody's directory: %s", e.Name())
			continue
		}
		var m struct {
			Operation string `json:"operation"`
			Run       int    `json:"run"`
		}
		raw, err := os.ReadFile(filepath.Join(s.sandboxes(), e.Name(), "meta.json"))
		if err != nil || json.Unmarshal(raw, &m) != nil || m.Operation != sb.Operation || m.Run != sb.Run.Number {
			r.add("the directory of %s is of operation %s run %d, the sandbox of %s run %d: %v", sb.ID, m.Operation, m.Run, sb.Operation, sb.Run.Number, err)
		}
	}
	for id := range l.sandboxes {
		if !there[id] {
			r.add("sandbox %s has no directory", id)
		}
	}
}

// link is what ip shows of a network device.
type link struct {
	Name   string `json:"ifname"`
	Alias  string `json:"ifalias"`
	Master string `json:"master"`
	State  string `json:"operstate"`
}

// judgeLinks looks at the host's network devices: a bridge for each workspace, on it a link for each sandbox that runs.
func (s site) judgeLinks(l *ledger, r *report) {
	if !networks() {
		return
	}
	raw, err := exec.Command("ip", "-j", "link").Output()
	var links []link
	if err := errors.Join(err, json.Unmarshal(raw, &links)); err != nil {
		r.add("ip -j link: %v", err)
	}
	bridges, ends := map[string]string{}, map[string]string{} // workspace and sandbox -> name
	for _, x := range links {
		words := strings.Fields(x.Alias)
		switch {
		case len(words) == 5 && words[1] == "workspace" && words[4] == s.driver:
			if _, ok := l.workspaces[words[2]]; !ok {
				r.add("a bridge of a workspace that there is not: %s %s", x.Name, x.Alias)
			}
			bridges[words[2]] = x.Name
		case (len(words) == 3 || len(words) == 4) && strings.HasPrefix(words[1], s.driver+"-"): // the fourth is the instance of the vm driver
			sb := l.sandboxes[words[1]]
			if !sb.runs() || sb.Operation != words[2] {
				r.add("a link of a sandbox that does not run: %s %s", x.Name, x.Alias)
			}
			ends[words[1]] = x.Name
		case x.Alias == "" && s.unmarked(l, x.Name):
			r.add("a link without its marks: %s", x.Name)
		}
	}
	for id := range l.workspaces {
		if bridges[id] == "" {
			r.add("workspace %s has no bridge", id)
		}
	}
	for id, sb := range l.sandboxes {
		if sb.runs() && ends[id] == "" {
			r.add("sandbox %s runs, and has no link", id)
		}
	}
	for _, x := range links {
		for id, name := range ends {
			if x.Name == name && x.Master != bridges[l.sandboxes[id].WorkspaceID] {
				r.add("the link of sandbox %s is on %q, not on the bridge of its workspace", id, x.Master)
			}
		}
	}
}

// unmarked reports whether a link has the name that the driver gives to one of a sandbox of this site.
func (s site) unmarked(l *ledger, name string) bool {
	for id := range l.known {
		sum := sha256.Sum256([]byte(id))
		if name == "sgv"+hex.EncodeToString(sum[:])[:11] {
			return true
		}
	}
	return false
}

// judgeGroups looks at the control groups of the site's sandboxes, of both kinds of hierarchy.
func (s site) judgeGroups(l *ledger, r *report) {
	var all []string
	for _, glob := range []string{"/sys/fs/cgroup/sandgate/", "/sys/fs/cgroup/*/sandgate/"} {
		found, _ := filepath.Glob(glob + s.driver + "-*")
		all = append(all, found...)
	}
	limited := map[string]bool{}
	for _, path := range all {
		id, operation, _ := strings.Cut(filepath.Base(path), ".")
		limited[id] = true
		if sb := l.sandboxes[id]; !sb.runs() || sb.Operation != operation {
			r.add("a control group of a sandbox that does not run: %s", path)
		}
		raw, err := os.ReadFile(path + "/cgroup.procs")
		if err != nil || len(bytes.Fields(raw)) == 0 {
			r.add("nothing runs in the control group %s: %v", path, err)
		}
	}
	for id, sb := range l.sandboxes {
		if len(all) > 0 && sb.runs() && !limited[id] {
			r.add("sandbox %s runs, and has no control group", id)
		}
	}
}

// judgeSockets looks at sockets: each that lies in a directory of the gateway has somebody who listens, and is there
// only while the gateway is.
func (s site) judgeSockets(r *report) {
	raw, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		r.add("%v", err)
	}
	served := map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) == 8 && f[3] == "00010000" { // it listens (__SO_ACCEPTCON)
			served[f[7]] = true
		}
	}
	for path := range served {
		if s.gateway == 0 && (strings.HasPrefix(path, s.dir) || strings.HasPrefix(path, s.run)) {
			r.add("the gateway has ended, and somebody listens at %s", path)
		}
	}
	for _, dir := range []string{s.dir, s.run} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case s.qemu != "" && strings.HasPrefix(path, s.sandboxes()): // a machine's own, under another name
			case e.Type()&fs.ModeSocket != 0 && !served[path] && !served[path+".new"]: // it may have been renamed into its place
				r.add("a socket that nobody serves: %s", path)
			case s.gateway == 0 && dir == s.run && path != dir:
				r.add("the gateway has ended, and left %s", path)
			}
			return nil
		})
		if err != nil {
			r.add("%v", err)
		}
	}
}

// judgeMounts looks for mounts of the site in the host's own namespace: a sandbox makes its own in private.
func (s site) judgeMounts(r *report) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(raw, []byte(s.dir)) {
		r.add("a mount of a sandbox shows on the host: %v", err)
	}
}

// judgeLogs compares what each virtual machine that runs has said that it sees with what is leased to it.
func (s site) judgeLogs(l *ledger, leases map[string]lease, r *report) {
	for id, sb := range l.sandboxes {
		if !sb.runs() {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(s.sandboxes(), id, "log"))
		for _, x := range leases {
			if x.Sandbox != id {
				continue
			}
			if prefix, bad := netip.ParsePrefix(x.Prefix); err != nil || bad != nil || !bytes.Contains(raw, []byte(prefix.Addr().String())) {
				r.add("sandbox %s does not see its address %s: %v\n%s", id, x.Prefix, err, raw)
			}
		}
	}
}

// judgeSights compares what each sandbox that runs sees with what is leased to it.
func (s site) judgeSights(l *ledger, leases map[string]lease, r *report) {
	for id, sb := range l.sandboxes {
		if !sb.runs() {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(s.sandboxes(), id, "work/seen"))
		if err != nil {
			r.add("sandbox %s has not said what it sees: %v", id, err)
			continue
		}
		for _, x := range leases {
			if x.Sandbox != id {
				continue
			}
			prefix, err := netip.ParsePrefix(x.Prefix)
			if err != nil || !bytes.Contains(raw, []byte(prefix.Addr().String())) {
				r.add("sandbox %s does not see its address %s: %v\n%s", id, x.Prefix, err, raw)
			}
		}
		if want := fmt.Sprintf("WITNESS_RUN=%d", sb.Run.Number); !bytes.Contains(raw, []byte(want)) {
			r.add("sandbox %s does not see %s", id, want)
		}
	}
}

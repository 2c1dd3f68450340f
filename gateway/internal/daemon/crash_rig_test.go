package daemon

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// programs are the real ones, built once: the gateway that may end itself, the two examples and the checker.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sgp")
	if err != nil {
		return "", err
	}
	programsDir = dir
	// Without the race detector: a program that has it takes a second to end, and is started many times.
	for _, args := range [][]string{
		{"test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "gateway"), "."},
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/", "../../../examples/ipam", "../../../examples/tenant-namespace", "../crashcheck"},
	} {
		build := exec.Command("go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does, whose work is used again
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return dir, nil
})

var programsDir string // where they are; "" until they are needed

// ruin is a site whose gateway is killed.
type ruin struct {
	t        *testing.T
	dir      string
	bin      string
	name     string // of the composed driver: whatever bears it is this site's
	budget   int    // of the witness's crashes; 0: 3
	window   string // in which they are counted; "": 10m
	timeout  string // of its before_create; "": 30s
	sandbox  int    // how many sandboxes there were
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      *bufio.Scanner
	err      lockedBuffer
	boots    int
	bootTime time.Duration
}

func newRuin(t *testing.T) *ruin {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sgc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(mustRuntimeDir(t, dir+"/data"))
		if t.Failed() && os.Getenv("KEEP_RUINS") != "" {
			t.Logf("kept: %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	r := &ruin{t: t, dir: dir, bin: bin, name: filepath.Base(dir)}
	t.Cleanup(r.raze)
	if err := os.MkdirAll(filepath.Join(dir, "witness/held"), 0o700); err != nil {
		t.Fatal(err)
	}
	// Programs of its own, so that the checker knows whose a process is.
	for _, p := range []string{"ipam", "tenant-namespace"} {
		if err := os.Link(filepath.Join(bin, p), filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	r.configure()
	return r
}

const ruinConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "tenant-namespace" {
  command = "DIR/tenant-namespace"
  config {
    tenant "team-*" {
      labels  = { tier = "crash" }
      network = NETWORK
    }
  }
}
extension "ipam" {
  command = "DIR/ipam"
  paths {
    write = ["DIR/leases"]
  }
  config {
    store = "DIR/leases"
    pool "sandboxes" {
      cidr          = "10.80.0.0/16"
      subnet_prefix = 24
    }
  }
}
extension "witness" {
  command = "BIN/gateway"
  args    = ["crash-witness", "DIR"]
  sandbox = "none"
  restart {
    budget = BUDGET
    window = "WINDOW"
  }
}
driver "native" {
  config {
    stop_timeout = "2s"
  }
}
driver "NAME" {
  base = "native"
  bind "tenant-namespace" {
    grant { mutate = ["Process.labels", "Process.annotations", "Network"] }
  }
  bind "ipam" {
    grant { mutate = ["Process.network.address", "Network.subnet", "Process.environment"] }
  }
  bind "witness" {
    phase "before_create" {
      timeout  = "TIMEOUT"
      attempts = 3
    }
    grant { mutate = ["Process.labels", "Process.environment"] }
  }
}
`

func (r *ruin) configure() {
	r.t.Helper()
	network, mutate := "true", strings.NewReplacer("BUDGET", fmt.Sprint(cmp.Or(r.budget, 3)), "TIMEOUT", cmp.Or(r.timeout, "30s"), "WINDOW", cmp.Or(r.window, "10m")).Replace(ruinConfig)
	if os.Geteuid() != 0 {
		network = "false"
		mutate = strings.ReplaceAll(mutate, `"Process.network.address", "Network.subnet", `, "")
	}
	text := strings.NewReplacer("DIR", r.dir, "BIN", r.bin, "NETWORK", network, "NAME", r.name).Replace(mutate)
	if err := os.WriteFile(filepath.Join(r.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// boot starts the gateway, with a trap if one is given, and reports whether it lived until it was ready.
func (r *ruin) boot(armed ...string) bool {
	r.t.Helper()
	r.err.Reset()
	r.cmd = exec.Command(filepath.Join(r.bin, "gateway"), append([]string{victimSwitch, r.dir}, armed...)...)
	r.cmd.Stderr = &r.err
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	r.out = bufio.NewScanner(out)
	began := time.Now()
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	a, alive := r.answer()
	if alive && a.State != "ready" {
		r.t.Fatalf("the gateway says %+v", a)
	}
	r.boots++
	r.bootTime += time.Since(began)
	return alive
}

// answer reads one answer; false when the gateway was killed instead.
func (r *ruin) answer() (said, bool) {
	r.t.Helper()
	var a said
	if r.out.Scan() {
		if err := json.Unmarshal(r.out.Bytes(), &a); err != nil {
			r.t.Fatalf("%q: %v", r.out.Text(), err)
		}
		return a, true
	}
	err := r.cmd.Wait()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		r.t.Fatalf("the gateway ended with %v\n%s\n%s", err, r.err.String(), r.logs())
	}
	r.cmd = nil
	return a, false
}

func (r *ruin) logs() string {
	raw, _ := os.ReadFile(filepath.Join(r.dir, "gateway.log"))
	return string(raw[max(0, len(raw)-6000):])
}

// tell gives the gateway a command; false: it was killed before it answered.
func (r *ruin) tell(words ...string) (said, bool) {
	r.t.Helper()
	_, err := fmt.Fprintln(r.in, strings.Join(words, " "))
	if err != nil && !errors.Is(err, unix.EPIPE) {
		r.t.Fatal(err)
	}
	return r.answer()
}

// must is tell of a gateway that is not to be killed, and of a command that is not to fail.
func (r *ruin) must(words ...string) said {
	r.t.Helper()
	a, alive := r.tell(words...)
	if !alive || a.Error != "" {
		r.t.Fatalf("%s: alive %t, %s\n%s\n%s", words, alive, a.Error, r.err.String(), r.logs())
	}
	return a
}

// id is the sandbox's of the moment.
func (r *ruin) id() string { return fmt.Sprintf("%s-%d", r.name, r.sandbox) }

// check lets the checker look at everything. What is as it should be stays so, what is not yet (a process that is
// about to end) gets a moment.
func (r *ruin) check(after string) {
	r.t.Helper()
	pid := 0
	if r.cmd != nil {
		pid = r.cmd.Process.Pid
	}
	out, err := exec.Command(filepath.Join(r.bin, "crashcheck"), "-dir", r.dir, "-driver", r.name, "-gateway", fmt.Sprint(pid),
		"-run", mustRuntimeDir(r.t, r.dir+"/data")).CombinedOutput()
	if err != nil || len(out) > 0 {
		r.t.Fatalf("after %s, the checker: %v\n%s\n%s\n%s", after, err, out, r.err.String(), r.logs())
	}
}

func mustRuntimeDir(t *testing.T, data string) string {
	t.Helper()
	dir, err := runtimeDir(data)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// end stops the gateway in order, and lets the checker look whether anything is left.
func (r *ruin) end() {
	r.t.Helper()
	_ = r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		r.t.Fatalf("the gateway ended with %v\n%s", err, r.err.String())
	}
	r.cmd = nil
	r.check("the end of the gateway")
}

// raze ends what a test that failed has left.
func (r *ruin) raze() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		raw, _ := os.ReadFile(path)
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err == nil && bytes.Contains(raw, []byte(r.dir)) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if links, err := netlink.LinkList(); err == nil {
		for _, l := range links {
			if strings.Contains(l.Attrs().Alias, r.name) {
				_ = netlink.LinkDel(l)
			}
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/sandgate/" + r.name + "-*")
	for _, dir := range groups {
		_ = os.Remove(dir)
	}
}

package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
)

// wreck is a site over a container engine, or over QEMU, whose gateway is killed at calls of that.
type wreck struct {
	*ruin
	engine *enginetest.Engine
	proxy  interface {
		Arm(n int, how enginetest.How, reads bool)
		Disarm() string
	}
	about []string // what the checker is told of the base
	kills int

	mu  sync.Mutex
	pid int // of the gateway
}

const wreckConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "tenant-namespace" {
  command = "DIR/tenant-namespace"
  config {
    tenant "team-*" {
      labels  = { tier = "crash" }
      network = true
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
      cidr          = "SUBNETS"
      subnet_prefix = 24
    }
  }
}
driver "TYPE" {
  reconcile_interval = "2s"
  config {
    SOCKET
    stop_timeout  = "1s"
    default_image = "IMAGE"
    image_policy  = "never"
  }
}
driver "NAME" {
  base               = "TYPE"
  reconcile_interval = "2s"
  bind "tenant-namespace" {
    grant { mutate = ["Container.labels", "Container.limits", "Network"] }
  }
  bind "ipam" {
    grant { mutate = ["Container.network.address", "Network.subnet"] }
  }
}
`

// newWreck makes a site over the engine; sites that are there at once have different numbers.
func newWreck(t *testing.T, k enginetest.Kind, number int) *wreck {
	t.Helper()
	return newWreckOn(t, enginetest.Use(t, k), number)
}

func newWreckOn(t *testing.T, e *enginetest.Engine, number int) *wreck {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sge")
	if err != nil {
		t.Fatal(err)
	}
	proxy := enginetest.NewProxy(t, e)
	w := &wreck{ruin: &ruin{t: t, dir: dir, bin: bin, name: filepath.Base(dir)}, engine: e, proxy: proxy, about: []string{"-engine", e.Socket}}
	proxy.At = w.kill
	t.Cleanup(func() {
		w.raze()
		_ = os.RemoveAll(mustRuntimeDir(t, dir+"/data"))
		_ = os.RemoveAll(dir)
	})
	for _, p := range []string{"ipam", "tenant-namespace"} {
		if err := os.Link(filepath.Join(bin, p), filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	typ, socket := "docker", fmt.Sprintf("host = \"unix://%s\"", proxy.Socket)
	if e.Kind != enginetest.Docker {
		typ, socket = "podman", fmt.Sprintf("socket = %q", proxy.Socket)
	}
	text := strings.NewReplacer("DIR", dir, "TYPE", typ, "SOCKET", socket, "IMAGE", enginetest.Image, "NAME", w.name,
		"SUBNETS", fmt.Sprintf("10.%d.0.0/16", 90+number)).Replace(wreckConfig)
	if err := os.WriteFile(filepath.Join(dir, "site.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// kill ends the gateway as a power cut would.
func (w *wreck) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = unix.Kill(w.pid, unix.SIGKILL)
}

func (w *wreck) up() {
	w.t.Helper()
	w.boot()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pid = w.cmd.Process.Pid
}

// look lets the checker compare the engine with the ledger.
func (w *wreck) look(after string) {
	w.t.Helper()
	pid := 0
	if w.cmd != nil {
		pid = w.cmd.Process.Pid
	}
	args := append([]string{"-dir", w.dir, "-driver", w.name, "-gateway", fmt.Sprint(pid), "-run", mustRuntimeDir(w.t, w.dir+"/data")}, w.about...)
	out, err := exec.Command(filepath.Join(w.bin, "crashcheck"), args...).CombinedOutput()
	if err != nil || len(out) > 0 {
		notes, _ := exec.Command("sh", "-c", "head -v "+w.dir+"/data/drivers/*/runs/*").CombinedOutput()
		w.t.Fatalf("after %s, the checker: %v\n%s\n%s\n%s\n%s", after, err, out, w.err.String(), notes, w.logs())
	}
}

// The gateway is killed before, during and after each call that changes the engine, in each operation.
func TestKilledAtEveryEngineCall(t *testing.T) {
	for i, k := range []enginetest.Kind{enginetest.Docker, enginetest.Podman} {
		for j, how := range []enginetest.How{enginetest.Before, enginetest.During, enginetest.After} {
			t.Run(fmt.Sprintf("%s/%s", k, how), func(t *testing.T) {
				enginetest.Use(t, k) // not in parallel: it is brought up once
				t.Parallel()
				w := newWreck(t, k, 3*i+j)
				began := time.Now()
				w.up()
				for n, killed := 1, true; killed; n++ {
					killed = w.live(how, n)
				}
				w.finish()
				t.Logf("%d kills, %d starts of a gateway, in %v", w.kills, w.boots, time.Since(began).Round(time.Second))
			})
		}
	}
}

// finish ends the gateway in order.
func (w *wreck) finish() {
	w.t.Helper()
	_ = w.in.Close()
	if err := w.cmd.Wait(); err != nil {
		w.t.Fatalf("the gateway ended with %v\n%s", err, w.err.String())
	}
	w.cmd = nil
	w.look("the end of the gateway")
}

// live leads one sandbox through its life, with a kill at the n-th call of the engine in each operation.
func (w *wreck) live(how enginetest.How, n int) (any bool) {
	w.t.Helper()
	w.sandbox++
	for _, op := range life {
		about := w.id()
		if op.do == "delete-workspace" {
			about = w.name
		}
		w.proxy.Arm(n, how, false)
		a, alive := w.tell(w.words(op.do, about)...)
		if alive && a.Error != "" {
			w.t.Fatalf("%s: %s\n%s", op.do, a.Error, w.logs())
		}
		if alive {
			_, alive = w.tell("settle")
		}
		hit := w.proxy.Disarm()
		for alive && hit != "" {
			_, alive = w.tell("settle") // it is about to be killed
		}
		if !alive {
			any = true
			w.kills++
			w.up()
			w.must("settle")
		}
		where := fmt.Sprintf("%s (%s call %d: %q)", op.do, how, n, hit)
		w.look(where)
		w.after(op.do, op.done, op.undone, about, where)
	}
	return any
}

// after checks that the operation is finished or undone, and carries it out where it is not finished.
func (w *wreck) after(do, done, undone, about, where string) {
	w.t.Helper()
	if do == "delete-workspace" {
		w.must(do, about)
		w.must("settle")
		return
	}
	switch a := w.must("state", about); {
	case a.State == done:
	case a.State == undone, do == "create" && a.State == "absent":
		if do == "create" {
			w.sandbox++
			about = w.id()
		}
		w.must(w.words(do, about)...)
		w.must("settle")
		w.look(where + " and again")
	default:
		w.t.Fatalf("after %s the sandbox is %s\n%s", where, a.State, w.logs())
	}
}

// Docker is stopped and killed while sandboxes are made: each is made or undone, and what had run runs again.
func TestDockerGoesAwayDuringCreates(t *testing.T) {
	enginetest.Need(t, enginetest.Docker)
	e, err := enginetest.Start(enginetest.Docker) // of its own: others would lose theirs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.End(); err != nil {
			t.Error(err)
		}
	})
	w := newWreckOn(t, e, 9)
	w.up()
	w.must(w.words("create", w.id())...)
	for i, order := range []string{"stop", "kill"} {
		var ids []string
		for j := range 4 {
			ids = append(ids, fmt.Sprintf("%s-%s-%d", w.name, order, j))
			w.must("begin", w.name, ids[j])
		}
		waitFor(t, "some containers", func() bool {
			now, err := e.Inventory()
			return err == nil && strings.Count(strings.Join(now, " "), "container ") > 1+i
		})
		for _, o := range []string{order, "start"} {
			if err := e.Order(o); err != nil {
				t.Fatal(err)
			}
		}
		w.must("settle")
		w.look(order + " of the engine")
		for _, id := range append(ids, w.id()) {
			a := w.must("state", id)
			if a.State != "ready" && (a.State != "deleted" || id == w.id()) {
				t.Errorf("after %s of the engine %s is %s", order, id, a.State)
			}
			t.Logf("after %s of the engine %s is %s", order, id, a.State)
			if id != w.id() {
				w.must("delete", id)
			}
		}
		w.must("settle")
	}
	w.must("delete", w.id())
	w.must("delete-workspace", w.name)
	w.must("settle")
	w.finish()
	left, err := e.Inventory()
	if err != nil || strings.Contains(strings.Join(left, " "), "sandgate") {
		t.Errorf("left in the engine: %v %v", left, err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("no %s", what)
		}
	}
}

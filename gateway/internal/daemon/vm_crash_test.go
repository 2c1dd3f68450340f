package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/drivers/vm/vmtest"
)

// standInName is the program that stands in for QEMU, by its own name: this one. It lies in the directory of its site.
const standInName = "qemu-stand-in"

// moments names the file that says at which socket a site is asked about each moment of a QEMU.
const moments = "moments"

// greeting is what QEMU is told first, to no effect.
const greeting = "qmp_capabilities"

// The descriptors that the vm driver hands to QEMU and that are of interest here: two sockets that listen.
const (
	monitorFD = 5
	orderFD   = 6
)

// standIn starts the real QEMU, and stands between it and the driver: before, during and after each thing that QEMU is
// told, it asks its site whether to go on.
func standIn(args []string) int {
	if err := beQEMU(filepath.Dir(args[0]), args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func beQEMU(dir string, args []string) error {
	runtime.LockOSThread() // QEMU ends with this thread, that is with this program
	if !ask(dir, "start", enginetest.Before) {
		return nil
	}
	qemu := exec.Command("/usr/bin/qemu-system-x86_64", args...)
	qemu.Env, qemu.Stdout, qemu.Stderr = []string{}, os.Stdout, os.Stderr
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	for fd := 3; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || fd > 7 {
			break
		}
		f := os.NewFile(uintptr(fd), "inherited")
		if fd == monitorFD || fd == orderFD {
			var err error
			if f, err = interpose(dir, f, fmt.Sprintf("@sandgate-%s-%d-%d", standInName, os.Getpid(), fd), fd == monitorFD); err != nil {
				return err
			}
		}
		qemu.ExtraFiles = append(qemu.ExtraFiles, f)
	}
	go func() { // it does not wait for the start to be told: whoever is killed during it is not told of it
		ask(dir, "start", enginetest.During)
	}()
	if err := qemu.Start(); err != nil {
		return err
	}
	ask(dir, "start", enginetest.After)
	return qemu.Wait()
}

// ask asks the site about a moment, and reports whether to go on.
func ask(dir, what string, how enginetest.How) bool {
	at, err := os.ReadFile(filepath.Join(dir, moments))
	if err != nil {
		return true
	}
	conn, err := net.Dial("unix", string(at))
	if err != nil {
		return true
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "%s %s\n", how, what)
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return err != nil || answer != "stop\n"
}

// interpose serves a socket that the driver has made with one of QEMU's own behind it, which it returns.
func interpose(dir string, outer *os.File, path string, monitor bool) (*os.File, error) {
	l, err := net.FileListener(outer)
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go pass(dir, conn, path, monitor)
		}
	}()
	return inner.(*net.UnixListener).File()
}

// pass passes a connection on, a line at a time.
func pass(dir string, outer net.Conn, path string, monitor bool) {
	inner, err := net.Dial("unix", path)
	if err != nil {
		_ = outer.Close()
		return
	}
	answers := make(chan string) // what the answers that are still to come are to
	go func() {
		defer func() { _ = errors.Join(outer.Close(), inner.Close()) }()
		lines := bufio.NewScanner(inner)
		for lines.Scan() {
			_, _ = fmt.Fprintf(outer, "%s\n", lines.Bytes())
			if !strings.Contains(lines.Text(), `"return"`) || !monitor {
				continue
			}
			if what := <-answers; what != greeting {
				ask(dir, what, enginetest.After)
			}
		}
	}()
	lines := bufio.NewScanner(outer)
	for lines.Scan() {
		var order struct{ Execute string }
		what := "stop"
		if json.Unmarshal(lines.Bytes(), &order) == nil && order.Execute != "" {
			what = order.Execute
		}
		if what != greeting && !ask(dir, what, enginetest.Before) {
			break
		}
		_, _ = fmt.Fprintf(inner, "%s\n", lines.Bytes())
		if what != greeting {
			ask(dir, what, enginetest.During)
		}
		if monitor {
			answers <- what
		}
	}
	if !monitor {
		ask(dir, "stop", enginetest.After)
	}
	_ = inner.Close()
}

// gate answers the stand-ins of a site, and kills the gateway at one chosen moment.
type gate struct {
	kill func()

	mu    sync.Mutex
	n     int
	how   enginetest.How
	count int
	hit   string
}

func (g *gate) Arm(n int, how enginetest.How, _ bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n, g.how, g.count, g.hit = n, how, 0, ""
}

func (g *gate) Disarm() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n = 0
	return g.hit
}

func (g *gate) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil {
				return
			}
			how, what, _ := strings.Cut(strings.TrimSpace(line), " ")
			answer := "go"
			if g.chosen(enginetest.How(how), what) {
				g.kill()
				if how == string(enginetest.Before) {
					answer = "stop"
				}
			}
			_, _ = fmt.Fprintln(conn, answer)
		}()
	}
}

func (g *gate) chosen(how enginetest.How, what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n == 0 || how != g.how {
		return false
	}
	if g.count++; g.count != g.n {
		return false
	}
	g.hit = what
	return true
}

const vmWreckConfig = `
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
driver "vm" {
  reconcile_interval = "2s"
  SETTINGS
}
driver "NAME" {
  base               = "vm"
  reconcile_interval = "2s"
  bind "tenant-namespace" {
    grant { mutate = ["LaunchPlan.labels", "Network"] }
  }
  bind "ipam" {
    grant { mutate = ["LaunchPlan.guest_ip", "Network.subnet"] }
  }
}
`

// newVMWreck makes a site over virtual machines; sites that are there at once have different numbers.
func newVMWreck(t *testing.T, number int) *wreck {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sgv")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, standInName)
	g := &gate{}
	w := &wreck{ruin: &ruin{t: t, dir: dir, bin: bin, name: filepath.Base(dir)}, proxy: g, about: []string{"-qemu", program}}
	g.kill = w.kill
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, moments), []byte(l.Addr().String()), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	go g.serve(l)
	t.Cleanup(func() {
		w.raze()
		_ = l.Close()
		_ = os.RemoveAll(mustRuntimeDir(t, dir+"/data"))
		_ = os.RemoveAll(dir)
	})
	for name, from := range map[string]string{"ipam": "ipam", "tenant-namespace": "tenant-namespace", standInName: "gateway"} {
		if err := os.Link(filepath.Join(bin, from), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	network := "user"
	if os.Geteuid() == 0 {
		network = "tap"
	}
	settings := vmtest.Settings(t, fmt.Sprintf("qemu = %q\nnetwork = %q\nstop_timeout = \"2s\"", program, network))
	text := strings.NewReplacer("DIR", dir, "SETTINGS", settings, "NAME", w.name, "SUBNETS", fmt.Sprintf("10.%d.0.0/16", 150+number)).Replace(vmWreckConfig)
	if err := os.WriteFile(filepath.Join(dir, "site.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// The gateway is killed before, during and after each thing that it tells QEMU, in each operation; after each the checker
// looks for machines, TAPs, directories and leases that are nobody's.
func TestKilledAtEveryCallOfQEMU(t *testing.T) {
	vmtest.Need(t)
	for i, how := range []enginetest.How{enginetest.Before, enginetest.During, enginetest.After} {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			w := newVMWreck(t, i)
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

package native

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
)

// shimSwitch makes the test binary a shim.
const shimSwitch = "native-shim"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == shimSwitch {
		unix.Exit(ShimMain(os.Args[2:])) // os.Exit of a program with the race detector takes a second
	}
	if len(os.Args) > 2 && os.Args[1] == insideSwitch {
		unix.Exit(insideMain(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == gatewaySwitch {
		unix.Exit(gatewayMain(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == keeperSwitch {
		unix.Exit(keeperMain(os.Args[0], os.Args[2]))
	}
	os.Exit(keep(m.Run))
}

func testShim(t testing.TB) []string {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, shimSwitch}
}

// factory is the driver as drivertest sees it.
func factory() drivertest.Factory {
	places := map[string]*Driver{}
	var last *Driver
	boot := "this"
	return drivertest.Factory{
		Driver: "native",
		Place: func(tb testing.TB) func() (driver.Driver, error) {
			dir := testDir(tb)
			return func() (driver.Driver, error) {
				d, err := Open(Config{Dir: dir, Shim: testShim(tb), BootID: func() (string, error) { return boot, nil }})
				places[dir], last = d, d
				return d, err
			}
		},
		Commands: drivertest.Shell(),
		Unusable: func(r *driver.Request) string {
			r.Config = json.RawMessage(`{"nope":1}`)
			return "driver_config"
		},
		Vanish: func(tb testing.TB, s *driver.Status) {
			// What the driver writes about the end may come between.
			for os.RemoveAll(last.dir(s.Identity.ID)) != nil {
				if err := tb.Context().Err(); err != nil {
					tb.Fatal(err)
				}
			}
		},
		Lose: func(tb testing.TB, s *driver.Status) {
			old := boot
			boot = "the next"
			tb.Cleanup(func() { boot = old })
			var b begun
			if err := host.ReadJSON(filepath.Join(last.dir(s.Identity.ID), shimFile), &b); err != nil {
				tb.Fatal(err)
			}
			if err := unix.Kill(b.PID, unix.SIGKILL); err != nil {
				tb.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	drivertest.Lifecycle(t, factory())
}

func TestConformanceWorkload(t *testing.T) {
	t.Parallel()
	drivertest.Workload(t, factory())
}

// The same as an ordinary user: the test binary runs itself as nobody. It needs root to become somebody else, and an
// ordinary user runs TestConformance as what it is.
func TestConformanceAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := testDir(t)
	const nobody = 65534
	raw, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "native.test")
	if err := errors.Join(os.WriteFile(bin, raw, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	t.Parallel() // not before: a process that another test forks while the file is written keeps it from being executed
	cmd := exec.Command(bin, "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	runtime.LockOSThread() // it ends with this run, that is with the thread that has started it
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestConformanceWorkload")) {
		t.Errorf("%v\n%s", err, out)
	}
}

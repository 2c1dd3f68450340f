package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
)

// shared is what all machines of these tests boot from. It is made once: that takes as long as a boot.
var shared struct{ dir, init, image string }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if shared.dir, err = os.MkdirTemp("", "vmtest-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(shared.dir) }()
	return m.Run()
}

// config is what a driver of these tests is opened with: small machines, without KVM.
func config(tb testing.TB, dir string) Config {
	tb.Helper()
	vmtest.Need(tb)
	if shared.init == "" {
		shared.init, shared.image = vmtest.Init(tb, shared.dir), vmtest.Image(tb, shared.dir)
	}
	return Config{Dir: dir, Images: filepath.Join(shared.dir, "images"), QEMU: "qemu-system-x86_64", Init: shared.init,
		Kernel: Kernel{Image: vmtest.Kernel, Modules: vmtest.Modules}, Roots: map[string]string{"busybox": shared.image}, DefaultImage: "busybox",
		VCPUs: 1, MemMiB: 128, DiskBytes: 64 << 20, Accel: AccelTCG, Network: NetworkUser}
}

// factory is the driver as drivertest sees it.
func factory(change func(*Config)) drivertest.Factory {
	var last *Driver
	boot := "this"
	return drivertest.Factory{
		Driver: "vm",
		Image:  "busybox",
		Place: func(tb testing.TB) func() (driver.Driver, error) {
			cfg := config(tb, tb.TempDir())
			cfg.BootID = func() (string, error) { return boot, nil }
			change(&cfg)
			return func() (driver.Driver, error) {
				d, err := Open(cfg)
				last = d
				return d, err
			}
		},
		Commands: drivertest.Shell(),
		Unusable: func(r *driver.Request) string {
			r.Config = json.RawMessage(`{"nope":1}`)
			return "driver_config"
		},
		Vanish: func(tb testing.TB, s *driver.Status) {
			// What the driver writes may come between.
			for os.RemoveAll(last.dir(s.Identity.ID)) != nil {
				if err := tb.Context().Err(); err != nil {
					tb.Fatal(err)
				}
			}
		},
		Lose: func(tb testing.TB, s *driver.Status) {
			var b begun
			err := host.ReadJSON(last.file(s.Identity.ID, machineFile), &b)
			if err = errors.Join(err, b.Finish(tb.Context(), 0)); err != nil {
				tb.Fatal(err)
			}
			old := boot
			boot = "the next"
			tb.Cleanup(func() { boot = old })
			if err := os.Remove(last.file(s.Identity.ID, exitFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
				tb.Fatal(err)
			}
		},
		Patience: 5 * time.Minute,
	}
}

func TestConformance(t *testing.T) {
	drivertest.Lifecycle(t, factory(func(*Config) {}))
}

func TestConformanceWorkload(t *testing.T) {
	drivertest.Workload(t, factory(func(*Config) {}))
}

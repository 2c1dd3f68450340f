package podman

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }

// factory is the driver as drivertest sees it.
func factory(e *enginetest.Engine) drivertest.Factory {
	boot := container.Epoch{ID: "this", Since: time.Now().Add(-time.Hour)}
	return drivertest.Factory{
		Driver: "podman",
		Image:  enginetest.Image,
		Place: func(tb testing.TB) func() (driver.Driver, error) {
			dir := tb.TempDir()
			return func() (driver.Driver, error) {
				return Open(Config{Config: container.Config{Dir: dir}, Socket: e.Socket, Boot: func() (container.Epoch, error) { return boot, nil }})
			}
		},
		Commands: drivertest.Shell(),
		Unusable: func(r *driver.Request) string {
			r.Config = json.RawMessage(`{"nope":1}`)
			return "driver_config"
		},
		Vanish: func(tb testing.TB, s *driver.Status) {
			if err := e.Call("DELETE", "/v1.40/containers/"+s.Objects[0].Name+"?force=1", nil, nil); err != nil {
				tb.Fatal(err)
			}
		},
		Lose: func(tb testing.TB, s *driver.Status) {
			boot = container.Epoch{ID: "the next", Since: time.Now()}
			for _, order := range []string{"reboot", "start"} {
				if err := e.Order(order); err != nil {
					tb.Fatal(err)
				}
			}
		},
	}
}

func TestConformance(t *testing.T) {
	for _, k := range []enginetest.Kind{enginetest.Podman, enginetest.Rootless} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			drivertest.Lifecycle(t, factory(enginetest.Use(t, k)))
			drivertest.Workload(t, factory(enginetest.Use(t, k)))
		})
	}
}

package docker

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }

// factory is the driver as drivertest sees it.
func factory(e *enginetest.Engine) drivertest.Factory {
	return drivertest.Factory{
		Driver: "docker",
		Image:  enginetest.Image,
		Place: func(tb testing.TB) func() (driver.Driver, error) {
			dir := tb.TempDir()
			return func() (driver.Driver, error) {
				return Open(Config{Config: container.Config{Dir: dir}, Host: "unix://" + e.Socket})
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
			for _, order := range []string{"stop", "start"} {
				if err := e.Order(order); err != nil {
					tb.Fatal(err)
				}
			}
		},
	}
}

func TestConformance(t *testing.T) {
	drivertest.Lifecycle(t, factory(enginetest.Use(t, enginetest.Docker)))
}

func TestConformanceWorkload(t *testing.T) {
	drivertest.Workload(t, factory(enginetest.Use(t, enginetest.Docker)))
}

package compose_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/sandgate/sandgate/drivers/compose"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
)

func TestConformance(t *testing.T) {
	tests := map[string]struct {
		compose func(base driver.Driver) driver.Driver
		config  string
	}{
		"under its own name": {func(base driver.Driver) driver.Driver { return compose.Named("outer", base) }, `{"size":"large"}`},
		"composed":           {func(base driver.Driver) driver.Driver { return stack(base, 1) }, `{"base":{"size":"large"}}`},
		"composed twice":     {func(base driver.Driver) driver.Driver { return stack(base, 2) }, `{"base":{"base":{"size":"large"}}}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := drivertest.Factory{
				Driver: "outer",
				Place: func(testing.TB) func() (driver.Driver, error) {
					world := drivertest.NewWorld(drivertest.Options{})
					return func() (driver.Driver, error) { return test.compose(world.Open()), nil }
				},
				Config: json.RawMessage(test.config),
				Commands: drivertest.Commands{
					Sleep:    []string{"sleep"},
					Exit:     func(code int) []string { return []string{"exit", fmt.Sprint(code)} },
					Echo:     func(text string) []string { return []string{"echo", text} },
					Printenv: func(name string) []string { return []string{"printenv", name} },
					Count:    []string{"count"},
				},
			}
			drivertest.Lifecycle(t, f)
			drivertest.Workload(t, f)
		})
	}
}

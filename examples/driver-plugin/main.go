// The driver-plugin example is a compute driver in a program of its own. Its sandboxes are plain processes of this host,
// without any isolation: what it shows is the contract, not how to keep a sandbox in.
//
//	driver "processes" {
//	  command  = "/usr/lib/sandgate/drivers/driver-plugin"
//	  checksum = "sha256:…"
//	}
package main

import (
	"context"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/driver"
)

type program struct{}

func (program) Info() plugin.Info {
	return plugin.Info{Name: "processes", Version: "1.0.0", Config: &settings{}}
}

type settings struct {
	StopTimeout string `json:"stop_timeout" default:"5s" doc:"how long a command has to end after SIGTERM"`
}

func (program) Open(_ context.Context, c *plugin.DriverConfig) (driver.Driver, error) {
	return open(c.Dir, c.Value.(*settings))
}

func main() { _ = plugin.ServeDriver(program{}) }

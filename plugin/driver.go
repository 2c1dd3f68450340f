package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// DriverPlugin is a compute driver in a program of its own, named by command in a driver block. Its contract is that of
// package driver; drivertest checks it.
type DriverPlugin interface {
	// Info says the driver's name, version and the schema of its config block. The rest of Info is for extensions.
	Info() Info
	// Open opens the driver, once in the life of the process. Invalid, with diagnostics, says what in the configuration
	// is wrong.
	Open(ctx context.Context, c *DriverConfig) (driver.Driver, error)
}

// DriverConfig is what a driver is opened with.
type DriverConfig struct {
	Name  string // under which it is configured
	Dir   string // a directory of its own, which outlives the process
	Value any    // the config block, in the type of Info.Config; nil where that is
	Raw   json.RawMessage
}

// ServeDriver is the whole main of a driver: it serves d to the gateway that started the process, as Serve does an
// extension.
func ServeDriver(d DriverPlugin) error {
	server, err := newDriverServer(d)
	if err == nil {
		err = serveWith(server, server.driver)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return err
}

// driverServer is a server that has a driver instead of phases.
type driverServer struct {
	*server
	plugin DriverPlugin
	driver *wire.DriverServer
}

func newDriverServer(d DriverPlugin) (*driverServer, error) {
	s, err := newServer(d, d.Info(), nil)
	if err != nil {
		return nil, err
	}
	return &driverServer{server: s, plugin: d, driver: &wire.DriverServer{}}, nil
}

// Configure implements the service: it opens the driver.
func (s *driverServer) Configure(ctx context.Context, r *extensionv1.ConfigureRequest) (*extensionv1.ConfigureResponse, error) {
	if s.driver.Opened() {
		return nil, fault.ToStatus(fault.New(fault.FailedPrecondition, "the driver is open already; another configuration needs another process"))
	}
	var told wire.DriverConfig
	if err := json.Unmarshal(r.GetConfig(), &told); err != nil {
		return nil, fault.ToStatus(fault.New(fault.Invalid, "configuration: %w", err))
	}
	c := &DriverConfig{Name: told.Name, Dir: told.Dir, Raw: told.Config}
	if s.config != nil {
		c.Value = reflect.New(s.config).Interface()
		dec := json.NewDecoder(bytes.NewReader(told.Config))
		dec.DisallowUnknownFields()
		if err := dec.Decode(c.Value); err != nil && len(told.Config) > 0 {
			return nil, fault.ToStatus(fault.New(fault.Invalid, "configuration: %w", err))
		}
	}
	err := s.guard("open", func() error {
		d, err := s.plugin.Open(ctx, c)
		if err != nil {
			return err
		}
		return s.driver.Open(ctx, d)
	})
	if said := fault.DiagnosticsOf(err); fault.Is(err, fault.Invalid) && len(said) > 0 {
		return &extensionv1.ConfigureResponse{Diagnostics: wire.DiagnosticsToProto(said)}, nil
	}
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	return &extensionv1.ConfigureResponse{}, nil
}

var _ extensionv1.ExtensionServer = (*driverServer)(nil)

// manifestOf is what Info says, for the wire.
func manifestOf(info Info) extension.Manifest {
	return extension.Manifest{Name: info.Name, Version: info.Version, Points: info.Points, Requires: info.Requires, Uses: info.Uses,
		Provides: info.Provides, StateReads: info.StateReads, StateWrites: info.StateWrites}
}

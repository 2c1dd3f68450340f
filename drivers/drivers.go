// Package drivers is the table of built-in drivers, and nothing else.
package drivers

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/sandgate/sandgate/drivers/native"
	"github.com/sandgate/sandgate/drivers/remote"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// Config is what a driver is opened with.
type Config struct {
	Name    string   // under which it is configured
	Dir     string   // a directory of its own
	Hide    []string // directories of the gateway's, which no sandbox may see
	Shim    []string // the command that runs what of the gateway's program a driver needs besides it
	Logger  *slog.Logger
	Version string          // of the gateway
	Setting json.RawMessage // its config block, decoded with Schema
}

// Type is one built-in driver.
type Type struct {
	Schema extension.ConfigSchema
	Open   func(Config) (driver.Driver, error)
}

// Types returns the built-in drivers by type.
func Types() map[string]Type {
	return map[string]Type{
		"docker":     {Schema: dockerSchema(), Open: openDocker},
		"kubernetes": {Schema: kubernetesSchema(), Open: openKubernetes},
		"native":     {Schema: nativeSchema(), Open: openNative},
		"podman":     {Schema: podmanSchema(), Open: openPodman},
		"vm":         {Schema: vmSchema(), Open: openVM},
	}
}

// Remote is the type of a driver of somebody else's, behind a Unix socket.
func Remote(socket string) Type {
	return Type{Open: func(c Config) (driver.Driver, error) {
		return remote.Open(remote.Config{Name: c.Name, Socket: socket, Dir: c.Dir, Version: c.Version, Logger: c.Logger})
	}}
}

// Names returns the built-in types, sorted.
func Names() []string { return slices.Sorted(maps.Keys(Types())) }

func nativeSchema() extension.ConfigSchema {
	return extension.ConfigSchema{
		Attributes: []extension.Attribute{{Name: "stop_timeout", Type: "string", Default: "10s",
			Description: "how long a command has to end after SIGTERM"}},
		Blocks: []extension.Block{{Type: "root", Labels: []string{"image"}, Description: "a directory that a sandbox may run in, by image",
			Body: extension.ConfigSchema{Attributes: []extension.Attribute{{Name: "path", Type: "string", Required: true}}}}},
	}
}

func openNative(c Config) (driver.Driver, error) {
	var s struct {
		StopTimeout string                           `json:"stop_timeout"`
		Root        map[string]struct{ Path string } `json:"root"`
	}
	if err := json.Unmarshal(c.Setting, &s); err != nil {
		return nil, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	timeout, err := time.ParseDuration(s.StopTimeout)
	if err != nil || timeout <= 0 {
		return nil, fault.New(fault.Invalid, "driver %q: stop_timeout %q is no duration, for example \"10s\"", c.Name, s.StopTimeout).
			With(fault.Diagnostic{Path: "stop_timeout", Summary: "is no duration"})
	}
	roots := map[string]string{}
	for image, r := range s.Root {
		if !filepath.IsAbs(r.Path) {
			return nil, fault.New(fault.Invalid, "driver %q: the path of root %q is not absolute", c.Name, image).
				With(fault.Diagnostic{Path: "root." + image + ".path", Summary: "is not absolute"})
		}
		roots[image] = r.Path
	}
	return native.Open(native.Config{Dir: c.Dir, Hide: c.Hide, Shim: c.Shim, Logger: c.Logger, StopTimeout: timeout, Roots: roots})
}

package drivers

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/drivers/docker"
	"github.com/sandgate/sandgate/drivers/podman"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// engineSchema is what the drivers of container engines have in common, with what one has alone before it.
func engineSchema(own ...extension.Attribute) extension.ConfigSchema {
	return extension.ConfigSchema{Attributes: append(own,
		extension.Attribute{Name: "stop_timeout", Type: "string", Default: "10s", Description: "how long a command has to end after SIGTERM"},
		extension.Attribute{Name: "image_policy", Type: "string", Default: container.PolicyMissing,
			Enum: []any{container.PolicyMissing, container.PolicyAlways, container.PolicyNever}, Description: "when an image is fetched"},
		extension.Attribute{Name: "default_image", Type: "string", Default: "", Description: "of a sandbox that names none"},
		extension.Attribute{Name: "network", Type: "string", Default: "",
			Description: "of sandboxes whose workspace has none, in the engine's words, for example none; absent: the engine's default"},
		extension.Attribute{Name: "bind_mounts", Type: "bool", Default: false, Description: "whether a sandbox may ask for directories of the host"})}
}

func dockerSchema() extension.ConfigSchema {
	return engineSchema(extension.Attribute{Name: "host", Type: "string", Default: "",
		Description: "the engine, for example unix:///run/docker.sock; absent: as the docker command finds it (DOCKER_HOST)"})
}

func podmanSchema() extension.ConfigSchema {
	return engineSchema(
		extension.Attribute{Name: "socket", Type: "string", Default: "", Description: "of the engine's API; absent: that of the gateway's user"},
		extension.Attribute{Name: "rootless", Type: "bool", Description: "what the engine has to be; absent: either"})
}

// engineSetting is a config block of either.
type engineSetting struct {
	Host         string `json:"host"`
	Socket       string `json:"socket"`
	Rootless     *bool  `json:"rootless"`
	StopTimeout  string `json:"stop_timeout"`
	ImagePolicy  string `json:"image_policy"`
	DefaultImage string `json:"default_image"`
	Network      string `json:"network"`
	BindMounts   bool   `json:"bind_mounts"`
}

func (c Config) engine() (*engineSetting, container.Config, error) {
	s := &engineSetting{}
	if err := json.Unmarshal(c.Setting, s); err != nil {
		return nil, container.Config{}, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	timeout, err := time.ParseDuration(s.StopTimeout)
	if err != nil || timeout <= 0 {
		return nil, container.Config{}, fault.New(fault.Invalid, "driver %q: stop_timeout %q is no duration, for example \"10s\"", c.Name, s.StopTimeout).
			With(fault.Diagnostic{Path: "stop_timeout", Summary: "is no duration"})
	}
	return s, container.Config{Dir: c.Dir, Logger: c.Logger, StopTimeout: timeout, ImagePolicy: s.ImagePolicy, DefaultImage: s.DefaultImage,
		Network: s.Network, BindMounts: s.BindMounts}, nil
}

func openDocker(c Config) (driver.Driver, error) {
	s, common, err := c.engine()
	if err != nil {
		return nil, err
	}
	if s.Host != "" && !strings.Contains(s.Host, "://") {
		return nil, fault.New(fault.Invalid, "driver %q: host %q is no address, for example \"unix:///run/docker.sock\"", c.Name, s.Host).
			With(fault.Diagnostic{Path: "host", Summary: "is no address"})
	}
	return docker.Open(docker.Config{Config: common, Host: s.Host})
}

func openPodman(c Config) (driver.Driver, error) {
	s, common, err := c.engine()
	if err != nil {
		return nil, err
	}
	return podman.Open(podman.Config{Config: common, Socket: s.Socket, Rootless: s.Rootless})
}

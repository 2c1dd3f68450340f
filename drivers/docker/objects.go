package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	dockercontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// CreateContainer implements container.Containers.
func (e *engine) CreateContainer(ctx context.Context, s *container.Spec) (string, error) {
	options, rest := e.createOptions(s)
	r, err := e.api.ContainerCreate(ctx, options)
	switch {
	case errdefs.IsConflict(err):
		return "", container.Failed(fault.AlreadyExists, "docker", "create container", s.Name, words(err))
	case errdefs.IsNotFound(err): // its image or network went: nothing is said of the sandbox
		return "", container.Failed(fault.FailedPrecondition, "docker", "create container", s.Name, words(err))
	case err != nil:
		return "", failed("create container", s.Name, err)
	}
	for _, p := range rest {
		if err := e.connect(ctx, r.ID, p); err != nil {
			return "", err
		}
	}
	return r.ID, nil
}

// createOptions returns how Docker is told, and the places that an older engine does not take with it.
func (e *engine) createOptions(s *container.Spec) (client.ContainerCreateOptions, []container.Endpoint) {
	grace := int(s.StopTimeout.Round(time.Second) / time.Second)
	config := &dockercontainer.Config{Image: s.Image, Hostname: s.Hostname, User: s.User, WorkingDir: s.Directory, Labels: s.Labels,
		Env: pairs(s.Environment, "="), StopTimeout: &grace}
	if len(s.Command) > 0 {
		config.Entrypoint, config.Cmd = s.Command[:1], s.Command[1:]
	}
	if h := s.Health; h != nil {
		config.Healthcheck = &dockercontainer.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
	}
	host := &dockercontainer.HostConfig{Annotations: s.Annotations, ExtraHosts: pairs(s.ExtraHosts, ":"), Sysctls: s.Sysctls,
		UsernsMode: dockercontainer.UsernsMode(s.UserNamespace), NetworkMode: dockercontainer.NetworkMode(s.Network), SecurityOpt: security(s)}
	host.Resources = dockercontainer.Resources{Memory: s.Limits.Memory, NanoCPUs: s.Limits.MilliCPU * 1e6}
	if s.Limits.PIDs > 0 {
		host.PidsLimit = &s.Limits.PIDs
	}
	if len(s.Devices) > 0 {
		host.DeviceRequests = []dockercontainer.DeviceRequest{{Driver: "cdi", DeviceIDs: s.Devices}}
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" && m.SELinux != "" {
			host.Binds = append(host.Binds, bind(m)) // only this form labels anew
			continue
		}
		host.Mounts = append(host.Mounts, mounted(m))
	}
	out := client.ContainerCreateOptions{Name: s.Name, Config: config, HostConfig: host}
	if len(s.Endpoints) == 0 {
		return out, nil
	}
	now, later := s.Endpoints, []container.Endpoint(nil)
	if versions.LessThan(e.api.ClientVersion(), "1.44") {
		now, later = s.Endpoints[:1], s.Endpoints[1:]
	}
	host.NetworkMode = dockercontainer.NetworkMode(now[0].Network)
	out.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	for _, p := range now {
		out.NetworkingConfig.EndpointsConfig[p.Network] = place(p)
	}
	return out, later
}

func place(p container.Endpoint) *network.EndpointSettings {
	s := &network.EndpointSettings{Aliases: p.Aliases}
	if a, err := netip.ParseAddr(p.Address); err == nil {
		s.IPAMConfig = &network.EndpointIPAMConfig{}
		if a.Is4() {
			s.IPAMConfig.IPv4Address = a
		} else {
			s.IPAMConfig.IPv6Address = a
		}
	}
	return s
}

func pairs(m map[string]string, between string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+between+m[k])
	}
	return out
}

func security(s *container.Spec) []string {
	var out []string
	if s.Seccomp != "" {
		out = append(out, "seccomp="+s.Seccomp)
	}
	if s.AppArmor != "" {
		out = append(out, "apparmor="+s.AppArmor)
	}
	if s.NoNewPrivileges {
		out = append(out, "no-new-privileges:true")
	}
	return out
}

func bind(m container.Mount) string {
	options := map[string]string{"shared": "z", "private": "Z"}[m.SELinux]
	if m.ReadOnly {
		options += ",ro"
	}
	return m.Source + ":" + m.Target + ":" + options
}

func mounted(m container.Mount) mount.Mount {
	out := mount.Mount{Type: mount.Type(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	if m.Type == "tmpfs" {
		out.Source = ""
		out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.Size}
	}
	return out
}

// FindContainer implements container.Containers.
func (e *engine) FindContainer(ctx context.Context, nameOrID string) (*container.Found, error) {
	r, err := e.api.ContainerInspect(ctx, nameOrID, client.ContainerInspectOptions{})
	if err != nil {
		return nil, failed("inspect container", nameOrID, err)
	}
	c := r.Container
	f := &container.Found{ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), Labels: map[string]string{}, Created: instant(c.Created), Wanted: map[string]string{}}
	if c.Config != nil {
		f.Labels = c.Config.Labels
	}
	if s := c.State; s != nil {
		f.State, f.ExitCode, f.OOMKilled, f.Error = string(s.Status), s.ExitCode, s.OOMKilled, s.Error
		f.Started, f.Finished = instant(s.StartedAt), instant(s.FinishedAt)
		if s.Health != nil && s.Health.Status != "none" {
			f.Health = string(s.Health.Status)
		}
	}
	for _, m := range c.Mounts {
		if m.Type == mount.TypeVolume && m.Name != "" {
			f.Volumes = append(f.Volumes, m.Name)
		}
	}
	slices.Sort(f.Volumes)
	if c.NetworkSettings == nil {
		return f, nil
	}
	main := ""
	if c.HostConfig != nil {
		main = string(c.HostConfig.NetworkMode)
	}
	places(f, c.NetworkSettings.Networks, main)
	return f, nil
}

// places fills in the addresses, those of the main network first.
func places(f *container.Found, networks map[string]*network.EndpointSettings, main string) {
	names := slices.SortedFunc(maps.Keys(networks), func(a, b string) int {
		if (a == main) != (b == main) {
			if a == main {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		n := networks[name]
		f.Wanted[name] = ""
		if n.IPAMConfig != nil && n.IPAMConfig.IPv4Address.IsValid() {
			f.Wanted[name] = n.IPAMConfig.IPv4Address.String()
		} else if n.IPAMConfig != nil && n.IPAMConfig.IPv6Address.IsValid() {
			f.Wanted[name] = n.IPAMConfig.IPv6Address.String()
		}
		for _, a := range []netip.Addr{n.IPAddress, n.GlobalIPv6Address} {
			if a.IsValid() {
				f.Addresses = append(f.Addresses, a.String())
			}
		}
	}
}

// instant reads a time of the engine; its zero is none.
func instant(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.Year() < 1971 {
		return time.Time{}
	}
	return t.UTC()
}

func by(labels map[string]string) client.Filters {
	f := client.Filters{}
	for k, v := range labels {
		f.Add("label", k+"="+v)
	}
	return f
}

// ListContainers implements container.Containers.
func (e *engine) ListContainers(ctx context.Context, labels map[string]string) ([]string, error) {
	r, err := e.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: by(labels)})
	var out []string
	for _, c := range r.Items {
		out = append(out, c.ID)
	}
	return out, failed("list", "containers", err)
}

// removalTick is how often is looked for a container that somebody else is removing.
const removalTick = 50 * time.Millisecond

// RemoveContainer implements container.Containers.
func (e *engine) RemoveContainer(ctx context.Context, id string) error {
	for {
		_, err := e.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "in progress") {
			return failed("remove container", id, err)
		}
		select { // somebody else is removing it
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(removalTick):
		}
	}
}

// PutFiles implements container.Containers.
func (e *engine) PutFiles(ctx context.Context, id string, tar io.ReadSeeker) error {
	_, err := e.api.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: tar})
	return failed("copy the token to container", id, err)
}

// StartContainer implements container.Runs.
func (e *engine) StartContainer(ctx context.Context, id string) error {
	_, err := e.api.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return failed("start container", id, err)
}

// StopContainer implements container.Runs.
func (e *engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int(grace.Round(time.Second) / time.Second)
	_, err := e.api.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &seconds})
	return failed("stop container", id, err)
}

func (e *engine) connect(ctx context.Context, id string, p container.Endpoint) error {
	_, err := e.api.NetworkConnect(ctx, p.Network, client.NetworkConnectOptions{Container: id, EndpointConfig: place(p)})
	return failed("connect container", fmt.Sprintf("%s to network %s", id, p.Network), err)
}

// Attach implements container.Runs.
func (e *engine) Attach(ctx context.Context, id string, p container.Endpoint) error {
	_, err := e.api.NetworkDisconnect(ctx, p.Network, client.NetworkDisconnectOptions{Container: id, Force: true})
	if err != nil && !errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "is not connected") {
		return failed("disconnect container", fmt.Sprintf("%s from network %s", id, p.Network), err)
	}
	return e.connect(ctx, id, p)
}

// Logs implements container.Runs.
func (e *engine) Logs(ctx context.Context, id string, follow bool, out io.Writer) error {
	r, err := e.api.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow})
	if err != nil {
		return failed("read the logs of container", id, err)
	}
	_, err = stdcopy.StdCopy(out, out, r)
	return failed("read the logs of container", id, errors.Join(err, r.Close()))
}

// CreateNetwork implements container.Networks.
func (e *engine) CreateNetwork(ctx context.Context, n *container.NetworkSpec) error {
	o := client.NetworkCreateOptions{Driver: "bridge", Internal: n.Internal, Options: n.Options, Labels: n.Labels}
	if n.Subnet != "" {
		s, err := netip.ParsePrefix(n.Subnet)
		if err != nil {
			return fault.New(fault.Invalid, "network.subnet %q is no subnet, for example 10.80.1.0/24", n.Subnet)
		}
		o.IPAM = &network.IPAM{Config: []network.IPAMConfig{{Subnet: s.Masked(), Gateway: s.Masked().Addr().Next()}}}
	}
	_, err := e.api.NetworkCreate(ctx, n.Name, o)
	return failed("create network", n.Name, err)
}

// FindNetwork implements container.Networks.
func (e *engine) FindNetwork(ctx context.Context, name string) (*container.NetworkSpec, error) {
	r, err := e.api.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	if err != nil {
		return nil, failed("inspect network", name, err)
	}
	out := &container.NetworkSpec{Name: r.Network.Name, Labels: r.Network.Labels}
	for _, c := range r.Network.IPAM.Config {
		out.Subnet = c.Subnet.String()
	}
	return out, nil
}

// ListNetworks implements container.Networks. It names them by their ids, since a name may be there twice.
func (e *engine) ListNetworks(ctx context.Context, labels map[string]string) ([]string, error) {
	r, err := e.api.NetworkList(ctx, client.NetworkListOptions{Filters: by(labels)})
	var out []string
	for _, n := range r.Items {
		out = append(out, n.ID)
	}
	return out, failed("list", "networks", err)
}

// RemoveNetwork implements container.Networks. When many containers come and go, Docker loses count of the places in a
// network (seen with 20.10, also of the plain client), and does not remove it until it was started anew.
func (e *engine) RemoveNetwork(ctx context.Context, name string) error {
	_, err := e.api.NetworkRemove(ctx, name, client.NetworkRemoveOptions{})
	if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
		return failed("remove network", name, err)
	}
	n, bad := e.api.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	if bad == nil && len(n.Network.Containers) == 0 {
		err = fmt.Errorf("%w (no container is in it: Docker has lost count, and restarting the engine mends that)", words(err))
		return container.Failed(fault.Conflict, "docker", "remove network", name, err)
	}
	return failed("remove network", name, err)
}

// CreateVolume implements container.Volumes.
func (e *engine) CreateVolume(ctx context.Context, v *container.VolumeSpec) (map[string]string, error) {
	r, err := e.api.VolumeCreate(ctx, client.VolumeCreateOptions{Name: v.Name, Driver: v.Driver, DriverOpts: v.Options, Labels: v.Labels})
	return r.Volume.Labels, failed("create volume", v.Name, err)
}

// ListVolumes implements container.Volumes.
func (e *engine) ListVolumes(ctx context.Context, labels map[string]string) ([]string, error) {
	r, err := e.api.VolumeList(ctx, client.VolumeListOptions{Filters: by(labels)})
	var out []string
	for _, v := range r.Items {
		out = append(out, v.Name)
	}
	return out, failed("list", "volumes", err)
}

// RemoveVolume implements container.Volumes.
func (e *engine) RemoveVolume(ctx context.Context, name string) error {
	_, err := e.api.VolumeRemove(ctx, name, client.VolumeRemoveOptions{Force: true})
	return failed("remove volume", name, err)
}

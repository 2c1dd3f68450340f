package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// fields is a JSON object.
type fields = map[string]any

// CreateContainer implements container.Containers.
func (e *engine) CreateContainer(ctx context.Context, s *container.Spec) (string, error) {
	var made struct{ Id string } //nolint:revive // the engine's spelling
	err := e.api.do(ctx, call{what: "create container", about: s.Name, method: "POST", path: "/containers/create", body: specOf(s)}, &made)
	if fault.Is(err, fault.NotFound) { // its image or network went: nothing is said of the sandbox
		err = fault.New(fault.FailedPrecondition, "%w", err)
	}
	return made.Id, err
}

// specOf returns how Podman is told.
func specOf(s *container.Spec) fields {
	out := fields{"name": s.Name, "image": s.Image, "hostname": s.Hostname, "user": s.User, "work_dir": s.Directory, "env": s.Environment,
		"labels": s.Labels, "annotations": s.Annotations, "sysctl": s.Sysctls, "stop_timeout": int(s.StopTimeout.Round(time.Second) / time.Second)}
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == "" })
	if len(s.Command) > 0 {
		out["entrypoint"], out["command"] = s.Command[:1], s.Command[1:]
	}
	limits := fields{}
	if s.Limits.Memory > 0 {
		limits["memory"] = fields{"limit": s.Limits.Memory}
	}
	if s.Limits.MilliCPU > 0 {
		limits["cpu"] = fields{"period": 100_000, "quota": s.Limits.MilliCPU * 100}
	}
	if s.Limits.PIDs > 0 {
		limits["pids"] = fields{"limit": s.Limits.PIDs}
	}
	if len(limits) > 0 {
		out["resource_limits"] = limits
	}
	for _, m := range s.Mounts {
		mounted(out, m)
	}
	var devices, hosts []any
	for _, d := range s.Devices {
		devices = append(devices, fields{"path": d})
	}
	for _, name := range slices.Sorted(maps.Keys(s.ExtraHosts)) {
		hosts = append(hosts, name+":"+s.ExtraHosts[name])
	}
	set(out, "devices", devices)
	set(out, "hostadd", hosts)
	if h := s.Health; h != nil {
		out["healthconfig"] = fields{"Test": h.Test, "Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "Retries": h.Retries}
	}
	secure(out, s)
	networks(out, s)
	return out
}

func set(out fields, key string, values []any) {
	if len(values) > 0 {
		out[key] = values
	}
}

func add(out fields, key string, value any) {
	before, _ := out[key].([]any)
	out[key] = append(before, value)
}

// mounted adds a mount where Podman wants its kind.
func mounted(out fields, m container.Mount) {
	how := "rw"
	if m.ReadOnly {
		how = "ro"
	}
	switch m.Type {
	case "volume":
		add(out, "volumes", fields{"Name": m.Source, "Dest": m.Target, "Options": []string{how}})
	case "image":
		add(out, "image_volumes", fields{"Source": m.Source, "Destination": m.Target, "ReadWrite": !m.ReadOnly})
	case "tmpfs":
		options := []string{how}
		if m.Size > 0 {
			options = append(options, fmt.Sprintf("size=%d", m.Size))
		}
		add(out, "mounts", fields{"type": "tmpfs", "source": "tmpfs", "destination": m.Target, "options": options})
	default:
		options := []string{"rbind", how}
		if label := map[string]string{"shared": "z", "private": "Z"}[m.SELinux]; label != "" {
			options = append(options, label)
		}
		add(out, "mounts", fields{"type": "bind", "source": m.Source, "destination": m.Target, "options": options})
	}
}

func secure(out fields, s *container.Spec) {
	if s.Seccomp != "" {
		out["seccomp_profile_path"] = s.Seccomp
	}
	if s.AppArmor != "" {
		out["apparmor_profile"] = s.AppArmor
	}
	if s.NoNewPrivileges {
		out["no_new_privileges"] = true
	}
	if s.UserNamespace != "" {
		mode, value, _ := strings.Cut(s.UserNamespace, ":")
		out["userns"] = fields{"nsmode": mode, "value": value}
	}
}

func networks(out fields, s *container.Spec) {
	switch {
	case len(s.Endpoints) > 0:
		out["netns"] = fields{"nsmode": "bridge"}
		in := fields{}
		for _, p := range s.Endpoints {
			in[p.Network] = place(p)
		}
		out["Networks"] = in
	case s.Network != "":
		mode, value, _ := strings.Cut(s.Network, ":")
		out["netns"] = fields{"nsmode": mode, "value": value}
	}
}

func place(p container.Endpoint) fields {
	out := fields{}
	if p.Address != "" {
		out["static_ips"] = []string{p.Address}
	}
	if len(p.Aliases) > 0 {
		out["aliases"] = p.Aliases
	}
	return out
}

// inspected is what is read of a container.
type inspected struct {
	Id, Name string //nolint:revive // the engine's spelling
	Created  time.Time
	State    struct {
		Status, Error       string
		StartedAt           time.Time
		FinishedAt          time.Time
		ExitCode            int
		OOMKilled           bool
		Health, Healthcheck struct{ Status string }
	}
	Config struct {
		Labels      map[string]string
		Healthcheck struct {
			Test     []string
			Interval time.Duration
		}
	}
	Mounts          []struct{ Type, Name string }
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
	}
}

// states are Podman's words for what is not as in Docker.
var states = map[string]string{"configured": container.StateCreated, "initialized": container.StateCreated, "stopped": container.StateExited,
	"stopping": container.StateRunning}

func (e *engine) inspect(ctx context.Context, nameOrID string) (*inspected, error) {
	c := &inspected{}
	return c, e.api.do(ctx, call{what: "inspect container", about: nameOrID, method: "GET", path: "/containers/" + nameOrID + "/json"}, c)
}

// FindContainer implements container.Containers.
func (e *engine) FindContainer(ctx context.Context, nameOrID string) (*container.Found, error) {
	c, err := e.inspect(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	f := &container.Found{ID: c.Id, Name: c.Name, Labels: c.Config.Labels, State: c.State.Status, Created: c.Created.UTC(), Started: instant(c.State.StartedAt),
		Finished: instant(c.State.FinishedAt), ExitCode: c.State.ExitCode, OOMKilled: c.State.OOMKilled, Error: c.State.Error}
	if s, ok := states[f.State]; ok {
		f.State = s
	}
	f.Health = c.State.Health.Status + c.State.Healthcheck.Status // newer engines have the one, older the other
	for _, m := range c.Mounts {
		if m.Type == "volume" && m.Name != "" {
			f.Volumes = append(f.Volumes, m.Name)
		}
	}
	slices.Sort(f.Volumes)
	for _, name := range slices.Sorted(maps.Keys(c.NetworkSettings.Networks)) {
		n := c.NetworkSettings.Networks[name]
		for _, a := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if a != "" {
				f.Addresses = append(f.Addresses, a)
			}
		}
	}
	return f, nil
}

// instant is a time of the engine; its zero is none.
func instant(t time.Time) time.Time {
	if t.Year() < 1971 {
		return time.Time{}
	}
	return t.UTC()
}

// ListContainers implements container.Containers.
func (e *engine) ListContainers(ctx context.Context, labels map[string]string) ([]string, error) {
	var all []struct {
		Id     string //nolint:revive // the engine's spelling
		Labels map[string]string
	}
	err := e.api.do(ctx, call{what: "list", about: "containers", method: "GET", path: "/containers/json",
		query: url.Values{"all": {"true"}, "filters": {filters(labels)}}}, &all)
	var out []string
	for _, c := range all {
		if have(c.Labels, labels) {
			out = append(out, c.Id)
		}
	}
	return out, err
}

// RemoveContainer implements container.Containers.
func (e *engine) RemoveContainer(ctx context.Context, id string) error {
	c := call{what: "remove container", about: id, method: "DELETE", path: "/containers/" + id, query: url.Values{"force": {"true"}, "v": {"true"}, "timeout": {"0"}}}
	var reports []struct{ Err any }
	if err := e.api.do(ctx, c, &reports); err != nil {
		return err
	}
	for _, r := range reports { // it says so with a status of success
		if text := fmt.Sprint(r.Err); r.Err != nil && text != "" && text != "map[]" {
			return c.failed(&refusal{Message: text, Status: http.StatusInternalServerError})
		}
	}
	return nil
}

// Of a container that has just ended, Podman takes the root away by a process of its own, also from under a copy that has
// begun: it is repeated for cleanupPatience.
const (
	cleanupPatience = 10 * time.Second
	cleanupTick     = 50 * time.Millisecond
)

// PutFiles implements container.Containers.
func (e *engine) PutFiles(ctx context.Context, id string, tar io.ReadSeeker) error {
	began := time.Now()
	for {
		err := e.api.do(ctx, call{what: "copy the token to container", about: id, method: "PUT", path: "/containers/" + id + "/archive",
			query: url.Values{"path": {"/"}}, body: tar}, nil)
		if err == nil || !strings.Contains(err.Error(), "copier subprocess") || time.Since(began) > cleanupPatience {
			return err
		}
		if _, err := tar.Seek(0, io.SeekStart); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(cleanupTick):
		}
	}
}

// StartContainer implements container.Runs.
func (e *engine) StartContainer(ctx context.Context, id string) error {
	return e.api.do(ctx, call{what: "start container", about: id, method: "POST", path: "/containers/" + id + "/start"}, nil)
}

// StopContainer implements container.Runs.
func (e *engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	return e.api.do(ctx, call{what: "stop container", about: id, method: "POST", path: "/containers/" + id + "/stop",
		query: url.Values{"timeout": {fmt.Sprint(int(grace.Round(time.Second) / time.Second))}}}, nil)
}

// Attach implements container.Runs.
func (e *engine) Attach(ctx context.Context, id string, p container.Endpoint) error {
	at := "/networks/" + p.Network
	err := e.api.do(ctx, call{what: "disconnect container", about: id + " from network " + p.Network, method: "POST", path: at + "/disconnect",
		body: fields{"Container": id, "Force": true}}, nil)
	if err != nil && !fault.Is(err, fault.NotFound) && !strings.Contains(err.Error(), "not connected") {
		return err
	}
	body := place(p)
	body["container"] = id
	return e.api.do(ctx, call{what: "connect container", about: id + " to network " + p.Network, method: "POST", path: at + "/connect", body: body}, nil)
}

// Logs implements container.Runs.
func (e *engine) Logs(ctx context.Context, id string, follow bool, out io.Writer) error {
	c := call{what: "read the logs of container", about: id, method: "GET", path: "/containers/" + id + "/logs",
		query: url.Values{"stdout": {"true"}, "stderr": {"true"}, "follow": {fmt.Sprint(follow)}}}
	resp, err := e.api.send(ctx, c)
	if err != nil {
		return err
	}
	_, err = stdcopy.StdCopy(out, out, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return c.failed(err)
	}
	return nil
}

// network is one as the engine has it.
type network struct {
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels"`
	Subnets []struct {
		Subnet string `json:"subnet"`
	} `json:"subnets"`
}

// CreateNetwork implements container.Networks.
func (e *engine) CreateNetwork(ctx context.Context, n *container.NetworkSpec) error {
	body := fields{"name": n.Name, "driver": "bridge", "internal": n.Internal, "labels": n.Labels, "options": n.Options, "dns_enabled": false}
	if n.Subnet != "" {
		s, err := netip.ParsePrefix(n.Subnet)
		if err != nil {
			return fault.New(fault.Invalid, "network.subnet %q is no subnet, for example 10.80.1.0/24", n.Subnet)
		}
		body["subnets"] = []fields{{"subnet": s.Masked().String(), "gateway": s.Masked().Addr().Next().String()}}
	}
	return e.api.do(ctx, call{what: "create network", about: n.Name, method: "POST", path: "/networks/create", body: body}, nil)
}

// FindNetwork implements container.Networks.
func (e *engine) FindNetwork(ctx context.Context, name string) (*container.NetworkSpec, error) {
	var n network
	if err := e.api.do(ctx, call{what: "inspect network", about: name, method: "GET", path: "/networks/" + name + "/json"}, &n); err != nil {
		return nil, err
	}
	out := &container.NetworkSpec{Name: n.Name, Labels: n.Labels}
	for _, s := range n.Subnets {
		out.Subnet = s.Subnet
	}
	return out, nil
}

// ListNetworks implements container.Networks.
func (e *engine) ListNetworks(ctx context.Context, labels map[string]string) ([]string, error) {
	var all []network
	err := e.api.do(ctx, call{what: "list", about: "networks", method: "GET", path: "/networks/json", query: url.Values{"filters": {filters(labels)}}}, &all)
	var out []string
	for _, n := range all {
		if have(n.Labels, labels) {
			out = append(out, n.Name)
		}
	}
	return out, err
}

// RemoveNetwork implements container.Networks.
func (e *engine) RemoveNetwork(ctx context.Context, name string) error {
	return e.api.do(ctx, call{what: "remove network", about: name, method: "DELETE", path: "/networks/" + name}, nil)
}

// vol is a volume as the engine has it.
type vol struct {
	Name   string
	Labels map[string]string
}

// CreateVolume implements container.Volumes.
func (e *engine) CreateVolume(ctx context.Context, v *container.VolumeSpec) (map[string]string, error) {
	var made vol
	body := fields{"Name": v.Name, "Labels": v.Labels, "Label": v.Labels, "Options": v.Options}
	if v.Driver != "" {
		body["Driver"] = v.Driver
	}
	err := e.api.do(ctx, call{what: "create volume", about: v.Name, method: "POST", path: "/volumes/create", body: body}, &made)
	if fault.Is(err, fault.AlreadyExists) {
		err = e.api.do(ctx, call{what: "inspect volume", about: v.Name, method: "GET", path: "/volumes/" + v.Name + "/json"}, &made)
	}
	return made.Labels, err
}

// ListVolumes implements container.Volumes.
func (e *engine) ListVolumes(ctx context.Context, labels map[string]string) ([]string, error) {
	var all []vol
	err := e.api.do(ctx, call{what: "list", about: "volumes", method: "GET", path: "/volumes/json", query: url.Values{"filters": {filters(labels)}}}, &all)
	var out []string
	for _, v := range all {
		if have(v.Labels, labels) {
			out = append(out, v.Name)
		}
	}
	return out, err
}

// RemoveVolume implements container.Volumes.
func (e *engine) RemoveVolume(ctx context.Context, name string) error {
	return e.api.do(ctx, call{what: "remove volume", about: name, method: "DELETE", path: "/volumes/" + name, query: url.Values{"force": {"true"}}}, nil)
}

package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// defaultPIDs is how many processes a sandbox may have where nobody says. A sandbox that makes them without end would
// take the host along.
const defaultPIDs = 4096

// tokenPath is where the sandbox finds its token.
const tokenPath = "/run/sandgate/token"

// points returns where extensions may change the plan. What is open in before_start is what an engine can apply to a
// container that is there: all else is part of the container, which is made once.
func points() []plan.Point {
	prepare := []phase.Phase{phase.PreparePlan}
	create := []phase.Phase{phase.PreparePlan, phase.BeforeCreate}
	starts := []phase.Phase{phase.BeforeCreate, phase.BeforeStart}
	ensure := []phase.Phase{phase.EnsureWorkspace}
	return []plan.Point{
		{Pattern: "Container.image", Phases: prepare, Overridable: true, Feature: "image", Object: mainContainer, Doc: "the image, before it is fetched"},
		{Pattern: "Container.environment", Phases: create, Overridable: true, Feature: "environment", Object: mainContainer, Doc: "variables of the command"},
		{Pattern: "Container.labels", Phases: create, Overridable: true, Feature: "labels", Object: mainContainer, Doc: "labels"},
		{Pattern: "Container.annotations", Phases: create, Overridable: true, Feature: "annotations", Object: mainContainer, Doc: "free notes, which the runtime sees"},
		{Pattern: "Container.hostname", Phases: prepare, Feature: "hostname", Object: mainContainer, Doc: "the name of its host"},
		{Pattern: "Container.limits", Phases: create, Overridable: true, Feature: "limits", Object: mainContainer, Doc: "what it may use"},
		{Pattern: "Container.network.address", Phases: starts, Feature: "network.address", Object: mainContainer, Doc: "its address in the workspace's network; the length of a prefix may follow"},
		{Pattern: "Container.networks", Phases: create, Feature: "networks", Object: mainContainer, Doc: "further networks of the workspace that it joins"},
		{Pattern: "Container.mounts", Phases: create, Feature: "mount", Object: mainContainer, Doc: "mounts of the host, of images and of memory"},
		{Pattern: "Container.devices", Phases: create, Feature: "device", Object: mainContainer, Doc: "devices by their CDI names"},
		{Pattern: "Container.extra_hosts", Phases: create, Feature: "extra-hosts", Object: mainContainer, Doc: "names of hosts with their addresses"},
		{Pattern: "Container.health", Phases: create, Overridable: true, Feature: "health", Object: mainContainer, Doc: "the check that says when it is ready"},
		{Pattern: "Container.sysctls", Phases: create, Feature: "sysctls", Object: mainContainer, Doc: "kernel settings of its namespaces"},
		{Pattern: "Container.user_namespace", Phases: create, Feature: "user-namespace", Object: mainContainer, Doc: "how its users are mapped"},
		{Pattern: "Container.security.seccomp", Phases: create, Feature: "seccomp", Object: mainContainer, Doc: "a profile, or unconfined"},
		{Pattern: "Container.security.apparmor", Phases: create, Feature: "apparmor", Object: mainContainer, Doc: "the name of a profile, or unconfined"},
		{Pattern: "Container.security.no_new_privileges", Phases: create, Feature: "no-new-privileges", Object: mainContainer, Doc: "programs cannot raise what they may"},
		{Pattern: kindVolume, Phases: create, Feature: "volume", Doc: "a volume of the sandbox's own, mounted at its target"},
		{Pattern: kindNetwork, Phases: ensure, Feature: "network", Object: workspace, Doc: "the workspace's network"},
		{Pattern: "Network.subnet", Phases: ensure, Feature: "network.subnet", Object: workspace, Doc: "the subnet, in CIDR form"},
	}
}

// describe says what the driver offers with this engine.
func describe(typ string, about *About) *driver.Description {
	d := &driver.Description{Type: typ, Version: about.Version, Instance: about.Instance, Missing: about.Missing,
		Kinds: []plan.Kind{
			{Name: kindContainer, Scope: plan.ScopeSandbox, Schema: containerSchema, Sensitive: []string{"environment"}},
			{Name: kindVolume, Scope: plan.ScopeSandbox, Schema: volumeSchema},
			{Name: kindNetwork, Scope: plan.ScopeWorkspace, Schema: networkSchema},
		}}
	for _, pt := range points() {
		if about.Missing[pt.Feature] == "" {
			d.Points = append(d.Points, pt)
			d.Features = append(d.Features, extension.Feature{Name: pt.Feature, Point: pt.Pattern, Object: pt.Object})
		}
	}
	d.Features = append(d.Features, extension.Feature{Name: "restart"}, extension.Feature{Name: "logs"})
	return d
}

// settings is the driver_config of a sandbox.
type settings struct {
	Devices []string `json:"cdi_devices"`
	Mounts  []Mount  `json:"mounts"`
	User    string   `json:"user"`
}

func (d *Driver) settings(raw json.RawMessage) (*settings, error) {
	s := &settings{}
	if len(raw) == 0 {
		return s, nil
	}
	invalid := func(path, why string) error {
		return fault.New(fault.Invalid, "%s: %s", path, why).With(fault.Diagnostic{Path: path, Summary: why})
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) { // its text repeats the value
			return nil, invalid("driver_config", "the key "+typ.Field+" is not of the type "+typ.Type.String())
		}
		return nil, invalid("driver_config", strings.TrimPrefix(err.Error(), "json: ")+"; it has cdi_devices, mounts and user")
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" && !d.cfg.BindMounts {
			return nil, invalid("driver_config.mounts", "mounts of the host are not allowed here; the driver's bind_mounts allows them")
		}
	}
	return s, nil
}

// Layers implements driver.Driver.
func (d *Driver) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	s, err := d.settings(r.Config)
	if err != nil {
		return nil, err
	}
	if r.Spec.Image == "" && d.cfg.DefaultImage == "" {
		return nil, fault.New(fault.Invalid, "image: the %s driver needs one", d.cfg.Type).With(fault.Diagnostic{Path: "image", Summary: "is missing"})
	}
	id := r.Identity
	object := func(fields map[string]any) []plan.Object {
		return []plan.Object{{Kind: kindContainer, Name: mainContainer, Fields: fields}}
	}
	defaults := map[string]any{"hostname": id.Name}
	if d.cfg.DefaultImage != "" {
		defaults["image"] = d.cfg.DefaultImage
	}
	if d.about.Missing["limits"] == "" {
		defaults["limits"] = map[string]any{"pids": int64(defaultPIDs)}
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: object(map[string]any{
			"environment": map[string]any{"SANDGATE_SANDBOX_ID": id.ID, "SANDGATE_SANDBOX_NAME": id.Name, "SANDGATE_WORKSPACE": id.Workspace},
			"labels":      table(d.marks(id))})},
		{Owner: plan.OwnerRequest, Objects: object(request(r, s))},
		{Owner: plan.OwnerDriver, Objects: object(defaults)},
	}, nil
}

// request returns what the caller asked for.
func request(r *driver.Request, s *settings) map[string]any {
	out := map[string]any{}
	set := func(key string, value any, there bool) {
		if there {
			out[key] = value
		}
	}
	set("image", r.Spec.Image, r.Spec.Image != "")
	set("command", list(r.Spec.Command), len(r.Spec.Command) > 0)
	set("environment", table(r.Spec.Environment), len(r.Spec.Environment) > 0)
	set("labels", table(r.Spec.Labels), len(r.Spec.Labels) > 0)
	limits := resources(r.Spec.Resources)
	set("limits", limits, len(limits) > 0)
	set("devices", list(s.Devices), len(s.Devices) > 0)
	set("user", s.User, s.User != "")
	var mounts []any
	for _, m := range s.Mounts {
		mounts = append(mounts, m.fields())
	}
	set("mounts", mounts, len(mounts) > 0)
	return out
}

func (m Mount) fields() map[string]any {
	out := map[string]any{"target": m.Target, "type": m.Type, "read_only": m.ReadOnly}
	if m.Source != "" {
		out["source"] = m.Source
	}
	if m.Size != 0 {
		out["size"] = m.Size
	}
	if m.SELinux != "" {
		out["selinux"] = m.SELinux
	}
	return out
}

func list(s []string) []any {
	out := make([]any, len(s))
	for i, v := range s {
		out[i] = v
	}
	return out
}

func table(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func resources(r sandbox.Resources) map[string]any {
	out := map[string]any{}
	for k, v := range map[string]int64{"milli_cpu": r.MilliCPU, "memory": r.Memory, "pids": r.PIDs} {
		if v > 0 {
			out[k] = v
		}
	}
	return out
}

// WorkspaceLayers implements driver.Driver. A workspace has nothing until somebody contributes it.
func (d *Driver) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return []plan.Layer{{Owner: plan.OwnerDriver}}, nil
}

// Resolve implements driver.Driver.
func (d *Driver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	for _, name := range r.Requires {
		if !slices.ContainsFunc(d.about.Features, func(f extension.Feature) bool { return f.Name == name }) {
			return fault.New(fault.FailedPrecondition, "the feature %q is required, and this engine does not give it: %s", name, d.about.Missing[name])
		}
	}
	b, err := d.check(r.Plan, r.Workspace)
	if err != nil {
		return err
	}
	if d.cfg.ImagePolicy == PolicyNever {
		if _, err := d.engine.ImageID(ctx, b.Image); err != nil {
			return missingImage(err)
		}
	}
	found, err := d.engine.FindContainer(ctx, d.containerName(r.Identity))
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case !d.bears(found, r.Identity):
		return fault.New(fault.Conflict, "the container %s is in the way: it bears no marks of this sandbox", found.Name)
	}
	return nil
}

// check judges a whole plan.
func (d *Driver) check(p, ws *plan.Plan) (*box, error) {
	for _, o := range p.Objects() {
		if o.Kind == kindContainer && o.Name != mainContainer {
			return nil, fault.New(fault.Invalid, "%s: a sandbox has one container, %q", o.Ref(), mainContainer)
		}
	}
	b := boxOf(p)
	if b.Image == "" {
		return nil, fault.New(fault.Invalid, "Container/main has no image").With(fault.Diagnostic{Path: "image", Summary: "is missing"})
	}
	if _, taken := b.Labels[operationLabel]; taken {
		return nil, fault.New(fault.Invalid, "the label %s is the driver's", operationLabel)
	}
	if l := b.Limits; d.about.Missing["limits"] != "" && l != (Limits{}) {
		return nil, fault.New(fault.FailedPrecondition, "limits cannot be kept by this engine: %s", d.about.Missing["limits"])
	}
	if _, err := d.endpoints(b, sandbox.Identity{}, ws); err != nil {
		return nil, err
	}
	if _, err := b.healthCheck(); err != nil {
		return nil, err
	}
	targets := map[string]bool{}
	mounts := slices.Clone(b.Mounts)
	for _, v := range volumesOf(p) {
		mounts = append(mounts, Mount{Type: "volume", Source: v.Name, Target: v.Target})
	}
	for _, m := range mounts {
		if err := m.check(); err != nil {
			return nil, err
		}
		if targets[m.Target] {
			return nil, fault.New(fault.Invalid, "two mounts at %q", m.Target)
		}
		targets[m.Target] = true
	}
	return &b, nil
}

func (m Mount) check() error {
	reserved := []string{"/proc", "/dev", "/sys", path.Dir(tokenPath)}
	switch {
	case !slices.Contains([]string{"bind", "tmpfs", "volume", "image"}, m.Type):
		return fault.New(fault.Invalid, "a mount of type %q: it is bind, tmpfs, volume or image", m.Type)
	case !path.IsAbs(m.Target) || m.Target != path.Clean(m.Target) || m.Target == "/":
		return fault.New(fault.Invalid, "a mount at %q: its target is an absolute path below the root", m.Target)
	case slices.ContainsFunc(reserved, func(dir string) bool { return within(m.Target, dir) || within(dir, m.Target) }):
		return fault.New(fault.Invalid, "a mount at %q, which is the driver's", m.Target)
	case m.Type == "bind" && (!path.IsAbs(m.Source) || m.Source != path.Clean(m.Source)):
		return fault.New(fault.Invalid, "a mount of %q: its source is an absolute path", m.Source)
	case m.Type != "tmpfs" && m.Source == "":
		return fault.New(fault.Invalid, "a mount at %q without a source", m.Target)
	case m.SELinux != "" && m.SELinux != "shared" && m.SELinux != "private":
		return fault.New(fault.Invalid, "a mount with selinux %q: it is shared or private", m.SELinux)
	}
	return nil
}

// within reports whether p is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func (b *box) healthCheck() (*Health, error) {
	if b.Health == nil || len(b.Health.Test) == 0 {
		return nil, nil
	}
	out := &Health{Test: b.Health.Test, Retries: b.Health.Retries}
	var errs [3]error
	out.Interval, errs[0] = b.Health.Interval.parse()
	out.Timeout, errs[1] = b.Health.Timeout.parse()
	out.StartPeriod, errs[2] = b.Health.StartPeriod.parse()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fault.New(fault.Invalid, "Container.health: %w", err)
	}
	return out, nil
}

// endpoints returns the places that a container has in the networks of its workspace, the main one first. Without a
// workspace plan only the form is judged.
func (d *Driver) endpoints(b box, id sandbox.Identity, ws *plan.Plan) ([]Endpoint, error) {
	nets := networksOf(ws)
	var out []Endpoint
	add := func(name, address string) error {
		n, there := nets[name]
		if !there && ws != nil {
			return fault.New(fault.FailedPrecondition, "the address %q needs the network %q of workspace %q, which has none of that name", address, name, id.Workspace)
		}
		bare, err := addressIn(address, n.Subnet)
		if err != nil || !there {
			return err
		}
		out = append(out, Endpoint{Network: d.networkName(sandbox.Workspace{ID: id.WorkspaceID, Name: id.Workspace}, name), Address: bare, Aliases: aliases(id.Name)})
		return nil
	}
	if _, there := nets[workspace]; there || b.Network.Address != "" {
		if err := add(workspace, b.Network.Address); err != nil {
			return nil, err
		}
	}
	for _, n := range b.Networks {
		if n.Name == workspace {
			continue // it has its own field
		}
		if err := add(n.Name, n.Address); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func aliases(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// addressIn checks an address, which may carry the length of its prefix, and returns it without.
func addressIn(address, subnet string) (string, error) {
	if address == "" {
		return "", nil
	}
	bare, _, _ := strings.Cut(address, "/")
	a, err := netip.ParseAddr(bare)
	if err != nil {
		return "", fault.New(fault.Invalid, "network.address %q is no address, for example 10.80.1.2", address)
	}
	if subnet == "" {
		return a.String(), nil
	}
	s, err := netip.ParsePrefix(subnet)
	if err != nil || !s.Contains(a) {
		return "", fault.New(fault.Invalid, "network.address %s does not lie in the workspace's subnet %s", a, subnet)
	}
	return a.String(), nil
}

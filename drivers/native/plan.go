package native

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The kinds of the driver's plans, and the names of the objects that mean something to it.
const (
	kindProcess = "Process"
	kindMount   = "Mount"
	kindNetwork = "Network"
	mainProcess = "main"
	workspace   = "workspace"
)

// defaultPIDs is how many processes a sandbox may have where nobody says. A sandbox that makes them without end would
// take the host along.
const defaultPIDs = 4096

const processSchema = `types:
- name: Process
  map:
    fields:
    - {name: image, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: directory, type: {scalar: string}}
    - {name: hostname, type: {scalar: string}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
    - name: network
      type:
        map:
          fields:
          - {name: address, type: {scalar: string}}
    - name: limits
      type:
        map:
          fields:
          - {name: files, type: {scalar: numeric}}
          - {name: pids, type: {scalar: numeric}}
          - {name: memory, type: {scalar: numeric}}
          - {name: milli_cpu, type: {scalar: numeric}}
`

const mountSchema = `types:
- name: Mount
  map:
    fields:
    - {name: type, type: {scalar: string}}
    - {name: source, type: {scalar: string}}
    - {name: target, type: {scalar: string}}
    - {name: read_only, type: {scalar: boolean}}
`

const networkSchema = `types:
- name: Network
  map:
    fields:
    - {name: subnet, type: {scalar: string}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
`

// process, mount and network are the objects as Go has them.
type process struct {
	Image       string            `json:"image,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Directory   string            `json:"directory,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Network     struct {
		Address string `json:"address,omitempty"`
	} `json:"network,omitzero"`
	Limits limits `json:"limits,omitzero"`
}

type limits struct {
	Files    int64 `json:"files,omitempty"`
	PIDs     int64 `json:"pids,omitempty"`
	Memory   int64 `json:"memory,omitempty"`
	MilliCPU int64 `json:"milli_cpu,omitempty"`
}

type mount struct {
	Type     string `json:"type"`
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only"`
}

type network struct {
	Subnet string `json:"subnet"`
}

// as turns an object's fields into its Go form. They fit its schema, so they fit that.
func as[T any](o plan.Object) T {
	var v T
	raw, err := json.Marshal(o.Fields)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		panic(fmt.Sprintf("native: %s does not fit its own schema: %v", o.Ref(), err))
	}
	return v
}

func processOf(p *plan.Plan) process {
	o, _ := p.Object(kindProcess, mainProcess)
	return as[process](o)
}

func networkOf(ws *plan.Plan) network {
	if ws == nil {
		return network{}
	}
	o, _ := ws.Object(kindNetwork, workspace)
	return as[network](o)
}

func mountsOf(p *plan.Plan) []mount {
	var out []mount
	for _, o := range p.Objects() {
		if o.Kind == kindMount {
			out = append(out, as[mount](o))
		}
	}
	return out
}

// describe says what the driver offers on this host.
func describe(instance string, host abilities) *driver.Description {
	prepare := []phase.Phase{phase.PreparePlan}
	late := []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	ensure := []phase.Phase{phase.EnsureWorkspace}
	d := &driver.Description{Type: "native", Version: "1", Instance: instance, Missing: host.missing,
		Kinds: []plan.Kind{
			{Name: kindProcess, Scope: plan.ScopeSandbox, Schema: processSchema, Sensitive: []string{"environment"}},
			{Name: kindMount, Scope: plan.ScopeSandbox, Schema: mountSchema},
			{Name: kindNetwork, Scope: plan.ScopeWorkspace, Schema: networkSchema},
		},
		Points: []plan.Point{
			{Pattern: "Process.image", Phases: prepare, Overridable: true, Feature: "image", Object: mainProcess, Doc: "the root that it runs in"},
			{Pattern: "Process.environment", Phases: late, Overridable: true, Feature: "environment", Object: mainProcess, Doc: "variables of the command"},
			{Pattern: "Process.labels", Phases: late, Overridable: true, Feature: "labels", Object: mainProcess, Doc: "labels"},
			{Pattern: "Process.annotations", Phases: late, Feature: "annotations", Object: mainProcess, Doc: "free notes"},
			{Pattern: "Process.hostname", Phases: prepare, Feature: "hostname", Object: mainProcess, Doc: "the name of its host"},
			{Pattern: kindMount, Phases: []phase.Phase{phase.PreparePlan, phase.BeforeCreate}, Feature: "volume", Doc: "a further directory"},
			{Pattern: kindNetwork, Phases: ensure, Feature: "network", Object: workspace, Doc: "the workspace's network"},
		},
	}
	if host.cgroups {
		d.Points = append(d.Points, plan.Point{Pattern: "Process.limits", Phases: prepare, Overridable: true, Feature: "limits", Object: mainProcess, Doc: "what it may use"})
	}
	if host.network {
		d.Points = append(d.Points,
			plan.Point{Pattern: "Process.network.address", Phases: []phase.Phase{phase.BeforeCreate, phase.BeforeStart}, Feature: "network.address", Object: mainProcess, Doc: "its address, with the length of the prefix"},
			plan.Point{Pattern: "Network.subnet", Phases: ensure, Feature: "network.subnet", Object: workspace, Doc: "the subnet, in CIDR form"})
	}
	for _, pt := range d.Points {
		d.Features = append(d.Features, extension.Feature{Name: pt.Feature, Point: pt.Pattern, Object: pt.Object})
	}
	d.Features = append(d.Features, extension.Feature{Name: "restart"}, extension.Feature{Name: "logs"})
	return d
}

// Layers implements driver.Driver.
func (d *Driver) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	var config struct{}
	if err := strictJSON(r.Config, &config); err != nil {
		return nil, fault.New(fault.Invalid, "driver_config: %v: the native driver takes no settings of a sandbox", err).
			With(fault.Diagnostic{Path: "driver_config", Summary: err.Error()})
	}
	if len(r.Spec.Command) == 0 {
		return nil, fault.New(fault.Invalid, "command: the native driver needs one").With(fault.Diagnostic{Path: "command", Summary: "is missing"})
	}
	id := r.Identity
	object := func(fields map[string]any) []plan.Object {
		return []plan.Object{{Kind: kindProcess, Name: mainProcess, Fields: fields}}
	}
	request := map[string]any{"command": list(r.Spec.Command)}
	if r.Spec.Image != "" {
		request["image"] = r.Spec.Image
	}
	if len(r.Spec.Environment) > 0 {
		request["environment"] = table(r.Spec.Environment)
	}
	if len(r.Spec.Labels) > 0 {
		request["labels"] = table(r.Spec.Labels)
	}
	if l := resources(r.Spec.Resources); len(l) > 0 {
		request["limits"] = l
	}
	defaults := map[string]any{"hostname": id.Name, "directory": "/work",
		"environment": map[string]any{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/work"}}
	if d.host.cgroups {
		defaults["limits"] = map[string]any{"pids": int64(defaultPIDs)}
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: object(map[string]any{"environment": map[string]any{
			"SANDGATE_SANDBOX_ID": id.ID, "SANDGATE_SANDBOX_NAME": id.Name, "SANDGATE_WORKSPACE": id.Workspace}})},
		{Owner: plan.OwnerRequest, Objects: object(request)},
		{Owner: plan.OwnerDriver, Objects: object(defaults)},
	}, nil
}

func strictJSON(raw json.RawMessage, v any) error {
	if len(raw) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return fmt.Errorf("it is no JSON object")
	}
	for k := range keys {
		return fmt.Errorf("the key %q is not known", k)
	}
	return nil
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
func (d *Driver) Resolve(_ context.Context, r *driver.ResolveRequest) error {
	for _, o := range r.Plan.Objects() {
		if o.Kind == kindProcess && o.Name != mainProcess {
			return fault.New(fault.Invalid, "%s: a sandbox has one process, %q", o.Ref(), mainProcess)
		}
	}
	for _, name := range r.Requires {
		if !slices.ContainsFunc(d.about.Features, func(f extension.Feature) bool { return f.Name == name }) {
			return fault.New(fault.FailedPrecondition, "the feature %q is required, and this host does not give it: %s", name, d.about.Missing[name])
		}
	}
	p := processOf(r.Plan)
	if _, err := d.root(p.Image); err != nil {
		return err
	}
	if l := p.Limits; !d.host.cgroups && (l.Memory > 0 || l.PIDs > 0 || l.MilliCPU > 0) {
		return fault.New(fault.FailedPrecondition, "limits cannot be kept on this host: %s", d.about.Missing["limits"])
	}
	if _, err := os.Lstat(d.dir(r.Identity.ID)); err == nil {
		if m, err := d.load(r.Identity.ID); err != nil || m.Identity != r.Identity {
			return fault.New(fault.Conflict, "%s is in the way: it bears no marks of this sandbox", d.dir(r.Identity.ID))
		}
	}
	if d.host.network && networkOf(r.Workspace).Subnet != "" {
		if err := d.linkInTheWay(r.Identity.ID); err != nil {
			return err
		}
	}
	if a := p.Network.Address; a != "" {
		if _, err := addressIn(a, networkOf(r.Workspace).Subnet); err != nil {
			return err
		}
	}
	for _, m := range mountsOf(r.Plan) {
		if err := m.check(); err != nil {
			return err
		}
	}
	return nil
}

// addressIn completes an address with the length of the subnet's prefix, which it may also carry itself. Without a
// subnet only its form is judged.
func addressIn(address, subnet string) (string, error) {
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
	return netip.PrefixFrom(a, s.Bits()).String(), nil
}

func (m mount) check() error {
	switch {
	case m.Type != "tmpfs" && m.Type != "bind" && m.Type != "":
		return fault.New(fault.Invalid, "a Mount of type %q: it is bind or tmpfs", m.Type)
	case !filepath.IsAbs(m.Target) || m.Target != filepath.Clean(m.Target) || m.Target == "/":
		return fault.New(fault.Invalid, "a Mount at %q: its target is an absolute path below the root", m.Target)
	case slices.ContainsFunc([]string{"/proc", "/dev", "/sys"}, func(dir string) bool { return inside(m.Target, dir) }):
		return fault.New(fault.Invalid, "a Mount at %q, which is the driver's", m.Target)
	case m.Type != "tmpfs" && (!filepath.IsAbs(m.Source) || m.Source != filepath.Clean(m.Source)):
		return fault.New(fault.Invalid, "a Mount of %q: its source is an absolute path", m.Source)
	}
	return nil
}

// inside reports whether path is dir or below it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// root returns the directory that an image means.
func (d *Driver) root(image string) (string, error) {
	if len(d.cfg.Roots) == 0 || image == "" {
		return "/", nil
	}
	if dir, ok := d.cfg.Roots[image]; ok {
		return dir, nil
	}
	return "", fault.New(fault.FailedPrecondition, "there is no root %q configured on this host", image).With(fault.Diagnostic{Path: "image", Summary: "is not configured"})
}

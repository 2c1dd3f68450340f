package drivertest

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The kinds of the fake driver's plans, and the name of the one Box of a sandbox and the one Net of a workspace that
// mean something to it.
const (
	KindBox    = "Box"    // what runs
	KindVolume = "Volume" // a further object of a sandbox
	KindNet    = "Net"    // what the sandboxes of a workspace share
	Main       = "main"
)

const boxSchema = `
types:
- name: Box
  map:
    fields:
    - {name: id, type: {scalar: string}}
    - {name: hostname, type: {scalar: string}}
    - {name: image, type: {scalar: string}}
    - {name: size, type: {scalar: string}}
    - {name: address, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
    - {name: resources, type: {namedType: Resources}}
    - {name: mounts, type: {list: {elementType: {namedType: Mount}, elementRelationship: associative, keys: [path]}}}
- name: Resources
  map:
    fields:
    - {name: milli_cpu, type: {scalar: numeric}}
    - {name: memory, type: {scalar: numeric}}
    - {name: pids, type: {scalar: numeric}}
- name: Mount
  map:
    fields:
    - {name: path, type: {scalar: string}}
    - {name: volume, type: {scalar: string}}
`

const volumeSchema = `
types:
- name: Volume
  map:
    fields:
    - {name: size, type: {scalar: string}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
`

const netSchema = `
types:
- name: Net
  map:
    fields:
    - {name: id, type: {scalar: string}}
    - {name: subnet, type: {scalar: string}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
`

// Kinds returns the kinds of the fake driver's plans.
func Kinds() []plan.Kind {
	return []plan.Kind{
		{Name: KindBox, Scope: plan.ScopeSandbox, Schema: boxSchema, Sensitive: []string{"environment"}},
		{Name: KindVolume, Scope: plan.ScopeSandbox, Schema: volumeSchema},
		{Name: KindNet, Scope: plan.ScopeWorkspace, Schema: netSchema},
	}
}

// Points returns where extensions may change the fake driver's plans.
func Points() []plan.Point {
	prepare := []phase.Phase{phase.PreparePlan}
	late := []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	ensure := []phase.Phase{phase.EnsureWorkspace}
	return []plan.Point{
		{Pattern: "Box.image", Phases: []phase.Phase{phase.PreparePlan, phase.BeforeStart}, Overridable: true, Doc: "what is run"},
		{Pattern: "Box.size", Phases: prepare, Overridable: true, Doc: "small or large"},
		{Pattern: "Box.resources", Phases: prepare, Overridable: true, Doc: "limits"},
		{Pattern: "Box.mounts", Phases: prepare, Feature: "volume", Object: Main, Doc: "where volumes are seen"},
		{Pattern: "Box.labels", Phases: prepare, Overridable: true, Feature: "labels", Object: Main, Doc: "labels of the box"},
		{Pattern: "Box.annotations", Phases: late, Feature: "annotations", Object: Main, Doc: "free notes on the box"},
		{Pattern: "Box.environment", Phases: late, Overridable: true, Feature: "environment", Object: Main, Doc: "variables of the command"},
		{Pattern: "Box.address", Phases: []phase.Phase{phase.BeforeCreate}, Feature: "network.address", Object: Main, Doc: "address in the workspace's network"},
		{Pattern: KindVolume, Phases: []phase.Phase{phase.PreparePlan, phase.BeforeCreate}, Doc: "a further object of the sandbox"},
		{Pattern: "Net.subnet", Phases: ensure, Feature: "network.subnet", Object: Main, Doc: "subnet in CIDR form"},
		{Pattern: "Net.labels", Phases: ensure, Doc: "labels of the network"},
		{Pattern: KindNet, Phases: ensure, Doc: "a further network of the workspace"},
	}
}

// Schema compiles Kinds and Points, for tests that have no gateway to do it.
func Schema() (*plan.Schema, error) { return plan.NewSchema(Kinds(), Points(), nil) }

// describe returns what the fake is and offers, less the features that it is to lack. A point without its feature is
// closed with it.
func describe(o Options) *driver.Description {
	d := &driver.Description{Type: o.Type, Version: "1", Instance: o.Instance, Kinds: Kinds(), Missing: map[string]string{}}
	for _, name := range []string{"restart", "logs"} {
		d.Features = append(d.Features, extension.Feature{Name: name})
	}
	for _, p := range Points() {
		if p.Feature == "" || !slices.Contains(o.Without, p.Feature) {
			d.Points = append(d.Points, p)
		}
		if p.Feature != "" {
			d.Features = append(d.Features, extension.Feature{Name: p.Feature, Point: p.Pattern, Object: p.Object})
		}
	}
	d.Features = slices.DeleteFunc(d.Features, func(f extension.Feature) bool {
		without := slices.Contains(o.Without, f.Name)
		if without {
			d.Missing[f.Name] = "left out by the test"
		}
		return without
	})
	return d
}

// boxLayers returns the layers of a sandbox's plan before any contribution.
func boxLayers(r *driver.Request) ([]plan.Layer, error) {
	own, err := ownConfig(r.Config)
	if err != nil {
		return nil, err
	}
	s := r.Spec
	req := map[string]any{}
	setString(req, "image", s.Image)
	setString(req, "size", own.Size)
	if len(s.Command) > 0 {
		req["command"] = anyList(s.Command)
	}
	setMap(req, "environment", s.Environment)
	setMap(req, "labels", s.Labels)
	if s.Resources != (sandbox.Resources{}) {
		req["resources"] = map[string]any{"milli_cpu": s.Resources.MilliCPU, "memory": s.Resources.Memory, "pids": s.Resources.PIDs}
	}
	defaults := map[string]any{"environment": map[string]any{"PATH": "/bin"}}
	if s.Image == "" {
		defaults["image"] = "fake/empty"
	}
	if own.Size == "" {
		defaults["size"] = "small"
	}
	if _, ok := s.Environment["PATH"]; ok {
		delete(defaults, "environment")
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: box(map[string]any{"id": r.Identity.ID, "hostname": r.Identity.Name})},
		{Owner: plan.OwnerRequest, Objects: box(req)},
		{Owner: plan.OwnerDriver, Objects: box(defaults)},
	}, nil
}

func netLayers(w sandbox.Workspace) []plan.Layer {
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: []plan.Object{{Kind: KindNet, Name: Main, Fields: map[string]any{"id": w.ID}}}},
		{Owner: plan.OwnerDriver, Objects: []plan.Object{{Kind: KindNet, Name: Main, Fields: map[string]any{
			"labels": map[string]any{"workspace": w.Name}}}}},
	}
}

// config is the fake driver's own part of driver_config.
type config struct {
	Size string `json:"size"`
}

func ownConfig(raw json.RawMessage) (config, error) {
	var c config
	if len(raw) == 0 {
		return c, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return c, invalid("driver_config", "is not a JSON object")
	}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		if key != "size" {
			return c, invalid("driver_config."+key, "is not a setting of this driver; it has: size")
		}
	}
	if err := json.Unmarshal(raw, &c); err != nil || (c.Size != "" && c.Size != "small" && c.Size != "large") {
		return c, invalid("driver_config.size", `is neither "small" nor "large"`)
	}
	return c, nil
}

func invalid(path, summary string) error {
	return fault.New(fault.Invalid, "%s %s", path, summary).With(fault.Diagnostic{Path: path, Summary: summary})
}

func box(fields map[string]any) []plan.Object {
	return []plan.Object{{Kind: KindBox, Name: Main, Fields: fields}}
}

func setString(m map[string]any, key, value string) {
	if value != "" {
		m[key] = value
	}
}

func setMap(m map[string]any, key string, values map[string]string) {
	if len(values) == 0 {
		return
	}
	out := make(map[string]any, len(values))
	for k, v := range values {
		out[k] = v
	}
	m[key] = out
}

func anyList(values []string) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

func stringList(v any) []string {
	list, _ := v.([]any)
	out := make([]string, 0, len(list))
	for _, x := range list {
		s, _ := x.(string)
		out = append(out, s)
	}
	return out
}

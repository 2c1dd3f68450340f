package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The features that it uses where a driver has them. It requires none.
const (
	featureLabels      = "labels"
	featureAnnotations = "annotations"
	featureLimits      = "limits"
	featureNetwork     = "network"
)

// tenantLabel tells by which tenant block a sandbox was judged.
const tenantLabel = "extensions.sandgate.dev/tenant"

// tenants is the extension.
type tenants struct {
	mu     sync.Mutex
	policy policy
}

var _ interface {
	plugin.Configurer
	plugin.Validator
	plugin.Planner
	plugin.WorkspaceEnsurer
} = (*tenants)(nil)

// Info implements plugin.Extension.
func (x *tenants) Info() plugin.Info {
	return plugin.Info{Name: "tenant-namespace", Version: "1.0.0",
		Uses: slices.Concat([]string{featureLabels, featureAnnotations, featureLimits, featureNetwork}, namespaceFeatures), Provides: []string{"tenancy"}, Config: &config{}}
}

// Configure implements plugin.Configurer.
func (x *tenants) Configure(_ context.Context, c *plugin.Config) error {
	p, wrong := c.Value.(*config).check()
	for _, w := range wrong {
		c.Invalid(w.Path, w.Summary, w.Detail)
	}
	if len(wrong) == 0 {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.policy = p
	}
	return nil
}

func (x *tenants) of(r *plugin.Request) *tenant {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.policy.of(r.Workspace().Name)
}

// ValidateRequest implements plugin.Validator: what a tenant may not ask for is refused before anything is touched.
func (x *tenants) ValidateRequest(_ context.Context, r *plugin.Request, v *plugin.Verdict) error {
	t := x.of(r)
	if t == nil {
		v.DenyField("workspace", fmt.Sprintf("%q is no tenant's workspace", r.Workspace().Name), `A block tenant "*" {} is for all workspaces that no other one names.`)
		return nil
	}
	t.judge(r.Image(), r.Labels(), r.Resources(), v.DenyField)
	return nil
}

// judge says everything that the tenant may not have.
func (t *tenant) judge(image string, labels map[string]string, want sandbox.Resources, deny func(path, summary, detail string)) {
	if len(t.images) > 0 && !slices.ContainsFunc(t.images, func(glob string) bool { return match(glob, image) }) {
		deny("image", fmt.Sprintf("%q is not among the tenant's images", image), "Allowed: "+strings.Join(t.images, ", ")+".")
	}
	for _, k := range t.require {
		if labels[k] == "" {
			deny("labels."+k, "is required by the tenant", "")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) { // asked again, the same answer
		if len(t.labelKeys) > 0 && !slices.ContainsFunc(t.labelKeys, func(glob string) bool { return match(glob, k) }) {
			deny("labels."+k, "is not among the labels that the tenant may set", "Allowed: "+strings.Join(t.labelKeys, ", ")+".")
		}
		if have, ok := t.labels[k]; ok && have != labels[k] {
			deny("labels."+k, "is set by the tenant", fmt.Sprintf("It is %q for every sandbox of the tenant.", have))
		}
	}
	for _, res := range resources {
		if most := res.of(t.limits); most > 0 && res.of(want) > most {
			deny(res.request, fmt.Sprintf("%s is more than the tenant's limit of %s", res.text(res.of(want)), res.text(most)), "")
		}
	}
}

// PreparePlan implements plugin.Planner: the tenant's labels and annotations, and limits for what did not ask.
func (x *tenants) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	t := x.of(r)
	if t == nil {
		p.DenyField("workspace", fmt.Sprintf("%q is no tenant's workspace", r.Workspace().Name), "")
		return nil
	}
	if f, ok := r.Feature(featureLabels); ok {
		labels := map[string]string{tenantLabel: t.mark(r)}
		for k, v := range t.labels {
			labels[k] = v
		}
		if err := p.Set(f, labels); err != nil {
			return err
		}
	}
	if f, ok := r.Feature(featureAnnotations); ok && len(t.annotations) > 0 {
		if err := p.Set(f, t.annotations); err != nil {
			return err
		}
	}
	if err := t.place(r, p); err != nil {
		return err
	}
	limits := map[string]int64{}
	for _, res := range resources {
		if n := res.of(t.defaults); n > 0 && res.of(r.Resources()) == 0 {
			limits[limitNames[res.name]] = n
		}
	}
	if f, ok := r.Feature(featureLimits); ok && len(limits) > 0 {
		return p.Set(f, limits)
	}
	return nil
}

// limitNames is what the point of the feature "limits" calls a resource.
var limitNames = map[string]string{"cpu": "milli_cpu", "memory": "memory", "pids": "pids"}

// EnsureWorkspace implements plugin.WorkspaceEnsurer: the network that the workspace's sandboxes share, or in a cluster
// their namespace and what is in it.
func (x *tenants) EnsureWorkspace(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	t := x.of(r)
	if t == nil {
		s.DenyField("workspace", fmt.Sprintf("%q is no tenant's workspace", r.Workspace().Name), "")
		return nil
	}
	if f, ok := r.Feature(featureNetwork); ok && t.network {
		if err := s.Set(f, map[string]any{"labels": map[string]string{tenantLabel: t.name}}); err != nil {
			return err
		}
	}
	return t.contribute(r, s)
}

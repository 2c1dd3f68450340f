package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

func cluster(mode string) plugin.Feature {
	return plugin.Feature{Name: featureCluster, Attributes: map[string]string{"mode": mode}}
}

// What a driver over Kubernetes offers in each mode, and native, as they say it themselves.
var (
	ofBoth = []plugin.Feature{{Name: featureQuota, Point: "ResourceQuota"}, {Name: featureLimitRange, Point: "LimitRange"}, {Name: featureNetworkPolicy, Point: "NetworkPolicy"},
		{Name: featureLabels, Point: "PodTemplate.template.metadata.labels", Object: "main"}}
	shared = slices.Concat([]plugin.Feature{cluster(modeShared), {Name: featureNamespace, Point: "Namespace", Object: "workspace"},
		{Name: featurePlacement, Point: "Sandbox.placement.namespace", Object: "main"}}, ofBoth)
	managed  = slices.Concat([]plugin.Feature{cluster("managed"), {Name: featureNamespaceLabels, Point: "Namespace.metadata.labels", Object: "workspace"}}, ofBoth)
	operator = slices.Concat([]plugin.Feature{cluster("operator")}, ofBoth)
	native   = []plugin.Feature{{Name: featureLabels, Point: "Process.labels", Object: "main"}, {Name: featureNetwork, Point: "Network", Object: "workspace"}}
)

func TestANamespaceGetsWhatTheDriverHasAPlaceFor(t *testing.T) {
	cfg := func(own bool) config {
		return config{Tenants: map[string]tenantConfig{"team-*": {Network: true, Limits: amounts{CPU: 2}, Defaults: amounts{CPU: 0.5, Memory: "1GiB"},
			Namespace: namespaceConfig{Own: own, Labels: map[string]string{"tier": "gold"}, Quota: map[string]string{"pods": "4", "limits.memory": "8Gi"}, Deny: true}}}}
	}
	labels := map[string]any{"tier": "gold", tenantLabel: "team"}
	namespace := plan.Object{Kind: "Namespace", Name: "workspace", Fields: map[string]any{"metadata": map[string]any{"labels": labels}}}
	quota := plan.Object{Kind: "ResourceQuota", Name: "tenant", Fields: map[string]any{"spec": map[string]any{"hard": map[string]any{"pods": "4", "limits.memory": "8Gi"}}}}
	limits := plan.Object{Kind: "LimitRange", Name: "tenant", Fields: map[string]any{"spec": map[string]any{"limits": []any{map[string]any{"type": "Container",
		"default": map[string]any{"cpu": "500m", "memory": "1Gi"}, "max": map[string]any{"cpu": "2"}}}}}}
	deny := plan.Object{Kind: "NetworkPolicy", Name: "deny-traffic", Fields: map[string]any{"spec": map[string]any{"policyTypes": []any{"Ingress", "Egress"}}}}
	place := plan.Object{Kind: "Sandbox", Name: "main", Fields: map[string]any{"placement": map[string]any{"namespace": "workspace"}}}
	pod := plan.Object{Kind: "PodTemplate", Name: "main", Fields: map[string]any{"template": map[string]any{"metadata": map[string]any{"labels": map[string]any{tenantLabel: "team"}}}}}
	for _, c := range []struct {
		name          string
		features      []plugin.Feature
		own           bool
		ensures, plan []plan.Object
		denied        bool // the workspace
	}{
		{name: "shared", features: shared, own: true, ensures: []plan.Object{namespace, quota, limits, deny}, plan: []plan.Object{pod, place}},
		{name: "shared, with no namespace of its own", features: shared, denied: true, plan: []plan.Object{pod}},
		{name: "managed", features: managed, own: true, ensures: []plan.Object{namespace, quota, limits, deny}, plan: []plan.Object{pod}},
		{name: "operator", features: operator, ensures: []plan.Object{quota, limits, deny}, plan: []plan.Object{pod}},
		{name: "native", features: native, own: true,
			ensures: []plan.Object{{Kind: "Network", Name: "workspace", Fields: map[string]any{"labels": map[string]any{tenantLabel: "team-*"}}}},
			plan:    []plan.Object{{Kind: "Process", Name: "main", Fields: map[string]any{"labels": map[string]any{tenantLabel: "team-*"}}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.New(t, &tenants{})
			if wrong := x.Use(cfg(c.own), c.features...); len(wrong) > 0 {
				t.Fatal(wrong)
			}
			for ph, want := range map[phase.Phase][]plan.Object{phase.EnsureWorkspace: c.ensures, phase.PreparePlan: c.plan} {
				call := x.Of(ph, "one")
				call.Workspace.Name = "team-a"
				if call.Sandbox != nil {
					call.Sandbox.Workspace = "team-a"
				}
				answer := x.Do(call)
				if want := c.denied && ph == phase.EnsureWorkspace; answer.Denied != want {
					t.Errorf("in %s it denies %v, want %v: %v", ph, answer.Denied, want, answer.Diagnostics)
				}
				if diff := cmp.Diff(want, answer.Contribute); diff != "" {
					t.Errorf("in %s it contributes (-want +got):\n%s", ph, diff)
				}
			}
		})
	}
}

func TestWhatIsNoObjectOfKubernetesIsRefused(t *testing.T) {
	for path, n := range map[string]namespaceConfig{
		"tenant.team-a.namespace.labels": {Labels: map[string]string{"tier": "not a label"}},
		"tenant.team-a.namespace.quota":  {Quota: map[string]string{"pods": "many"}},
	} {
		x := plugintest.New(t, &tenants{})
		wrong := x.Use(config{Tenants: map[string]tenantConfig{"team-a": {Namespace: n}}}, shared...)
		if len(wrong) != 1 || wrong[0].Path != path {
			t.Errorf("%s: %v", path, wrong)
		}
	}
}

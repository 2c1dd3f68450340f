package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// Where pods have the cluster's addresses, the lease is written into the plan.
func TestALeaseIsWrittenDownInACluster(t *testing.T) {
	for cidr, want := range map[string]struct{ lease, label, block string }{
		"10.80.0.0/16":  {"10.80.0.2/16", "10.80.0.2", "10.80.0.0/16"},
		"fd00:80::/112": {"fd00:80::2/112", "fd00-80--2", "fd00:80::/112"},
	} {
		x := plugintest.New(t, &ipam{})
		wrong := x.Use(config{Store: t.TempDir(), Pools: map[string]poolConfig{"sandboxes": {CIDR: cidr, SubnetPrefix: 120 * boolInt(cidr[0] == 'f')}}},
			plugin.Feature{Name: featureAnnotations, Point: "PodTemplate.template.metadata.annotations", Object: "main"},
			plugin.Feature{Name: featureLabels, Point: "PodTemplate.template.metadata.labels", Object: "main"},
			plugin.Feature{Name: featurePolicy, Point: "NetworkPolicy"})
		if len(wrong) > 0 {
			t.Fatal(wrong)
		}
		metadata := func(key string, value map[string]any) plan.Object {
			return plan.Object{Kind: "PodTemplate", Name: "main", Fields: map[string]any{"template": map[string]any{"metadata": map[string]any{key: value}}}}
		}
		peer := []any{map[string]any{"ipBlock": map[string]any{"cidr": want.block}}}
		got := x.Do(x.Of(phase.BeforeCreate, "one")).Contribute
		if diff := cmp.Diff([]plan.Object{
			metadata("annotations", map[string]any{"extensions.sandgate.dev/address": want.lease}),
			metadata("labels", map[string]any{"extensions.sandgate.dev/address": want.label}),
			{Kind: "NetworkPolicy", Name: "leased-range", Fields: map[string]any{"spec": map[string]any{
				"podSelector": map[string]any{"matchLabels": map[string]any{"extensions.sandgate.dev/address": want.label}}, "policyTypes": []any{"Ingress", "Egress"},
				"ingress": []any{map[string]any{"from": peer}}, "egress": []any{map[string]any{"to": peer}}}}},
		}, got); diff != "" {
			t.Errorf("%s: it contributes (-want +got):\n%s", cidr, diff)
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

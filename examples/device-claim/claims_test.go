package main

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// serveSwitch makes the test binary the program.
const serveSwitch = "serve"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveSwitch {
		main()
		return
	}
	os.Exit(m.Run())
}

var feature = plugin.Feature{Name: featureClaim, Point: "ResourceClaim"}

func TestConformance(t *testing.T) {
	raw, err := json.Marshal(config{Class: "gpu.example.com", Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: raw, Features: []plugin.Feature{feature}})
}

func TestASandboxGetsItsClaim(t *testing.T) {
	for _, c := range []struct {
		name   string
		config config
		wish   string
		denied bool
		want   map[string]any // the exact request of the claim
	}{
		{name: "one, without asking", config: config{Class: "gpu.example.com", Count: 1},
			want: map[string]any{"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": int64(1)}},
		{name: "as many as it asks for", config: config{Class: "gpu.example.com", Count: 1, Most: 4}, wish: `{"count": 3}`,
			want: map[string]any{"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": int64(3)}},
		{name: "of some kind only", config: config{Class: "gpu.example.com", Count: 2, Selector: "device.attributes['x'].big"},
			want: map[string]any{"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": int64(2),
				"selectors": []any{map[string]any{"cel": map[string]any{"expression": "device.attributes['x'].big"}}}}},
		{name: "more than it may have", config: config{Class: "gpu.example.com", Count: 1, Most: 2}, wish: `{"count": 3}`, denied: true},
		{name: "none", config: config{Class: "gpu.example.com", Count: 1}, wish: `{"count": 0}`, denied: true},
		{name: "nonsense", config: config{Class: "gpu.example.com", Count: 1}, wish: `{"count": "two"}`, denied: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.New(t, &claims{})
			if wrong := x.Use(c.config, feature); len(wrong) > 0 {
				t.Fatal(wrong)
			}
			for _, ph := range []phase.Phase{phase.ValidateRequest, phase.PreparePlan} {
				call := x.Of(ph, "one")
				call.Config = json.RawMessage(c.wish)
				answer := x.Do(call)
				if answer.Denied != c.denied {
					t.Fatalf("%s: denied %v: %v", ph, answer.Denied, answer.Diagnostics)
				}
				if c.denied || ph == phase.ValidateRequest {
					continue
				}
				want := []plan.Object{
					{Kind: "ResourceClaim", Name: "devices", Fields: map[string]any{"spec": map[string]any{"devices": map[string]any{
						"requests": []any{map[string]any{"name": "devices", "exactly": c.want}}}}}},
					{Kind: "PodTemplate", Name: "main", Fields: map[string]any{"template": map[string]any{"spec": map[string]any{
						"resourceClaims": []any{map[string]any{"name": "devices", "resourceClaimName": "devices"}},
						"containers":     []any{map[string]any{"name": "agent", "resources": map[string]any{"claims": []any{map[string]any{"name": "devices"}}}}}}}}},
				}
				if diff := cmp.Diff(want, answer.Contribute); diff != "" {
					t.Errorf("it contributes (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestWhatCannotBeAskedForIsRefused(t *testing.T) {
	for path, cfg := range map[string]config{"class": {Class: "A Class", Count: 1}, "most": {Class: "gpu.example.com", Count: 4, Most: 2}} {
		x := plugintest.New(t, &claims{})
		if wrong := x.Use(cfg, feature); len(wrong) != 1 || wrong[0].Path != path {
			t.Errorf("%s: %v", path, wrong)
		}
	}
}

package kubernetes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

func TestRequestsThatCannotBe(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, func(c *Config) { c.DefaultImage = "" })
	config := func(s string) func(*driver.Request) {
		return func(r *driver.Request) { r.Config = json.RawMessage(s) }
	}
	const (
		volume = `"volumes":[{"name":"data","persistent_volume_claim":{"claim_name":"c"}}]`
		mount  = `"containers":{"agent":{"volume_mounts":[{"name":"data","mount_path":"%"}]}}`
	)
	mountAt := func(path string) func(*driver.Request) {
		return config("{" + volume + "," + strings.ReplaceAll(mount, "%", path) + "}")
	}
	for _, c := range []struct {
		name, says string
		change     func(*driver.Request)
	}{
		{"no image", "image is missing", func(r *driver.Request) { r.Spec.Image = "" }},
		{"processes", "resources.pids cannot be set", func(r *driver.Request) { r.Spec.Resources.PIDs = 7 }},
		{"a label", "labels.a b cannot be a label", func(r *driver.Request) { r.Spec.Labels = map[string]string{"a b": "c"} }},
		{"a label's value", "labels.a cannot be a label", func(r *driver.Request) { r.Spec.Labels = map[string]string{"a": strings.Repeat("x", 64)} }},
		{"an unknown key", `unknown field "pods"`, config(`{"pods":{}}`)},
		{"a wrong type", "driver_config has the key volumes, which is not of the type", config(`{"volumes":"secret"}`)},
		{"a reserved volume", "is reserved", config(`{"volumes":[{"name":"workspace","persistent_volume_claim":{"claim_name":"c"}}]}`)},
		{"a volume of nothing", "without persistent_volume_claim", config(`{"volumes":[{"name":"data"}]}`)},
		{"two volumes of a name", "twice", config(`{"volumes":[{"name":"a","persistent_volume_claim":{"claim_name":"c"}},{"name":"a","persistent_volume_claim":{"claim_name":"c"}}]}`)},
		{"another sandbox's disk", "another workspace's may be meant", config(`{"volumes":[{"name":"a","persistent_volume_claim":{"claim_name":"workspace-team-b--box"}}]}`)},
		{"a mount of no volume", "is not in volumes", config(`{` + strings.ReplaceAll(mount, "%", "/data") + `}`)},
		{"a mount at the workspace", "/sandbox is the driver's", mountAt("/sandbox")},
		{"a mount above the workspace", "absolute path below the root", mountAt("/")},
		{"a mount at a protected root", "/etc/openshell is the driver's", mountAt("/etc/openshell/x")},
		{"a mount in /proc", "/proc is the driver's", mountAt("/proc/sys")},
		{"a crooked mount", "absolute path", mountAt("/data/../etc")},
		{"a claim that is read-only", "whose claim is read-only", config(`{` + volume + `,"containers":{"agent":{"volume_mounts":[{"name":"data","mount_path":"/data","read_only":false}]}}}`)},
		{"a quantity", "is no quantity", config(`{"containers":{"agent":{"resources":{"limits":{"nvidia.com/gpu":"one"}}}}}`)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request()
			r.Spec.Image = "i"
			c.change(r)
			_, err := p.Layers(t.Context(), r)
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) || len(fault.DiagnosticsOf(err)) == 0 {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(err.Error(), `"secret"`) {
				t.Errorf("a value of driver_config is shown: %v", err)
			}
		})
	}
}

func TestDriverConfig(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, nil)
	r := request()
	r.Config = json.RawMessage(`{"pod":{"node_selector":{"pool":"a"},"runtime_class_name":"gvisor","priority_class_name":"low","tolerations":[{"key":"gpu","operator":"Exists"}]},
		"containers":{"agent":{"resources":{"limits":{"cpu":"8","nvidia.com/gpu":"1"},"requests":{"cpu":"250m"}},"volume_mounts":[{"name":"data","mount_path":"/sandbox/data","sub_path":"x"}]}},
		"volumes":[{"name":"data","persistent_volume_claim":{"claim_name":"team-data"}}]}`)
	out := p.base(t, r)
	spec := specOf(t, out)
	agent := named(items(spec, "containers"), agentContainer)
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"nodeSelector", spec["nodeSelector"], m{"pool": "a"}},
		{"runtimeClassName", spec["runtimeClassName"], "gvisor"},
		{"priorityClassName", spec["priorityClassName"], "low"},
		{"tolerations", spec["tolerations"], []any{m{"key": "gpu", "operator": "Exists"}}},
		{"resources", agent["resources"], m{"limits": m{"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}, "requests": m{"cpu": "250m"}}},
		{"mounts", agent["volumeMounts"], []any{m{"name": "data", "mountPath": "/sandbox/data", "subPath": "x", "readOnly": true}}},
		{"volumes", spec["volumes"], []any{m{"name": "data", "persistentVolumeClaim": m{"claimName": "team-data", "readOnly": true}}}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
	if o, _ := out.Object(kindSandbox, mainObject); o.Fields["spec"] != nil {
		t.Errorf("the caller mounts below /sandbox, and there is a volume of the driver's too: %v", o.Fields["spec"])
	}
}

func specOf(t *testing.T, p *plan.Plan) m {
	t.Helper()
	o, _ := p.Object(kindPodTemplate, mainObject)
	spec, _, err := unstructured.NestedMap(o.Fields, "template", "spec")
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// The layers of a sandbox as JSON, for people who change them.
func TestLayersOfASandbox(t *testing.T) {
	r := request()
	r.Spec.Token = []byte("secret")
	for name, api := range map[string]string{"sandbox": APIV1Beta1, "pod": APIPod} {
		p := testPlanner(t, api, func(c *Config) { c.ImagePullSecrets = []string{"registry"} })
		layers, err := p.Layers(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "layers-"+name+".json", layers)
	}
}

func TestLayersOfAWorkspace(t *testing.T) {
	for _, mode := range []string{Shared, Managed, Operator} {
		p := testPlanner(t, APIV1Beta1, func(c *Config) { c.Mode, c.ServiceAccount, c.ImagePullSecrets = mode, "boxes", []string{"registry"} })
		golden(t, "workspace-"+mode+".json", p.workspace(t).Layers())
	}
}

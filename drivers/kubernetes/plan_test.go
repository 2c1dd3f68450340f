package kubernetes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// failer is what a test, a benchmark and a property have in common.
type failer interface {
	Helper()
	Fatal(...any)
}

// planner is a driver that has no cluster, and the plans that are made for it.
type planner struct {
	*Driver
	schema *plan.Schema
}

func testPlanner(t testing.TB, api string, change func(*Config)) *planner {
	t.Helper()
	cfg := Config{DefaultImage: "registry.example/agent:1", StorageSize: "2Gi"}
	if change != nil {
		change(&cfg)
	}
	d := &Driver{cfg: cfg.withDefaults(), cluster: &cluster{api: api, wide: true, version: "v1.37.2", instance: "c"}}
	var err error
	if d.about, err = d.describe(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &planner{Driver: d, schema: schemaOf(t, d)}
}

var testID = sandbox.Identity{ID: "0b1c", Driver: "acme-kubernetes", Workspace: "team-a", WorkspaceID: "w1", Name: "box"}

// request is what most tests ask for.
func request() *driver.Request {
	return &driver.Request{Identity: testID, Spec: sandbox.Spec{Command: []string{"sleep", "1h"}, Environment: map[string]string{"A": "1"},
		Labels: map[string]string{"tier": "gold"}, Resources: sandbox.Resources{MilliCPU: 500, Memory: 1 << 30}}}
}

func (p *planner) base(t failer, r *driver.Request) *plan.Plan {
	t.Helper()
	layers, err := p.Layers(nil, r) //nolint:staticcheck // it is pure
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.schema.Compute(layers)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *planner) workspace(t failer) *plan.Plan {
	t.Helper()
	layers, err := p.WorkspaceLayers(nil, sandbox.Workspace{ID: testID.WorkspaceID, Driver: testID.Driver, Name: testID.Workspace}) //nolint:staticcheck // it is pure
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.schema.Compute(layers)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// everything grants all that the driver opens.
func (p *planner) everything() plan.Grant {
	var g plan.Grant
	for _, pt := range p.about.Points {
		g.Mutate = append(g.Mutate, pt.Pattern)
	}
	return g
}

func contribute(kind, name string, fields map[string]any) []plan.Object {
	return []plan.Object{{Kind: kind, Name: name, Fields: fields}}
}

type m = map[string]any

func pod(metadata, spec m) []plan.Object { return []plan.Object{podObject(metadata, spec)} }

func agent(fields m) []plan.Object {
	fields["name"] = agentContainer
	return pod(nil, m{"containers": []any{fields}})
}

func TestKindsAndPointsFitTogether(t *testing.T) {
	for _, mode := range []string{Shared, Managed, Operator} {
		for _, api := range []string{APIV1Beta1, APIV1Alpha1, APIPod} {
			p := testPlanner(t, api, func(c *Config) { c.Mode = mode })
			for _, k := range p.about.Kinds {
				if _, known := p.cluster.resourceOf(k.Name); !known && k.Name != kindPodTemplate && k.Name != kindSandbox {
					t.Errorf("%s, %s: the kind %s has no resource", mode, api, k.Name)
				}
			}
			for _, res := range resources {
				if !containsKind(p.about.Kinds, res.gvk.Kind) {
					t.Errorf("%s, %s: the resource %s has no kind", mode, api, res)
				}
			}
			if placed := hasFeature(p.about.Features, featureNamespace); placed != (mode == Shared) || placed == (p.about.Missing[featureNamespace] != "") {
				t.Errorf("%s: a plan places sandboxes: %v", mode, placed)
			}
		}
	}
}

func containsKind(kinds []plan.Kind, name string) bool {
	for _, k := range kinds {
		if k.Name == name {
			return true
		}
	}
	return false
}

func hasFeature(features []extension.Feature, name string) bool {
	for _, f := range features {
		if f.Name == name {
			return true
		}
	}
	return false
}

// What an extension may and may not do with each kind of object, and how that is said.
func TestContributions(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, nil)
	for _, c := range []struct {
		name    string
		phase   phase.Phase
		objects []plan.Object
		want    fault.Code
		says    string
	}{
		{name: "an annotation", objects: pod(m{"annotations": m{"acme.dev/ip": "10.0.0.1"}}, nil)},
		{name: "an annotation at a start", phase: phase.BeforeStart, objects: pod(m{"annotations": m{"acme.dev/ip": "10.0.0.1"}}, nil)},
		{name: "a variable of the agent", objects: agent(m{"env": []any{m{"name": "B", "value": "2"}}})},
		{name: "a variable that the request has", objects: agent(m{"env": []any{m{"name": "A", "value": "2"}}}), want: fault.Conflict, says: "request and x set it"},
		{name: "a claim of the agent", objects: agent(m{"resources": m{"claims": []any{m{"name": "gpu"}}}})},
		{name: "a container beside it", objects: pod(nil, m{"containers": []any{m{"name": "proxy", "image": "p", "command": []any{"run"}}}})},
		{name: "a slip in the agent's name", phase: phase.BeforeStart, objects: pod(nil, m{"containers": []any{m{"name": "agnet", "env": []any{m{"name": "B", "value": "2"}}}}})},
		{name: "where it runs", objects: pod(nil, m{"nodeSelector": m{"pool": "a"}, "tolerations": []any{m{"key": "gpu", "operator": "Exists"}}})},
		{name: "its placement", objects: contribute(kindSandbox, mainObject, m{"placement": m{"namespace": "workspace"}})},
		{name: "its placement too late", phase: phase.BeforeCreate, objects: contribute(kindSandbox, mainObject, m{"placement": m{"namespace": "workspace"}}), want: fault.Denied, says: "does not open in before_create"},
		{name: "another class of storage", objects: contribute(kindSandbox, mainObject, m{"spec": m{"volumeClaimTemplates": []any{m{"metadata": m{"name": "workspace"}, "spec": m{"storageClassName": "fast"}}}}})},
		{name: "a policy", objects: contribute(kindNetworkPolicy, "egress", m{"spec": m{"podSelector": m{}}})},
		{name: "a policy of the workspace", phase: phase.EnsureWorkspace, objects: contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}}})},
		{name: "a quota of the workspace", phase: phase.EnsureWorkspace, objects: contribute(kindResourceQuota, "all", m{"spec": m{"hard": m{"pods": "3"}}})},
		{name: "a quota of a sandbox", objects: contribute(kindResourceQuota, "all", m{"spec": m{"hard": m{"pods": "3"}}}), want: fault.Denied, says: "ensure_workspace only"},
		{name: "a claim", objects: contribute(kindResourceClaim, "gpu", m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu"}}}}}})},
		{name: "a copy of a Secret", objects: contribute(kindSecret, "pull", m{"source": "registry"})},

		{name: "the identity annotation", objects: pod(m{"annotations": m{podSandboxAnnotation: "other"}}, nil), want: fault.Denied, says: "openshell.io/sandbox-id"},
		{name: "an identity label", objects: contribute(kindSandbox, mainObject, m{"metadata": m{"labels": m{sandboxLabel: "other"}}}), want: fault.Denied, says: "does not open"},
		{name: "a mark on an object of its own", objects: contribute(kindConfigMap, "c", m{"metadata": m{"annotations": m{operationAnnotation: "other"}}}), want: fault.Denied, says: "does not open"},
		{name: "the agent's command", objects: agent(m{"command": []any{"evil"}}), want: fault.Denied, says: "agent.command"},
		{name: "the agent's arguments", objects: agent(m{"args": []any{"evil"}}), want: fault.Denied, says: "agent.args"},
		{name: "as whom the agent runs", objects: agent(m{"securityContext": m{"privileged": true}}), want: fault.Denied, says: "agent.securityContext"},
		{name: "the pod's security", objects: pod(nil, m{"hostNetwork": true}), want: fault.Denied, says: "hostNetwork"},
		{name: "a reserved volume", objects: pod(nil, m{"volumes": []any{m{"name": "openshell-sa-token", "emptyDir": m{}}}}), want: fault.Denied, says: "openshell-sa-token"},
		{name: "the workspace's mount", objects: agent(m{"volumeMounts": []any{m{"mountPath": "/sandbox", "readOnly": true}}}), want: fault.Denied, says: "/sandbox"},
		{name: "the values of a Secret", objects: contribute(kindSecret, "s", m{"data": m{"a": "Yg=="}}), want: fault.Invalid, says: "data"},
		{name: "a status", objects: contribute(kindService, "s", m{"status": m{"loadBalancer": m{}}}), want: fault.Invalid, says: "status"},
		{name: "what the API does not know", objects: pod(nil, m{"nodeSelectr": m{}}), want: fault.Invalid, says: "nodeSelectr"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ph := c.phase
			if ph == "" {
				ph = phase.PreparePlan
			}
			of := p.base(t, request())
			if ph == phase.EnsureWorkspace {
				of = p.workspace(t)
			}
			_, _, err := of.Apply("x", ph, p.everything(), c.objects)
			if fault.CodeOf(err) != c.want || err != nil && !strings.Contains(err.Error()+diagnostics(err), c.says) {
				t.Errorf("%v (%s)", err, fault.CodeOf(err))
			}
		})
	}
}

func diagnostics(err error) string {
	raw, _ := json.Marshal(fault.DiagnosticsOf(err))
	return string(raw)
}

// What is atomic in the API has one owner: our own conflict says so before the API server has to.
func TestAtomicFieldsHaveOneOwner(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, nil)
	for name, pair := range map[string][2][]plan.Object{
		"nodeSelector": {pod(nil, m{"nodeSelector": m{"a": "1"}}), pod(nil, m{"nodeSelector": m{"b": "2"}})},
		"tolerations":  {pod(nil, m{"tolerations": []any{m{"key": "a"}}}), pod(nil, m{"tolerations": []any{m{"key": "b"}}})},
		"envFrom":      {agent(m{"envFrom": []any{m{"prefix": "A"}}}), agent(m{"envFrom": []any{m{"prefix": "B"}}})},
		"dnsConfig":    {pod(nil, m{"dnsConfig": m{"nameservers": []any{"10.0.0.1"}}}), pod(nil, m{"dnsConfig": m{"nameservers": []any{"10.0.0.2"}}})},
		"a sidecar's args": {pod(nil, m{"containers": []any{m{"name": "s", "args": []any{"a"}}}}),
			pod(nil, m{"containers": []any{m{"name": "s", "args": []any{"b"}}}})},
	} {
		_, one, err := p.base(t, request()).Apply("a", phase.PreparePlan, p.everything(), pair[0])
		if err != nil {
			t.Fatal(name, err)
		}
		_, _, err = one.Apply("b", phase.PreparePlan, p.everything(), pair[1])
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "a set it to") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The API's maps and keyed lists are shared.
	_, one, err := p.base(t, request()).Apply("a", phase.PreparePlan, p.everything(), pod(m{"labels": m{"a": "1"}}, m{"volumes": []any{m{"name": "a", "emptyDir": m{}}}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = one.Apply("b", phase.PreparePlan, p.everything(), pod(m{"labels": m{"b": "1"}}, m{"volumes": []any{m{"name": "b", "emptyDir": m{}}}})); err != nil {
		t.Error(err)
	}
}

// An author writes contributions with the API's own types.
func TestKindsTakeTheTypesOfTheAPI(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, nil)
	fields, err := tree[m](corev1.ConfigMap{Data: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	delete(fields, "metadata") // the SDK leaves out what nobody filled in
	_, out, err := p.base(t, request()).Apply("x", phase.PreparePlan, p.everything(), contribute(kindConfigMap, "c", fields))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range out.Fields() {
		if f.Object == "ConfigMap/c" && (!f.Sensitive || cmp.Equal(f.Value, "b")) {
			t.Errorf("a value of a ConfigMap is shown: %+v", f)
		}
		if strings.HasSuffix(f.Path, "env.A.value") && (!f.Sensitive || cmp.Equal(f.Value, "1")) {
			t.Errorf("a value of the environment is shown: %+v", f)
		}
	}
}

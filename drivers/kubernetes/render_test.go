package kubernetes

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

var update = flag.Bool("update", false, "write the goldens")

func golden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", name, diff)
	}
}

// contributions are what two extensions might say, in any mixture that does not conflict.
func contributions(owner string) [][]plan.Object {
	ref := func(kind string) string { return owner + "-" + strings.ToLower(kind) }
	secret := contribute(kindSecret, ref(kindSecret), m{"source": "registry"})
	return [][]plan.Object{
		pod(m{"annotations": m{"acme.dev/" + owner: "1"}, "labels": m{owner: "x"}}, nil),
		agent(m{"env": []any{m{"name": strings.ToUpper(owner), "value": "2"}}}),
		agent(m{"volumeMounts": []any{m{"mountPath": "/" + owner, "name": owner}}}),
		pod(nil, m{"volumes": []any{m{"name": owner, "configMap": m{"name": ref(kindConfigMap)}}}}),
		pod(nil, m{"initContainers": []any{m{"name": owner, "image": "i", "envFrom": []any{m{"secretRef": m{"name": "registry"}}}}}}),
		pod(nil, m{"resourceClaims": []any{m{"name": owner, "resourceClaimName": ref(kindResourceClaim)}}}),
		append(pod(nil, m{"imagePullSecrets": []any{m{"name": ref(kindSecret)}}}), secret...),
		contribute(kindSandbox, mainObject, m{"metadata": m{"labels": m{owner: "y"}}}),
		contribute(kindConfigMap, ref(kindConfigMap), m{"data": m{"a": "b"}}),
		contribute(kindResourceClaim, ref(kindResourceClaim), m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu"}}}}}}),
		secret,
		contribute(kindNetworkPolicy, owner, m{"metadata": m{"labels": m{"a": owner}}, "spec": m{"podSelector": m{}, "egress": []any{m{"ports": []any{m{"port": int64(53)}}}}}}),
		contribute(kindService, owner, m{"spec": m{"clusterIP": "None", "ports": []any{m{"port": int64(80), "protocol": "TCP"}}}}),
		append(contribute(kindServiceAccount, owner, m{"imagePullSecrets": []any{m{"name": ref(kindSecret)}}}), secret...),
	}
}

// Whatever is contributed: each field of an object is in the part of the one who owns it in the plan and in no other, and
// the parts together are the whole.
func TestEveryFieldIsRenderedForItsOwner(t *testing.T) {
	planners := map[string]*planner{}
	for _, api := range []string{APIV1Beta1, APIV1Alpha1, APIPod} {
		planners[api] = testPlanner(t, api, func(c *Config) { c.Secrets = []string{"registry"} })
	}
	rapid.Check(t, func(t *rapid.T) {
		p := planners[rapid.SampledFrom([]string{APIV1Beta1, APIV1Alpha1, APIPod}).Draw(t, "api")]
		out := p.base(t, request())
		for _, owner := range []string{"ipam", "devices"} {
			for _, objects := range rapid.SliceOfNDistinct(rapid.SampledFrom(contributions(owner)), 0, 8, func(o []plan.Object) string { return fmt.Sprint(o) }).Draw(t, owner) {
				_, next, err := out.Apply(plan.Owner(owner), phase.PreparePlan, p.everything(), objects)
				if fault.Is(err, fault.Denied) && p.pods() {
					continue // a plain Pod has no Sandbox
				}
				if err != nil {
					t.Fatal(err)
				}
				out = next
			}
		}
		rendered, err := p.render(testID, "op1", out, nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := p.render(testID, "op1", out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rendered, again); diff != "" {
			t.Fatalf("rendered again (-first +second):\n%s", diff)
		}
		owned := ownersInPlan(out)
		for _, o := range rendered {
			checkParts(t, p, o, owned)
		}
	})
}

// ownersInPlan says who owns what, by the object's ref and the field's place in it.
func ownersInPlan(p *plan.Plan) map[string]string {
	out := map[string]string{}
	for _, f := range p.Fields() {
		owner := string(f.Owner)
		if slices.Contains([]plan.Owner{plan.OwnerGateway, plan.OwnerRequest, plan.OwnerDriver}, f.Owner) {
			owner = driverOwner
		}
		out[f.Object+" "+f.Path] = owner
	}
	return out
}

func checkParts(t *rapid.T, p *planner, o object, owned map[string]string) {
	whole, parts := flatten(o.Whole), make([]map[string]any, len(o.Owners))
	for i, part := range o.Owners {
		parts[i] = flatten(part.Fields)
	}
	for path, value := range whole {
		var owners []string
		for i, part := range o.Owners {
			if got, ok := parts[i][path]; ok {
				owners = append(owners, part.Owner)
				if !cmp.Equal(got, value) {
					t.Fatalf("%s %s: %s sets %v, the whole has %v", o.ref(), path, part.Owner, got, value)
				}
			}
		}
		switch {
		case len(owners) == 0:
			t.Fatalf("%s %s is nobody's", o.ref(), path)
		case isHead(path): // every part has its key
		case len(owners) > 1:
			t.Fatalf("%s %s is of %v", o.ref(), path, owners)
		case p.pods() && o.GVK.Kind == "Pod": // one manager
		case isMarkAt(path):
			if owners[0] != o.Owners[0].Owner {
				t.Fatalf("%s: the mark %s is of %s", o.ref(), path, owners[0])
			}
		default:
			if want, known := owned[placeInPlan(o, path)]; known && want != owners[0] {
				t.Fatalf("%s %s is of %s, in the plan %s has it", o.ref(), path, owners[0], want)
			}
		}
	}
	for i, part := range o.Owners {
		for path := range parts[i] {
			if _, ok := whole[path]; !ok {
				t.Fatalf("%s %s of %s is not in the whole", o.ref(), path, part.Owner)
			}
		}
	}
	if o.Owners[0].Fields.GetAnnotations()[operationAnnotation] != "op1" || o.Whole.GetLabels()[sandboxLabel] != testID.ID {
		t.Fatalf("%s does not bear the marks", o.ref())
	}
}

// placeInPlan is the ref and path in the plan of a field of an object.
func placeInPlan(o object, path string) string {
	if o.Kind != kindSandbox {
		return o.ref() + " " + path
	}
	if rest, ok := strings.CutPrefix(path, "spec.podTemplate."); ok {
		return "PodTemplate/main template." + rest
	}
	return "Sandbox/main " + path
}

func isMarkAt(path string) bool {
	return slices.ContainsFunc(identityKeys, func(key string) bool { return strings.HasSuffix(path, "["+key+"]") })
}

func isHead(path string) bool {
	return slices.Contains([]string{"apiVersion", "kind", "metadata.name", "metadata.namespace"}, path) ||
		strings.HasSuffix(path, ".name") && (strings.Contains(path, "ontainers.") || strings.Contains(path, "volumes.")) || strings.HasSuffix(path, ".mountPath")
}

// flatten lists the leaves of an object: keyed lists by key, all others as one.
func flatten(u *unstructured.Unstructured) map[string]any {
	out := map[string]any{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch x := v.(type) {
		case map[string]any:
			for k, child := range x {
				switch {
				case strings.ContainsAny(k, "./"):
					walk(path+"["+k+"]", child)
				case path == "":
					walk(k, child)
				default:
					walk(path+"."+k, child)
				}
			}
			if len(x) == 0 {
				out[path] = x
			}
		case []any:
			key := "name"
			if strings.HasSuffix(path, ".volumeMounts") {
				key = "mountPath"
			}
			for _, item := range x {
				object, ok := item.(map[string]any)
				if !ok || object[key] == nil || strings.Contains(path, "volumeClaimTemplates") || strings.Contains(path, "egress") {
					out[path] = x
					return
				}
			}
			for _, item := range x {
				walk(fmt.Sprintf("%s.%v", path, item.(map[string]any)[key]), item)
			}
		default:
			out[path] = v
		}
	}
	walk("", u.Object)
	return out
}

// A plan refers to what it has by the plan's names; what it has not is there under its own.
func TestReferencesAreByPlanName(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, func(c *Config) { c.Secrets = []string{"registry"} })
	ws := p.workspace(t)
	_, ws, err := ws.Apply("tenant", phase.EnsureWorkspace, p.everything(), append(contribute(kindNamespace, workspaceObject, nil),
		contribute(kindServiceAccount, "boxes", m{"automountServiceAccountToken": false})[0]))
	if err != nil {
		t.Fatal(err)
	}
	out := p.base(t, request())
	for _, objects := range [][]plan.Object{
		contribute(kindSandbox, mainObject, m{"placement": m{"namespace": workspaceObject}}),
		contribute(kindConfigMap, "conf", m{"data": m{"a": "b"}}),
		contribute(kindSecret, "pull", m{"source": "registry"}),
		contribute(kindVolumeClaim, "disk", m{"spec": m{"accessModes": []any{"ReadWriteOnce"}}}),
		contribute(kindResourceClaim, "gpu", m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu"}}}}}}),
		pod(nil, m{"serviceAccountName": "boxes", "imagePullSecrets": []any{m{"name": "pull"}, m{"name": "registry"}},
			"resourceClaims": []any{m{"name": "gpu", "resourceClaimName": "gpu"}},
			"volumes": []any{m{"name": "a", "configMap": m{"name": "conf"}}, m{"name": "b", "persistentVolumeClaim": m{"claimName": "disk"}}, m{"name": "c", "secret": m{"secretName": "registry"}},
				m{"name": "d", "projected": m{"sources": []any{m{"configMap": m{"name": "conf"}}, m{"secret": m{"name": "pull"}}}}}},
			"containers": []any{m{"name": "side", "image": "i", "envFrom": []any{m{"configMapRef": m{"name": "conf"}}},
				"env": []any{m{"name": "X", "valueFrom": m{"configMapKeyRef": m{"name": "conf", "key": "a"}}}}}}}),
	} {
		if _, out, err = out.Apply("x", phase.PreparePlan, p.everything(), objects); err != nil {
			t.Fatal(err)
		}
	}
	rendered, err := p.render(testID, "op1", out, ws)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rendered {
		if o.Namespace != "openshell-sandgate-team-a" {
			t.Errorf("%s is in %q", o.ref(), o.Namespace)
		}
	}
	golden(t, "references.json", rendered[0].Whole)
}

func TestWhereWorkspacesAre(t *testing.T) {
	w := sandbox.Workspace{ID: testID.WorkspaceID, Driver: testID.Driver, Name: testID.Workspace}
	policy := contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}}})
	quota := contribute(kindResourceQuota, "all", m{"spec": m{"hard": m{"pods": "3"}}})
	own := contribute(kindNamespace, workspaceObject, m{"metadata": m{"labels": m{"tier": "gold"}}})
	for _, c := range []struct {
		name, mode string
		objects    []plan.Object
		want       []string // namespace/name, or
		fails      fault.Code
	}{
		{name: "managed", mode: Managed, objects: slices.Concat(policy, quota), want: []string{"/openshell-sandgate-team-a", "openshell-sandgate-team-a/all", "openshell-sandgate-team-a/deny"}},
		{name: "operator", mode: Operator, objects: slices.Concat(policy, quota), want: []string{"team-a/all", "team-a/deny"}},
		{name: "shared", mode: Shared, objects: policy, want: []string{"sandgate/team-a--deny"}},
		{name: "shared, a quota for all", mode: Shared, objects: quota, fails: fault.FailedPrecondition},
		{name: "shared, a namespace of its own", mode: Shared, objects: slices.Concat(own, policy, quota),
			want: []string{"/openshell-sandgate-team-a", "openshell-sandgate-team-a/all", "openshell-sandgate-team-a/deny"}},
		{name: "a name that cannot be", mode: Operator, objects: contribute(kindNetworkPolicy, "Deny_All", m{"spec": m{"podSelector": m{}}}), fails: fault.Invalid},
		{name: "another name in it", mode: Operator, objects: contribute(kindNetworkPolicy, "deny", m{"metadata": m{"name": "other"}}), fails: fault.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := testPlanner(t, APIV1Beta1, func(cfg *Config) { cfg.Mode = c.mode })
			_, out, err := p.workspace(t).Apply("x", phase.EnsureWorkspace, p.everything(), c.objects)
			if err != nil {
				t.Fatal(err)
			}
			rendered, err := p.renderWorkspace(w, out)
			var got []string
			for _, o := range rendered {
				got = append(got, o.Namespace+"/"+o.Name)
			}
			if c.fails != fault.CodeOf(err) {
				t.Fatalf("%v", err)
			}
			if diff := cmp.Diff(c.want, got); err == nil && diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What points cannot say is refused when the plan is judged.
func TestWhatIsProtected(t *testing.T) {
	p := testPlanner(t, APIV1Beta1, nil)
	for name, c := range map[string]struct {
		objects []plan.Object
		says    string
	}{
		"a variable of OpenShell's":   {agent(m{"env": []any{m{"name": "OPENSHELL_ENDPOINT", "value": "evil"}}}), "OPENSHELL_ENDPOINT"},
		"a variable of the driver's":  {agent(m{"env": []any{m{"name": "SANDGATE_X", "value": "evil"}}}), "SANDGATE_X"},
		"a mount over the supervisor": {agent(m{"volumeMounts": []any{m{"mountPath": "/opt/openshell/bin", "name": "x"}}}), "/opt/openshell is the driver's"},
		"a mount above the workspace": {agent(m{"volumeMounts": []any{m{"mountPath": "/run", "name": "x"}}}), "/run/sandgate is the driver's"},
		"the token beside the agent":  {pod(nil, m{"containers": []any{m{"name": "spy", "image": "i", "volumeMounts": []any{m{"mountPath": "/t", "name": tokenVolume}}}}}), "is reserved"},
		"the mark of another run":     {pod(m{"annotations": m{exitedAnnotation: "x"}}, nil), "which the driver does not open"},
		"a mark that is yet to come":  {contribute(kindConfigMap, "c", m{"metadata": m{"annotations": m{"sandgate.dev/yet": "x"}}}), "keys of this kind are the driver's"},
		"the token, in a volume":      {pod(nil, m{"volumes": []any{m{"name": "t", "secret": m{"secretName": "team-a--box--token"}}}}), "none of the plan"},
		"the token, projected":        {pod(nil, m{"volumes": []any{m{"name": "t", "projected": m{"sources": []any{m{"secret": m{"name": "team-b--box--token"}}}}}}}), "none of the plan"},
		"the token, as variables":     {agent(m{"envFrom": []any{m{"secretRef": m{"name": "team-a--box--token"}}}}), "none of the plan"},
		"the token, as a variable":    {agent(m{"env": []any{m{"name": "T", "valueFrom": m{"secretKeyRef": m{"name": "root-ca", "key": "k"}}}}}), "none of the plan"},
		"a Secret of a CSI driver":    {pod(nil, m{"volumes": []any{m{"name": "t", "csi": m{"driver": "d", "nodePublishSecretRef": m{"name": "root-ca"}}}}}), "none of the plan"},
		"credentials of somebody's":   {pod(nil, m{"imagePullSecrets": []any{m{"name": "root-ca"}}}), "none of the plan"},
		"an account's credentials":    {contribute(kindServiceAccount, "a", m{"imagePullSecrets": []any{m{"name": "root-ca"}}}), "none of the plan"},
		"another sandbox's disk":      {pod(nil, m{"volumes": []any{m{"name": "t", "persistentVolumeClaim": m{"claimName": "workspace-team-b--box"}}}}), "a name as those of sandboxes have"},
		"another PodTemplate":         {contribute(kindConfigMap, "UPPER", m{"data": m{"a": "b"}}), "cannot be a name"},
		"a Secret of somebody's":      {contribute(kindSecret, "s", m{"source": "root-ca"}), "neither in image_pull_secrets nor in secrets"},
		"no workspace any more":       {contribute(kindSandbox, mainObject, m{"spec": m{"volumeClaimTemplates": []any{m{"metadata": m{"name": "other"}, "spec": m{"storageClassName": "x"}}}}}), `has no "workspace"`},
	} {
		_, out, err := p.base(t, request()).Apply("x", phase.PreparePlan, p.everything(), c.objects)
		if err == nil {
			_, err = p.render(testID, "op1", out, nil)
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

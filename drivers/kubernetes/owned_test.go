package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

// everyKind is a contribution to each kind of a sandbox's plan.
func everyKind(owner string) []plan.Object {
	return []plan.Object{
		contribute(kindSandbox, mainObject, m{"metadata": m{"labels": m{"acme.dev/" + owner: "a"}, "annotations": m{"acme.dev/" + owner: "b"}}})[0],
		podObject(m{"labels": m{"acme.dev/" + owner: "c"}, "annotations": m{"acme.dev/" + owner: "d"}}, m{
			"containers": []any{
				m{"name": agentContainer, "env": []any{m{"name": strings.ToUpper(owner), "value": "1"}}, "volumeMounts": []any{m{"mountPath": "/mnt/" + owner, "name": owner}},
					"resources": m{"claims": []any{m{"name": owner}}}},
				m{"name": owner, "image": "side", "args": []any{"a"}}},
			"resourceClaims": []any{m{"name": owner, "resourceClaimName": owner + "-claim"}},
			"volumes":        []any{m{"name": owner, "configMap": m{"name": owner + "-conf"}}}}),
		contribute(kindConfigMap, owner+"-conf", m{"data": m{"a": "b"}})[0],
		contribute(kindSecret, owner+"-secret", m{"source": "registry"})[0],
		contribute(kindServiceAccount, owner+"-account", m{"imagePullSecrets": []any{m{"name": owner + "-secret"}}})[0],
		contribute(kindVolumeClaim, owner+"-disk", m{"spec": m{"accessModes": []any{"ReadWriteOnce"}, "resources": m{"requests": m{"storage": "1Gi"}}}})[0],
		contribute(kindNetworkPolicy, owner+"-policy", m{"metadata": m{"labels": m{"a": "b"}}, "spec": m{"podSelector": m{"matchLabels": m{sandboxLabel: testID.ID}},
			"policyTypes": []any{"Egress"}, "egress": []any{m{"to": []any{m{"ipBlock": m{"cidr": "10.0.0.0/8"}}}}}}})[0],
		contribute(kindClaimTemplate, owner+"-template", m{"spec": m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu.example.com"}}}}}}})[0],
		contribute(kindResourceClaim, owner+"-claim", m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu.example.com"}}}}}})[0],
		contribute(kindService, owner+"-web", m{"spec": m{"selector": m{sandboxLabel: testID.ID}, "ports": []any{m{"port": int64(80), "protocol": "TCP"}}}})[0],
	}
}

// everyWorkspaceKind is one to each kind of a workspace's.
func everyWorkspaceKind() []plan.Object {
	return []plan.Object{
		contribute(kindNamespace, workspaceObject, m{"metadata": m{"labels": m{"acme.dev/tier": "gold"}}})[0],
		contribute(kindResourceQuota, "all", m{"spec": m{"hard": m{"pods": "10"}}})[0],
		contribute(kindLimitRange, "small", m{"spec": m{"limits": []any{m{"type": "Container", "default": m{"cpu": "1"}}}}})[0],
		contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}, "policyTypes": []any{"Ingress", "Egress"}}})[0],
		contribute(kindConfigMap, "shared", m{"data": m{"a": "b"}})[0],
		contribute(kindSecret, "registry", m{"source": "registry"})[0],
		contribute(kindServiceAccount, "boxes", m{"automountServiceAccountToken": false})[0],
		contribute(kindVolumeClaim, "disk", m{"spec": m{"accessModes": []any{"ReadWriteOnce"}, "resources": m{"requests": m{"storage": "1Gi"}}}})[0],
		contribute(kindClaimTemplate, "template", m{"spec": m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu.example.com"}}}}}}})[0],
		contribute(kindResourceClaim, "claim", m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu.example.com"}}}}}})[0],
		contribute(kindService, "web", m{"spec": m{"clusterIP": "None", "ports": []any{m{"port": int64(80), "protocol": "TCP"}}}})[0],
	}
}

// What two extensions contribute to every kind is in the cluster, each field under the manager of its owner, and goes with
// the sandbox, or with the workspace.
func TestEveryKindIsAppliedUnderItsOwner(t *testing.T) {
	t.Parallel()
	for _, kind := range []kubetest.Kind{kubetest.Beta, kubetest.Alpha, kubetest.Plain} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			p := onCluster(t, c, nil, func(cfg *Config) { cfg.Secrets = []string{"registry"} })
			c.Put(t, p.cfg.Namespace, "{apiVersion: v1, kind: Secret, metadata: {name: registry}, stringData: {a: b}}")
			start := c.Inventory(t, p.cfg.Namespace, p.namespaceName(testID.Workspace, workspaceObject))
			id := testID
			id.ID, id.WorkspaceID = "id-"+p.cfg.Namespace, "ws-"+p.cfg.Namespace
			w := sandbox.Workspace{ID: id.WorkspaceID, Driver: id.Driver, Name: id.Workspace}

			ws := p.with(t, phase.EnsureWorkspace, p.workspace(t), everyWorkspaceKind()...)
			if err := p.EnsureWorkspace(t.Context(), &driver.WorkspaceRequest{Workspace: w, Plan: ws}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { removed(t, p, w) })
			rendered, err := p.renderWorkspace(w, ws)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range rendered {
				checkOwned(t, p, o)
			}
			ensured := c.Inventory(t, p.cfg.Namespace, p.namespaceName(id.Workspace, workspaceObject))

			r := request()
			r.Identity = id
			of := p.with(t, phase.PreparePlan, p.base(t, r), contribute(kindSandbox, mainObject, m{"placement": m{"namespace": workspaceObject}})...)
			for _, owner := range []string{"first", "second"} {
				objects := everyKind(owner)
				if p.pods() {
					objects = objects[1:]
				}
				if _, of, err = of.Apply(plan.Owner(owner), phase.PreparePlan, p.everything(), objects); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Resolve(t.Context(), &driver.ResolveRequest{Identity: id, Plan: of, Workspace: ws}); err != nil {
				t.Fatal(err)
			}
			if err := p.Create(t.Context(), &driver.CreateRequest{Identity: id, Operation: "op1", Run: 1, Plan: of, Workspace: ws}); err != nil {
				t.Fatal(err)
			}
			if rendered, err = p.render(id, "op1", of, ws); err != nil {
				t.Fatal(err)
			}
			for _, o := range rendered {
				checkOwned(t, p, o)
			}
			if err := p.Delete(t.Context(), &driver.DeleteRequest{Identity: id, Operation: "op1"}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ensured, c.Inventory(t, p.cfg.Namespace, p.namespaceName(id.Workspace, workspaceObject))); diff != "" {
				t.Errorf("after the sandbox (-before +after):\n%s", diff)
			}
			removed(t, p, w)
			if diff := cmp.Diff(start, c.Inventory(t, p.cfg.Namespace, p.namespaceName(id.Workspace, workspaceObject))); diff != "" {
				t.Errorf("after the workspace (-before +after):\n%s", diff)
			}
		})
	}
}

func removed(t *testing.T, p *planner, w sandbox.Workspace) {
	t.Helper()
	if err := p.DeleteWorkspace(context.WithoutCancel(t.Context()), w); err != nil {
		t.Error(err)
	}
}

// checkOwned compares who has what in the cluster with what was rendered.
func checkOwned(t *testing.T, p *planner, o object) {
	t.Helper()
	r, _ := p.cluster.resourceOf(o.GVK.Kind)
	have, err := p.cluster.get(t.Context(), r, o.Namespace, o.Name)
	if err != nil {
		t.Error(err)
		return
	}
	if got := identity(have).Driver; got != testID.Driver {
		t.Errorf("%s bears the marks of driver %q", o.ref(), got)
	}
	if owned := len(have.GetOwnerReferences()) == 1; owned != (o.Scope == plan.ScopeSandbox && o.Kind != kindSandbox || o.GVK == podResource.gvk) {
		t.Errorf("%s has the owner references %v", o.ref(), have.GetOwnerReferences())
	}
	for _, own := range o.Owners {
		want := flatten(own.Fields)
		for _, head := range []string{"apiVersion", "kind", "metadata.name", "metadata.namespace"} {
			delete(want, head)
		}
		got := managed(t, have, manager(own.Owner))
		for path := range want {
			if !slices.ContainsFunc(got, func(g string) bool { return related(g, path) }) {
				t.Errorf("%s %s of %s is not its manager's in the cluster", o.ref(), path, own.Owner)
			}
		}
		if o.GVK == podResource.gvk {
			continue // it is created, and so what the server fills in is its creator's
		}
		for _, g := range got {
			known := slices.ContainsFunc(sorted(want), func(path string) bool { return related(g, path) })
			if !known && !strings.HasPrefix(g, "metadata.ownerReferences") && !strings.HasPrefix(g, "data") && g != "type" && !strings.Contains(g, objectsAnnotation) && !strings.Contains(g, runAnnotation) {
				t.Errorf("%s %s is of %s in the cluster, and not in the plan", o.ref(), g, own.Owner)
			}
		}
	}
}

// related reports whether one path is the other, or lies in it: lists that are atomic here need not be there.
func related(a, b string) bool {
	in := func(a, b string) bool {
		return a == b || strings.HasPrefix(a, b+".") || strings.HasPrefix(a, b+"[")
	}
	return in(a, b) || in(b, a)
}

// managed lists the leaves that a manager has, in the words of flatten.
func managed(t *testing.T, o *unstructured.Unstructured, manager string) []string {
	t.Helper()
	var out []string
	for _, e := range o.GetManagedFields() {
		if e.Manager != manager || e.FieldsV1 == nil || e.Subresource != "" {
			continue
		}
		if e.Operation != metav1.ManagedFieldsOperationApply && o.GetKind() != podResource.gvk.Kind {
			t.Errorf("%s: %s has made an %s", o.GetKind(), manager, e.Operation)
		}
		set := &fieldpath.Set{}
		if err := set.FromJSON(bytes.NewReader(e.FieldsV1.Raw)); err != nil {
			t.Fatal(err)
		}
		set.Leaves().Iterate(func(p fieldpath.Path) { out = append(out, words(p)) })
	}
	return out
}

func words(p fieldpath.Path) string {
	var b strings.Builder
	for _, e := range p {
		part := e.String()
		switch {
		case e.FieldName != nil:
			part = *e.FieldName
		case e.Key != nil:
			for _, f := range *e.Key {
				if part = fmt.Sprint(f.Value.Unstructured()); f.Name == "name" || f.Name == "mountPath" {
					break
				}
			}
		}
		switch {
		case strings.ContainsAny(part, "./"):
			if e.Key != nil {
				b.WriteString("." + part)
			} else {
				b.WriteString("[" + part + "]")
			}
		case b.Len() == 0:
			b.WriteString(part)
		default:
			b.WriteString("." + part)
		}
	}
	return b.String()
}

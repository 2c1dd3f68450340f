package kubernetes

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

// tenancy is a workspace of a test, in a mode, with a quota and a policy that an extension adds.
type tenancy struct {
	*planner
	c    *kubetest.Cluster
	ws   sandbox.Workspace
	plan *plan.Plan
	at   []string // the namespaces that are concerned
}

func newTenancy(t *testing.T, mode string) *tenancy {
	t.Helper()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.Mode, cfg.OperatorLabel = mode, "tenant=yes" })
	w := &tenancy{planner: p, c: c, ws: sandbox.Workspace{ID: "w-" + p.cfg.Namespace, Driver: testID.Driver, Name: testID.Workspace}}
	if mode == Operator {
		w.ws.Name = c.Namespace(t, map[string]string{"tenant": "yes"})
	}
	layers, err := p.WorkspaceLayers(t.Context(), w.ws)
	if err != nil {
		t.Fatal(err)
	}
	base, err := p.schema.Compute(layers)
	if err != nil {
		t.Fatal(err)
	}
	objects := []plan.Object{
		contribute(kindResourceQuota, "all", m{"spec": m{"hard": m{"pods": "10"}}})[0],
		contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}, "policyTypes": []any{"Ingress", "Egress"}}})[0],
	}
	if mode == Shared {
		objects = append(objects, contribute(kindNamespace, workspaceObject, m{"metadata": m{"labels": m{"tier": "gold"}}})...)
	}
	w.plan = p.with(t, phase.EnsureWorkspace, base, objects...)
	w.at = []string{p.cfg.Namespace, p.workspaceNamespace(w.ws.Name), p.namespaceName(w.ws.Name, workspaceObject)}
	return w
}

func (w *tenancy) ensure(t *testing.T) error {
	t.Helper()
	return w.EnsureWorkspace(t.Context(), &driver.WorkspaceRequest{Workspace: w.ws, Plan: w.plan})
}

// box is a sandbox of the workspace, in the workspace's own namespace where that is the plan's.
func (w *tenancy) box(t *testing.T, name string) *driver.CreateRequest {
	t.Helper()
	r := w.planner.box(t, name)
	r.Identity.Workspace, r.Identity.WorkspaceID, r.Workspace = w.ws.Name, w.ws.ID, w.plan
	req := request()
	req.Identity = r.Identity
	r.Plan = w.base(t, req)
	if w.cfg.Mode == Shared {
		r.Plan = w.with(t, phase.PreparePlan, r.Plan, contribute(kindSandbox, mainObject, m{"placement": m{"namespace": workspaceObject}})...)
	}
	return r
}

// In every mode a sandbox lives in its workspace, what is the workspace's outlives it, and in the end nothing is left.
func TestWorkspacesInEveryMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{Shared, Managed, Operator} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newTenancy(t, mode)
			before := ofWorkspace(w.c.Inventory(t, w.at...))
			if err := w.ensure(t); err != nil {
				t.Fatal(err)
			}
			one, two := w.box(t, "one"), w.box(t, "two")
			ensured := ofWorkspace(w.c.Inventory(t, w.at...))
			w.create(t, one)
			home := w.is(t, one.Identity, driver.Ready).Objects[0].Name
			if want := w.at[len(w.at)-1] + "/"; mode != Operator && !strings.HasPrefix(home, want) || mode == Operator && !strings.HasPrefix(home, w.ws.Name+"/") {
				t.Errorf("the Sandbox is %s", home)
			}
			// One that fails is rolled back; the other one is deleted.
			two.Plan = w.with(t, phase.PreparePlan, two.Plan, contribute(kindService, "web", m{"spec": m{"ports": []any{m{"port": int64(700000), "protocol": "TCP"}}}})...)
			if err := w.Create(t.Context(), two); err == nil {
				t.Error("Create of a Service with a port that cannot be has no error")
			}
			w.delete(t, two)
			w.delete(t, one)
			if diff := cmp.Diff(ensured, ofWorkspace(w.c.Inventory(t, w.at...))); diff != "" {
				t.Errorf("what is the workspace's, after its sandboxes (-before +after):\n%s", diff)
			}
			if err := w.ensure(t); err != nil {
				t.Errorf("EnsureWorkspace again: %v", err)
			}
			for range 2 {
				if err := w.DeleteWorkspace(t.Context(), w.ws); err != nil {
					t.Errorf("DeleteWorkspace: %v", err)
				}
			}
			if diff := cmp.Diff(before, ofWorkspace(w.c.Inventory(t, w.at...))); diff != "" {
				t.Errorf("after the workspace (-before +after):\n%s", diff)
			}
		})
	}
}

// ofWorkspace leaves out what the cluster makes by itself in a new namespace, at some moment.
func ofWorkspace(all []string) []string {
	var out []string
	for _, o := range all {
		if !strings.Contains(o, "/kube-root-ca.crt ") && !strings.HasPrefix(o, "serviceaccounts ") {
			out = append(out, o)
		}
	}
	return out
}

// A namespace that is somebody else's stays as it is, whatever a workspace is called.
func TestOthersNamespacesAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newTenancy(t, Managed)
	w.c.Kubectl(t, "create", "namespace", w.workspaceNamespace(w.ws.Name))
	show := func() string {
		return w.c.Kubectl(t, "get", "namespace", w.workspaceNamespace(w.ws.Name), "--output=json", "--show-managed-fields")
	}
	before := show()
	if err := w.ensure(t); !fault.Is(err, fault.Conflict) {
		t.Errorf("EnsureWorkspace over another's namespace: %v, want conflict", err)
	}
	if err := w.DeleteWorkspace(t.Context(), w.ws); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, show()); diff != "" {
		t.Errorf("the namespace (-before +after):\n%s", diff)
	}
	w.c.Kubectl(t, "delete", "namespace", w.workspaceNamespace(w.ws.Name), "--wait=false")

	o := newTenancy(t, Operator)
	o.ws.Name = o.cfg.Namespace // without the label
	if err := o.ensure(t); !fault.Is(err, fault.Denied) {
		t.Errorf("EnsureWorkspace of a namespace that was not given: %v, want denied", err)
	}
	o.ws.Name = "nowhere"
	if err := o.ensure(t); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("EnsureWorkspace of a namespace that is not there: %v, want failed_precondition", err)
	}
}

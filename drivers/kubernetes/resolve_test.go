package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/test/kubetest"
)

// patience is how long a test waits for what should be there in a moment.
const patience = 2 * time.Minute

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-end.C:
			t.Fatalf("%s: not within %s", what, patience)
		case <-tick.C:
		}
	}
}

// onCluster is a planner whose driver is open on a cluster, with a namespace of its own.
func onCluster(t *testing.T, c *kubetest.Cluster, labels map[string]string, change func(*Config)) *planner {
	t.Helper()
	ns := c.Namespace(t, labels)
	cfg := Config{Kubeconfig: c.Admin, Namespace: ns, GatewayID: ns, DefaultImage: "registry.example/agent:1", StorageSize: "1Gi"}
	if change != nil {
		change(&cfg)
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return &planner{Driver: d, schema: schemaOf(t, d)}
}

// schemas are those that tests have compiled, which takes longer than all else of many a test.
var schemas sync.Map

func schemaOf(t testing.TB, d *Driver) *plan.Schema {
	t.Helper()
	key := fmt.Sprint(d.about.Points) // the kinds are those that the points are of
	if s, there := schemas.Load(key); there {
		return s.(*plan.Schema)
	}
	s, err := plan.NewSchema(d.about.Kinds, d.about.Points, nil)
	if err != nil {
		t.Fatal(err)
	}
	schemas.Store(key, s)
	return s
}

// with returns the plan of the usual request with what an extension contributes.
func (p *planner) with(t *testing.T, ph phase.Phase, of *plan.Plan, objects ...plan.Object) *plan.Plan {
	t.Helper()
	_, out, err := of.Apply("x", ph, p.everything(), objects)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *planner) resolve(t *testing.T, of, ws *plan.Plan) error {
	t.Helper()
	return p.Resolve(t.Context(), &driver.ResolveRequest{Identity: testID, Plan: of, Workspace: ws})
}

func putQuota(t *testing.T, c *kubetest.Cluster, namespace, hard string) {
	t.Helper()
	c.Put(t, namespace, "{apiVersion: v1, kind: ResourceQuota, metadata: {name: all}, spec: {hard: {"+hard+"}}}")
	until(t, "the quota is in force", func() bool {
		q, err := c.Client().CoreV1().ResourceQuotas(namespace).Get(t.Context(), "all", metav1.GetOptions{})
		return err == nil && len(q.Status.Hard) > 0
	})
}

// policy has the server refuse what an expression says no to, of what rules say of a namespace, until the test ends; it waits
// until probe is refused.
func policy(t *testing.T, c *kubetest.Cluster, namespace, rules, validations string, probe func() error) {
	t.Helper()
	c.Put(t, namespace, fmt.Sprintf(`
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: %[1]s}, spec: {
  matchConstraints: {resourceRules: [%[2]s]}, validations: [%[3]s]}}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: %[1]s}, spec: {
  policyName: %[1]s, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}}}}`, namespace, rules, validations))
	t.Cleanup(func() {
		ctx, all := context.WithoutCancel(t.Context()), c.Client().AdmissionregistrationV1()
		err := errors.Join(all.ValidatingAdmissionPolicyBindings().Delete(ctx, namespace, metav1.DeleteOptions{}), all.ValidatingAdmissionPolicies().Delete(ctx, namespace, metav1.DeleteOptions{}))
		if err != nil {
			t.Error(err)
		}
	})
	until(t, "the policy is in force", func() bool { return probe() != nil })
}

// denyPods puts up a policy that refuses pods in a namespace, and waits until it does.
func denyPods(t *testing.T, c *kubetest.Cluster, namespace, expression string, probe func() error) {
	t.Helper()
	policy(t, c, namespace, `{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}`,
		fmt.Sprintf(`{expression: %q, message: "the house says no"}`, expression), probe)
}

// What the cluster would refuse is refused before anything is held, and nothing is stored by asking.
func TestResolveAsksTheCluster(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	service := func(port int64) plan.Object {
		return contribute(kindService, "web", m{"spec": m{"ports": []any{m{"port": port, "protocol": "TCP"}}}})[0]
	}
	for _, tc := range []struct {
		name   string
		labels map[string]string
		set    func(t *testing.T, p *planner)
		plan   []plan.Object
		want   fault.Code
		says   []string
	}{
		{name: "all well", plan: []plan.Object{service(80), contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}}})[0]}},
		{name: "the strictest Pod Security", labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}},
		{name: "a sidecar that Pod Security refuses", labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
			plan: pod(nil, m{"containers": []any{m{"name": "side", "image": "i"}}}), want: fault.FailedPrecondition, says: []string{"violates PodSecurity", `container "side"`, "PodTemplate/main"}},
		{name: "a quota of processors", set: func(t *testing.T, p *planner) { putQuota(t, c, p.cfg.Namespace, "limits.cpu: 100m") },
			want: fault.ResourceExhausted, says: []string{"exceeded quota: all, requested: limits.cpu=500m", "limited: limits.cpu=100m"}},
		{name: "a quota of objects", set: func(t *testing.T, p *planner) { putQuota(t, c, p.cfg.Namespace, "services: 0") },
			plan: []plan.Object{service(80)}, want: fault.ResourceExhausted, says: []string{"the cluster refuses Service/web", "exceeded quota"}},
		{name: "a limit range", set: func(t *testing.T, p *planner) {
			c.Put(t, p.cfg.Namespace, "{apiVersion: v1, kind: LimitRange, metadata: {name: small}, spec: {limits: [{type: Container, max: {memory: 1Mi}}]}}")
			until(t, "the limit range is in force", func() bool { return p.Resolve(t.Context(), probe(t, p)) != nil })
		}, want: fault.FailedPrecondition, says: []string{"maximum memory usage per Container is 1Mi"}},
		{name: "an admission policy", set: func(t *testing.T, p *planner) {
			denyPods(t, c, p.cfg.Namespace, "!has(object.metadata.annotations) || !('forbidden' in object.metadata.annotations)", func() error {
				return p.Resolve(t.Context(), probe(t, p, pod(m{"annotations": m{"forbidden": "yes"}}, nil)...))
			})
		}, plan: pod(m{"annotations": m{"forbidden": "yes"}}, nil), want: fault.FailedPrecondition, says: []string{"the house says no", "PodTemplate/main"}},
		{name: "a port that cannot be", plan: []plan.Object{service(99999)}, want: fault.Invalid, says: []string{"Service/web", "Service/web.spec.ports", "It was set by x."}},
		{name: "a sidecar that cannot be", plan: pod(nil, m{"containers": []any{m{"name": "side", "image": "i", "ports": []any{m{"containerPort": int64(99999), "protocol": "TCP"}}}}}),
			want: fault.Invalid, says: []string{"PodTemplate/main.template.spec.containers.side.ports", "It was set by x."}},
		{name: "an account that is not there", plan: pod(nil, m{"serviceAccountName": "nobody"}), want: fault.FailedPrecondition, says: []string{`serviceaccount "nobody" not found`}},
		{name: "an account of the plan's own", plan: append(pod(nil, m{"serviceAccountName": "boxes"}), contribute(kindServiceAccount, "boxes", m{"automountServiceAccountToken": false})...)},
		{name: "somebody's object in the way", set: func(t *testing.T, p *planner) {
			c.Put(t, p.cfg.Namespace, "{apiVersion: v1, kind: ConfigMap, metadata: {name: team-a--box--conf}}")
		}, plan: contribute(kindConfigMap, "conf", m{"data": m{"a": "b"}}), want: fault.Conflict, says: []string{"team-a--box--conf is in the way"}},
		{name: "a claim of a class that is not there", plan: append(pod(nil, m{"resourceClaims": []any{m{"name": "gpu", "resourceClaimName": "gpu"}}}),
			contribute(kindResourceClaim, "gpu", m{"spec": m{"devices": m{"requests": []any{m{"name": "one", "exactly": m{"deviceClassName": "gpu.example.com"}}}}}})...)},
		{name: "a claim that cannot be", plan: contribute(kindResourceClaim, "gpu", m{"spec": m{"devices": m{"requests": []any{m{"name": "one"}}}}}), want: fault.Invalid,
			says: []string{"ResourceClaim/gpu.spec.devices.requests.one"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := onCluster(t, c, tc.labels, nil)
			if tc.set != nil {
				tc.set(t, p)
			}
			of := p.base(t, request())
			if len(tc.plan) > 0 {
				of = p.with(t, phase.PreparePlan, of, tc.plan...)
			}
			before := c.Inventory(t, p.cfg.Namespace)
			err := p.resolve(t, of, nil)
			if fault.CodeOf(err) != tc.want {
				t.Fatalf("%v (%s)", err, fault.CodeOf(err))
			}
			for _, says := range tc.says {
				if !strings.Contains(err.Error()+diagnostics(err), says) {
					t.Errorf("it does not say %q: %v %s", says, err, diagnostics(err))
				}
			}
			if diff := cmp.Diff(before, c.Inventory(t, p.cfg.Namespace)); diff != "" {
				t.Errorf("what is stored (-before +after):\n%s", diff)
			}
			p.cfg.NoDryRun = true
			if err := p.resolve(t, of, nil); err != nil {
				t.Errorf("without a dry run: %v", err)
			}
		})
	}
}

// probe is a request by which a test waits for something to be in force: of another sandbox, and never remembered.
func probe(t *testing.T, p *planner, objects ...plan.Object) *driver.ResolveRequest {
	t.Helper()
	of := p.base(t, request())
	if len(objects) > 0 {
		of = p.with(t, phase.PreparePlan, of, objects...)
	}
	id := testID
	id.ID = "probe"
	return &driver.ResolveRequest{Identity: id, Plan: of, Preview: true}
}

// The account has the rights that its role gives, and a plan that needs more is refused.
func TestResolveNeedsItsRights(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	ns := c.Namespace(t, nil)
	user := "driver-" + ns
	kubeconfig := c.Kubeconfig(t, user)
	c.Put(t, ns, fmt.Sprintf(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: driver}, rules: [
  {apiGroups: [agents.x-k8s.io], resources: [sandboxes], verbs: ["*"]},
  {apiGroups: [""], resources: [pods, configmaps], verbs: ["*"]}, {apiGroups: [""], resources: [namespaces], verbs: [get]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: driver}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: driver},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: %s}]}`, user))
	until(t, "the role is in force", func() bool {
		return c.May(t, user, "list", "pods", ns)
	})
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.Kubeconfig, cfg.Namespace = kubeconfig, ns })
	if hasFeature(p.about.Features, featureNamespace) || !strings.Contains(p.about.Missing[featureNamespace], "may not list") {
		t.Errorf("it sees one namespace, and a plan may place a sandbox in another: %q", p.about.Missing[featureNamespace])
	}
	if err := p.resolve(t, p.base(t, request()), nil); err != nil {
		t.Error(err)
	}
	err := p.resolve(t, p.with(t, phase.PreparePlan, p.base(t, request()), contribute(kindService, "web", m{"spec": m{"ports": []any{m{"port": int64(80)}}}})...), nil)
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), `lacks a right: services is forbidden: User "`+user) {
		t.Error(err)
	}
	for _, call := range c.Calls(t, user) {
		if (call.Verb == "create" || call.Verb == "patch") && !call.DryRun && call.Group != "authorization.k8s.io" {
			t.Errorf("a call that is no dry run: %+v", call)
		}
	}
}

// After late contributions only what they changed is asked about, and a refusal comes all the same.
func TestLateContributionsAreJudged(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	ns := c.Namespace(t, nil)
	user := "late-" + ns
	kubeconfig := c.Kubeconfig(t, user, "system:masters")
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.Kubeconfig, cfg.Namespace = kubeconfig, ns })
	of := p.with(t, phase.PreparePlan, p.base(t, request()),
		contribute(kindConfigMap, "conf", m{"data": m{"a": "b"}})[0], contribute(kindNetworkPolicy, "deny", m{"spec": m{"podSelector": m{}}})[0])
	seen := 0
	asked := func(want int, resolve func()) []string {
		resolve()
		var all []string
		until(t, "the calls are in the audit log", func() bool {
			all = nil
			for _, call := range c.Calls(t, user) {
				if call.DryRun {
					all = append(all, call.Resource)
				}
			}
			return len(all) >= seen+want
		})
		out := all[seen:]
		seen = len(all)
		return out
	}
	ok := func(of *plan.Plan) func() {
		return func() {
			if err := p.resolve(t, of, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if diff := cmp.Diff([]string{"sandboxes", "configmaps", "networkpolicies", "pods"}, asked(4, ok(of))); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	late := p.with(t, phase.BeforeCreate, of, pod(m{"annotations": m{"acme.dev/ip": "10.0.0.1"}}, nil)...)
	if diff := cmp.Diff([]string{"sandboxes", "pods"}, asked(2, ok(late))); diff != "" {
		t.Errorf("late, an annotation (-want +got):\n%s", diff)
	}
	later := p.with(t, phase.BeforeCreate, late, contribute(kindNetworkPolicy, "egress", m{"spec": m{"podSelector": m{}, "egress": []any{m{"to": []any{m{"ipBlock": m{"cidr": "nonsense"}}}}}}})...)
	var err error
	if diff := cmp.Diff([]string{"networkpolicies"}, asked(1, func() { err = p.resolve(t, later, nil) })); diff != "" {
		t.Errorf("late, a policy (-want +got):\n%s", diff)
	}
	if !fault.Is(err, fault.Invalid) || !strings.Contains(diagnostics(err), "NetworkPolicy/egress.spec.egress") {
		t.Error(err)
	}
}

// A policy that reads the user judges whom it will judge: who makes the pods, where the driver may speak for that.
func TestPodsAreJudgedInTheirMakersName(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	ns := c.Namespace(t, nil)
	maker := "system:serviceaccount:" + ns + ":controller"
	c.Put(t, ns, fmt.Sprintf(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: controller}, rules: [{apiGroups: [""], resources: [pods], verbs: [create]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: controller}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: controller},
  subjects: [{kind: ServiceAccount, name: controller, namespace: %s}]}`, ns))
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.Namespace, cfg.Controller = ns, maker })
	denyPods(t, c, ns, "request.userInfo.username != '"+maker+"'", func() error { return p.Resolve(t.Context(), probe(t, p)) })
	if err := p.resolve(t, p.base(t, request()), nil); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "the house says no") {
		t.Error(err)
	}
	self := onCluster(t, c, nil, func(cfg *Config) { cfg.Namespace, cfg.Controller = ns, "system:serviceaccount:"+ns+":nobody" })
	if err := self.resolve(t, self.base(t, request()), nil); err != nil {
		t.Errorf("a controller that may make no pods is another one: %v", err)
	}
}

// Where the namespace is new, the schema alone can judge; where it is somebody else's, that has to allow it.
func TestWhereASandboxMayBe(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	managed := onCluster(t, c, nil, func(cfg *Config) { cfg.Mode = Managed })
	var notes []string
	err := managed.Resolve(t.Context(), &driver.ResolveRequest{Identity: testID, Plan: managed.base(t, request()), Workspace: managed.workspace(t),
		Note: func(text string) { notes = append(notes, text) }})
	if err != nil || len(notes) != 1 || !strings.Contains(notes[0], managed.workspaceNamespace(testID.Workspace)+" is not there yet") {
		t.Errorf("managed, a namespace that is to be made: %v; it says %q", err, notes)
	}
	free, closed := c.Namespace(t, map[string]string{"boxes": "welcome"}), c.Namespace(t, nil)
	other := c.Namespace(t, map[string]string{"boxes": "welcome", managedByLabel: managedBy})
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.PlacementLabel = "boxes=welcome" })
	own := p.with(t, phase.EnsureWorkspace, p.workspace(t), contribute(kindNamespace, workspaceObject, nil)...)
	for name, want := range map[string]string{workspaceObject: "", free: "", closed: "lacks the label", other: "another workspace's", "nowhere": "nor a namespace that is there"} {
		of := p.with(t, phase.PreparePlan, p.base(t, request()), contribute(kindSandbox, mainObject, m{"placement": m{"namespace": name}})...)
		err := p.resolve(t, of, own)
		if want == "" && err != nil || want != "" && (!fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	operator := onCluster(t, c, nil, func(cfg *Config) { cfg.Mode, cfg.OperatorLabel = Operator, "boxes" })
	for name, ok := range map[string]bool{free: true, closed: false, "nowhere": false} {
		r := request()
		r.Identity.Workspace = name
		err := operator.Resolve(t.Context(), &driver.ResolveRequest{Identity: r.Identity, Plan: operator.base(t, r)})
		if ok != (err == nil) || !ok && !fault.Is(err, fault.FailedPrecondition) {
			t.Errorf("operator, %s: %v", name, err)
		}
	}
}

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

// stage is a plan that has an object of every kind, in a namespace in which somebody else has such objects too.
type stage struct {
	*planner
	c      *kubetest.Cluster
	id     sandbox.Identity
	plan   *plan.Plan
	before string // what is in the namespace, byte for byte
}

func newStage(t *testing.T, c *kubetest.Cluster, change func(*Config)) *stage {
	t.Helper()
	p := onCluster(t, c, nil, func(cfg *Config) {
		cfg.Secrets, cfg.NoDryRun = []string{"registry"}, true // what fails is to fail while it is made
		if change != nil {
			change(cfg)
		}
	})
	s := &stage{planner: p, c: c, id: testID}
	s.id.ID = "id-" + p.cfg.Namespace
	c.Put(t, p.cfg.Namespace, `
{apiVersion: v1, kind: Secret, metadata: {name: registry}, stringData: {a: b}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: theirs, labels: {`+managedByLabel+`: openshell}}, data: {a: b}}
---
{apiVersion: v1, kind: Service, metadata: {name: theirs}, spec: {ports: [{port: 80}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: theirs}, spec: {podSelector: {}}}`)
	until(t, "the namespace has what every namespace gets", func() bool {
		_, err := c.Client().CoreV1().ConfigMaps(p.cfg.Namespace).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil
	})
	r := request()
	r.Identity, r.Spec.Token = s.id, []byte("a token")
	objects := everyKind("x")
	if p.pods() {
		objects = objects[1:]
	}
	s.plan = p.with(t, phase.PreparePlan, p.base(t, r), objects...)
	return s
}

func (s *stage) create(t *testing.T) error {
	t.Helper()
	s.before = s.dump(t)
	return s.Create(t.Context(), &driver.CreateRequest{Identity: s.id, Operation: "op1", Run: 1, Plan: s.plan, Token: []byte("a token")})
}

// undone deletes what a create has made, and checks that all is as it was.
func (s *stage) undone(t *testing.T) {
	t.Helper()
	until(t, "the create is undone", func() bool {
		err := s.Delete(t.Context(), &driver.DeleteRequest{Identity: s.id, Operation: "op1"})
		if err != nil && !driver.InDoubt(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	if _, err := s.Get(t.Context(), s.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("what is left of the sandbox: %v", err)
	}
	s.untouched(t)
}

func (s *stage) untouched(t *testing.T) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(s.before, "\n"), strings.Split(s.dump(t), "\n")); diff != "" {
		t.Errorf("what is in the namespace (-before +after):\n%s", diff)
	}
}

// dump is every object of the namespace, as it is stored. What a quota has counted, the server writes when it likes.
func (s *stage) dump(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	kinds := append([]resource{podResource}, resources...)
	if !s.pods() {
		kinds = append(kinds, s.cluster.anchor())
	}
	for _, r := range kinds {
		if !r.namespaced || r.gvk.Kind == kindResourceQuota {
			continue
		}
		all, err := s.c.Dynamic().Resource(r.gvr).Namespace(s.cfg.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all.Items {
			raw, err := json.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(append(raw, '\n'))
		}
	}
	return out.String()
}

// places are the resources of the plan's objects, in the order in which they are made.
func (s *stage) places(t *testing.T) []resource {
	t.Helper()
	rendered, err := s.render(s.id, "op1", s.plan, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := []resource{s.cluster.anchor()}
	for _, o := range rendered[1:] {
		if r, _ := s.cluster.resourceOf(o.GVK.Kind); !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if s.pods() {
		out = append(out, podResource)
	}
	return out
}

func name(r resource) string {
	if r.gvk.Group == "" {
		return r.gvr.Resource
	}
	return r.gvr.Resource + "." + r.gvk.Group
}

// policy has the server refuse what an expression says no to.
func (s *stage) policy(t *testing.T, expression string) {
	t.Helper()
	policy(t, s.c, s.cfg.Namespace, `{apiGroups: ["*"], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: ["*"]}`,
		fmt.Sprintf(`{expression: %q, message: "the house says no"}, {expression: "object.metadata.name != 'probe'"}`, expression), func() error {
			_, err := s.c.Client().CoreV1().ConfigMaps(s.cfg.Namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "probe"}},
				metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		})
}

// An apply that fails, at each object of the plan in turn, for each reason that there is: what was made is removed, and
// what was there before is as it was, byte for byte.
func TestACreateThatFailsIsUndone(t *testing.T) {
	t.Parallel()
	for _, kind := range []kubetest.Kind{kubetest.Beta, kubetest.Plain} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			places := newStage(t, c, nil).places(t)
			if kind == kubetest.Plain { // what is beside the pod is made as it is beside a Sandbox
				places = []resource{places[0], places[len(places)-2], podResource}
			}
			for _, at := range places {
				t.Run(name(at), func(t *testing.T) {
					t.Parallel()
					t.Run("quota", func(t *testing.T) { t.Parallel(); failsByQuota(t, newStage(t, c, nil), at) })
					t.Run("policy", func(t *testing.T) { t.Parallel(); failsByPolicy(t, newStage(t, c, nil), at) })
					t.Run("rights", func(t *testing.T) { t.Parallel(); failsByRights(t, c, at) })
					t.Run("conflict", func(t *testing.T) { t.Parallel(); failsByConflict(t, newStage(t, c, nil), at) })
				})
			}
		})
	}
}

func failsByQuota(t *testing.T, s *stage, at resource) {
	putQuota(t, s.c, s.cfg.Namespace, "count/"+name(at)+": 0")
	if err := s.create(t); !fault.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), "exceeded quota") {
		t.Errorf("%v (%s)", err, fault.CodeOf(err))
	}
	s.undone(t)
}

func failsByPolicy(t *testing.T, s *stage, at resource) {
	// An anchor of a plain Pod is a ConfigMap, as others are.
	s.policy(t, "request.resource.resource != '"+at.gvr.Resource+"'")
	if err := s.create(t); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "the house says no") {
		t.Errorf("%v (%s)", err, fault.CodeOf(err))
	}
	s.undone(t)
}

// failsByRights lets the driver look at all and make all but one kind.
func failsByRights(t *testing.T, c *kubetest.Cluster, at resource) {
	ns := c.Namespace(t, nil)
	user := "rollback-" + ns
	var rules strings.Builder
	for _, r := range append([]resource{podResource, newResource(sandboxGroup, APIV1Beta1, "Sandbox", "sandboxes", true)}, resources...) {
		verbs := "get, list, watch, delete, create, patch"
		if r.gvr.Resource == at.gvr.Resource {
			verbs = "get, list, watch, delete"
		}
		fmt.Fprintf(&rules, "{apiGroups: [%q], resources: [%s], verbs: [%s]},", r.gvk.Group, r.gvr.Resource, verbs)
	}
	c.Put(t, ns, fmt.Sprintf(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: driver}, rules: [%s]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: driver}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: driver},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: %s}]}`, rules.String(), user))
	kubeconfig := c.Kubeconfig(t, user)
	until(t, "the role is in force", func() bool {
		return c.May(t, user, "list", "pods", ns)
	})
	s := newStage(t, c, func(cfg *Config) { cfg.Kubeconfig, cfg.Namespace = kubeconfig, ns })
	if err := s.create(t); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "is forbidden: User") {
		t.Errorf("%v (%s)", err, fault.CodeOf(err))
	}
	s.undone(t)
}

// failsByConflict puts somebody's object in the place of one of the plan. That is seen before anything is made.
func failsByConflict(t *testing.T, s *stage, at resource) {
	rendered, err := s.render(s.id, "op1", s.plan, nil)
	if err != nil {
		t.Fatal(err)
	}
	place := s.sandboxName(s.id)
	for _, o := range rendered[1:] {
		if o.GVK == at.gvk && at != s.cluster.anchor() && place == s.sandboxName(s.id) {
			place = o.Name
			theirs := o.Whole.DeepCopy()
			theirs.SetLabels(nil)
			theirs.SetAnnotations(map[string]string{"theirs": "yes"})
			s.theirs(t, theirs.Object)
		}
	}
	switch {
	case place != s.sandboxName(s.id):
	case at == podResource:
		s.theirs(t, m{"apiVersion": "v1", "kind": "Pod", "metadata": m{"name": place}, "spec": m{"containers": []any{m{"name": "a", "image": "i"}}}})
	case s.pods():
		s.theirs(t, m{"apiVersion": "v1", "kind": "ConfigMap", "metadata": m{"name": place}})
	default:
		s.theirs(t, m{"apiVersion": at.gvk.GroupVersion().String(), "kind": at.gvk.Kind, "metadata": m{"name": place},
			"spec": m{"operatingMode": "Suspended", "podTemplate": m{"spec": m{"containers": []any{m{"name": "a", "image": "i"}}}}}})
	}
	if at == podResource || !s.pods() && at == s.cluster.anchor() { // others write what becomes of it
		until(t, "what is theirs is as it stays", func() bool {
			o, err := s.cluster.get(t.Context(), at, s.cfg.Namespace, place)
			return err == nil && (settled(o) || condition(o, "Ready").Status == metav1.ConditionTrue)
		})
	}
	if err := s.create(t); !fault.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), place) {
		t.Errorf("%v (%s)", err, fault.CodeOf(err))
	}
	s.untouched(t)
}

func (s *stage) theirs(t *testing.T, o m) {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	s.c.Put(t, s.cfg.Namespace, string(raw))
}

// The Sandbox is there, suspended, and what an extension has to say of it, or that it is to run, is refused.
func TestAnApplyOverTheSandboxThatFailsIsUndone(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	for what, expression := range map[string]string{
		"an extension's fields": "!has(request.options.fieldManager) || request.options.fieldManager != 'sandgate-x'",
		"that it is to run":     "request.resource.resource != 'sandboxes' || object.spec.operatingMode != 'Running'",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, c, nil)
			s.policy(t, expression)
			if err := s.create(t); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "the house says no") {
				t.Errorf("%v (%s)", err, fault.CodeOf(err))
			}
			s.undone(t)
		})
	}
}

// The API server goes away when it has made each object of the plan in turn, before it says so: for longer than the driver
// waits, and the create is in doubt, and is undone when the server is back; or for 20 s, and the create goes on.
func TestAServerThatGoesAwayDuringACreate(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	for _, at := range newStage(t, c, func(cfg *Config) { cfg.StorageSize = "" }).places(t) {
		t.Run(name(at), func(t *testing.T) {
			t.Parallel()
			t.Run("for long", func(t *testing.T) {
				t.Parallel()
				w := newWay(t, c, at)
				s := newStage(t, c, func(cfg *Config) {
					cfg.Kubeconfig, cfg.StorageSize, cfg.Patience = w.kubeconfig, "", 100*time.Millisecond
				})
				if err := s.create(t); err == nil || !driver.InDoubt(err) {
					t.Errorf("%v (%s)", err, fault.CodeOf(err))
				}
				close(w.back)
				s.undone(t)
			})
			t.Run("20 s", func(t *testing.T) {
				t.Parallel()
				w := newWay(t, c, at)
				s := newStage(t, c, func(cfg *Config) { cfg.Kubeconfig, cfg.StorageSize, cfg.Patience = w.kubeconfig, "", 2*time.Minute })
				go func() {
					<-w.gone
					time.AfterFunc(20*time.Second, func() { close(w.back) })
				}()
				if err := s.create(t); err != nil {
					t.Error(err)
				}
				s.undone(t)
			})
		})
	}
}

// way is one to the API server, on which it goes away when it has made an object of a kind.
type way struct {
	kubeconfig string
	pass       *httputil.ReverseProxy
	at         resource
	once       sync.Once
	gone, back chan struct{} // closed when it is so
}

func newWay(t *testing.T, c *kubetest.Cluster, at resource) *way {
	t.Helper()
	server, err := url.Parse(c.Host)
	if err != nil {
		t.Fatal(err)
	}
	w := &way{at: at, gone: make(chan struct{}), back: make(chan struct{}), pass: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(server) }, FlushInterval: -1}}
	if w.pass.Transport, err = rest.TransportFor(c.Config()); err != nil {
		t.Fatal(err)
	}
	here := httptest.NewServer(w)
	t.Cleanup(here.Close)
	w.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: x, clusters: [{name: c, cluster: {server: %q}}], users: [{name: u}], contexts: [{name: x, context: {cluster: c, user: u}}]}", here.URL)
	if err := os.WriteFile(w.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *way) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPatch && slices.Contains(strings.Split(r.URL.Path, "/"), w.at.gvr.Resource) {
		w.once.Do(func() {
			w.pass.ServeHTTP(httptest.NewRecorder(), r)
			close(w.gone)
		})
	}
	if closed(w.gone) && !closed(w.back) {
		panic(http.ErrAbortHandler)
	}
	w.pass.ServeHTTP(out, r)
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

package kubernetes

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/test/kubetest"
)

// A cluster that no longer serves what a sandbox is made of says nothing about whether it is there.
func TestWhatIsNotServedProvesNothing(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
	r := p.box(t, "box")
	p.create(t, r)
	p.cluster.api = "v9"
	if _, err := p.Get(t.Context(), r.Identity); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Get: %v, want unavailable", err)
	}
	if err := p.Stop(t.Context(), r.Identity); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Stop: %v, want unavailable", err)
	}
	if err := p.Delete(t.Context(), &driver.DeleteRequest{Identity: r.Identity, Operation: r.Operation}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Delete: %v, want unavailable", err)
	}
	p.cluster.api = APIV1Beta1
	p.delete(t, r)
}

// Nor does a label that somebody takes away, or a driver that looks elsewhere.
func TestWhoseASandboxIsIsNotALabel(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
	r := p.box(t, "box")
	p.create(t, r)
	c.Kubectl(t, "label", "sandboxes.agents.x-k8s.io", p.sandboxName(r.Identity), "--namespace="+p.cfg.Namespace, gatewayLabel+"-")
	if _, err := p.Get(t.Context(), r.Identity); err != nil {
		t.Errorf("Get: %v", err)
	}
	p.delete(t, r)
	other := onCluster(t, c, nil, func(cfg *Config) { cfg.Namespace, cfg.GatewayID = p.cfg.Namespace, "another" })
	if p.about.Instance == "" || p.about.Instance == other.about.Instance {
		t.Errorf("two gateways of one cluster have the instances %q and %q", p.about.Instance, other.about.Instance)
	}
}

// What has ended by itself is not run again by its controller, whoever removes its pod.
func TestWhatHasEndedIsNotRunAgain(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
			c.Kubectl(t, "annotate", "namespace", p.cfg.Namespace, "stand-in/exit=7")
			r := p.box(t, "box")
			p.create(t, r)
			ended := func(st *driver.Status) bool {
				return st.State == driver.Exited && st.ExitCode != nil && *st.ExitCode == 7
			}
			p.await(t, r.Identity, "ended with 7", ended)
			if err := p.Stop(t.Context(), r.Identity); err != nil {
				t.Fatal(err)
			}
			c.Kubectl(t, "delete", "pod", "--all", "--namespace="+p.cfg.Namespace, "--wait=true")
			st, err := p.Get(t.Context(), r.Identity)
			if err != nil || !ended(st) {
				t.Errorf("after its pod was removed: %+v, %v", st, err)
			}
			if pods := c.Kubectl(t, "get", "pods", "--namespace="+p.cfg.Namespace, "--output=name"); pods != "" {
				t.Errorf("it runs again: %s", pods)
			}
			next := (driver.StartRequest)(*r)
			next.Run = 2
			if err := p.Start(t.Context(), &next); err != nil {
				t.Errorf("Start: %v", err)
			}
			p.await(t, r.Identity, "in run 2", func(st *driver.Status) bool { return st.Run == 2 && ended(st) })
			p.delete(t, r)
		})
	}
}

// A sandbox that is being removed and cannot go is stopped all the same.
func TestStopOfWhatIsBeingRemoved(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
	r := p.box(t, "box")
	p.create(t, r)
	p.is(t, r.Identity, driver.Ready)
	name := p.sandboxName(r.Identity)
	patch := func(finalizers string) {
		c.Kubectl(t, "patch", "sandboxes.agents.x-k8s.io", name, "--namespace="+p.cfg.Namespace, "--type=merge", `--patch={"metadata":{"finalizers":[`+finalizers+`]}}`)
	}
	patch(`"acme.dev/hold"`)
	c.Kubectl(t, "delete", "sandboxes.agents.x-k8s.io", name, "--namespace="+p.cfg.Namespace, "--wait=false")
	if err := p.Stop(t.Context(), r.Identity); err != nil {
		t.Error(err)
	}
	if pods := c.Kubectl(t, "get", "pods", "--namespace="+p.cfg.Namespace, "--output=name"); pods != "" {
		t.Errorf("it still runs: %s", pods)
	}
	patch("")
	gone(t, p, r)
}

// What somebody else has made under a name of the plan's while the sandbox was stopped is not taken over by its start.
func TestAStartTakesNothingOver(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
	r := p.box(t, "box")
	p.create(t, r)
	if err := p.Stop(t.Context(), r.Identity); err != nil {
		t.Fatal(err)
	}
	name := p.sideName(r.Identity, "first-conf")
	c.Kubectl(t, "delete", "configmap", name, "--namespace="+p.cfg.Namespace)
	c.Kubectl(t, "create", "configmap", name, "--namespace="+p.cfg.Namespace, "--from-literal=whose=another")
	show := func() string {
		return c.Kubectl(t, "get", "configmap", name, "--namespace="+p.cfg.Namespace, "--output=json", "--show-managed-fields")
	}
	before := show()
	next := (driver.StartRequest)(*r)
	next.Run = 2
	if err := p.Start(t.Context(), &next); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Start: %v, want already_exists", err)
	}
	p.delete(t, r)
	if diff := cmp.Diff(before, show()); diff != "" {
		t.Errorf("the other's object (-before +after):\n%s", diff)
	}
}

// An account that may look into one namespace alone cannot have sandboxes placed elsewhere: it would not find them again.
func TestWhoSeesOneNamespacePlacesNothing(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	ns := c.Namespace(t, nil)
	config := c.Kubeconfig(t, "narrow-"+ns)
	c.Put(t, ns, `
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: all}, rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: all}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: all},
 subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: narrow-`+ns+`}]}`)
	var d *Driver
	until(t, "the role is in force", func() (ok bool) {
		var err error
		d, err = Open(Config{Kubeconfig: config, Namespace: ns, GatewayID: ns})
		return err == nil
	})
	defer func() { _ = d.Close() }()
	for _, f := range d.about.Features {
		if f.Name == featureNamespace || f.Name == "workspace-namespace" {
			t.Errorf("it has the feature %s", f.Name)
		}
	}
	if why := d.about.Missing[featureNamespace]; !strings.Contains(why, "all namespaces") {
		t.Errorf("why not: %q", why)
	}
}

// A Sandbox stays what it was made as: after agent-sandbox has learned a newer version, it is written in the old one.
func TestASandboxKeepsItsVersion(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	old := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize, cfg.API = "", APIV1Alpha1 })
	// The cluster of the tests converts nothing: what its controller writes would take the old version's fields away.
	c.Kubectl(t, "annotate", "namespace", old.cfg.Namespace, "stand-in/ignore=true")
	r := old.box(t, "box")
	old.create(t, r)
	now := onCluster(t, c, nil, func(cfg *Config) {
		cfg.StorageSize, cfg.Namespace, cfg.GatewayID = "", old.cfg.Namespace, old.cfg.GatewayID
	})
	if now.cluster.api != APIV1Beta1 {
		t.Fatalf("the newest is %s", now.cluster.api)
	}
	if err := now.Stop(t.Context(), r.Identity); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	raw := c.Kubectl(t, "get", "sandboxes.v1alpha1.agents.x-k8s.io", now.sandboxName(r.Identity), "--namespace="+now.cfg.Namespace, "-o=json", "--show-managed-fields")
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	if o.GetAnnotations()[stoppedAnnotation] != "1" || !strings.Contains(fieldsOf(o, runManager), "f:replicas") {
		t.Errorf("it was not told to stop: %v, %s has %s", o.GetAnnotations(), runManager, fieldsOf(o, runManager))
	}
	for _, e := range o.GetManagedFields() {
		if strings.HasPrefix(e.Manager, "sandgate") && e.APIVersion != sandboxGroup+"/"+APIV1Alpha1 {
			t.Errorf("%s has written in %s", e.Manager, e.APIVersion)
		}
	}
	now.delete(t, r)
}

package kubernetes

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	put(t, c, ns, `
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

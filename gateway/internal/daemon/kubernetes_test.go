package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
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

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

// controllerRights are what the Sandbox controller's account has where it is installed; the stand-in has its name.
const controllerRights = `
{apiVersion: v1, kind: Namespace, metadata: {name: agent-sandbox-system}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: agent-sandbox-controller}, rules: [{apiGroups: [""], resources: [pods], verbs: [create]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: agent-sandbox-controller},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent-sandbox-controller},
 subjects: [{kind: ServiceAccount, name: agent-sandbox-controller, namespace: agent-sandbox-system}]}
`

// gatewayAccount is whom scripts/kubernetes gives rights.
const gatewayAccount = "system:serviceaccount:sandgate:sandgate"

const clusterConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "tenant-namespace" {
  command = "BIN/tenant-namespace"
  config {
    tenant "team-*" {
      labels = { tier = "gold" }
      limits {
        cpu = 4
      }
      defaults {
        memory = "256MiB"
      }
      namespace {
        own          = OWN
        labels       = { "pod-security.kubernetes.io/enforce" = "restricted" }
        ISOLATION
      }
    }
  }
}
extension "ipam" {
  command = "BIN/ipam"
  paths {
    write = ["DIR"]
  }
  config {
    store = "DIR/leases"
    pool "sandboxes" {
      cidr = "10.80.0.0/16"
    }
  }
}
extension "device-claim" {
  command = "BIN/device-claim"
  config {
    class = "gpu.example.com"
  }
}
driver "kubernetes" {
  config {
    kubeconfig               = "KUBECONFIG"
    workspace_mode           = "MODE"
    operator_namespace_label = "sandgate.dev/tenant"
    stop_timeout             = "1s"
  }
}
driver "acme" {
  base = "kubernetes"
  bind "tenant-namespace" {
    grant { mutate = [TENANT "PodTemplate.template.metadata.labels", "ResourceQuota", "LimitRange", "NetworkPolicy"] }
  }
  bind "ipam" {
    grant { mutate = ["PodTemplate.template.metadata.annotations", "PodTemplate.template.metadata.labels", "NetworkPolicy"] }
  }
  bind "device-claim" {
    grant { mutate = ["ResourceClaim", "PodTemplate.template.spec.resourceClaims", "PodTemplate.template.spec.containers.agent.resources"] }
  }
}
`

// clusterCase is a workspace mode, the rights that it is run with, and what the extensions add in it.
type clusterCase struct {
	name, mode, rights string
	own                bool
	grant              string // of tenant-namespace, besides what it may everywhere
	namespace, box     string // where the sandboxes are, and what comes before their names
	made               bool   // the namespace goes with the workspace
}

var clusterCases = []clusterCase{
	{name: "shared", mode: "shared", rights: "shared", namespace: "sandgate", box: "team-a--"},
	{name: "placed", mode: "shared", rights: "managed", own: true, grant: `"Namespace", "Sandbox.placement.namespace",`, namespace: "openshell-sandgate-team-a", box: "team-a--", made: true},
	{name: "managed", mode: "managed", rights: "managed", grant: `"Namespace.metadata.labels",`, namespace: "openshell-sandgate-team-a", made: true},
	{name: "operator", mode: "operator", rights: "operator", namespace: "team-a"},
}

// clusterSite is a gateway whose account has the rights of a file under scripts/kubernetes, and no other.
type clusterSite struct {
	*site
	c      *kubetest.Cluster
	tc     clusterCase
	before []string
	calls  int // of the account, before
}

func newClusterSite(t *testing.T, c *kubetest.Cluster, tc clusterCase) *clusterSite {
	t.Helper()
	bin, err := examples()
	if err != nil {
		t.Fatal(err)
	}
	manifest := "../../../scripts/kubernetes/" + tc.rights + ".yaml"
	setup := controllerRights
	if tc.mode == "operator" {
		setup += "---\n{apiVersion: v1, kind: Namespace, metadata: {name: team-a, labels: {sandgate.dev/tenant: team}}}"
	}
	if _, err := c.TryKubectl(setup, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() {
		if _, err := c.TryKubectl("", "delete", "-f", manifest); err != nil {
			t.Error(err)
		}
		if tc.mode == "operator" {
			if _, err := c.TryKubectl("", "delete", "namespace", "team-a"); err != nil {
				t.Error(err)
			}
		}
	})
	s := &clusterSite{site: newSite(t), c: c, tc: tc}
	s.await("the accounts are there", func() bool {
		_, err := c.Client().CoreV1().ServiceAccounts("sandgate").Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	isolation := "quota = { pods = \"4\" }\n        deny_traffic = true"
	if tc.mode == "shared" && !tc.own {
		isolation = "" // it would bind others
	}
	text := strings.NewReplacer("DIR", s.dir, "BIN", bin, "OWN", fmt.Sprint(tc.own), "KUBECONFIG", c.Kubeconfig(t, gatewayAccount), "ISOLATION", isolation, "MODE", tc.mode, "TENANT", tc.grant).Replace(clusterConfig)
	if err := os.WriteFile(filepath.Join(s.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.await("nothing is being removed of the tests before", func() bool {
		list, err := c.Client().CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		return err == nil && !slices.ContainsFunc(list.Items, func(ns corev1.Namespace) bool { return ns.DeletionTimestamp != nil })
	})
	s.before, s.calls = c.Inventory(t), len(c.Calls(t, gatewayAccount))
	return s
}

// await waits for something that the cluster shows.
func (s *clusterSite) await(what string, ok func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			s.t.Fatalf("it does not come to this: %s", what)
		case <-tick.C:
		}
	}
}

func (s *clusterSite) create(name string) sandbox.Identity {
	s.t.Helper()
	h, id, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Workspace: "team-a", Name: name,
		Spec: sandbox.Spec{Image: "registry.example/agent:1", Command: []string{"/bin/agent"}, Resources: sandbox.Resources{MilliCPU: 500},
			Token: []byte(clusterToken), Request: []byte(clusterLaunch)}})
	if err == nil {
		_, err = h.Wait(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.until("the sandbox is ready", func() bool {
		sb, err := s.d.engine.Find(engine.Ref{IDOrName: id.ID})
		return err == nil && sb.State == sandbox.Ready
	})
	return id
}

// What is secret of every sandbox here: its token, and what an OpenShell gateway's request has besides, launch authentication
// in it.
const (
	clusterToken  = "the-t0ken-of-a-sandbox"
	clusterLaunch = "how-a-launch-is-authenticated"
)

// secret reports whether a text has one of the secrets, as it is or as JSON has bytes.
func secret(text []byte) bool {
	return slices.ContainsFunc([]string{clusterToken, clusterLaunch}, func(s string) bool {
		return bytes.Contains(text, []byte(s)) || bytes.Contains(text, []byte(base64.StdEncoding.EncodeToString([]byte(s))))
	})
}

// secrets returns which objects of the cluster have one of the secrets anywhere: in their fields, in what says whose those
// are, in an event.
func (s *clusterSite) secrets() []string {
	s.t.Helper()
	kinds := slices.DeleteFunc(strings.Fields(s.c.Kubectl(s.t, "api-resources", "--verbs=list", "-o", "name")), func(kind string) bool { return kind == "componentstatuses" })
	var all struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(s.c.Kubectl(s.t, "get", strings.Join(kinds, ","), "-A", "-o", "json", "--show-managed-fields")), &all); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, raw := range all.Items {
		var o struct {
			Kind     string
			Metadata metav1.ObjectMeta
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			s.t.Fatal(err)
		}
		if secret(raw) {
			out = append(out, o.Kind+"/"+o.Metadata.Name)
		}
	}
	slices.Sort(out)
	return out
}

// told checks that the gateway has no secret in its log, its audit or what it keeps, nor the API server in its audit.
func (s *clusterSite) told() {
	s.t.Helper()
	if secret(s.logs.Bytes()) {
		s.t.Errorf("the gateway's log has a secret:\n%s", s.logs.String())
	}
	if secret(s.c.Audit(s.t)) {
		s.t.Error("the API server's audit has a secret")
	}
	err := filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, f os.DirEntry, err error) error {
		if err != nil || !f.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if secret(raw) {
			s.t.Errorf("%s has a secret", path)
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// owners returns which field managers an object has, those of its status and of Kubernetes left out, sorted.
func (s *clusterSite) owners(kind, name string) string {
	s.t.Helper()
	var o struct{ Metadata metav1.ObjectMeta }
	raw := s.c.Kubectl(s.t, "get", kind, name, "-n", s.tc.namespace, "-o", "json", "--show-managed-fields")
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, m := range o.Metadata.ManagedFields {
		if m.Operation == metav1.ManagedFieldsOperationApply {
			out = append(out, m.Manager)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// witness watches pods as a second client, and notes each that lacks a field of an owner at any moment.
func (s *clusterSite) witness(ctx context.Context) (seen func() []string) {
	s.t.Helper()
	w, err := s.c.Client().CoreV1().Pods("").Watch(ctx, metav1.ListOptions{LabelSelector: "openshell.ai/managed-by"})
	if err != nil {
		s.t.Fatal(err)
	}
	var mu sync.Mutex
	var all []string
	go func() {
		for e := range w.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			line := p.Name
			for what, there := range map[string]bool{
				"tenant-namespace's label": p.Labels["tier"] == "gold", "ipam's annotation": p.Annotations["extensions.sandgate.dev/address"] != "",
				"device-claim's claim": len(p.Spec.ResourceClaims) == 1 && len(p.Spec.Containers[0].Resources.Claims) == 1, "the driver's image": p.Spec.Containers[0].Image != "",
			} {
				if !there {
					line += " without " + what
				}
			}
			mu.Lock()
			all = append(all, line)
			mu.Unlock()
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// Three extensions that have no credentials of the cluster, in each workspace mode, under the rights of scripts/kubernetes
// alone: what each adds is its own in the cluster, no pod is ever without it, and nothing is left.
func TestAChainInACluster(t *testing.T) {
	t.Parallel()
	c := kubetest.New(t, kubetest.Beta) // alone in it, so that all of it can be compared
	for _, tc := range clusterCases {
		t.Run(tc.name, func(t *testing.T) {
			s := newClusterSite(t, c, tc)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen := s.witness(ctx)
			s.start()
			preview, err := s.d.engine.Preview(t.Context(), engine.CreateRequest{Driver: "acme", Workspace: "team-a", Name: "one",
				Spec: sandbox.Spec{Image: "registry.example/agent:1", Command: []string{"/bin/agent"}}})
			if err != nil || (len(preview.Notes) == 1 && strings.Contains(preview.Notes[0], "is not there yet")) != tc.made {
				t.Errorf("the plan, while the workspace has no namespace: %+v, %v", preview, err)
			}
			one, two := s.create("one"), s.create("two")
			box := tc.box + "one"
			want := map[string]string{
				"sandbox/" + box: "sandgate sandgate-device-claim sandgate-ipam sandgate-tenant-namespace sandgate.pod sandgate.run",
				"networkpolicy/" + box + "--leased-range": "sandgate-ipam",
				"resourceclaim/" + box + "--devices":      "sandgate-device-claim",
			}
			if tc.mode != "shared" || tc.own {
				want["resourcequota/tenant"], want["limitrange/tenant"], want["networkpolicy/deny-traffic"] = "sandgate-tenant-namespace", "sandgate-tenant-namespace", "sandgate-tenant-namespace"
			}
			switch tc.name {
			case "placed":
				want["namespace/"+tc.namespace] = "sandgate-tenant-namespace"
			case "managed":
				want["namespace/"+tc.namespace] = "sandgate sandgate-tenant-namespace"
			}
			got := map[string]string{}
			for ref := range want {
				kind, name, _ := strings.Cut(ref, "/")
				got[ref] = s.owners(kind, name)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the objects' owners in the cluster (-want +got):\n%s", diff)
			}
			t.Logf("kubectl shows:\n%s", s.c.Kubectl(t, "get", "sandbox", box, "-n", tc.namespace, "-o", "yaml", "--show-managed-fields"))
			claim := s.c.Kubectl(t, "get", "pod", box, "-n", tc.namespace, "-o", "jsonpath={.spec.resourceClaims[0].resourceClaimName} {.metadata.annotations.extensions\\.sandgate\\.dev/address} {.metadata.labels.tier}")
			if want := box + "--devices 10.80.0.2/16 gold"; claim != want {
				t.Errorf("the pod has %q, want %q", claim, want)
			}
			if diff := cmp.Diff([]string{"Secret/" + box + "--token", "Secret/" + tc.box + "two--token"}, s.secrets()); diff != "" {
				t.Errorf("what has the sandboxes' secrets (-want +got):\n%s", diff)
			}
			audit, err := s.d.engine.Audit(t.Context(), "", 0)
			if raw, jsonErr := json.Marshal(audit); err != nil || jsonErr != nil || len(audit) == 0 || secret(raw) {
				t.Errorf("the audit has a secret, or nothing: %v, %v", err, jsonErr)
			}
			shared := s.c.Inventory(t, tc.namespace)
			s.remove(one.ID)
			gone := []string{"/" + box + " ", "/" + box + "--"}
			s.await("what is the sandbox's is gone, and nothing else", func() bool {
				kept := slices.DeleteFunc(slices.Clone(shared), func(line string) bool {
					return strings.Contains(line, gone[0]) || strings.Contains(line, gone[1])
				})
				return cmp.Equal(kept, s.c.Inventory(t, tc.namespace))
			})
			s.remove(two.ID)
			h, err := s.d.engine.DeleteWorkspace("acme", "team-a", sandbox.Origin{})
			if err == nil {
				_, err = h.Wait(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			s.await("the cluster has what it had", func() bool { return cmp.Equal(s.before, s.c.Inventory(t)) })
			if held := s.d.engine.Holdings(); len(held) > 0 {
				t.Errorf("something is held: %+v", held)
			}
			s.end()
			s.told()
			all := seen()
			if len(all) == 0 {
				t.Error("the second client has seen no pod")
			}
			for _, line := range all {
				if strings.Contains(line, "without") {
					t.Errorf("a second client saw %s", line)
				}
			}
			asked := false
			for _, call := range s.c.Calls(t, gatewayAccount)[s.calls:] {
				asked = asked || call.As == kubetest.SandboxController && call.DryRun && call.Resource == "pods" && call.Code == 201
				if call.Code == 403 {
					t.Errorf("the rights do not suffice: %s %s in %q", call.Verb, call.Resource, call.Namespace)
				}
			}
			if !asked {
				t.Error("nobody has asked whether the pod would be admitted as its controller's")
			}
		})
	}
}

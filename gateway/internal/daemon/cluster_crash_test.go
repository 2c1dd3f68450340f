package daemon

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/test/kubetest"
)

const clusterWreckConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "tenant-namespace" {
  command = "DIR/tenant-namespace"
  config {
    tenant "team-*" {
      labels = { tier = "crash" }
      TENANTS
    }
  }
}
extension "ipam" {
  command = "DIR/ipam"
  paths {
    write = ["DIR/leases"]
  }
  config {
    store = "DIR/leases"
    pool "sandboxes" {
      cidr = "10.80.0.0/16"
    }
  }
}
driver "kubernetes" {
  reconcile_interval = "2s"
  config {
    kubeconfig    = "DIR/kubeconfig"
    gateway_id    = "NAME"
    namespace     = "NAMESPACE"
    default_image = "registry.example/agent:1"
  }
}
driver "NAME" {
  base               = "kubernetes"
  reconcile_interval = "2s"
  bind "tenant-namespace" {
    grant { mutate = ["Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy", "Sandbox.placement.namespace", "PodTemplate.template.metadata.labels"] }
  }
  bind "ipam" {
    grant { mutate = ["PodTemplate.template.metadata.annotations", "PodTemplate.template.metadata.labels", "NetworkPolicy"] }
  }
}
`

// newClusterWreck makes a site over a cluster, whose gateway reaches the API server through a proxy, as an administrator.
// Its workspaces have namespaces of their own, or one together.
func newClusterWreck(t *testing.T, c *kubetest.Cluster, own bool) *wreck {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sgk")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(c.Host)
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	proxy := enginetest.Between(t, l, transport, server)
	w := &wreck{ruin: &ruin{t: t, dir: dir, bin: bin, name: filepath.Base(dir)}, proxy: proxy, about: []string{"-cluster", address}}
	proxy.At = w.kill
	proxy.Skip = func(r *http.Request) bool { // what changes nothing
		return r.URL.Query().Has("dryRun") || strings.Contains(r.URL.Path, "selfsubjectaccessreviews")
	}
	t.Cleanup(func() {
		w.raze()
		_ = os.RemoveAll(mustRuntimeDir(t, dir+"/data"))
		_ = os.RemoveAll(dir)
	})
	for _, p := range []string{"ipam", "tenant-namespace"} {
		if err := os.Link(filepath.Join(bin, p), filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	namespace := "namespace {}"
	if own { // a quota binds all that are in a namespace
		namespace = "namespace {\n own = true\n quota = { \"pods\" = \"20\" }\n deny_traffic = true\n }"
	}
	text := strings.NewReplacer("DIR", dir, "NAMESPACE", c.Namespace(t, nil), "NAME", w.name, "TENANTS", namespace).Replace(clusterWreckConfig)
	kubeconfig := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: x, clusters: [{name: c, cluster: {server: %q}}], users: [{name: u}],
contexts: [{name: x, context: {cluster: c, user: u}}]}`, address)
	for name, content := range map[string]string{"site.hcl": text, "kubeconfig": kubeconfig, "cluster": c.Host} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// The gateway is killed before, during and after each call that changes the cluster, in each operation.
func TestKilledAtEveryClusterCall(t *testing.T) {
	t.Parallel()
	for _, how := range []enginetest.How{enginetest.Before, enginetest.During, enginetest.After} {
		t.Run(string(how), func(t *testing.T) {
			c := kubetest.Use(t, kubetest.Beta) // not in parallel: it is brought up once
			t.Parallel()
			w := newClusterWreck(t, c, how == enginetest.During)
			began := time.Now()
			w.up()
			for n, killed := 1, true; killed; n++ {
				killed = w.live(how, n)
			}
			w.finish()
			t.Logf("%d kills, %d starts of a gateway, in %v", w.kills, w.boots, time.Since(began).Round(time.Second))
		})
	}
}

package kubernetes

import (
	"encoding/json"

	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/test/kubetest"
)

// factory is the driver as drivertest sees it, each check in a namespace of its own.
func factory(c *kubetest.Cluster, mode string) drivertest.Factory {
	return drivertest.Factory{
		Driver:   "kubernetes",
		Image:    "registry.example/sandbox:1",
		Patience: patience,
		Place: func(tb testing.TB) func() (driver.Driver, error) {
			ns := c.Namespace(tb, nil)
			return func() (driver.Driver, error) {
				return Open(Config{Kubeconfig: c.Admin, Mode: mode, Namespace: ns, GatewayID: ns, StorageSize: "1Gi"})
			}
		},
		Commands: drivertest.Commands{Sleep: []string{"/bin/sleep", "infinity"}},
		Unusable: func(r *driver.Request) string {
			r.Config = json.RawMessage(`{"nope":1}`)
			return "driver_config"
		},
		Vanish: func(tb testing.TB, s *driver.Status) {
			ns, name, _ := strings.Cut(s.Objects[0].Name, "/")
			c.Kubectl(tb, "delete", "-n", ns, strings.ToLower(s.Objects[0].Kind), name, "--wait")
			c.Kubectl(tb, "wait", "-n", ns, "--for=delete", "pod/"+name, "--timeout=60s") // the garbage collector's
		},
		Lose: func(tb testing.TB, s *driver.Status) {
			ns, name, _ := strings.Cut(s.Objects[1].Name, "/")
			c.Kubectl(tb, "delete", "-n", ns, "pod", name, "--wait=false")
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, k := range []kubetest.Kind{kubetest.Beta, kubetest.Alpha, kubetest.Plain} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, k)
			drivertest.Lifecycle(t, factory(c, Shared))
		})
	}
}

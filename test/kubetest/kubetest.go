// Package kubetest gives tests a real Kubernetes control plane of their own: etcd, kube-apiserver with RBAC on, and
// kube-controller-manager, as processes on loopback and Unix sockets. One is started when the first test asks for it,
// and ends with the test program, however that ends. It needs neither root nor a network. What no such plane has, the
// Sandbox controller and the kubelet, a stand-in plays: test/kube/standin says what it does, and which faults annotations
// ask of it.
package kubetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Kind is what a cluster has for sandboxes.
type Kind string

// The kinds of cluster.
const (
	Beta  Kind = "v1beta1"  // the Sandbox resource, v1beta1 stored and v1alpha1 served
	Alpha Kind = "v1alpha1" // the Sandbox resource as its first releases had it
	Plain Kind = "plain"    // no such resource: there are Pods alone
)

// program finds the servers' program, which scripts/kube.sh builds.
var program = sync.OnceValues(func() (string, error) {
	root, err := root()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(filepath.Join(root, "scripts/kube.sh"), "find").Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
})

// root finds the module's directory from a package's.
func root() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.Join(errors.New("there is no go.mod above this directory"), err)
}

// Need leaves the test out where there are no servers, and says why: in CI that is a failure.
func Need(tb testing.TB) {
	tb.Helper()
	if _, err := program(); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skipf("left out: %v", err)
	}
}

var shared struct {
	sync.Mutex
	clusters map[Kind]*Cluster
}

// Use returns the test program's cluster of the kind. Tests share it, each in namespaces of its own.
func Use(tb testing.TB, k Kind) *Cluster {
	tb.Helper()
	Need(tb)
	shared.Lock()
	defer shared.Unlock()
	if c := shared.clusters[k]; c != nil {
		return c
	}
	c, err := Start(k)
	if err != nil {
		tb.Fatal(err)
	}
	if shared.clusters == nil {
		shared.clusters = map[Kind]*Cluster{}
	}
	shared.clusters[k] = c
	return c
}

// New returns a cluster for this test alone, which may do with its servers what it likes.
func New(tb testing.TB, k Kind) *Cluster {
	tb.Helper()
	Need(tb)
	c, err := Start(k)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// Main runs the tests of a package and stops the clusters that they used.
func Main(m *testing.M) int {
	code := m.Run()
	if err := StopAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// StopAll stops the clusters that were used.
func StopAll() error {
	shared.Lock()
	defer shared.Unlock()
	var err error
	for _, c := range shared.clusters {
		err = errors.Join(err, c.Stop())
	}
	clear(shared.clusters)
	return err
}

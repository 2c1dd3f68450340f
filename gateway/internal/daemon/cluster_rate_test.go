package daemon

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

var clusterRate = flag.Bool("cluster-rate", false, "measure creates on Kubernetes: rate, calls of the API server, memory")

const (
	clusterRateCount  = 500
	clusterRateAtOnce = 32
)

// Creates on Kubernetes with three extensions cost the API server no more calls than there is to say: a call for each object
// and owner and six, and with the dry run one for each object and two.
func TestClusterRate(t *testing.T) {
	if !*clusterRate {
		return // a figure of a machine that does something else says nothing: make bench-kubernetes
	}
	for _, dryRun := range []bool{false, true} {
		t.Run(fmt.Sprintf("dry_run=%t", dryRun), func(t *testing.T) {
			s := newClusterSite(t, kubetest.Use(t, kubetest.Beta), clusterCases[0])
			path := filepath.Join(s.dir, "site.hcl")
			raw, err := os.ReadFile(path)
			if err == nil {
				text := strings.Replace(string(raw), "stop_timeout             =", fmt.Sprintf("dry_run = %t\n    stop_timeout =", dryRun), 1)
				err = os.WriteFile(path, []byte(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.start()
			defer s.end()
			first := s.create("first") // the workspace is ensured by it
			objects, pairs := s.applied("first")
			before, memory := len(s.asked()), resident(t)
			took, p99 := s.createMany(clusterRateCount, clusterRateAtOnce)
			calls := float64(len(s.asked())-before) / clusterRateCount
			wanted := pairs + 6
			if dryRun {
				wanted += objects + 2
			}
			t.Logf("%d sandboxes, %d at a time: %.1f a second until all were made, 99 %% within %v; %d objects of %d owners: %.2f calls a sandbox, wanted at most %d; the process grew by %d KiB a sandbox",
				clusterRateCount, clusterRateAtOnce, clusterRateCount/took.Seconds(), p99.Round(time.Millisecond), objects, pairs, calls, wanted, (resident(t)-memory)/clusterRateCount)
			if calls > float64(wanted) {
				t.Errorf("MISSED: %.2f calls", calls)
			}
			s.each(func(i int) string { return fmt.Sprintf("box-%d", i) }, clusterRateCount, func(_ context.Context, id string) error {
				h, err := s.d.engine.DeleteSandbox(id, sandbox.Origin{})
				if err == nil {
					_, err = h.Wait(t.Context())
				}
				return err
			})
			s.remove(first.ID)
		})
	}
}

// asked returns what the gateway has asked of the API server, but for what it watches.
func (s *clusterSite) asked() []string {
	var out []string
	for _, c := range s.c.Calls(s.t, gatewayAccount) {
		if c.Verb != "watch" {
			out = append(out, c.Verb+" "+c.Resource)
		}
	}
	return out
}

// applied counts the objects of a sandbox, and with each its owners.
func (s *clusterSite) applied(name string) (objects, pairs int) {
	s.t.Helper()
	for _, kind := range []string{"sandbox.agents.x-k8s.io", "networkpolicy", "resourceclaim"} {
		for _, o := range strings.Fields(s.c.Kubectl(s.t, "get", kind, "-n", s.tc.namespace, "-o", "name")) {
			_, o, _ = strings.Cut(o, "/")
			if !strings.Contains(o, name) {
				continue
			}
			objects++
			for _, m := range strings.Fields(s.owners(kind, o)) {
				if m != "sandgate.run" && m != "sandgate.pod" { // not owners of what the plan says
					pairs++
				}
			}
		}
	}
	return objects, pairs
}

// createMany makes sandboxes, some at once.
func (s *clusterSite) createMany(n, atOnce int) (whole, p99 time.Duration) {
	s.t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	g, ctx := errgroup.WithContext(s.t.Context())
	g.SetLimit(atOnce)
	began := time.Now()
	for i := range n {
		g.Go(func() error {
			at := time.Now()
			id := fmt.Sprintf("box-%d", i)
			h, _, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Workspace: "team-a", ID: id, Name: id,
				Spec: sandbox.Spec{Image: "registry.example/agent:1", Command: []string{"/bin/agent"}}})
			if err == nil {
				_, err = h.Wait(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(at))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		s.t.Fatal(err)
	}
	whole = time.Since(began)
	slices.Sort(took)
	return whole, took[len(took)*99/100]
}

// each does something for every number, some at once.
func (s *clusterSite) each(name func(int) string, n int, do func(ctx context.Context, id string) error) {
	s.t.Helper()
	g, ctx := errgroup.WithContext(s.t.Context())
	g.SetLimit(clusterRateAtOnce)
	for i := range n {
		g.Go(func() error { return do(ctx, name(i)) })
	}
	if err := g.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

// resident returns the memory of this process, in KiB.
func resident(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/statm")
	var size, pages int
	if err == nil {
		_, err = fmt.Sscan(string(raw), &size, &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() / 1024
}

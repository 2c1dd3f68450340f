package kubernetes

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/test/kubetest"
)

// What keeps a pod from running, and how it ended, is said in words that people can act on.
func TestStatusSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fault, with string
		state       driver.State
		reason      string
		message     string
		exit        int
	}{
		{fault: "unschedulable", with: "0/3 nodes have room", state: driver.Failed, reason: "Unschedulable", message: "0/3 nodes"},
		{fault: "image-pull", with: "no such image", state: driver.Failed, reason: "ImagePullBackOff", message: "registry.example/agent:1"},
		{fault: "never-ready", with: "probe failed", state: driver.Running, message: "not ready"},
		{fault: "exit", with: "3", state: driver.Exited, reason: "ProcessExited", message: "exit code 3", exit: 3},
		{fault: "exit", with: "0", state: driver.Exited, reason: "ProcessExited", message: "exit code 0"},
	} {
		t.Run(tt.fault+" "+tt.with, func(t *testing.T) {
			t.Parallel()
			for _, kind := range kinds {
				c := kubetest.Use(t, kind)
				p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
				c.Kubectl(t, "annotate", "namespace", p.cfg.Namespace, "stand-in/"+tt.fault+"="+tt.with)
				r := p.box(t, "box")
				p.create(t, r)
				st := p.is(t, r.Identity, tt.state)
				if tt.reason != "" && st.Reason != tt.reason || !strings.Contains(st.Message, tt.message) {
					t.Errorf("%s: %+v", kind, st)
				}
				if tt.state == driver.Exited && (st.ExitCode == nil || *st.ExitCode != tt.exit) {
					t.Errorf("%s: exit code %v, want %d", kind, st.ExitCode, tt.exit)
				}
				p.delete(t, r)
			}
		})
	}
}

// A pod that its namespace's quota does not take is said to be that.
func TestStatusSaysThatAQuotaIsUsedUp(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.NoDryRun, cfg.StorageSize = true, "" })
	putQuota(t, c, p.cfg.Namespace, `"count/pods": "0"`)
	r := p.box(t, "box")
	p.create(t, r)
	if st := p.is(t, r.Identity, driver.Failed); st.Reason != "QuotaExceeded" || !strings.Contains(st.Message, "exceeded quota") {
		t.Errorf("%+v", st)
	}
	p.delete(t, r)
}

// Events of the pod are passed on.
func TestEventsArePassedOn(t *testing.T) {
	t.Parallel()
	c := kubetest.Use(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
	r := p.box(t, "box")
	heard := make(chan *driver.Notice, 100)
	synced := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		_ = p.Watch(ctx, func(e driver.Event) error {
			if e.Synced {
				close(synced)
			}
			if e.Notice != nil {
				heard <- e.Notice
			}
			return nil
		})
	}()
	<-synced
	p.create(t, r)
	select {
	case n := <-heard:
		if n.Identity != r.Identity || n.Reason != "Started" || n.Source != "stand-in" || n.Metadata[metaKind] != "Pod" || n.Metadata[metaComplete] != "starting_sandbox" || n.At.IsZero() {
			t.Errorf("%+v", n)
		}
	case <-ctx.Done():
		t.Error("no event of the pod was passed on")
	}
	p.delete(t, r)
}

// Whatever of a sandbox somebody else removes, the driver says so, nothing of it is left to run, and its calls come to an
// end.
func TestSomebodyElseRemovesThings(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
			r := p.box(t, "box")
			p.create(t, r)
			name := p.sandboxName(r.Identity)

			// The pod: the run is lost, whoever makes another one, and is begun again.
			p.is(t, r.Identity, driver.Ready)
			noted(t, p, r)
			watched(t, p, func() {
				c.Kubectl(t, "delete", "pod", name, "--namespace="+p.cfg.Namespace, "--wait=false")
				p.is(t, r.Identity, driver.Lost)
			})
			next := (driver.StartRequest)(*r)
			next.Run = 2
			if err := p.Start(t.Context(), &next); err != nil {
				t.Fatalf("Start of what was lost: %v", err)
			}
			p.is(t, r.Identity, driver.Ready)

			// What is the sandbox, or all of its namespace.
			c.Kubectl(t, "delete", p.cluster.anchor().gvr.Resource, name, "--namespace="+p.cfg.Namespace, "--wait=false")
			gone(t, p, r)
			again := p.box(t, "again")
			p.create(t, again)
			p.is(t, again.Identity, driver.Ready)
			c.Kubectl(t, "delete", "namespace", p.cfg.Namespace, "--wait=false")
			gone(t, p, again)
		})
	}
}

// noted waits until the driver has noted which pod a run has.
func noted(t *testing.T, p *planner, r *driver.CreateRequest) {
	t.Helper()
	if p.pods() {
		return
	}
	watched(t, p, func() {
		until(t, "the pod is noted", func() bool {
			anchor, err := p.anchorOf(t.Context(), r.Identity)
			return err == nil && anchor.GetAnnotations()[podAnnotation] != ""
		})
	})
}

// watched does something while the driver watches, as a gateway's does all the time.
func watched(t *testing.T, p *planner, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.Watch(ctx, func(driver.Event) error { return nil })
	}()
	do()
	cancel()
	<-ended
}

func gone(t *testing.T, p *planner, r *driver.CreateRequest) {
	t.Helper()
	until(t, "it is gone", func() bool {
		_, err := p.Get(t.Context(), r.Identity)
		return fault.Is(err, fault.NotFound)
	})
	if err := p.Stop(t.Context(), r.Identity); err != nil {
		t.Errorf("Stop: %v", err)
	}
	p.delete(t, r)
}

package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"
)

var kinds = []kubetest.Kind{kubetest.Beta, kubetest.Alpha, kubetest.Plain}

// box is a sandbox of a test, with what two extensions contribute to its plan.
func (p *planner) box(t *testing.T, name string) *driver.CreateRequest {
	t.Helper()
	r := request()
	r.Identity.Name, r.Identity.ID = name, p.cfg.Namespace+"-"+name
	of := p.base(t, r)
	for _, owner := range []string{"first", "second"} {
		objects := []plan.Object{
			podObject(m{"labels": m{"acme.dev/" + owner: "a"}, "annotations": m{"acme.dev/" + owner: "b"}}, m{
				"containers": []any{m{"name": agentContainer, "env": []any{m{"name": strings.ToUpper(owner), "value": "1"}}}}}),
			contribute(kindConfigMap, owner+"-conf", m{"data": m{"a": "b"}})[0],
			contribute(kindNetworkPolicy, owner+"-policy", m{"spec": m{"podSelector": m{}, "policyTypes": []any{"Ingress"}}})[0],
		}
		var err error
		if _, of, err = of.Apply(plan.Owner(owner), phase.PreparePlan, p.everything(), objects); err != nil {
			t.Fatal(err)
		}
	}
	return &driver.CreateRequest{Identity: r.Identity, Operation: "op-" + name, Run: 1, Plan: of, Workspace: p.workspace(t), Token: []byte("t0ken")}
}

func (p *planner) create(t *testing.T, r *driver.CreateRequest) {
	t.Helper()
	if err := p.Create(t.Context(), r); err != nil {
		t.Fatalf("Create: %v", err)
	}
}

func (p *planner) delete(t *testing.T, r *driver.CreateRequest) {
	t.Helper()
	if err := p.Delete(t.Context(), &driver.DeleteRequest{Identity: r.Identity, Operation: r.Operation}); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

var errSeen = errors.New("seen")

// await watches until a sandbox is as it is wanted.
func (p *planner) await(t *testing.T, id sandbox.Identity, what string, ok func(*driver.Status) bool) *driver.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var last *driver.Status
	for ctx.Err() == nil {
		err := p.Watch(ctx, func(e driver.Event) error {
			if e.Status == nil || e.Status.Identity != id {
				return nil
			}
			if last = e.Status; ok(last) {
				return errSeen
			}
			return nil
		})
		if errors.Is(err, errSeen) {
			return last
		}
	}
	t.Fatalf("%s was not %s; last: %+v", id.Name, what, last)
	return nil
}

func (p *planner) is(t *testing.T, id sandbox.Identity, state driver.State) *driver.Status {
	t.Helper()
	return p.await(t, id, string(state), func(st *driver.Status) bool { return st.State == state })
}

// An object of somebody else's that has the name of one of the plan's is left as it is, to the byte, and nothing is made.
func TestWhatIsInTheWayStaysAsItWas(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			p := onCluster(t, c, nil, func(cfg *Config) { cfg.StorageSize = "" })
			r := p.box(t, "box")
			objects, err := p.render(r.Identity, r.Operation, r.Plan, r.Workspace)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range append(objects, p.tokenObject((*driver.StartRequest)(r), p.cfg.Namespace)) {
				foreign := o.Owners[0].Fields.DeepCopy()
				foreign.SetLabels(map[string]string{"whose": "another"})
				foreign.SetAnnotations(nil)
				raw, err := foreign.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				c.Put(t, o.Namespace, string(raw))
				of, _ := p.cluster.resourceOf(o.GVK.Kind)
				at := c.Dynamic().Resource(of.gvr).Namespace(o.Namespace)
				show := func() string { // nothing, once it is gone
					there, err := at.Get(t.Context(), o.Name, metav1.GetOptions{})
					if apierrors.IsNotFound(err) {
						return ""
					}
					raw, jsonErr := json.MarshalIndent(there, "", " ")
					if err := errors.Join(err, jsonErr); err != nil {
						t.Fatal(err)
					}
					return string(raw)
				}
				settle := c.Inventory(t, p.cfg.Namespace)
				if o.GVK.Kind == kindSandbox || o.GVK == podResource.gvk { // it runs, and that shows in it
					until(t, "the other's runs", func() bool { return strings.Contains(show(), `"podIPs"`) })
					settle = c.Inventory(t, p.cfg.Namespace)
				}
				before := show()
				if err := p.Create(t.Context(), r); !fault.Is(err, fault.AlreadyExists) {
					t.Errorf("Create with another's %s: %v, want already_exists", o.ref(), err)
				}
				if diff := cmp.Diff(before, show()); diff != "" {
					t.Errorf("the other's %s (-before +after):\n%s", o.ref(), diff)
				}
				if diff := cmp.Diff(settle, c.Inventory(t, p.cfg.Namespace)); diff != "" {
					t.Errorf("with another's %s (-before +after):\n%s", o.ref(), diff)
				}
				if err := at.Delete(t.Context(), o.Name, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				until(t, "the other's is gone, and its pod", func() bool {
					return show() == "" && !strings.Contains(strings.Join(c.Inventory(t, p.cfg.Namespace), " "), "/"+o.Name+" ")
				})
			}
		})
	}
}

// A second client, which watches all the while, never sees a pod that lacks a field of an owner: not when another one
// takes an owner's fields away before the run, nor in a later run.
func TestNoPodLacksAnOwnersFields(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := kubetest.Use(t, kind)
			p := onCluster(t, c, nil, nil)
			c.Kubectl(t, "annotate", "namespace", p.cfg.Namespace, "stand-in/meddle="+manager("first"))
			w, err := c.Client().CoreV1().Pods(p.cfg.Namespace).Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var seen sync.WaitGroup
			pods := map[string]bool{}
			seen.Go(func() {
				for e := range w.ResultChan() {
					pod, is := e.Object.(*corev1.Pod)
					if !is {
						continue
					}
					pods[string(pod.UID)] = true
					for _, owner := range []string{"first", "second"} {
						has := slices.ContainsFunc(pod.Spec.Containers[0].Env, func(v corev1.EnvVar) bool { return v.Name == strings.ToUpper(owner) })
						if !has || pod.Labels["acme.dev/"+owner] != "a" || pod.Annotations["acme.dev/"+owner] != "b" {
							t.Errorf("pod %s (%s) lacks what %s has set", pod.Name, e.Type, owner)
						}
					}
				}
			})
			const many = 6
			var boxes []*driver.CreateRequest
			for i := range many {
				boxes = append(boxes, p.box(t, fmt.Sprintf("box-%d", i)))
			}
			each := func(fn func(ctx context.Context, r *driver.CreateRequest) error) {
				t.Helper()
				g, ctx := errgroup.WithContext(t.Context())
				for _, r := range boxes {
					g.Go(func() error { return fn(ctx, r) })
				}
				if err := g.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			each(func(ctx context.Context, r *driver.CreateRequest) error { return p.Create(ctx, r) })
			each(func(ctx context.Context, r *driver.CreateRequest) error { return p.Stop(ctx, r.Identity) })
			each(func(ctx context.Context, r *driver.CreateRequest) error {
				next := (driver.StartRequest)(*r)
				next.Run = 2
				return p.Start(ctx, &next)
			})
			for _, r := range boxes {
				p.is(t, r.Identity, driver.Ready)
			}
			each(func(ctx context.Context, r *driver.CreateRequest) error {
				return p.Delete(ctx, &driver.DeleteRequest{Identity: r.Identity, Operation: r.Operation})
			})
			w.Stop()
			seen.Wait()
			if len(pods) < many {
				t.Errorf("the other client has seen %d pods, want %d at least", len(pods), many)
			}
		})
	}
}

// An API server that goes away is waited for, or else said to be away; what was begun is finished or undone.
func TestTheAPIServerGoesAway(t *testing.T) {
	t.Parallel()
	c := kubetest.New(t, kubetest.Beta)
	p := onCluster(t, c, nil, func(cfg *Config) { cfg.Patience = 2 * time.Minute })
	restart := func(during func() error) {
		t.Helper()
		done := make(chan error, 1)
		c.KillAPIServer()
		go func() { done <- during() }()
		if err := c.StartAPIServer(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("over the API server's restart: %v", err)
		}
	}
	r := p.box(t, "box")
	restart(func() error { return p.Create(t.Context(), r) })
	p.is(t, r.Identity, driver.Ready)
	restart(func() error { return p.Stop(t.Context(), r.Identity) })
	if st := p.is(t, r.Identity, driver.Stopped); st.Run != 1 {
		t.Errorf("after Stop: %+v", st)
	}
	restart(func() error {
		return p.Delete(t.Context(), &driver.DeleteRequest{Identity: r.Identity, Operation: r.Operation})
	})
	if _, err := p.Get(t.Context(), r.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get after Delete: %v", err)
	}

	hasty := onCluster(t, c, nil, func(cfg *Config) {
		cfg.Namespace, cfg.GatewayID, cfg.Patience = p.cfg.Namespace, p.cfg.GatewayID, time.Second
	})
	// A watch that it takes away ends, so that the next one tells what happened meanwhile.
	ended := make(chan error, 1)
	synced := make(chan struct{})
	go func() {
		ended <- p.Watch(t.Context(), func(e driver.Event) error {
			if e.Synced {
				close(synced)
			}
			return nil
		})
	}()
	<-synced
	c.KillAPIServer()
	if err := <-ended; !fault.Is(err, fault.Unavailable) {
		t.Errorf("Watch ended with %v, want unavailable", err)
	}
	if err := hasty.Create(t.Context(), r); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Create without an API server: %v, want unavailable", err)
	}
	if _, err := hasty.Get(t.Context(), r.Identity); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Get without an API server: %v, want unavailable", err)
	}
}

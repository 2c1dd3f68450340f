package enginetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Opener opens the driver that is tested, on a directory, with the engine at a socket.
type Opener func(dir, socket string) (driver.Driver, error)

// patience is how long the tests wait for what an engine does.
const patience = time.Minute

// rig is a driver with a workspace that has a network, and a neighbour in it that nothing may touch.
type rig struct {
	testing.TB
	e     *Engine
	proxy *Proxy
	d     driver.Driver
	about *driver.Description
	ws    sandbox.Workspace
	wplan *plan.Plan
	last  int // the last address that was given
}

const subnet = "10.214.7.0/24"

// The secrets that a sandbox of the tests is given.
const token = "t0ken-of-the-tests"

func newRig(t testing.TB, e *Engine, open Opener) *rig {
	t.Helper()
	r := &rig{TB: t, e: e, proxy: NewProxy(t, e), last: 9}
	var err error
	if r.d, err = open(t.TempDir(), r.proxy.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.d.Close(); err != nil {
			t.Error(err)
		}
	})
	if r.about, err = r.d.Describe(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.newWorkspace()
	return r
}

func (r *rig) newWorkspace() {
	r.Helper()
	r.ws = sandbox.Workspace{ID: uuid.NewString(), Driver: r.about.Type, Name: "tenant"}
	layers, err := r.d.WorkspaceLayers(r.Context(), r.ws)
	if err != nil {
		r.Fatal(err)
	}
	r.wplan = r.with(r.compute(layers), phase.EnsureWorkspace, "Network", plan.Object{Kind: "Network", Name: "workspace", Fields: map[string]any{"subnet": subnet}})
}

func (r *rig) ensure() error {
	return r.d.EnsureWorkspace(r.Context(), &driver.WorkspaceRequest{Workspace: r.ws, Plan: r.wplan})
}

func (r *rig) compute(layers []plan.Layer) *plan.Plan {
	r.Helper()
	schema, err := plan.NewSchema(r.about.Kinds, r.about.Points, nil)
	if err != nil {
		r.Fatal(err)
	}
	p, err := schema.Compute(layers)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

func (r *rig) with(p *plan.Plan, ph phase.Phase, grant plan.Pattern, o plan.Object) *plan.Plan {
	r.Helper()
	_, next, err := p.Apply("enginetest", ph, plan.Grant{Mutate: []plan.Pattern{grant}}, []plan.Object{o})
	if err != nil {
		r.Fatal(err)
	}
	return next
}

// subject is a sandbox with a volume, a token, and an address in the workspace's network.
type subject struct {
	r       *rig
	create  *driver.CreateRequest
	plain   *plan.Plan // without an address
	address string
}

const sleeps = `trap 'exit 0' TERM; while :; do sleep 3600 & wait; done`

func (r *rig) sandbox(name string) *subject {
	r.Helper()
	return r.sandboxOf(name, Image, sleeps)
}

func (r *rig) sandboxOf(name, image, script string) *subject {
	r.Helper()
	r.last++
	s := &subject{r: r, address: fmt.Sprintf("10.214.7.%d", r.last)}
	id := sandbox.Identity{ID: uuid.NewString(), Driver: r.ws.Driver, Workspace: r.ws.Name, WorkspaceID: r.ws.ID, Name: name}
	layers, err := r.d.Layers(r.Context(), &driver.Request{Identity: id, Spec: sandbox.Spec{Image: image, Command: []string{"/bin/sh", "-c", script}}})
	if err != nil {
		r.Fatal(err)
	}
	p := r.with(r.compute(layers), phase.PreparePlan, "Volume", plan.Object{Kind: "Volume", Name: "data", Fields: map[string]any{"target": "/data"}})
	s.plain = p
	s.create = &driver.CreateRequest{Identity: id, Operation: uuid.NewString(), Run: 1, Plan: r.at(p, phase.BeforeCreate, s.address),
		Workspace: r.wplan, Token: []byte(token)}
	return s
}

func (r *rig) at(p *plan.Plan, ph phase.Phase, address string) *plan.Plan {
	r.Helper()
	return r.with(p, ph, "Container.network.address", plan.Object{Kind: "Container", Name: "main",
		Fields: map[string]any{"network": map[string]any{"address": address + "/24"}}})
}

func (s *subject) id() sandbox.Identity { return s.create.Identity }
func (s *subject) make() error          { return s.r.d.Create(s.r.Context(), s.create) }
func (s *subject) stop() error          { return s.r.d.Stop(s.r.Context(), s.id()) }

func (s *subject) delete() error {
	return s.r.d.Delete(s.r.Context(), &driver.DeleteRequest{Identity: s.id(), Operation: s.create.Operation})
}

// start begins a run at an address, which it may not have had before.
func (s *subject) start(run int, address string) error {
	s.create.Plan = s.r.at(s.plain, phase.BeforeStart, address)
	again := driver.StartRequest(*s.create)
	again.Run = run
	return s.r.d.Start(s.r.Context(), &again)
}

// until waits until the driver shows the sandbox in a state.
func (s *subject) until(state driver.State) *driver.Status {
	s.r.Helper()
	ctx, cancel := context.WithTimeout(s.r.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := s.r.d.Get(ctx, s.id())
		switch {
		case err != nil:
			s.r.Fatalf("Get: %v", err)
		case st.State == state:
			return st
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.r.Fatalf("it is %s (%s %s), want %s", st.State, st.Reason, st.Message, state)
		}
	}
}

func (r *rig) must(what string, err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

// inventory is what the engine has.
func (r *rig) inventory() []string {
	r.Helper()
	now, err := r.e.Inventory()
	r.must("inventory", err)
	return now
}

// same checks that the engine has what it had.
func (r *rig) same(what string, before []string) {
	r.Helper()
	if diff := cmp.Diff(before, r.inventory()); diff != "" {
		r.Errorf("after %s the engine has something else (-before +after):\n%s", what, diff)
	}
}

// added returns what of a kind the engine has more than it had.
func (r *rig) added(before []string, kind string) string {
	r.Helper()
	for _, x := range r.inventory() {
		name, of := strings.CutPrefix(x, kind+" ")
		if of && !slices.Contains(before, x) {
			return strings.TrimPrefix(name, "/")
		}
	}
	r.Fatalf("there is no new %s", kind)
	return ""
}

func (r *rig) wantCode(what string, err error, want ...fault.Code) {
	r.Helper()
	if !slices.Contains(want, fault.CodeOf(err)) {
		r.Errorf("%s: %v (%s), want %v", what, err, fault.CodeOf(err), want)
	}
}

package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// rig is what one check works with: a driver that is open on a place of its own.
type rig struct {
	testing.TB
	f      *Factory
	reopen func() (driver.Driver, error)
	d      driver.Driver
	about  *driver.Description
	schema *plan.Schema
	boxes  []*subject
	spaces []*space
}

// logger is the driver as one that keeps logs, which its features say that it does.
func (r *rig) logger() driver.Logger {
	r.Helper()
	l, ok := driver.As[driver.Logger](r.d)
	if !ok {
		r.Fatal("the driver is no driver.Logger")
	}
	return l
}

// The secrets that every sandbox of the suite is given.
const (
	secretToken = "conformance-t0ken"
	secretName  = "CONFORMANCE_SECRET"
	secretValue = "conformance-s3cret"
)

func newRig(tb testing.TB, f *Factory) *rig {
	tb.Helper()
	r := &rig{TB: tb, f: f, reopen: f.Place(tb)}
	r.open()
	tb.Cleanup(r.clean)
	return r
}

// open opens the driver, as a gateway that has just started does.
func (r *rig) open() {
	r.Helper()
	var err error
	if r.d, err = r.reopen(); err != nil {
		r.Fatalf("open: %v", err)
	}
	if r.about, err = r.d.Describe(r.Context()); err != nil {
		r.Fatalf("Describe: %v", err)
	}
	if r.f.schema == nil {
		if r.f.schema, err = plan.NewSchema(r.about.Kinds, r.about.Points, nil); err != nil {
			r.Fatalf("compile the kinds: %v", err)
		}
	}
	r.schema = r.f.schema
}

// restart closes the driver and opens it again.
func (r *rig) restart() {
	r.Helper()
	if err := r.d.Close(); err != nil {
		r.Fatalf("Close: %v", err)
	}
	r.open()
}

// clean removes what the check has left, so that the place can go.
func (r *rig) clean() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), r.f.Patience)
	defer cancel()
	for _, s := range r.boxes {
		if err := r.d.Delete(ctx, s.deletion()); err != nil {
			r.Errorf("clean up: Delete of %s: %v", s.id.Name, err)
		}
	}
	for _, w := range r.spaces {
		if err := r.d.DeleteWorkspace(ctx, w.Workspace); err != nil {
			r.Errorf("clean up: DeleteWorkspace of %s: %v", w.Name, err)
		}
	}
	if err := r.d.Close(); err != nil {
		r.Errorf("Close: %v", err)
	}
}

// space is a workspace with its plan.
type space struct {
	sandbox.Workspace
	plan *plan.Plan
}

// workspace ensures a new workspace, with a value at the point of each feature given.
func (r *rig) workspace(name string, at ...setting) *space {
	r.Helper()
	w := &space{Workspace: sandbox.Workspace{ID: uuid.NewString(), Driver: r.f.Driver, Name: name}}
	layers, err := r.d.WorkspaceLayers(r.Context(), w.Workspace)
	if err != nil {
		r.Fatalf("WorkspaceLayers: %v", err)
	}
	w.plan = r.contribute(r.compute(layers), at)
	r.spaces = append(r.spaces, w)
	r.ensure(w)
	return w
}

func (r *rig) ensure(w *space) {
	r.Helper()
	if err := r.d.EnsureWorkspace(r.Context(), &driver.WorkspaceRequest{Workspace: w.Workspace, Plan: w.plan}); err != nil {
		r.Fatalf("EnsureWorkspace: %v", err)
	}
}

// subject is one sandbox of a check.
type subject struct {
	rig       *rig
	id        sandbox.Identity
	operation string
	space     *space
	spec      sandbox.Spec
	plan      *plan.Plan
}

// sleeper plans a sandbox in a workspace of its own that runs until it is stopped.
func (r *rig) sleeper() *subject {
	r.Helper()
	return r.sandbox(r.workspace("tenant"), "sleeper", r.f.Commands.Sleep)
}

// sandbox plans a sandbox with the command, and a value at the point of each feature given; nothing is made.
func (r *rig) sandbox(w *space, name string, command []string, at ...setting) *subject {
	r.Helper()
	s := &subject{rig: r, operation: uuid.NewString(), space: w,
		id: sandbox.Identity{ID: uuid.NewString(), Driver: w.Driver, Workspace: w.Name, WorkspaceID: w.ID, Name: name},
		spec: sandbox.Spec{Image: r.f.Image, Command: command, DriverConfig: r.f.Config,
			Environment: map[string]string{secretName: secretValue}}}
	layers, err := r.d.Layers(r.Context(), s.request())
	if err != nil {
		r.Fatalf("Layers: %v", err)
	}
	s.plan = r.contribute(r.compute(layers), at)
	return s
}

func (s *subject) request() *driver.Request {
	return &driver.Request{Identity: s.id, Spec: s.spec, Config: s.spec.DriverConfig}
}

func (s *subject) resolution() *driver.ResolveRequest {
	return &driver.ResolveRequest{Identity: s.id, Plan: s.plan, Workspace: s.space.plan}
}

func (s *subject) creation() *driver.CreateRequest {
	return &driver.CreateRequest{Identity: s.id, Operation: s.operation, Run: 1, Plan: s.plan, Workspace: s.space.plan,
		Token: []byte(secretToken)}
}

func (s *subject) beginning(run int) *driver.StartRequest {
	return &driver.StartRequest{Identity: s.id, Operation: s.operation, Run: run, Plan: s.plan, Workspace: s.space.plan,
		Token: []byte(secretToken)}
}

func (s *subject) deletion() *driver.DeleteRequest {
	return &driver.DeleteRequest{Identity: s.id, Operation: s.operation}
}

// create makes the sandbox and returns at once; the rig deletes it in the end.
func (s *subject) create() {
	s.rig.Helper()
	s.rig.boxes = append(s.rig.boxes, s)
	if err := s.rig.d.Create(s.rig.Context(), s.creation()); err != nil {
		s.rig.Fatalf("Create of %s: %v", s.id.Name, err)
	}
}

// ready makes the sandbox and waits until it is ready.
func (s *subject) ready() *driver.Status {
	s.rig.Helper()
	s.create()
	return s.until(driver.Ready)
}

func (s *subject) start(run int) {
	s.rig.Helper()
	if err := s.rig.d.Start(s.rig.Context(), s.beginning(run)); err != nil {
		s.rig.Fatalf("Start of %s as run %d: %v", s.id.Name, run, err)
	}
}

func (s *subject) stop() {
	s.rig.Helper()
	if err := s.rig.d.Stop(s.rig.Context(), s.id); err != nil {
		s.rig.Fatalf("Stop of %s: %v", s.id.Name, err)
	}
}

func (s *subject) delete() {
	s.rig.Helper()
	if err := s.rig.d.Delete(s.rig.Context(), s.deletion()); err != nil {
		s.rig.Fatalf("Delete of %s: %v", s.id.Name, err)
	}
}

func (s *subject) get() *driver.Status {
	s.rig.Helper()
	st, err := s.rig.d.Get(s.rig.Context(), s.id)
	if err != nil {
		s.rig.Fatalf("Get of %s: %v", s.id.Name, err)
	}
	return st
}

// gone checks that nothing is left of the sandbox.
func (s *subject) gone() {
	s.rig.Helper()
	for range 2 {
		if st, err := s.rig.d.Get(s.rig.Context(), s.id); !fault.Is(err, fault.NotFound) {
			s.rig.Errorf("Get of %s, of which nothing should be left: %+v, %v; want not_found", s.id.Name, st, err)
			return
		}
	}
	if listed := s.rig.list(); slices.Contains(listed, s.id.ID) {
		s.rig.Errorf("List still has %s", s.id.Name)
	}
}

// until waits for a state and returns the status with it.
func (s *subject) until(state driver.State) *driver.Status {
	s.rig.Helper()
	var last driver.State
	st := s.rig.await(s.id, fmt.Sprintf("%s to be %s", s.id.Name, state), func(st *driver.Status) bool {
		last = st.State
		return st.State == state
	})
	if st == nil {
		s.rig.Fatalf("%s is %q, want %q", s.id.Name, last, state)
	}
	return st
}

var errSeen = errors.New("seen")

// await watches until ok says yes to a status of the sandbox. Nil: it did not within the factory's patience.
func (r *rig) await(id sandbox.Identity, what string, ok func(*driver.Status) bool) *driver.Status {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), r.f.Patience)
	defer cancel()
	var found *driver.Status
	err := r.d.Watch(ctx, func(e driver.Event) error {
		if e.Status == nil || e.Status.Identity != id || !ok(e.Status) {
			return nil
		}
		found = e.Status
		return errSeen
	})
	if found == nil && ctx.Err() == nil {
		r.Fatalf("Watch ended while waiting for %s: %v", what, err)
	}
	return found
}

// list returns the ids of what the driver has under the factory's name, sorted.
func (r *rig) list() []string {
	r.Helper()
	all, err := r.d.List(r.Context())
	if err != nil {
		r.Fatalf("List: %v", err)
	}
	var ids []string
	for _, st := range all {
		if st.Identity.Driver == r.f.Driver {
			ids = append(ids, st.Identity.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func (r *rig) compute(layers []plan.Layer) *plan.Plan {
	r.Helper()
	p, err := r.schema.Compute(layers)
	if err != nil {
		r.Fatalf("compute the plan: %v", err)
	}
	return p
}

// setting is a value at the point of a feature.
type setting struct {
	feature string
	value   any
}

// contribute applies the values in the name of an extension that is granted their points, each in the first phase in
// which its point is open.
func (r *rig) contribute(p *plan.Plan, at []setting) *plan.Plan {
	r.Helper()
	for _, x := range at {
		point, ok := r.point(x.feature)
		if !ok {
			r.Fatalf("the driver publishes no point for feature %s", x.feature)
		}
		grant := plan.Grant{Mutate: []plan.Pattern{point.Pattern}, Source: "drivertest"}
		object := plan.Object{Kind: point.Pattern.Kind(), Name: point.Object, Fields: nest(point.Pattern, x.value)}
		_, with, err := p.Apply("conformance", point.Phases[0], grant, []plan.Object{object})
		if err != nil {
			r.Fatalf("set feature %s in %s: %v", x.feature, point.Phases[0], err)
		}
		p = with
	}
	return p
}

// point returns the point at which a feature is set.
func (r *rig) point(feature string) (plan.Point, bool) {
	for _, p := range r.about.Points {
		if p.Feature == feature {
			return p, true
		}
	}
	return plan.Point{}, false
}

// address returns the n-th address of the factory's subnet.
func (r *rig) address(n int) string {
	r.Helper()
	subnet, err := netip.ParsePrefix(r.f.Subnet)
	if err != nil {
		r.Fatalf("the factory's subnet: %v", err)
	}
	a := subnet.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a.String()
}

// nest returns the fields of an object in which value stands at the path of the pattern.
func nest(at plan.Pattern, value any) map[string]any {
	path := strings.Split(string(at), ".")[1:]
	for i := len(path) - 1; i >= 0; i-- {
		value = map[string]any{path[i]: value}
	}
	fields, _ := value.(map[string]any)
	return fields
}

// secretless checks that a status shows none of the secrets that its sandbox was given.
func (r *rig) secretless(st *driver.Status) {
	r.Helper()
	text, err := json.Marshal(st)
	if err != nil {
		r.Fatalf("encode the status: %v", err)
	}
	for _, secret := range []string{secretToken, secretValue} {
		if strings.Contains(string(text), secret) {
			r.Errorf("the status of %s shows a secret", st.Identity.Name)
		}
	}
}

// wantCode checks the code of an error.
func (r *rig) wantCode(what string, err error, want ...fault.Code) {
	r.Helper()
	if !slices.Contains(want, fault.CodeOf(err)) {
		r.Errorf("%s: %v (%s), want %v", what, err, fault.CodeOf(err), want)
	}
}

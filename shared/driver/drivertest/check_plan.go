package drivertest

import (
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// planChecks are about what a driver says before it does anything.
func planChecks() []check {
	return []check{
		{name: "Describe answers the same when asked twice", run: describeTwice},
		{name: "Describe is coherent", run: describeCoherent},
		{name: "Layers is pure", run: layersPure},
		{name: "Layers refuses what cannot be used", when: func(f *Factory) bool { return f.Unusable != nil }, run: layersRefuse},
		{name: "WorkspaceLayers is pure", run: workspaceLayersPure},
		{name: "Resolve is pure", run: resolvePure},
		{name: "Resolve answers before the workspace was ensured", run: resolveEarly},
		{name: "Resolve refuses a required feature that is missing", run: resolveRefuses},
	}
}

func describeTwice(r *rig) {
	again, err := r.d.Describe(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(r.about, again); diff != "" {
		r.Errorf("asked again (-first +second):\n%s", diff)
	}
	before := r.about
	r.restart()
	if before.Instance != r.about.Instance {
		r.Errorf("instance is %q after the driver was opened again, was %q", r.about.Instance, before.Instance)
	}
}

// describeCoherent checks that points and features speak of each other and of kinds that exist.
func describeCoherent(r *rig) {
	scopes := map[string]plan.Scope{}
	for _, k := range r.about.Kinds {
		scopes[k.Name] = k.Scope
	}
	for _, p := range r.about.Points {
		if scopes[p.Pattern.Kind()] == "" {
			r.Errorf("point %s is of a kind that the driver does not have", p.Pattern)
		}
		if len(p.Phases) == 0 {
			r.Errorf("point %s is never open", p.Pattern)
		}
		for _, ph := range p.Phases {
			scope := scopes[p.Pattern.Kind()]
			if !ph.Contributes() || scope != plan.ScopeAny && ph.OfWorkspace() != (scope == plan.ScopeWorkspace) {
				r.Errorf("point %s cannot be open in %s", p.Pattern, ph)
			}
		}
		if p.Feature != "" && !slices.Contains(names(r.about.Features), p.Feature) {
			r.Errorf("point %s sets feature %q, which the driver does not have", p.Pattern, p.Feature)
		}
	}
	for _, f := range r.about.Features {
		point, ok := r.point(f.Name)
		if f.Point != "" && (!ok || point.Pattern != f.Point || point.Object != f.Object) {
			r.Errorf("feature %s is set at %s of %q, and no point says so", f.Name, f.Point, f.Object)
		}
		if why, missing := r.about.Missing[f.Name]; missing {
			r.Errorf("feature %s is there and missing (%s)", f.Name, why)
		}
	}
	if _, keeps := driver.As[driver.Logger](r.d); keeps != slices.Contains(names(r.about.Features), "logs") {
		r.Errorf("feature logs and driver.Logger do not go together: it is a Logger: %v", keeps)
	}
}

func layersPure(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "asked", r.f.Commands.Sleep)
	before, kept := s.request(), s.request()
	kept.Spec.Environment = map[string]string{secretName: secretValue}
	kept.Spec.Command = slices.Clone(kept.Spec.Command)
	first, err := r.d.Layers(r.Context(), before)
	if err != nil {
		r.Fatal(err)
	}
	second, err := r.d.Layers(r.Context(), before)
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		r.Errorf("asked again (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(kept, before); diff != "" {
		r.Errorf("the request was changed (-before +after):\n%s", diff)
	}
	for _, l := range first {
		if !slices.Contains([]plan.Owner{plan.OwnerGateway, plan.OwnerRequest, plan.OwnerDriver}, l.Owner) || l.Phase != "" {
			r.Errorf("there is a layer of owner %q and phase %q; a driver has those of gateway, request and driver", l.Owner, l.Phase)
		}
	}
	nothingMade(r, s)
}

func layersRefuse(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "unusable", r.f.Commands.Sleep)
	req := s.request()
	path := r.f.Unusable(req)
	_, err := r.d.Layers(r.Context(), req)
	r.wantCode("Layers", err, fault.Invalid)
	about := slices.ContainsFunc(fault.DiagnosticsOf(err), func(d fault.Diagnostic) bool { return d.Path == path })
	if !about {
		r.Errorf("diagnostics are %+v, want one about %s", fault.DiagnosticsOf(err), path)
	}
	nothingMade(r, s)
}

func workspaceLayersPure(r *rig) {
	w := sandbox.Workspace{ID: uuid.NewString(), Driver: r.f.Driver, Name: "asked"}
	first, err := r.d.WorkspaceLayers(r.Context(), w)
	if err != nil {
		r.Fatal(err)
	}
	second, err := r.d.WorkspaceLayers(r.Context(), w)
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		r.Errorf("asked again (-first +second):\n%s", diff)
	}
	r.compute(first)
}

func resolvePure(r *rig) {
	s := r.sleeper()
	for range 2 {
		if err := r.d.Resolve(r.Context(), s.resolution()); err != nil {
			r.Fatalf("Resolve: %v", err)
		}
	}
	nothingMade(r, s)
	s.ready()
}

func resolveEarly(r *rig) {
	w := &space{Workspace: sandbox.Workspace{ID: uuid.NewString(), Driver: r.f.Driver, Name: "never-ensured"}}
	s := r.sandbox(w, "preview", r.f.Commands.Sleep)
	q := s.resolution()
	q.Preview = true
	if err := r.d.Resolve(r.Context(), q); err != nil {
		r.Errorf("Resolve: %v", err)
	}
	nothingMade(r, s)
}

func resolveRefuses(r *rig) {
	s := r.sleeper()
	q := s.resolution()
	q.Requires = []string{"conformance.no-such-feature"}
	r.wantCode("Resolve", r.d.Resolve(r.Context(), q), fault.FailedPrecondition, fault.Invalid)
	nothingMade(r, s)
}

// nothingMade checks that the driver has nothing of the sandbox, nor of any other.
func nothingMade(r *rig, s *subject) {
	r.Helper()
	s.gone()
	if listed := r.list(); len(listed) > 0 {
		r.Errorf("List has %v; nothing should have been made", listed)
	}
}

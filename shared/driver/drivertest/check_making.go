package drivertest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// makingChecks are about Create and Delete, and the marks by which they know what is whose.
func makingChecks() []check {
	return []check{
		{name: "Create makes a marked sandbox that becomes ready", run: createReady},
		{name: "Create repeated by its operation makes nothing twice", run: createTwice},
		{name: "Create by another operation is AlreadyExists and changes nothing", run: createOthers},
		{name: "Create takes ids and names at their limits", run: createLongest},
		{name: "Get of nothing is NotFound", run: getNothing},
		{name: "Stop and Delete of nothing succeed", run: endNothing},
		{name: "Start of nothing is NotFound", run: startNothing},
		{name: "Delete leaves nothing of a sandbox that runs", run: deleteRunning},
		{name: "Delete leaves nothing of a sandbox that is stopped", run: deleteStopped},
		{name: "Delete under another operation's mark removes nothing", run: deleteOthers},
		{name: "Delete leaves other sandboxes alone", run: deleteOne},
		{name: "A name is free again after Delete", run: nameAgain},
		{name: "Sandboxes of one name live in two workspaces", run: nameTwice},
		{name: "Many sandboxes are made and removed at once", run: manyAtOnce},
	}
}

// settled ignores what may differ between two looks at a sandbox that did not change.
func settled() cmp.Options {
	return cmp.Options{
		cmpopts.IgnoreFields(driver.Status{}, "Since", "Message"),
		cmpopts.SortSlices(func(a, b driver.RealObject) bool { return a.Kind+"/"+a.Name < b.Kind+"/"+b.Name }),
		cmpopts.EquateEmpty(),
	}
}

func createReady(r *rig) {
	s := r.sleeper()
	got := s.ready()
	want := &driver.Status{Identity: s.id, Operation: s.operation, Run: 1, State: driver.Ready}
	if diff := cmp.Diff(want, got, settled(), cmpopts.IgnoreFields(driver.Status{}, "Objects", "Addresses", "Reason")); diff != "" {
		r.Errorf("status from Watch (-want +got):\n%s", diff)
	}
	if len(got.Objects) == 0 {
		r.Error("the status lists no object that was made")
	}
	if diff := cmp.Diff(got, s.get(), settled()); diff != "" {
		r.Errorf("Watch and Get do not agree (-watch +get):\n%s", diff)
	}
	if listed := r.list(); !slices.Equal(listed, []string{s.id.ID}) {
		r.Errorf("List has %v, want %s alone", listed, s.id.ID)
	}
	r.secretless(got)
}

func createTwice(r *rig) {
	s := r.sleeper()
	before := s.ready()
	for range 2 {
		if err := r.d.Create(r.Context(), s.creation()); err != nil {
			r.Fatalf("Create again: %v", err)
		}
	}
	if diff := cmp.Diff(before, s.until(driver.Ready), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
	if listed := r.list(); len(listed) != 1 {
		r.Errorf("List has %v, want one sandbox", listed)
	}
}

func createOthers(r *rig) {
	s := r.sleeper()
	before := s.ready()
	other := s.creation()
	other.Operation = uuid.NewString()
	r.wantCode("Create by another operation", r.d.Create(r.Context(), other), fault.AlreadyExists)
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
}

func createLongest(r *rig) {
	w := r.workspace("w" + strings.Repeat("-w", (sandbox.MaxName-1)/2))
	s := r.sandbox(w, "n"+strings.Repeat("a", sandbox.MaxName-1), r.f.Commands.Sleep)
	twin := r.sandbox(w, "n"+strings.Repeat("a", sandbox.MaxName-2)+"b", r.f.Commands.Sleep)
	long := "Long_" + strings.Repeat("x.", (sandbox.MaxID-6)/2)
	s.id.ID, twin.id.ID = long+"A", long+"B" // they differ in the last letter only
	for _, x := range []*subject{s, twin} {
		layers, err := r.d.Layers(r.Context(), x.request())
		if err != nil {
			r.Fatalf("Layers: %v", err)
		}
		x.plan = r.compute(layers)
		x.ready()
	}
	s.delete()
	s.gone()
	if st := twin.get(); st.State != driver.Ready {
		r.Errorf("%s is %s after its twin was deleted", twin.id.ID, st.State)
	}
}

func getNothing(r *rig) {
	r.sleeper().gone()
}

func endNothing(r *rig) {
	s := r.sleeper()
	if err := r.d.Stop(r.Context(), s.id); err != nil {
		r.Errorf("Stop: %v", err)
	}
	if err := r.d.Delete(r.Context(), s.deletion()); err != nil {
		r.Errorf("Delete: %v", err)
	}
	nothingMade(r, s)
}

func startNothing(r *rig) {
	s := r.sleeper()
	r.wantCode("Start", r.d.Start(r.Context(), s.beginning(2)), fault.NotFound)
	nothingMade(r, s)
}

func deleteRunning(r *rig) {
	s := r.sleeper()
	s.ready()
	s.delete()
	s.gone()
	s.delete()
}

func deleteStopped(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	s.delete()
	s.gone()
}

func deleteOthers(r *rig) {
	s := r.sleeper()
	before := s.ready()
	other := s.deletion()
	other.Operation = uuid.NewString()
	if err := r.d.Delete(r.Context(), other); err != nil {
		r.Logf("Delete under another operation's mark answers: %v", err)
	}
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
}

func deleteOne(r *rig) {
	one := r.sleeper()
	two := r.sandbox(one.space, "other", r.f.Commands.Sleep)
	one.ready()
	before := two.ready()
	one.delete()
	one.gone()
	if diff := cmp.Diff(before, two.get(), settled()); diff != "" {
		r.Errorf("the other sandbox was changed (-before +after):\n%s", diff)
	}
}

func nameAgain(r *rig) {
	one := r.sleeper()
	one.ready()
	one.delete()
	two := r.sandbox(one.space, one.id.Name, r.f.Commands.Sleep)
	two.ready()
	if listed := r.list(); !slices.Equal(listed, []string{two.id.ID}) {
		r.Errorf("List has %v, want %s alone", listed, two.id.ID)
	}
}

func nameTwice(r *rig) {
	one := r.sleeper()
	two := r.sandbox(r.workspace("another"), one.id.Name, r.f.Commands.Sleep)
	one.ready()
	two.ready()
	one.delete()
	one.gone()
	if st := two.get(); st.State != driver.Ready {
		r.Errorf("the sandbox of the other workspace is %s", st.State)
	}
}

func manyAtOnce(r *rig) {
	w := r.workspace("tenant")
	var all []*subject
	for i := range 8 {
		all = append(all, r.sandbox(w, fmt.Sprintf("sleeper-%d", i), r.f.Commands.Sleep))
	}
	r.boxes = append(r.boxes, all...)
	r.each("Create", all, func(ctx context.Context, s *subject) error { return r.d.Create(ctx, s.creation()) })
	for _, s := range all {
		s.until(driver.Ready)
	}
	if listed := r.list(); len(listed) != len(all) {
		r.Errorf("List has %d sandboxes, want %d", len(listed), len(all))
	}
	r.each("Stop", all, func(ctx context.Context, s *subject) error { return r.d.Stop(ctx, s.id) })
	r.each("Start", all, func(ctx context.Context, s *subject) error { return r.d.Start(ctx, s.beginning(2)) })
	r.each("Delete", all, func(ctx context.Context, s *subject) error { return r.d.Delete(ctx, s.deletion()) })
	nothingMade(r, all[0])
}

// each makes one call for every sandbox at once.
func (r *rig) each(what string, all []*subject, call func(context.Context, *subject) error) {
	r.Helper()
	g, ctx := errgroup.WithContext(r.Context())
	for _, s := range all {
		g.Go(func() error { return call(ctx, s) })
	}
	if err := g.Wait(); err != nil {
		r.Fatalf("%s of %d sandboxes at once: %v", what, len(all), err)
	}
}

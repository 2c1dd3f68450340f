package drivertest

import (
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// workspaceChecks are about what the sandboxes of a tenant share.
func workspaceChecks() []check {
	return []check{
		{name: "EnsureWorkspace repeated changes nothing", run: ensureTwice},
		{name: "EnsureWorkspace under a context that has ended is finished by repeating it", run: ensureEnded},
		{name: "A workspace outlives its sandboxes", run: workspaceOutlives},
		{name: "DeleteWorkspace of nothing succeeds", run: deleteNoWorkspace},
		{name: "DeleteWorkspace leaves other workspaces alone", run: deleteOneWorkspace},
		{name: "A workspace comes into being again under its name", run: workspaceAgain},
	}
}

func ensureTwice(r *rig) {
	s := r.sleeper()
	before := s.ready()
	r.ensure(s.space)
	r.ensure(s.space)
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("a sandbox of it was changed (-before +after):\n%s", diff)
	}
	r.sandbox(s.space, "later", r.f.Commands.Sleep).ready()
}

func ensureEnded(r *rig) {
	w := r.workspace("tenant")
	if err := r.d.DeleteWorkspace(r.Context(), w.Workspace); err != nil {
		r.Fatalf("DeleteWorkspace: %v", err)
	}
	_ = r.d.EnsureWorkspace(r.ended(), &driver.WorkspaceRequest{Workspace: w.Workspace, Plan: w.plan})
	r.ensure(w)
	r.sandbox(w, "sleeper", r.f.Commands.Sleep).ready()
}

func workspaceOutlives(r *rig) {
	s := r.sleeper()
	s.ready()
	s.delete()
	s.gone()
	r.sandbox(s.space, "later", r.f.Commands.Sleep).ready()
}

func deleteNoWorkspace(r *rig) {
	never := sandbox.Workspace{ID: uuid.NewString(), Driver: r.f.Driver, Name: "never-ensured"}
	if err := r.d.DeleteWorkspace(r.Context(), never); err != nil {
		r.Errorf("DeleteWorkspace of one that never was: %v", err)
	}
	w := r.workspace("tenant")
	for range 2 {
		if err := r.d.DeleteWorkspace(r.Context(), w.Workspace); err != nil {
			r.Errorf("DeleteWorkspace: %v", err)
		}
	}
}

func deleteOneWorkspace(r *rig) {
	s := r.sleeper()
	before := s.ready()
	other := r.workspace("another")
	if err := r.d.DeleteWorkspace(r.Context(), other.Workspace); err != nil {
		r.Fatalf("DeleteWorkspace: %v", err)
	}
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("a sandbox of the other workspace was changed (-before +after):\n%s", diff)
	}
	r.sandbox(s.space, "later", r.f.Commands.Sleep).ready()
}

func workspaceAgain(r *rig) {
	old := r.workspace("tenant")
	if err := r.d.DeleteWorkspace(r.Context(), old.Workspace); err != nil {
		r.Fatalf("DeleteWorkspace: %v", err)
	}
	s := r.sandbox(r.workspace("tenant"), "sleeper", r.f.Commands.Sleep)
	before := s.ready()
	// The old one's delete comes a second time and must not take the new one with it.
	if err := r.d.DeleteWorkspace(r.Context(), old.Workspace); err != nil {
		r.Fatalf("DeleteWorkspace: %v", err)
	}
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("a sandbox of the new workspace was changed (-before +after):\n%s", diff)
	}
	r.sandbox(s.space, "later", r.f.Commands.Sleep).ready()
}

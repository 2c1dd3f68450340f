package wire

import (
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

// PureToProto makes the request of a pure phase.
func PureToProto(c *extension.Call) (*extensionv1.PureRequest, error) {
	p, err := ObjectsToProto(c.Plan)
	if err != nil {
		return nil, err
	}
	w, err := ObjectsToProto(c.WorkspacePlan)
	if err != nil {
		return nil, err
	}
	return &extensionv1.PureRequest{Step: stepToProto(c), Subject: subjectToProto(c), Plan: p, WorkspacePlan: w,
		WorkspaceState: stateToProto(c.WorkspaceState)}, nil
}

// PureFromProto is the inverse of PureToProto.
func PureFromProto(r *extensionv1.PureRequest) (*extension.Call, error) {
	c := &extension.Call{WorkspaceState: stateFromProto(r.GetWorkspaceState())}
	stepFromProto(r.GetStep(), c)
	subjectFromProto(r.GetSubject(), c)
	return c, objects(c, r.GetPlan(), r.GetWorkspacePlan())
}

// PhaseToProto makes the request of a phase with effects.
func PhaseToProto(c *extension.Call) (*extensionv1.PhaseRequest, error) {
	p, err := ObjectsToProto(c.Plan)
	if err != nil {
		return nil, err
	}
	w, err := ObjectsToProto(c.WorkspacePlan)
	if err != nil {
		return nil, err
	}
	return &extensionv1.PhaseRequest{Step: stepToProto(c), Subject: subjectToProto(c), Plan: p, WorkspacePlan: w,
		State: stateToProto(c.State), WorkspaceState: stateToProto(c.WorkspaceState), Held: entriesToProto(c.Held), InDoubt: c.InDoubt}, nil
}

// PhaseFromProto is the inverse of PhaseToProto.
func PhaseFromProto(r *extensionv1.PhaseRequest) (*extension.Call, error) {
	c := &extension.Call{State: stateFromProto(r.GetState()), WorkspaceState: stateFromProto(r.GetWorkspaceState()),
		Held: entriesFromProto(r.GetHeld()), InDoubt: r.GetInDoubt()}
	stepFromProto(r.GetStep(), c)
	subjectFromProto(r.GetSubject(), c)
	return c, objects(c, r.GetPlan(), r.GetWorkspacePlan())
}

func objects(c *extension.Call, p, w []*extensionv1.Object) (err error) {
	if c.Plan, err = ObjectsFromProto(p); err != nil {
		return err
	}
	c.WorkspacePlan, err = ObjectsFromProto(w)
	return err
}

// RepairToProto makes the request that mends differences.
func RepairToProto(c *extension.Call) *extensionv1.RepairRequest {
	return &extensionv1.RepairRequest{Step: stepToProto(c), Subject: subjectToProto(c), State: stateToProto(c.State),
		WorkspaceState: stateToProto(c.WorkspaceState), Held: entriesToProto(c.Held), Orphans: entriesToProto(c.Orphans),
		Lost: entriesToProto(c.Lost), Lifetime: string(c.Lifetime)}
}

// RepairFromProto is the inverse of RepairToProto.
func RepairFromProto(r *extensionv1.RepairRequest) *extension.Call {
	c := &extension.Call{State: stateFromProto(r.GetState()), WorkspaceState: stateFromProto(r.GetWorkspaceState()),
		Held: entriesFromProto(r.GetHeld()), Orphans: entriesFromProto(r.GetOrphans()), Lost: entriesFromProto(r.GetLost()),
		Lifetime: phase.Lifetime(r.GetLifetime())}
	stepFromProto(r.GetStep(), c)
	subjectFromProto(r.GetSubject(), c)
	return c
}

// ValidateToProto and the functions like it make the answer of a class of phases. What a class has no field for is
// left out: the server has refused it before.
func ValidateToProto(a *extension.Answer) *extensionv1.ValidateResponse {
	return &extensionv1.ValidateResponse{Denied: a.Denied, Diagnostics: DiagnosticsToProto(a.Diagnostics)}
}

// PreparePlanToProto makes the answer of prepare_plan.
func PreparePlanToProto(a *extension.Answer) (*extensionv1.PreparePlanResponse, error) {
	o, err := ObjectsToProto(a.Contribute)
	if err != nil {
		return nil, err
	}
	return &extensionv1.PreparePlanResponse{Denied: a.Denied, Diagnostics: DiagnosticsToProto(a.Diagnostics), Contribute: o, Requires: a.Requires}, nil
}

// SetupToProto makes the answer of the phases that may contribute and hold.
func SetupToProto(a *extension.Answer) (*extensionv1.SetupResponse, error) {
	o, err := ObjectsToProto(a.Contribute)
	if err != nil {
		return nil, err
	}
	return &extensionv1.SetupResponse{Denied: a.Denied, Diagnostics: DiagnosticsToProto(a.Diagnostics), Contribute: o,
		State: stateToProto(a.State), Entries: entriesToProto(a.Entries)}, nil
}

// HoldToProto makes the answer of the phases that take or release without contributing.
func HoldToProto(a *extension.Answer) *extensionv1.HoldResponse {
	return &extensionv1.HoldResponse{Diagnostics: DiagnosticsToProto(a.Diagnostics), State: stateToProto(a.State), Entries: entriesToProto(a.Entries)}
}

// QuiesceToProto makes the answer of the phases that hold nothing.
func QuiesceToProto(a *extension.Answer) *extensionv1.QuiesceResponse {
	return &extensionv1.QuiesceResponse{Diagnostics: DiagnosticsToProto(a.Diagnostics), State: stateToProto(a.State)}
}

func validateFromProto(r *extensionv1.ValidateResponse) *extension.Answer {
	return &extension.Answer{Denied: r.GetDenied(), Diagnostics: DiagnosticsFromProto(r.GetDiagnostics())}
}

func preparePlanFromProto(r *extensionv1.PreparePlanResponse) (*extension.Answer, error) {
	o, err := ObjectsFromProto(r.GetContribute())
	return &extension.Answer{Denied: r.GetDenied(), Diagnostics: DiagnosticsFromProto(r.GetDiagnostics()), Contribute: o, Requires: r.GetRequires()}, err
}

func setupFromProto(r *extensionv1.SetupResponse) (*extension.Answer, error) {
	o, err := ObjectsFromProto(r.GetContribute())
	return &extension.Answer{Denied: r.GetDenied(), Diagnostics: DiagnosticsFromProto(r.GetDiagnostics()), Contribute: o,
		State: stateFromProto(r.GetState()), Entries: entriesFromProto(r.GetEntries())}, err
}

func holdFromProto(r *extensionv1.HoldResponse) *extension.Answer {
	return &extension.Answer{Diagnostics: DiagnosticsFromProto(r.GetDiagnostics()), State: stateFromProto(r.GetState()), Entries: entriesFromProto(r.GetEntries())}
}

func quiesceFromProto(r *extensionv1.QuiesceResponse) *extension.Answer {
	return &extension.Answer{Diagnostics: DiagnosticsFromProto(r.GetDiagnostics()), State: stateFromProto(r.GetState())}
}

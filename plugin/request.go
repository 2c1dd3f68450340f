package plugin

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Entry is one side resource that an extension holds: a lease, a reservation, an entry in a foreign system.
type Entry = extension.Entry

// Feature is an ability of the driver that the bind may use.
type Feature = extension.Feature

// Request is who a call is about, and what the grant lets the extension see.
type Request struct {
	call     *extension.Call
	contract *extension.Contract
}

// Phase returns the phase.
func (r *Request) Phase() phase.Phase { return r.call.Phase }

// Key is the same for every repetition of this step.
func (r *Request) Key() string { return r.call.Key }

// Number grows with every call for this sandbox or workspace.
func (r *Request) Number() uint64 { return r.call.Number }

// Cause says why the phase is called, where it has several causes.
func (r *Request) Cause() phase.Cause { return r.call.Cause }

// Preview reports whether nothing will come of the call. A pure phase needs not care.
func (r *Request) Preview() bool { return r.call.Preview }

// SubjectID is the id to allocate by: the sandbox's, or in the phases of a workspace the workspace's. Unlike a name it
// is never used again.
func (r *Request) SubjectID() string {
	if r.call.Sandbox != nil {
		return r.call.Sandbox.ID
	}
	return r.call.Workspace.ID
}

// Sandbox returns the sandbox, and false in the phases of a workspace.
func (r *Request) Sandbox() (sandbox.Identity, bool) {
	if r.call.Sandbox == nil {
		return sandbox.Identity{}, false
	}
	return *r.call.Sandbox, true
}

// Workspace returns the workspace, or that of the sandbox.
func (r *Request) Workspace() sandbox.Workspace { return r.call.Workspace }

// Driver returns the name of the driver whose chain this is.
func (r *Request) Driver() string { return r.contract.Driver }

// Bind returns the name of the bind, "driver/extension".
func (r *Request) Bind() string { return r.call.Bind }

// Labels returns what the caller labelled the sandbox with.
func (r *Request) Labels() map[string]string { return r.call.Labels }

// Image returns the image that the caller asked for.
func (r *Request) Image() string { return r.call.Image }

// Resources returns the resources that the caller asked for.
func (r *Request) Resources() sandbox.Resources { return r.call.Resources }

// Run returns the number of the run, in the phases of a run.
func (r *Request) Run() int { return r.call.Run }

// Addresses returns, in after_ready, where the sandbox is reached, as the driver says; none where it gives no address.
func (r *Request) Addresses() []string { return r.call.Addresses }

// Feature returns a feature of the driver that was negotiated for this bind. Without it, or without a grant to set
// it, there is none.
func (r *Request) Feature(name string) (Feature, bool) {
	for _, f := range r.contract.Features {
		if f.Name == name {
			return f, true
		}
	}
	return Feature{}, false
}

// Config decodes the extension's own part of the sandbox's driver_config into v. It reports false, and leaves v as it
// is, where there is none; an error is the caller's mistake and best answered with Deny.
func (r *Request) Config(v any) (bool, error) {
	if len(r.call.Config) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(r.call.Config, v); err != nil {
		return true, fault.New(fault.Invalid, "driver_config of the extension: %w", err)
	}
	return true, nil
}

// Plan returns the plan's objects as far as the grant lets the extension read them; WorkspacePlan those of the
// workspace.
func (r *Request) Plan() []plan.Object { return r.call.Plan }

// WorkspacePlan returns the workspace's objects as far as the grant lets the extension read them.
func (r *Request) WorkspacePlan() []plan.Object { return r.call.WorkspacePlan }

// State decodes the state that the extension keeps for the sandbox or workspace into v and returns its version. It
// reports false where there is none.
func (r *Request) State(v any) (version int, ok bool, err error) { return decodeState(r.call.State, v) }

// WorkspaceState decodes the state that the extension keeps for the sandbox's workspace.
func (r *Request) WorkspaceState(v any) (version int, ok bool, err error) {
	return decodeState(r.call.WorkspaceState, v)
}

func decodeState(s *extension.State, v any) (int, bool, error) {
	if s == nil {
		return 0, false, nil
	}
	if err := json.Unmarshal(s.Payload, v); err != nil {
		return s.SchemaVersion, true, fmt.Errorf("read state of version %d: %w", s.SchemaVersion, err)
	}
	return s.SchemaVersion, true, nil
}

// Held returns what the ledger says is held of the phase's lifetime.
func (r *Request) Held() []Entry { return r.call.Held }

// InDoubt returns, in a release, the key of a step that was begun and never answered, or "": it may have taken
// something that nobody knows of.
func (r *Request) InDoubt() string { return r.call.InDoubt }

// Orphans returns, in a repair, what is to be released; Lost what is to be taken back; Lifetime of which lifetime.
func (r *Request) Orphans() []Entry { return r.call.Orphans }

// Lost returns, in a repair, what is to be taken back.
func (r *Request) Lost() []Entry { return r.call.Lost }

// Lifetime returns the lifetime of what the phase takes or releases.
func (r *Request) Lifetime() phase.Lifetime {
	if r.call.Lifetime != phase.None {
		return r.call.Lifetime
	}
	return r.call.Phase.Lifetime()
}

// Logger returns a logger whose lines say which call they belong to. They reach the gateway's log with their level.
func (r *Request) Logger() *slog.Logger {
	return Logger().With("phase", string(r.call.Phase), "subject", r.SubjectID(), "operation", r.call.Operation)
}

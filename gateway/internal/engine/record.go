package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The kinds of record. Their bodies are the JSON of the types below; nothing else in the program writes them.
const (
	kindSandbox   = "sandbox"   // id: the sandbox's; sealed: secrets
	kindWorkspace = "workspace" // id: the workspace's; sealed: its layers
	kindOperation = "operation" // unfinished; id: time-ordered; parent: sandbox, workspace or bind
	kindHistory   = "history"   // an operation that has ended; as above
	kindStep      = "step"      // id: operation/number; parent: operation
	kindHolding   = "holding"   // id: subject/extension; parent: subject
	kindSwitch    = "switch"    // id: a disabled extension
	kindAudit     = "audit"     // id: time-ordered; parent: subject, or "" for the gateway's own
)

// Values here are replaced, never changed in place: a published record may be read by anyone.

// Sandbox is what the gateway knows of a sandbox.
type Sandbox struct {
	sandbox.Identity
	State      sandbox.State       `json:"state"`
	Reason     string              `json:"reason,omitempty"` // why it is in error, for people
	Created    time.Time           `json:"created"`
	Ended      *time.Time          `json:"ended,omitempty"` // when the driver had nothing of it left
	Origin     sandbox.Origin      `json:"origin"`
	Image      string              `json:"image,omitempty"`
	Labels     map[string]string   `json:"labels,omitempty"`
	Resources  sandbox.Resources   `json:"resources,omitzero"`
	Generation string              `json:"generation"`         // the configuration of the create
	Operation  string              `json:"operation"`          // the create: the mark on what the driver made
	Instance   string              `json:"instance,omitempty"` // of the driver
	Binds      []ActiveBind        `json:"binds,omitempty"`    // decided at create, in chain order
	Requires   map[string][]string `json:"requires,omitempty"` // features that extensions need for it, by extension
	Run        Run                 `json:"run"`
	Addresses  []string            `json:"addresses,omitempty"`
	Objects    []driver.RealObject `json:"objects,omitempty"`
	Undone     bool                `json:"undone,omitempty"`   // its create was undone, or is about to be
	Lost       bool                `json:"lost,omitempty"`     // its run was lost and is to be restored
	Failed     bool                `json:"failed,omitempty"`   // the driver says that it cannot run
	Leftover   bool                `json:"leftover,omitempty"` // the driver showed something of it after it was gone
	Numbers    map[string]uint64   `json:"numbers,omitempty"`  // of extensions that it is done with: a repair goes on from there

	// Overdue says of one that is released still that this takes longer than the release timeout: it counts as deleted.
	// It is looked up, not kept.
	Overdue bool `json:"-"`

	Spec   sandbox.Spec `json:"-"` // sealed
	Layers []plan.Layer `json:"-"` // sealed
}

// Passing reports whether a sandbox in error is expected to get out of it by itself: what was lost is tried again, and
// what was not ready in time may become so.
func (s *Sandbox) Passing() bool { return s.State == sandbox.Failing && (s.Lost || !s.Failed) }

// Run is one time that the sandbox runs.
type Run struct {
	sandbox.Run
	Active   bool        `json:"active,omitempty"`   // begun, and its release not
	Ready    bool        `json:"ready,omitempty"`    // after_ready was called for it
	Cause    phase.Cause `json:"cause,omitempty"`    // of its start
	Released phase.Cause `json:"released,omitempty"` // the first cause under which its release was journaled
	By       string      `json:"by,omitempty"`       // the operation that releases it
	Without  []string    `json:"without,omitempty"`  // left out of this run by fail_open
}

// ActiveBind is an extension that takes part in a sandbox.
type ActiveBind struct {
	Extension string `json:"extension"`
	Without   bool   `json:"without,omitempty"` // the sandbox runs without it, after a fail_open failure of its create
}

// Workspace is what the gateway knows of a workspace.
type Workspace struct {
	sandbox.Workspace
	State      WorkspaceState `json:"state"`
	Reason     string         `json:"reason,omitempty"`
	Created    time.Time      `json:"created"`
	Ended      *time.Time     `json:"ended,omitempty"`
	Generation string         `json:"generation,omitempty"` // the newest configuration under which it is ensured
	Instance   string         `json:"instance,omitempty"`

	Numbers map[string]uint64 `json:"numbers,omitempty"` // as a sandbox's

	Layers  []plan.Layer `json:"-"` // sealed; of the last ensure that went well
	Pending []plan.Layer `json:"-"` // sealed; of the ensure in flight
}

// WorkspaceState is where in its life a workspace is.
type WorkspaceState string

// The states of a workspace.
const (
	WorkspaceEnsuring  WorkspaceState = "ensuring" // for the first time
	WorkspaceEnsured   WorkspaceState = "ensured"
	WorkspaceDeleting  WorkspaceState = "deleting"
	WorkspaceReleasing WorkspaceState = "releasing"
	WorkspaceDeleted   WorkspaceState = "deleted"
)

// Operation is one operation, finished or not.
type Operation struct {
	ID         string                 `json:"id"`
	Kind       phase.Operation        `json:"kind"`
	Subject    string                 `json:"subject"` // id of the sandbox or workspace, or the bind
	Name       string                 `json:"name"`    // of the subject, for people
	Driver     string                 `json:"driver"`
	Workspace  string                 `json:"workspace,omitempty"`
	Generation string                 `json:"generation"`
	Cause      phase.Cause            `json:"cause,omitempty"`
	Origin     sandbox.Origin         `json:"origin,omitzero"`
	State      OperationState         `json:"state"`
	Undo       phase.Cause            `json:"undo,omitempty"`    // set from the moment that it is being undone
	Refused    bool                   `json:"refused,omitempty"` // driver.Create found somebody else's: nothing to delete
	Ran        bool                   `json:"ran,omitempty"`     // the sandbox ran when it began
	Was        sandbox.State          `json:"was,omitempty"`     // the state that a start found
	Run        int                    `json:"run,omitempty"`     // the run that it begins
	First      bool                   `json:"first,omitempty"`   // of workspace_ensure: it brings the workspace into being
	Error      string                 `json:"error,omitempty"`
	Code       string                 `json:"code,omitempty"`    // fault code of Error
	Waiting    string                 `json:"waiting,omitempty"` // what it waits for, for people
	Started    time.Time              `json:"started"`
	Ended      *time.Time             `json:"ended,omitempty"`
	Without    []string               `json:"without,omitempty"`
	Observed   []pipeline.Observation `json:"observed,omitempty"`
	Report     []string               `json:"report,omitempty"` // of a reconcile: the differences, for people
	Trace      string                 `json:"trace,omitempty"`  // W3C trace context, where it is traced
}

// OperationState is where an operation is.
type OperationState string

// The states of an operation.
const (
	OperationQueued  OperationState = "queued" // accepted, waits its turn
	OperationRunning OperationState = "running"
	OperationDone    OperationState = "done"
	OperationFailed  OperationState = "failed" // refused or undone, see Error
)

// Step is one step of one operation.
type Step struct {
	Operation string        `json:"operation"`
	Seq       int           `json:"seq"`
	Phase     phase.Phase   `json:"phase,omitempty"`
	Driver    string        `json:"driver,omitempty"` // the driver call, for example "create"; then Phase is ""
	Extension string        `json:"extension,omitempty"`
	Cause     phase.Cause   `json:"cause,omitempty"`
	Run       int           `json:"run,omitempty"` // that a release is of: a restore releases one run and perhaps the next one
	State     StepState     `json:"state"`
	Attempt   int           `json:"attempt"`
	Number    uint64        `json:"number,omitempty"`
	Error     string        `json:"error,omitempty"`
	Code      string        `json:"code,omitempty"`
	Started   time.Time     `json:"started"`
	Duration  time.Duration `json:"duration,omitempty"`
	Note      string        `json:"note,omitempty"`
}

// StepState is what became of a step.
type StepState string

// The states of a step. One that is begun and not ended when the gateway starts is in doubt.
const (
	StepBegun     StepState = "begun"
	StepOK        StepState = "ok"
	StepDenied    StepState = "denied"    // a decision
	StepFailed    StepState = "failed"    // a failure, after its last attempt
	StepLeftOut   StepState = "left_out"  // a failure or a disabled extension, and the operation goes on without it
	StepCancelled StepState = "cancelled" // overtaken by a delete; counts as begun
	StepWaiting   StepState = "waiting"   // a release that is retried in the background
)

// unit names what a step does, within its operation.
func (s *Step) unit() string {
	if s.Phase == "" {
		return "driver." + s.Driver
	}
	if s.Run != 0 {
		return fmt.Sprintf("%s/%s/%d", s.Phase, s.Extension, s.Run)
	}
	return string(s.Phase) + "/" + s.Extension
}

// Holding is what one extension has to do with one subject: its number, its state, what it holds, and what of it is
// still to be released.
type Holding struct {
	Subject    string                               `json:"subject"`
	Extension  string                               `json:"extension"`
	Workspace  bool                                 `json:"workspace,omitempty"` // the subject is a workspace
	Driver     string                               `json:"driver"`
	Generation string                               `json:"generation"`       // the newest under which it was called
	Phases     phase.Set                            `json:"phases,omitempty"` // that it declared when it was last called
	Number     uint64                               `json:"number"`
	State      *extension.State                     `json:"state,omitempty"`
	Entries    map[phase.Lifetime][]extension.Entry `json:"entries,omitempty"`
	Started    map[phase.Lifetime]phase.Phase       `json:"started,omitempty"` // lifetimes that it may hold something of, and since which phase
	Taken      map[phase.Lifetime]string            `json:"taken,omitempty"`   // the newest step that took; steps sort by time
	Doubt      map[phase.Lifetime]Doubt             `json:"doubt,omitempty"`
	Releases   []Release                            `json:"releases,omitempty"` // pending, oldest first
}

// Doubt is a step whose outcome is unknown.
type Doubt struct {
	Phase phase.Phase `json:"phase"`
	Key   string      `json:"key"`
}

// Release is a release that is not acknowledged yet.
type Release struct {
	Phase     phase.Phase     `json:"phase"`
	Cause     phase.Cause     `json:"cause,omitempty"`
	Operation string          `json:"operation"`
	Kind      phase.Operation `json:"kind"`
	Key       string          `json:"key"`
	Seq       int             `json:"seq"` // of its step
	InDoubt   string          `json:"in_doubt,omitempty"`
	Run       int             `json:"run,omitempty"`
	Attempts  int             `json:"attempts"`
	Error     string          `json:"error,omitempty"`
	Since     time.Time       `json:"since"`
}

// AuditEntry is one line of the audit log.
type AuditEntry struct {
	ID        string        `json:"id"`
	Time      time.Time     `json:"time"`
	What      string        `json:"what"` // "call", "decision", "contribution", "conflict", "override", "operator", …
	Subject   string        `json:"subject,omitempty"`
	Operation string        `json:"operation,omitempty"`
	Extension string        `json:"extension,omitempty"`
	Phase     phase.Phase   `json:"phase,omitempty"`
	Actor     string        `json:"actor,omitempty"` // who did it, where it was a person
	Outcome   string        `json:"outcome,omitempty"`
	Text      string        `json:"text,omitempty"`
	Duration  time.Duration `json:"duration,omitempty"`
}

// secrets is what of a sandbox lies sealed.
type secrets struct {
	Spec    sandbox.Spec `json:"spec"`
	Layers  []plan.Layer `json:"layers"`
	Pending []plan.Layer `json:"pending,omitempty"`
}

// required returns the features that are needed by the extensions with which it runs: not by those that its create left
// out, nor by those given.
func (s *Sandbox) required(without []string) []string {
	var out []string
	for name, features := range s.Requires {
		if !slices.Contains(without, name) && !slices.Contains(s.Binds, ActiveBind{Extension: name, Without: true}) {
			out = append(out, features...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *Sandbox) unique() string {
	if s.Ended != nil {
		return ""
	}
	return s.Driver + "/" + s.Workspace + "/" + s.Name
}

func (s *Sandbox) record() journal.Record {
	r := journal.Record{Kind: kindSandbox, ID: s.ID, Parent: s.WorkspaceID, Unique: s.unique(), Body: encode(s)}
	if s.State != sandbox.Deleted {
		r.Sealed = encode(secrets{Spec: s.Spec, Layers: s.Layers})
	}
	return r
}

func (w *Workspace) record() journal.Record {
	r := journal.Record{Kind: kindWorkspace, ID: w.ID, Parent: w.Driver, Body: encode(w)}
	if w.Ended == nil {
		r.Unique = w.Driver + "/" + w.Name
	}
	if w.State != WorkspaceDeleted {
		r.Sealed = encode(secrets{Layers: w.Layers, Pending: w.Pending})
	}
	return r
}

// putOperation puts an operation into a commit. What has ended moves to the history, so that what is unfinished is
// found without reading it.
func (e *Engine) putOperation(tx *change, op Operation) {
	r := journal.Record{Kind: kindOperation, ID: op.ID, Parent: op.Subject, Body: encode(op)}
	if op.Ended == nil {
		tx.put(r, func() { e.operations[op.ID] = &op })
		return
	}
	tx.delete(kindOperation, op.ID, func() {
		delete(e.operations, op.ID)
		delete(e.steps, op.ID)
	})
	r.Kind = kindHistory
	tx.put(r, func() { e.Ended(op) })
}

func (s *Step) record() journal.Record {
	return journal.Record{Kind: kindStep, ID: stepID(s.Operation, s.Seq), Parent: s.Operation, Body: encode(s)}
}

func stepID(operation string, seq int) string { return fmt.Sprintf("%s/%04d", operation, seq) }

func (h *Holding) record() journal.Record {
	return journal.Record{Kind: kindHolding, ID: h.Subject + "/" + h.Extension, Parent: h.Subject, Body: encode(h)}
}

func (a *AuditEntry) record() journal.Record {
	return journal.Record{Kind: kindAudit, ID: a.ID, Parent: a.Subject, Body: encode(a)}
}

func record(kind, id string, v any) journal.Record {
	return journal.Record{Kind: kind, ID: id, Body: encode(v)}
}

// encode makes JSON of a record. The types above hold nothing that JSON cannot, so a failure is a fault of ours.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("engine: a record cannot be encoded: %v", err))
	}
	return b
}

func decode[T any](r journal.Record) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(r.Body, v); err != nil {
		return nil, fmt.Errorf("read %s %q: %w", r.Kind, r.ID, err)
	}
	return v, nil
}

func decodeSecrets(r journal.Record) (secrets, error) {
	var s secrets
	if len(r.Sealed) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(r.Sealed, &s); err != nil {
		return s, fmt.Errorf("read the sealed part of %s %q: %w", r.Kind, r.ID, err)
	}
	return s, nil
}

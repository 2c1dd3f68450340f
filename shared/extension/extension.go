// Package extension is the contract between the gateway and an extension, told in Go: what an extension says of
// itself, what a call carries, and what an answer may carry back.
//
// Vocabulary. A manifest is what an extension declares (Describe). A contract is what the gateway grants one bind
// of it (Configure). A call is one attempt at one phase for one sandbox or workspace. An answer carries a decision,
// contributions to the plan, the extension's new state, and the complete set of entries that it now holds of the
// phase's lifetime; a pure phase has neither state nor entries.
//
// The wire form is sandgate.extension.v1; package wire translates. The SDK (package plugin) and the gateway's
// pipeline both speak in these types, so there is one place to read what crosses the boundary.
package extension

import (
	"encoding/json"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Limits on what an extension may answer.
const (
	MaxState         = 64 << 10 // bytes of one state payload
	MaxEntries       = 256      // entries of one lifetime
	MaxEntryField    = 1024     // bytes of an entry's kind, id or text
	MaxAnswer        = 4 << 20  // bytes of one answer on the wire
	MaxDiagnostics   = 64       // diagnostics of one answer
	MaxWords         = 16 << 10 // bytes that are kept of what one answer, or one error, says to people
	MaxReconcilePage = 256      // items of one page, either way
)

// Manifest is what an extension declares about itself.
type Manifest struct {
	Name     string        `json:"name"`
	Version  string        `json:"version"`
	Phases   []phase.Phase `json:"phases"`
	Points   []string      `json:"points,omitempty"`   // mutation points or plan kinds that it wants; "feature:NAME" names a feature's point
	Requires []string      `json:"requires,omitempty"` // features without which it cannot work
	Uses     []string      `json:"uses,omitempty"`     // features that it uses where a driver has them
	Provides []string      `json:"provides,omitempty"` // what its being there adds, in the same vocabulary
	// ConfigSchema is the JSON form of the schema of its config block; see package plugin. Empty means no config.
	ConfigSchema json.RawMessage `json:"config_schema,omitempty"`
	StateReads   []int           `json:"state_reads,omitempty"` // state schema versions that it can read
	StateWrites  int             `json:"state_writes,omitempty"`
}

// Feature is an ability of a driver, with attributes and, where it is set through the plan, its point.
type Feature struct {
	Name       string            `json:"name"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Point      plan.Pattern      `json:"point,omitempty"`
	Object     string            `json:"object,omitempty"` // the name of the object at which the point is set
}

// Contract is what was negotiated for one bind.
type Contract struct {
	Bind        string        `json:"bind"`              // "driver/extension": names the bind in calls
	Driver      string        `json:"driver"`            // the driver whose chain it is
	Phases      []phase.Phase `json:"phases"`            // the phases that will be called
	Features    []Feature     `json:"features"`          // those it required or can use, and has
	Missing     []string      `json:"missing,omitempty"` // those it can use and that are not there
	Points      []plan.Point  `json:"points"`            // where it may contribute
	ObserveOnly bool          `json:"observe_only,omitempty"`
}

// Call is one attempt at one phase.
type Call struct {
	Phase     phase.Phase
	Bind      string // the contract's Bind
	Operation string // operation id
	Kind      phase.Operation
	Attempt   int    // from 1
	Number    uint64 // grows with every call for this subject; an older one than was answered is refused
	Key       string // the same for every retry of one step
	Cause     phase.Cause
	Preview   bool // nothing will come of it: a preview, or observe mode

	Sandbox   *sandbox.Identity // nil for the phases of a workspace
	Workspace sandbox.Workspace
	Labels    map[string]string
	Image     string
	Resources sandbox.Resources
	Run       int             // number of the run, in its phases
	Addresses []string        // in after_ready: where the sandbox is reached
	Config    json.RawMessage // the extension's own part of driver_config

	State          *State         // the latest, of the subject
	WorkspaceState *State         // the latest, of the sandbox's workspace
	Held           []Entry        // what the ledger says is held of the phase's lifetime
	InDoubt        string         // in a release: the key of the step whose outcome is unknown, if there is one
	Plan           []plan.Object  // what the grant lets it read
	WorkspacePlan  []plan.Object  // likewise, of the workspace's objects
	Orphans        []Entry        // in a repair: what it holds and the ledger does not have, to be released
	Lost           []Entry        // in a repair: what the ledger has and it did not report, to be taken back
	Lifetime       phase.Lifetime // in a repair: which lifetime it is about
	TraceParent    string         // W3C trace context
}

// State is an extension's versioned blob, kept by the gateway.
type State struct {
	SchemaVersion int    `json:"schema_version"`
	Payload       []byte `json:"payload"`
}

// Entry is one side resource.
type Entry struct {
	Kind string `json:"kind"` // for example "ip-lease"
	ID   string `json:"id"`   // unique with the kind, within the extension
	Text string `json:"text,omitempty"`
}

// Answer is what comes back from a call.
type Answer struct {
	Denied      bool // a decision against it; Diagnostics say why
	Diagnostics []fault.Diagnostic
	Contribute  []plan.Object
	Requires    []string // features that this sandbox needs of the driver (prepare_plan)
	State       *State   // nil leaves it as it was
	Entries     []Entry  // the complete set held of the phase's lifetime after the call
}

// Item is one subject in a reconcile: of the gateway's side with Number and State, of the extension's with Entries.
type Item struct {
	Sandbox   *sandbox.Identity // nil: the item is about the workspace
	Workspace sandbox.Workspace
	Number    uint64
	State     *State
	Lifetime  phase.Lifetime
	Entries   []Entry
}

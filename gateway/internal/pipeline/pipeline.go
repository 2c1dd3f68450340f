// Package pipeline is the only caller of chains. It knows what a bind may see, contribute, hold and decide, and what
// a failure of it means; it does not know processes, nor what is journaled.
package pipeline

import (
	"context"
	"encoding/json"
	"iter"
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Extension is one extension program that is ready, as the pipeline calls it. Errors are failures (a status, a
// timeout, a crash, an answer that cannot be used); a decision is in the answer. It waits within ctx's deadline for
// a program that is being restarted. A ctx that ends cancels the call at the other side too.
type Extension interface {
	Call(ctx context.Context, call *extension.Call) (*extension.Answer, error)
	// Reconcile sends the gateway's items and returns what the extension says that it holds for the bind.
	Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error)
}

// Mode is whether what an extension answers is applied.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce"
	Observe Mode = "observe"
)

// FailurePolicy is what a failure means in a setup phase that may refuse.
type FailurePolicy string

// The policies.
const (
	FailClosed FailurePolicy = "fail_closed"
	FailOpen   FailurePolicy = "fail_open"
)

// PhasePolicy is how one phase of a bind is called.
type PhasePolicy struct {
	Timeout       time.Duration // of one attempt
	FailurePolicy FailurePolicy
	Attempts      int // of a setup phase, from 1
}

// Rule is one activation rule: all of its conditions have to match; each is a list of globs, empty matches all.
type Rule struct {
	Default                          bool // on for all that match, without being asked for
	Driver, Workspace, Image, Caller []string
}

// Bind is the place of one extension in one driver's chain, as configured and negotiated. Immutable.
type Bind struct {
	Extension     string // the extension's name; at most one bind of it in a chain
	ID            string // "driver/extension"
	Source        string // file:line of the bind block
	Mode          Mode
	OnRequest     bool   // activation = "on_request"
	Rules         []Rule // that may turn it on
	Authoritative bool   // reconcile = "authoritative"
	Grant         plan.Grant
	Phases        phase.Set // declared by the manifest
	Policies      map[phase.Phase]PhasePolicy
	Default       PhasePolicy // of phases that Policies does not name
	StateReads    []int
	Program       Extension
}

// Policy returns how p is called.
func (b *Bind) Policy(p phase.Phase) PhasePolicy {
	if policy, ok := b.Policies[p]; ok {
		return policy
	}
	return b.Default
}

// Switch says whether an extension was disabled by an operator, from the next call on.
type Switch interface {
	Disabled(extension string) (disabled, bypass bool)
}

// Chain is the binds of one driver under one configuration, base's first. Safe for concurrent use.
type Chain struct {
	binds  []*Bind
	schema *plan.Schema
	sw     Switch
}

// New makes a chain. It trusts its binds: Negotiate has judged them.
func New(binds []*Bind, schema *plan.Schema, sw Switch) *Chain {
	return &Chain{binds: slices.Clone(binds), schema: schema, sw: sw}
}

// Binds returns the binds in order.
func (c *Chain) Binds() []*Bind { return slices.Clone(c.binds) }

// Bind returns the bind of an extension, or nil.
func (c *Chain) Bind(extension string) *Bind {
	for _, b := range c.binds {
		if b.Extension == extension {
			return b
		}
	}
	return nil
}

// Subject is the sandbox that a call is about, and who asked for it. In the phases of a workspace Sandbox is nil.
type Subject struct {
	Sandbox          *sandbox.Identity
	Workspace        sandbox.Workspace
	Spec             *sandbox.Spec // nil for a workspace
	Origin           sandbox.Origin
	ExtensionsConfig map[string]json.RawMessage // driver_config.extensions, by name
	Active           []string                   // the extensions that are active for the sandbox; nil: all enforced ones
	Without          []string                   // those that a fail_open failure left out
	Run              int
	Addresses        []string // where it is reached; of its newest run that was ready
}

// Prepared is what the pure phases came to.
type Prepared struct {
	Layers   []plan.Layer // the given ones, then a layer per contribution
	Plan     *plan.Plan
	Requires map[string][]string // features that extensions need for this sandbox, by extension
	Without  []string            // left out after a fail_open failure
	Observed []Observation       // of binds in observe mode
	Calls    []CallReport
}

// Observation is what an extension in observe mode would have done.
type Observation struct {
	Extension string
	Fields    []plan.Field   // what it would set
	Err       string         // a denial, conflict or failure that it would have caused
	Late      []plan.Pattern // its points that only later phases set: they cannot be observed
	Phases    []phase.Phase  // declared ones that are not called in observe mode
}

// CallReport is one call, for history and audit.
type CallReport struct {
	Phase     phase.Phase
	Extension string
	Started   time.Time
	Duration  time.Duration
	Err       error // nil: it went well
	Decision  bool  // Err is a decision, not a failure
	Note      string
}

// Step says which step of which operation a call is.
type Step struct {
	Operation   string
	Kind        phase.Operation
	Attempt     int
	Number      uint64
	Key         string
	Cause       phase.Cause
	Preview     bool
	TraceParent string
}

// Request is one attempt at one phase with effects for one bind.
type Request struct {
	Phase          phase.Phase
	Step           Step
	Subject        *Subject
	State          *extension.State
	WorkspaceState *extension.State
	Held           []extension.Entry
	InDoubt        string
	Plan           *plan.Plan // of the subject; contributions are applied to it
	WorkspacePlan  *plan.Plan
	Lifetime       phase.Lifetime    // in a repair
	Orphans, Lost  []extension.Entry // in a repair (Phase Reconcile)
}

// Result is what one attempt came to.
type Result struct {
	Layer       *plan.Layer // the contribution, checked against grant and plan; nil when there was none
	Plan        *plan.Plan  // the plan with it
	State       *extension.State
	Entries     []extension.Entry // the complete set, checked: within the limits, and only where the bind may hold
	Diagnostics []fault.Diagnostic
	Report      CallReport
	Err         error // a decision or a failure
	Decision    bool  // Err is a decision (denied, conflict, outside the grant, disabled and fail_closed): no retry, every policy
	Skipped     bool  // disabled with --bypass: the operation goes on without it
}

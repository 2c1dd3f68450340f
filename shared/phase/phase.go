// Package phase has the fourteen points of a lifecycle at which extensions are called, and what each may do.
//
// What a phase allows follows from one table: its direction, whether it is pure, which lifetime it may take from
// or releases, and who answers for its failure. Nothing else in the program repeats that knowledge.
package phase

import "slices"

// Phase is a named point of a lifecycle.
type Phase string

// The phases: twelve of a sandbox, two of a workspace.
const (
	ValidateRequest Phase = "validate_request"
	PreparePlan     Phase = "prepare_plan"
	BeforeCreate    Phase = "before_create"
	BeforeStart     Phase = "before_start"
	AfterCreate     Phase = "after_create"
	AfterReady      Phase = "after_ready"
	BeforeStop      Phase = "before_stop"
	BeforeDelete    Phase = "before_delete"
	AfterStop       Phase = "after_stop"
	AfterDelete     Phase = "after_delete"
	OnCreateFailed  Phase = "on_create_failed"
	Reconcile       Phase = "reconcile"
	EnsureWorkspace Phase = "ensure_workspace"
	DeleteWorkspace Phase = "delete_workspace"
)

// All returns every phase, in the order in which a life meets them.
func All() []Phase {
	return []Phase{ValidateRequest, EnsureWorkspace, PreparePlan, BeforeCreate, BeforeStart, AfterCreate, AfterReady, BeforeStop,
		AfterStop, BeforeDelete, OnCreateFailed, AfterDelete, DeleteWorkspace, Reconcile}
}

// Lifetime is how long a side resource is held.
type Lifetime string

// The lifetimes. None marks a phase that neither takes nor releases.
const (
	None      Lifetime = ""
	Sandbox   Lifetime = "sandbox"
	Run       Lifetime = "run"
	Workspace Lifetime = "workspace"
)

// OnError says what a failure of a phase means.
type OnError int

// The meanings of a failure.
const (
	Refuses  OnError = iota // the operation fails; the failure policy of the bind decides about failures that are no decision
	Recorded                // the operation goes on, the failure is in its history
	Retried                 // it is called again until it is acknowledged
)

type rule struct {
	setup       bool
	pure        bool
	contributes bool
	takes       Lifetime
	releases    Lifetime
	onError     OnError
}

var rules = map[Phase]rule{
	ValidateRequest: {setup: true, pure: true, onError: Refuses},
	PreparePlan:     {setup: true, pure: true, contributes: true, onError: Refuses},
	BeforeCreate:    {setup: true, contributes: true, takes: Sandbox, onError: Refuses},
	BeforeStart:     {setup: true, contributes: true, takes: Run, onError: Refuses},
	AfterCreate:     {setup: true, takes: Sandbox, onError: Recorded},
	AfterReady:      {setup: true, takes: Run, onError: Recorded},
	BeforeStop:      {onError: Recorded},
	BeforeDelete:    {onError: Recorded},
	AfterStop:       {releases: Run, onError: Retried},
	AfterDelete:     {releases: Sandbox, onError: Retried},
	OnCreateFailed:  {releases: Sandbox, onError: Retried},
	Reconcile:       {onError: Recorded},
	EnsureWorkspace: {setup: true, contributes: true, takes: Workspace, onError: Refuses},
	DeleteWorkspace: {releases: Workspace, onError: Retried},
}

// Known reports whether p is a phase.
func (p Phase) Known() bool { _, ok := rules[p]; return ok }

// Setup reports whether the chain is called in bind order; otherwise it is called in reverse.
func (p Phase) Setup() bool { return rules[p].setup }

// Pure reports whether the phase has no effect: no state, no entries, the same answer when asked twice.
func (p Phase) Pure() bool { return rules[p].pure }

// Contributes reports whether an answer may carry contributions to the plan.
func (p Phase) Contributes() bool { return rules[p].contributes }

// Takes returns the lifetime of what an extension may come to hold in the phase.
func (p Phase) Takes() Lifetime { return rules[p].takes }

// Releases returns the lifetime whose holdings the phase releases.
func (p Phase) Releases() Lifetime { return rules[p].releases }

// Lifetime returns the lifetime whose complete set of entries an answer carries: what it takes or releases.
func (p Phase) Lifetime() Lifetime {
	if t := rules[p].takes; t != None {
		return t
	}
	return rules[p].releases
}

// OnError says what a failure of the phase means.
func (p Phase) OnError() OnError { return rules[p].onError }

// OfWorkspace reports whether the subject of the phase is a workspace.
func (p Phase) OfWorkspace() bool { return p == EnsureWorkspace || p == DeleteWorkspace }

// Takers returns the phases that may take the lifetime; Releasers those that release it.
func Takers(l Lifetime) []Phase {
	return having(func(r rule) bool { return l != None && r.takes == l })
}

// Releasers returns the phases that release the lifetime.
func Releasers(l Lifetime) []Phase {
	return having(func(r rule) bool { return l != None && r.releases == l })
}

func having(ok func(rule) bool) []Phase {
	var out []Phase
	for _, p := range All() {
		if ok(rules[p]) {
			out = append(out, p)
		}
	}
	return out
}

// Set is a set of declared phases.
type Set []Phase

// Has reports whether the set has p.
func (s Set) Has(p Phase) bool { return slices.Contains(s, p) }

// MayHold reports whether an extension that declares the set may hold something of the lifetime: it has to declare
// every phase that releases it.
func (s Set) MayHold(l Lifetime) bool {
	return l != None && !slices.ContainsFunc(Releasers(l), func(p Phase) bool { return !s.Has(p) })
}

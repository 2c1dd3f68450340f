// Package plan has the driver-owned description of what a driver is about to build, and who set each field of it.
//
// A plan is a set of typed objects. It is kept as layers: what the gateway fixes, what the request says, what the
// driver chooses, and what each extension contributed in each phase. It is always computed from the layers in
// order, so taking a layer away brings back what that layer had overridden. Every field of the result has exactly
// one owner. Merging has the semantics of Kubernetes' server-side apply (sigs.k8s.io/structured-merge-diff).
package plan

import (
	"github.com/sandgate/sandgate/shared/phase"
)

// Scope is whether an object belongs to one sandbox or is shared by those of a workspace.
type Scope string

// The scopes.
const (
	ScopeSandbox   Scope = "sandbox"
	ScopeWorkspace Scope = "workspace"
	// ScopeAny is of a kind that both have: an object belongs to whom it was contributed for.
	ScopeAny Scope = "any"
)

// Owner is who set a field: one of the three below, or an extension's name.
type Owner string

// The owners that are not extensions, in the order in which their layers are laid.
const (
	OwnerGateway Owner = "gateway"
	OwnerRequest Owner = "request"
	OwnerDriver  Owner = "driver"
)

// Object is a typed object, whole or in part. Fields is a JSON tree: map[string]any, []any, string, bool, int64,
// float64 and nil.
type Object struct {
	Kind   string         `json:"kind"`
	Name   string         `json:"name"`
	Fields map[string]any `json:"fields"`
}

// Ref returns kind/name.
func (o Object) Ref() string { return o.Kind + "/" + o.Name }

// Layer is what one owner says in one phase. The phase of the layers of gateway, request and driver is "".
type Layer struct {
	Owner   Owner       `json:"owner"`
	Phase   phase.Phase `json:"phase,omitempty"`
	Objects []Object    `json:"objects,omitempty"`
	// Override lists the points at which the layer may take a field from the request or an earlier extension, as
	// its bind granted when it was contributed.
	Override []Pattern `json:"override,omitempty"`
}

// Kind is one type of object that a driver understands.
type Kind struct {
	Name  string `json:"name"`
	Scope Scope  `json:"scope"`
	// Schema is a structured-merge-diff schema in YAML, whose type of the kind's name describes Fields.
	Schema string `json:"schema"`
	// Sensitive lists fields whose values are shown by digest only, as patterns without the kind, for example
	// "environment".
	Sensitive []string `json:"sensitive,omitempty"`
}

// Point is a place at which a driver lets extensions change its plan.
type Point struct {
	Pattern     Pattern       `json:"pattern"`
	Phases      []phase.Phase `json:"phases"`                // the phases in which it is open
	Except      []Pattern     `json:"except,omitempty"`      // what lies in it and is open to nobody
	Overridable bool          `json:"overridable,omitempty"` // a grant's override may take it from the request
	Feature     string        `json:"feature,omitempty"`     // the feature that is set here, for example "network.address"
	Object      string        `json:"object,omitempty"`      // the name of the object that the feature means, for example "main"
	Doc         string        `json:"doc,omitempty"`         // one line for people
}

// Open reports whether the point may be contributed to in p.
func (pt Point) Open(p phase.Phase) bool { return phase.Set(pt.Phases).Has(p) }

// Late reports whether the point is open after the plan was resolved, in before_create or before_start.
func (pt Point) Late() bool { return pt.Open(phase.BeforeCreate) || pt.Open(phase.BeforeStart) }

// Grant is what a bind lets an extension do with the plan.
type Grant struct {
	Mutate   []Pattern `json:"mutate,omitempty"`   // where it may contribute
	Read     []Pattern `json:"read,omitempty"`     // what it sees; what it may mutate when empty
	Override []Pattern `json:"override,omitempty"` // where it may take a field from the request or an earlier extension
	Source   string    `json:"source,omitempty"`   // file:line of the bind block, for errors
}

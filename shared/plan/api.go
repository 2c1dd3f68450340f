package plan

import "github.com/sandgate/sandgate/shared/phase"

// SKELETON: signatures that the rest of the program is written against. The implementer of this package replaces
// this file by the real thing, split into pattern.go, schema.go, compute.go, apply.go, conflict.go …

// Pattern names a place in a plan: "Kind", or "Kind.path.to.field". A key of a map or the key of an item of a keyed
// list is selected with brackets, "Process.environment[HOME]"; "*" stands for any one segment. A pattern covers
// everything below it.
type Pattern string

// ParsePattern checks the form.
func ParsePattern(s string) (Pattern, error) { panic("skeleton") }

// Kind returns the kind, the part before the first dot.
func (p Pattern) Kind() string { panic("skeleton") }

// Covers reports whether everything that q names lies within p.
func (p Pattern) Covers(q Pattern) bool { panic("skeleton") }

// Redactor turns a sensitive value into what may be shown, for example "(sensitive, ab12…)".
type Redactor func(value any) string

// Schema is a driver's kinds and points, compiled. It is safe for concurrent use.
type Schema struct{}

// NewSchema compiles the kinds. An error names the kind or point that is wrong. A nil redact hides sensitive values
// without a digest.
func NewSchema(kinds []Kind, points []Point, redact Redactor) (*Schema, error) { panic("skeleton") }

// Points returns the driver's mutation points; Kinds its kinds.
func (s *Schema) Points() []Point { panic("skeleton") }

// Kinds returns the driver's kinds.
func (s *Schema) Kinds() []Kind { panic("skeleton") }

// Feature returns the point at which a feature is set.
func (s *Schema) Feature(name string) (Point, bool) { panic("skeleton") }

// Plan is what layers amount to. It is immutable and safe for concurrent use.
type Plan struct{}

// Compute lays the layers over each other in order. A conflict is a *fault.Error with code Conflict whose cause is a
// *ConflictError; an object that does not fit its schema is Invalid.
func (s *Schema) Compute(layers []Layer) (*Plan, error) { panic("skeleton") }

// Layers returns the layers that the plan was computed from.
func (p *Plan) Layers() []Layer { panic("skeleton") }

// Objects returns every object, sorted by kind and name. The caller may change what it gets.
func (p *Plan) Objects() []Object { panic("skeleton") }

// Object returns one object.
func (p *Plan) Object(kind, name string) (Object, bool) { panic("skeleton") }

// Fields returns every leaf with its owner, sorted by object and path.
func (p *Plan) Fields() []Field { panic("skeleton") }

// View returns the parts of the objects that the patterns cover.
func (p *Plan) View(read []Pattern) []Object { panic("skeleton") }

// Apply judges a contribution that owner makes in ph: against the points that are open then, against the grant,
// against the schema, and against what others own. It returns the layer to keep and the plan with it. Denied: it
// lies outside the grant or the open points; the error names the point and the grant's Source. Invalid: it does not
// fit the schema. Conflict: see Compute. Neither p nor the objects are modified.
func (p *Plan) Apply(owner Owner, ph phase.Phase, grant Grant, objects []Object) (Layer, *Plan, error) {
	panic("skeleton")
}

// Field is one leaf of a plan.
type Field struct {
	Object    string // kind/name
	Path      string // as in a Pattern, without the kind
	Owner     Owner
	Value     any // a sensitive one is already redacted to a string
	Sensitive bool
	Overrode  []Owner // who had it before, oldest first
}

// Conflict is one field that two owners set to two values.
type Conflict struct {
	Object, Path      string
	Owner, Other      Owner  // who has it, who also wants it
	Value, OtherValue string // as shown to people: JSON, or the digest of a sensitive value
}

// ConflictError is every conflict of one contribution.
type ConflictError struct{ Conflicts []Conflict }

func (e *ConflictError) Error() string { panic("skeleton") }

// Without returns the layers that ok says no to.
func Without(layers []Layer, drop func(Layer) bool) []Layer { panic("skeleton") }

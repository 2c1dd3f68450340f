package plan

import (
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/sandgate/sandgate/shared/fault"
)

// Redactor turns a sensitive value into what may be shown, for example "(sensitive, ab12…)".
type Redactor func(value any) string

// Schema is a driver's kinds and points, compiled. It is safe for concurrent use.
type Schema struct {
	kinds  map[string]*kind
	list   []Kind
	points []Point
	redact Redactor
}

// kind is a Kind, compiled.
type kind struct {
	Kind
	typ       typed.ParseableType
	sensitive [][]string
}

// NewSchema compiles the kinds. An error names the kind or point that is wrong. A nil redact hides sensitive values
// without a digest.
func NewSchema(kinds []Kind, points []Point, redact Redactor) (*Schema, error) {
	if redact == nil {
		redact = func(any) string { return "(sensitive)" }
	}
	s := &Schema{kinds: map[string]*kind{}, list: slices.Clone(kinds), points: slices.Clone(points), redact: redact}
	for _, k := range kinds {
		compiled, err := compile(k)
		if err != nil {
			return nil, err
		}
		if s.kinds[k.Name] != nil {
			return nil, fault.New(fault.Internal, "kind %q is declared twice", k.Name)
		}
		s.kinds[k.Name] = compiled
	}
	for _, pt := range points {
		if _, err := ParsePattern(string(pt.Pattern)); err != nil {
			return nil, fault.New(fault.Internal, "mutation point: %w", err)
		}
		if s.kinds[pt.Pattern.Kind()] == nil {
			return nil, fault.New(fault.Internal, "mutation point %q is of no kind that is declared", pt.Pattern)
		}
		for _, e := range pt.Except {
			if !pt.Pattern.Covers(e) {
				return nil, fault.New(fault.Internal, "mutation point %q: the exception %q lies outside it", pt.Pattern, e)
			}
		}
	}
	return s, nil
}

func compile(k Kind) (*kind, error) {
	if !kindForm.MatchString(k.Name) || !slices.Contains([]Scope{ScopeSandbox, ScopeWorkspace, ScopeAny}, k.Scope) {
		return nil, fault.New(fault.Internal, "kind %q of scope %q cannot be used", k.Name, k.Scope)
	}
	parser, err := typed.NewParser(typed.YAMLObject(k.Schema))
	if err != nil {
		return nil, fault.New(fault.Internal, "schema of kind %q: %w", k.Name, err)
	}
	c := &kind{Kind: k, typ: parser.Type(k.Name)}
	if !c.typ.IsValid() {
		return nil, fault.New(fault.Internal, "schema of kind %q does not define the type %q", k.Name, k.Name)
	}
	for _, p := range k.Sensitive {
		segments, ok := split(p)
		if !ok {
			return nil, fault.New(fault.Internal, "kind %q: %q is not a field", k.Name, p)
		}
		c.sensitive = append(c.sensitive, segments)
	}
	return c, nil
}

// Points returns the driver's mutation points.
func (s *Schema) Points() []Point { return slices.Clone(s.points) }

// Kinds returns the driver's kinds.
func (s *Schema) Kinds() []Kind { return slices.Clone(s.list) }

// Feature returns the point at which a feature is set.
func (s *Schema) Feature(name string) (Point, bool) {
	for _, pt := range s.points {
		if pt.Feature == name {
			return pt, true
		}
	}
	return Point{}, false
}

// show returns a value as people may see it.
func (s *Schema) show(k *kind, path []string, value any) (any, bool) {
	if k.isSensitive(path) {
		return s.redact(value), true
	}
	return value, false
}

// isSensitive reports whether a path lies within a sensitive field, or holds one.
func (k *kind) isSensitive(path []string) bool {
	return slices.ContainsFunc(k.sensitive, func(p []string) bool { return coversFrom(p, path) || coversFrom(path, p) })
}

// coversFrom is covers for paths without a kind, whose first segment may be a wildcard.
func coversFrom(pattern, path []string) bool {
	if len(pattern) > len(path) {
		return false
	}
	for i, s := range pattern {
		if s != path[i] && s != "*" {
			return false
		}
	}
	return true
}

// parse makes a typed value of an object's fields. Its errors never repeat a value.
func (k *kind) parse(o Object) (*typed.TypedValue, error) {
	fields, err := normalize(o.Fields)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %v", o.Ref(), err)
	}
	v, err := k.typ.FromUnstructured(fields)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s does not fit its schema: %s", o.Ref(), withoutValues(err))
	}
	return v, nil
}

// withoutValues takes what was given out of a schema error, and keeps where it is and what was expected.
func withoutValues(err error) string {
	lines := strings.Split(err.Error(), "\n")
	var out []string
	for _, l := range lines {
		if i := strings.Index(l, ", got"); i >= 0 {
			l = l[:i]
		}
		if l = strings.TrimSpace(l); l != "" && l != "errors:" {
			out = append(out, l)
		}
	}
	return strings.Join(out, "; ")
}

// segments turns a path of the library into segments of ours.
func segments(p fieldpath.Path) []string {
	out := make([]string, 0, len(p))
	for _, e := range p {
		switch {
		case e.FieldName != nil:
			out = append(out, *e.FieldName)
		case e.Key != nil:
			var keys []string
			for _, f := range *e.Key {
				keys = append(keys, fmt.Sprint(f.Value.Unstructured()))
			}
			out = append(out, strings.Join(keys, ","))
		case e.Value != nil:
			out = append(out, fmt.Sprint((*e.Value).Unstructured()))
		case e.Index != nil:
			out = append(out, fmt.Sprint(*e.Index))
		}
	}
	return out
}

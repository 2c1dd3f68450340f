package plan

import (
	"slices"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// maxObjects is how many objects one contribution may have.
const maxObjects = 256

// Apply judges a contribution that owner makes in ph: against the points that are open then, against the grant,
// against the schema, and against what others own. It returns the layer to keep and the plan with it. Denied: it
// lies outside the grant or the open points; the error names the point and the grant's Source. Invalid: it does not
// fit the schema. Conflict: see Compute. Neither p nor the objects are modified.
func (p *Plan) Apply(owner Owner, ph phase.Phase, grant Grant, objects []Object) (Layer, *Plan, error) {
	layer := Layer{Owner: owner, Phase: ph, Override: slices.Clone(grant.Override)}
	if len(objects) > maxObjects {
		return layer, nil, fault.New(fault.Invalid, "%s contributes %d objects; at most %d", owner, len(objects), maxObjects)
	}
	for _, o := range objects {
		k := p.schema.kinds[o.Kind]
		switch {
		case k == nil:
			return layer, nil, fault.New(fault.Invalid, "%q of %s is no kind of this driver", clip(o.Kind), owner)
		case !checkName(o.Name):
			return layer, nil, fault.New(fault.Invalid, "a %s of %s has a name that cannot be used", o.Kind, owner)
		case k.Scope != ScopeAny && (k.Scope == ScopeWorkspace) != (ph == phase.EnsureWorkspace):
			return layer, nil, denied(grant, "%s contributes %s in %s: an object of a %s is contributed in %s", owner, o.Ref(), ph, k.Scope, inScope(k.Scope))
		}
		fields, err := normalize(o.Fields)
		if err != nil {
			return layer, nil, fault.New(fault.Invalid, "%s of %s: %v", o.Ref(), owner, err)
		}
		o.Fields = fields
		if err := p.permitted(owner, ph, grant, k, o); err != nil {
			return layer, nil, err
		}
		layer.Objects = append(layer.Objects, o)
	}
	next, err := p.lay(layer)
	if err != nil {
		return layer, nil, err
	}
	return layer, next, nil
}

func inScope(s Scope) string {
	if s == ScopeWorkspace {
		return string(phase.EnsureWorkspace) + " only"
	}
	return "the phases of a sandbox only"
}

// permitted judges every leaf of one object against the open points and the grant. In an object of its own an
// extension may set what the kind's point opens; in another's only what a point of the field itself opens.
func (p *Plan) permitted(owner Owner, ph phase.Phase, grant Grant, k *kind, o Object) error {
	value, err := k.parse(o)
	if err != nil {
		return err
	}
	old := p.objects[o.Ref()]
	own := old == nil || old.creator == owner
	judge := func(place []string) error {
		covered := func(p Pattern) bool {
			ps, ok := split(string(p))
			return ok && covers(ps, place) && (own || len(ps) > 1)
		}
		open := func(pt Point) bool {
			return pt.Open(ph) && covered(pt.Pattern) && !slices.ContainsFunc(pt.Except, func(e Pattern) bool { return e.coversPlace(place) })
		}
		name := join(place)
		if !slices.ContainsFunc(p.schema.points, open) {
			return denied(grant, "%s contributes to %s of %s, which the driver does not open in %s%s", owner, name, o.Ref(), ph, whose(own, old, place))
		}
		if !slices.ContainsFunc(grant.Mutate, covered) {
			return denied(grant, "%s contributes to %s of %s, which its grant does not have in mutate%s", owner, name, o.Ref(), whose(own, old, place))
		}
		return nil
	}
	paths := leaves(value)
	if len(paths) == 0 {
		return judge([]string{k.Name})
	}
	for _, path := range sortedKeys(paths) {
		if old != nil && isKey(paths[path]) && old.leaves[path] != nil {
			continue // it says which item is meant
		}
		if err := judge(append([]string{k.Name}, segments(paths[path])...)); err != nil {
			return err
		}
	}
	return nil
}

// isKey reports whether a leaf is a key of the item of a keyed list that it lies in.
func isKey(path fieldpath.Path) bool {
	n := len(path)
	if n < 2 || path[n-2].Key == nil || path[n-1].FieldName == nil {
		return false
	}
	return slices.ContainsFunc(*path[n-2].Key, func(f value.Field) bool { return f.Name == *path[n-1].FieldName })
}

// whose says who has the field already, or the object.
func whose(own bool, old *object, place []string) string {
	if own {
		return ""
	}
	if owner := old.owners[join(place[1:])].owner; owner != "" {
		return " (" + string(owner) + " set it; the object is " + string(old.creator) + "'s)"
	}
	return " (the object is " + string(old.creator) + "'s)"
}

func denied(grant Grant, format string, args ...any) error {
	f := fault.New(fault.Denied, format, args...)
	if grant.Source != "" {
		f.Message += "; see the bind at " + grant.Source
	}
	return f.With(fault.Diagnostic{Summary: f.Message})
}

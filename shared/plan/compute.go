package plan

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/sandgate/sandgate/shared/fault"
)

// Plan is what layers amount to. It is immutable and safe for concurrent use.
type Plan struct {
	schema  *Schema
	layers  []Layer
	objects map[string]*object // by ref

	mu    sync.Mutex
	views map[string][]Object // by what is read: the calls of a chain ask for the same again and again
}

// object is one object of a plan, with the owner of each leaf. Immutable once it is in a plan.
type object struct {
	kind    *kind
	name    string
	creator Owner
	value   *typed.TypedValue
	leaves  map[string]fieldpath.Path // of value, by path as join makes it
	owners  map[string]ownership      // of the leaves
}

type ownership struct {
	owner    Owner
	overrode []Owner
}

// Compute lays the layers over each other in order. A conflict is a *fault.Error with code Conflict whose cause is a
// *ConflictError; an object that does not fit its schema is Invalid.
func (s *Schema) Compute(layers []Layer) (*Plan, error) {
	p := &Plan{schema: s, objects: map[string]*object{}}
	for _, l := range layers {
		next, err := p.lay(l)
		if err != nil {
			return nil, err
		}
		p = next
	}
	return p, nil
}

// lay returns the plan with one more layer.
func (p *Plan) lay(l Layer) (*Plan, error) {
	next := &Plan{schema: p.schema, layers: append(slices.Clone(p.layers), l), objects: maps.Clone(p.objects)}
	var conflicts []Conflict
	for _, o := range l.Objects {
		k := p.schema.kinds[o.Kind]
		if k == nil {
			return nil, fault.New(fault.Invalid, "%q of %s is no kind of this driver", clip(o.Kind), l.Owner)
		}
		if !checkName(o.Name) {
			return nil, fault.New(fault.Invalid, "a %s of %s has a name that cannot be used", o.Kind, l.Owner)
		}
		value, err := k.parse(o)
		if err != nil {
			return nil, err
		}
		m := &merging{schema: p.schema, layer: l, ref: o.Ref()}
		merged, err := m.merge(next.objects[o.Ref()], k, o.Name, value)
		if err != nil {
			return nil, err
		}
		conflicts = append(conflicts, m.conflicts...)
		next.objects[o.Ref()] = merged
	}
	if len(conflicts) > 0 {
		return nil, conflictFault(conflicts)
	}
	return next, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// merging lays one partial object over what is there.
type merging struct {
	schema    *Schema
	layer     Layer
	ref       string
	conflicts []Conflict
}

func (m *merging) merge(old *object, k *kind, name string, value *typed.TypedValue) (*object, error) {
	if old == nil {
		out := &object{kind: k, name: name, creator: m.layer.Owner, value: value, leaves: leaves(value), owners: map[string]ownership{}}
		for path := range out.leaves {
			out.owners[path] = ownership{owner: m.layer.Owner}
		}
		return out, nil
	}
	merged, changed, err := m.over(old, value)
	if err != nil {
		return nil, err
	}
	if yielded := m.judge(old, value, changed); !yielded.Empty() {
		if merged, changed, err = m.over(old, value.RemoveItems(yielded)); err != nil {
			return nil, err
		}
	}
	now := leaves(merged)
	out := &object{kind: k, name: name, creator: old.creator, value: merged, leaves: now, owners: maps.Clone(old.owners)}
	for path := range changed {
		o := out.owners[path]
		if o.owner != m.layer.Owner {
			out.owners[path] = ownership{owner: m.layer.Owner, overrode: append(slices.Clone(o.overrode), o.owner)}
		}
	}
	for path := range now {
		if _, ok := out.owners[path]; !ok {
			out.owners[path] = ownership{owner: m.layer.Owner}
		}
	}
	maps.DeleteFunc(out.owners, func(path string, _ ownership) bool { _, ok := now[path]; return !ok })
	return out, nil
}

// over merges a value over an object and returns which owned leaves that changes.
func (m *merging) over(old *object, value *typed.TypedValue) (*typed.TypedValue, map[string]fieldpath.Path, error) {
	merged, err := old.value.Merge(value)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "%s of %s cannot be merged: %s", m.ref, m.layer.Owner, withoutValues(err))
	}
	diff, err := old.value.Compare(merged)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "%s of %s cannot be compared: %s", m.ref, m.layer.Owner, withoutValues(err))
	}
	changed := map[string]fieldpath.Path{}
	diff.Modified.Iterate(func(p fieldpath.Path) {
		if path := join(segments(p)); old.owners[path].owner != "" {
			changed[path] = slices.Clone(p)
		}
	})
	return merged, changed, nil
}

// judge decides about each changed leaf: the new owner takes it, the layer's own value yields, or it is a conflict.
func (m *merging) judge(old *object, value *typed.TypedValue, changed map[string]fieldpath.Path) *fieldpath.Set {
	yielded := fieldpath.NewSet()
	for _, path := range slices.Sorted(maps.Keys(changed)) {
		owner := old.owners[path].owner
		switch {
		case owner == m.layer.Owner:
		case m.layer.Owner == OwnerDriver && (owner == OwnerRequest || owner == OwnerGateway):
			yielded.Insert(changed[path]) // a default
		case owner == OwnerDriver:
		case owner != OwnerGateway && m.overrides(old.kind, changed[path]):
		default:
			m.conflicts = append(m.conflicts, m.conflict(old, value, changed[path], owner))
		}
	}
	return yielded
}

// overrides reports whether the layer may take a field that somebody set: its grant lists it, and the driver lets it.
func (m *merging) overrides(k *kind, path fieldpath.Path) bool {
	place := append([]string{k.Name}, segments(path)...)
	granted := slices.ContainsFunc(m.layer.Override, func(p Pattern) bool { return p.coversPlace(place) })
	return granted && slices.ContainsFunc(m.schema.points, func(pt Point) bool { return pt.Overridable && pt.Pattern.coversPlace(place) })
}

func (p Pattern) coversPlace(place []string) bool {
	ps, ok := split(string(p))
	return ok && covers(ps, place)
}

func (m *merging) conflict(old *object, value *typed.TypedValue, path fieldpath.Path, owner Owner) Conflict {
	segs := segments(path)
	text := func(v *typed.TypedValue) string {
		shown, secret := m.schema.show(old.kind, segs, at(v, path))
		if s, ok := shown.(string); ok && secret {
			return s
		}
		b, err := json.Marshal(shown)
		if err != nil {
			return "?"
		}
		return string(b)
	}
	return Conflict{Object: m.ref, Path: join(segs), Owner: owner, Other: m.layer.Owner, Value: text(old.value), OtherValue: text(value)}
}

// at returns the value at a path, or nil.
func at(v *typed.TypedValue, path fieldpath.Path) any {
	set := fieldpath.NewSet(path)
	var node any = v.ExtractItems(set, typed.WithAppendKeyFields()).AsValue().Unstructured()
	for _, e := range path {
		switch x := node.(type) {
		case map[string]any:
			if e.FieldName == nil {
				return nil
			}
			node = x[*e.FieldName]
		case []any:
			if len(x) == 0 {
				return nil
			}
			node = x[0] // all others were taken out
		default:
			return nil
		}
	}
	return node
}

// leaves returns the leaf paths of a value.
func leaves(v *typed.TypedValue) map[string]fieldpath.Path {
	out := map[string]fieldpath.Path{}
	set, err := v.ToFieldSet()
	if err != nil {
		return out // a value that was parsed has a field set
	}
	set.Leaves().Iterate(func(p fieldpath.Path) {
		if len(p) > 0 {
			out[join(segments(p))] = slices.Clone(p)
		}
	})
	return out
}

// Layers returns the layers that the plan was computed from.
func (p *Plan) Layers() []Layer { return slices.Clone(p.layers) }

// Objects returns every object, sorted by kind and name. The caller may change what it gets.
func (p *Plan) Objects() []Object {
	var out []Object
	for _, ref := range slices.Sorted(maps.Keys(p.objects)) {
		out = append(out, p.objects[ref].export(nil))
	}
	return out
}

// Object returns one object.
func (p *Plan) Object(kind, name string) (Object, bool) {
	o := p.objects[kind+"/"+name]
	if o == nil {
		return Object{}, false
	}
	return o.export(nil), true
}

// export copies the object, or with a set only those of its leaves.
func (o *object) export(only *fieldpath.Set) Object {
	v := o.value
	if only != nil {
		v = v.ExtractItems(only, typed.WithAppendKeyFields())
	}
	fields, _ := normalize(asMap(v))
	return Object{Kind: o.kind.Name, Name: o.name, Fields: fields}
}

// Owners returns who set something of an object: gateway, request and driver first, then in the order of the layers.
// An object without fields is its creator's.
func (p *Plan) Owners(kind, name string) []Owner {
	o := p.objects[kind+"/"+name]
	if o == nil {
		return nil
	}
	set := map[Owner]bool{}
	for _, own := range o.owners {
		set[own.owner] = true
	}
	if len(set) == 0 {
		set[o.creator] = true
	}
	order := []Owner{OwnerGateway, OwnerRequest, OwnerDriver}
	for _, l := range p.layers {
		order = append(order, l.Owner)
	}
	var out []Owner
	for _, owner := range order {
		if set[owner] {
			out = append(out, owner)
			delete(set, owner)
		}
	}
	return out
}

// Creator returns who added an object: "" where it is not there.
func (p *Plan) Creator(kind, name string) Owner {
	if o := p.objects[kind+"/"+name]; o != nil {
		return o.creator
	}
	return ""
}

// Part returns what these owners set of an object, with the keys of the keyed lists that it lies in.
func (p *Plan) Part(kind, name string, owners ...Owner) Object {
	o := p.objects[kind+"/"+name]
	if o == nil {
		return Object{Kind: kind, Name: name}
	}
	only := fieldpath.NewSet()
	for path, own := range o.owners {
		if slices.Contains(owners, own.owner) {
			only.Insert(o.leaves[path])
		}
	}
	return o.export(only)
}

func asMap(v *typed.TypedValue) map[string]any {
	m, _ := v.AsValue().Unstructured().(map[string]any)
	return m
}

// View returns the parts of the objects that the patterns cover. Everyone who reads the same gets the same: it is not
// to be changed.
func (p *Plan) View(read []Pattern) []Object {
	var key strings.Builder
	for _, r := range read {
		key.WriteString(string(r) + "\n")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if out, ok := p.views[key.String()]; ok {
		return out
	}
	out := p.view(read)
	if p.views == nil {
		p.views = map[string][]Object{}
	}
	p.views[key.String()] = out
	return out
}

func (p *Plan) view(read []Pattern) []Object {
	patterns := make([][]string, 0, len(read))
	for _, r := range read {
		if segs, ok := split(string(r)); ok {
			patterns = append(patterns, segs)
		}
	}
	var out []Object
	for _, ref := range slices.Sorted(maps.Keys(p.objects)) {
		o := p.objects[ref]
		only, seen := fieldpath.NewSet(), false
		for _, lp := range o.leaves {
			place := append([]string{o.kind.Name}, segments(lp)...)
			if slices.ContainsFunc(patterns, func(r []string) bool { return covers(r, place) }) {
				only.Insert(lp)
				seen = true
			}
		}
		if seen || slices.ContainsFunc(read, func(r Pattern) bool { return string(r) == o.kind.Name }) {
			out = append(out, o.export(only))
		}
	}
	return out
}

// Field is one leaf of a plan.
type Field struct {
	Object    string  `json:"object"` // kind/name
	Path      string  `json:"path"`   // as in a Pattern, without the kind
	Owner     Owner   `json:"owner"`
	Value     any     `json:"value"` // a sensitive one is already redacted to a string
	Sensitive bool    `json:"sensitive,omitempty"`
	Overrode  []Owner `json:"overrode,omitempty"` // who had it before, oldest first
}

// Fields returns every leaf with its owner, sorted by object and path.
func (p *Plan) Fields() []Field {
	var out []Field
	for _, ref := range slices.Sorted(maps.Keys(p.objects)) {
		o := p.objects[ref]
		for _, path := range slices.Sorted(maps.Keys(o.leaves)) {
			value, secret := p.schema.show(o.kind, segments(o.leaves[path]), at(o.value, o.leaves[path]))
			own := o.owners[path]
			out = append(out, Field{Object: ref, Path: path, Owner: own.owner, Value: value, Sensitive: secret, Overrode: own.overrode})
		}
		if len(o.leaves) == 0 {
			out = append(out, Field{Object: ref, Owner: o.creator, Value: map[string]any{}})
		}
	}
	return out
}

// Override is one field that was taken from somebody, for the audit.
type Override struct {
	Object, Path string
	Owner, Old   Owner
}

// Overrides returns every field that was taken from the request or an extension, sorted.
func (p *Plan) Overrides() []Override {
	var out []Override
	for ref, o := range p.objects {
		for path, own := range o.owners {
			if n := len(own.overrode); n > 0 && own.overrode[n-1] != OwnerDriver {
				out = append(out, Override{Object: ref, Path: path, Owner: own.owner, Old: own.overrode[n-1]})
			}
		}
	}
	slices.SortFunc(out, func(a, b Override) int { return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Path, b.Path)) })
	return out
}

// Without returns the layers that drop says no to.
func Without(layers []Layer, drop func(Layer) bool) []Layer {
	return slices.DeleteFunc(slices.Clone(layers), drop)
}

package plugin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Verdict answers a phase that may refuse.
type Verdict struct{ answer *extension.Answer }

// Deny refuses the request. The summary is one line; the detail, which may be empty, says what to do.
func (v *Verdict) Deny(summary, detail string) { v.DenyField("", summary, detail) }

// DenyField refuses the request for one field of it, for example "labels.tenant".
func (v *Verdict) DenyField(path, summary, detail string) {
	v.answer.Denied = true
	v.answer.Diagnostics = append(v.answer.Diagnostics, fault.Diagnostic{Summary: summary, Detail: detail, Path: path})
}

// Denied reports whether Deny was called.
func (v *Verdict) Denied() bool { return v.answer.Denied }

// Plan answers prepare_plan.
type Plan struct {
	Verdict
	contribution
}

// Require says that this sandbox needs a feature of the driver.
func (p *Plan) Require(feature string) {
	p.Verdict.answer.Requires = append(p.Verdict.answer.Requires, feature)
}

// Setup answers the phases that may contribute and hold.
type Setup struct {
	Verdict
	contribution
	holding
}

// Hold answers the phases that may hold and not contribute.
type Hold struct{ holding }

// contribution is what an answer adds to the plan.
type contribution struct{ to *extension.Answer }

// Set contributes a value at a feature's point.
func (c contribution) Set(f Feature, value any) error {
	if f.Point == "" {
		return fault.New(fault.Invalid, "the feature %q is not set through the plan", f.Name)
	}
	kind, path, _ := strings.Cut(string(f.Point), ".")
	tree, err := asTree(value)
	if err != nil {
		return fmt.Errorf("set %s: %w", f.Name, err)
	}
	for segments := strings.Split(path, "."); path != "" && len(segments) > 0; segments = segments[:len(segments)-1] {
		tree = map[string]any{segments[len(segments)-1]: tree}
	}
	fields, ok := tree.(map[string]any)
	if !ok {
		return fault.New(fault.Invalid, "set %s: %s is an object, and %T is not", f.Name, f.Point, value)
	}
	c.to.Contribute = append(c.to.Contribute, plan.Object{Kind: kind, Name: f.Object, Fields: fields})
	return nil
}

// Contribute adds an object to the plan, whole or in part. Fields is a struct with JSON tags, of the API that the
// driver speaks, or a map.
func (c contribution) Contribute(kind, name string, fields any) error {
	tree, err := asTree(fields)
	if err != nil {
		return fmt.Errorf("contribute %s/%s: %w", kind, name, err)
	}
	prune(tree, reflect.ValueOf(fields))
	m, ok := tree.(map[string]any)
	if !ok {
		return fault.New(fault.Invalid, "contribute %s/%s: a %T is no object", kind, name, fields)
	}
	c.to.Contribute = append(c.to.Contribute, plan.Object{Kind: kind, Name: name, Fields: m})
	return nil
}

// asTree makes a JSON tree of a value.
func asTree(v any) (any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var tree any
	err = json.Unmarshal(raw, &tree)
	return tree, err
}

// prune takes out what a Go type writes of fields that nobody filled in: nulls, and the empty objects of structs that
// are zero. Both would claim a field and say nothing. An empty object behind a pointer was meant.
func prune(tree any, v reflect.Value) {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	switch x := tree.(type) {
	case map[string]any:
		for key, child := range x {
			field := member(v, key)
			prune(child, field)
			o, object := child.(map[string]any)
			if child == nil || object && len(o) == 0 && v.Kind() == reflect.Struct && field.Kind() == reflect.Struct {
				delete(x, key)
			}
		}
	case []any:
		for i, child := range x {
			var item reflect.Value
			if v.Kind() == reflect.Slice && i < v.Len() {
				item = v.Index(i)
			}
			prune(child, item)
		}
	}
}

// member returns what a member of a JSON object was made of: a field of a struct, or the value of a map.
func member(v reflect.Value, key string) reflect.Value {
	switch {
	case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String:
		return v.MapIndex(reflect.ValueOf(key).Convert(v.Type().Key()))
	case v.Kind() != reflect.Struct:
		return reflect.Value{}
	}
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && cmp.Or(name, f.Name) == key {
			if found, err := v.FieldByIndexErr(f.Index); err == nil {
				return found
			}
		}
	}
	return reflect.Value{}
}

// holding is what an answer says is held.
type holding struct{ to *extension.Answer }

// Hold says that the extension holds this, of the phase's lifetime. What is not said is taken for released.
func (h holding) Hold(kind, id, text string) {
	h.to.Entries = append(h.to.Entries, Entry{Kind: kind, ID: id, Text: text})
}

// SetState replaces the state that the gateway keeps for the sandbox or workspace: v as JSON, at most 64 KiB.
func (h holding) SetState(version int, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if len(raw) > extension.MaxState {
		return fault.New(fault.Invalid, "the state has %d bytes; at most %d are kept", len(raw), extension.MaxState)
	}
	h.to.State = &extension.State{SchemaVersion: version, Payload: raw}
	return nil
}

// Holding is what is held of one subject and lifetime, in a reconcile.
type Holding struct {
	Sandbox   *sandbox.Identity // nil: of the workspace
	Workspace sandbox.Workspace
	Lifetime  phase.Lifetime
	Number    uint64 // the highest that was answered, where it is known
	Entries   []Entry
}

// Config is the configuration of the extension.
type Config struct {
	// Value points to a fresh copy of the struct of Info.Config, filled.
	Value any
	// Raw is the same as JSON.
	Raw         json.RawMessage
	contracts   []extension.Contract
	diagnostics []fault.Diagnostic
}

// Invalid says what is wrong with the value at a path, for example "pool.sandboxes.cidr". The gateway shows it at that
// line of the configuration and refuses it.
func (c *Config) Invalid(path, summary, detail string) {
	c.diagnostics = append(c.diagnostics, fault.Diagnostic{Summary: summary, Detail: detail, Path: path})
}

// Contracts returns what was negotiated for each bind.
func (c *Config) Contracts() []extension.Contract { return c.contracts }

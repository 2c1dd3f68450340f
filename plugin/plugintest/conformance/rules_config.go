package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// variant is a configuration that is like the given one but for one place.
type variant struct {
	what string
	raw  json.RawMessage
}

func (r *rig) given() map[string]any {
	tree := map[string]any{}
	if len(r.p.Config) > 0 {
		_ = json.Unmarshal(r.p.Config, &tree)
	}
	return tree
}

// values are what an attribute of a type may be tried with. There is no absolute path among them: an extension may make
// the directory that it is told.
func values(a extension.Attribute) []any {
	out := []any{nil}
	switch {
	case a.Type == "string":
		out = append(out, "", "\x00", "é\n\t", "-1", "*", "../..", strings.Repeat("x", 100_000), 7, []any{"a"})
	case a.Type == "number":
		out = append(out, 0, -1, 1, 1e18, -1e18, 0.5, "seven", map[string]any{})
		for _, bound := range []*float64{a.Min, a.Max} {
			if bound != nil {
				out = append(out, *bound, *bound-1, *bound+1)
			}
		}
	case a.Type == "bool":
		out = append(out, true, false, "yes")
	case strings.HasPrefix(a.Type, "list"), strings.HasPrefix(a.Type, "set"):
		out = append(out, []any{}, []any{""}, []any{nil}, []any{"[", "*", "a\x00"}, []any{0, -1}, "a")
	case strings.HasPrefix(a.Type, "map"):
		out = append(out, map[string]any{}, map[string]any{"": ""}, map[string]any{"a b": nil}, map[string]any{"k": []any{}}, "a")
	default:
		out = append(out, "", 0, true, []any{}, map[string]any{})
	}
	return append(out, a.Enum...)
}

// variants makes configurations out of a schema, a change at a time.
func variants(s extension.ConfigSchema, at map[string]any, path string, put func(what string, change func())) {
	put("an unknown setting "+path+"of_a_later_version", func() { at["of_a_later_version"] = "x" })
	for _, a := range s.Attributes {
		put(path+a.Name+" left out", func() { delete(at, a.Name) })
		for _, v := range values(a) {
			text, _ := json.Marshal(v)
			put(fmt.Sprintf("%s%s = %.60s", path, a.Name, text), func() { at[a.Name] = v })
		}
	}
	for _, b := range s.Blocks {
		put(path+b.Type+" left out", func() { delete(at, b.Type) })
		put(path+b.Type+" = {}", func() { at[b.Type] = map[string]any{} })
		put(path+b.Type+" = []", func() { at[b.Type] = []any{} })
		if len(b.Labels) > 0 {
			put(path+b.Type+` "" {}`, func() { at[b.Type] = map[string]any{"": map[string]any{}} })
		}
		for name, body := range bodies(b, at[b.Type]) {
			variants(b.Body, body, path+b.Type+"."+name, put)
		}
	}
}

// bodies are the bodies of blocks that a configuration has: of labelled ones the first, and of a list the first.
func bodies(b extension.Block, v any) map[string]map[string]any {
	if list, ok := v.([]any); ok && len(list) > 0 {
		v = list[0]
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	name := ""
	for range b.Labels {
		keys := slices.Sorted(maps.Keys(m))
		if len(keys) == 0 {
			return nil
		}
		next, ok := m[keys[0]].(map[string]any)
		if !ok {
			return nil
		}
		name, m = name+keys[0]+".", next
	}
	return map[string]map[string]any{name: m}
}

func (r *rig) fuzz() []variant {
	var out []variant
	var count int
	variants(r.schema, r.given(), "", func(string, func()) { count++ })
	for i := range count { // each on a copy of its own
		tree, n := r.given(), 0
		variants(r.schema, tree, "", func(what string, change func()) {
			if n == i {
				change()
				raw, err := json.Marshal(tree)
				if err == nil {
					out = append(out, variant{what, raw})
				}
			}
			n++
		})
	}
	return append(out, variant{"no JSON", json.RawMessage("{")}, variant{"null", json.RawMessage("null")}, variant{"a list", json.RawMessage("[]")})
}

func configFuzz(ctx context.Context, r *rig) error {
	if _, err := r.started(ctx); err != nil {
		return err
	}
	if len(r.manifest.ConfigSchema) == 0 {
		return notApplicable("it takes no configuration")
	}
	defer r.drop() // whatever it is configured with now
	for _, v := range r.fuzz() {
		d, err := r.configure(ctx, v.raw, r.contract)
		if err == nil {
			err = r.placed(d)
		}
		switch fault.CodeOf(err) {
		case fault.OK, fault.Invalid, fault.FailedPrecondition, fault.Denied, fault.NotFound, fault.ResourceExhausted:
			continue
		}
		return fmt.Errorf("with %s: %w", v.what, err)
	}
	return nil
}

// placed checks that diagnostics point into the schema and say something.
func (r *rig) placed(list []fault.Diagnostic) error {
	for _, d := range list {
		if d.Summary == "" {
			return fmt.Errorf("it refuses %q without a summary", d.Path)
		}
		head, _, _ := strings.Cut(d.Path, ".")
		known := d.Path == "" || slices.ContainsFunc(r.schema.Attributes, func(a extension.Attribute) bool { return a.Name == head }) ||
			slices.ContainsFunc(r.schema.Blocks, func(b extension.Block) bool { return b.Type == head }) || head == "of_a_later_version"
		if !known {
			return fmt.Errorf("it refuses something at %q, which its schema does not have: nobody finds the place", d.Path)
		}
	}
	return nil
}

func configKeeps(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	if len(r.manifest.ConfigSchema) == 0 {
		return notApplicable("it takes no configuration")
	}
	i := slices.IndexFunc(setups, r.has)
	asked := phase.PreparePlan
	switch {
	case r.has(phase.PreparePlan):
	case r.has(phase.ValidateRequest):
		asked = phase.ValidateRequest
	case i >= 0:
		asked = setups[i]
	default:
		return notApplicable("it declares no setup phase")
	}
	s, err := r.fresh(ctx, asked)
	if err != nil {
		return err
	}
	before, err := r.do(ctx, s, asked)
	if err != nil {
		return err
	}
	refused := 0
	for _, v := range r.fuzz() {
		d, err := r.configure(ctx, v.raw, r.contract)
		if status.Code(err) == codes.Unavailable {
			return err
		}
		if err == nil && len(d) == 0 { // it is accepted: back to the one before
			if _, err := r.configure(ctx, r.p.Config, r.contract); err != nil {
				return err
			}
			continue
		}
		refused++
		after, err := r.do(ctx, s, asked)
		if err != nil {
			return fmt.Errorf("after it refused %s: %w", v.what, err)
		}
		if d := differ(before, after); d != "" {
			return fmt.Errorf("it refused %s, and answers differently since: %s", v.what, d)
		}
	}
	if refused == 0 {
		return notApplicable("it refuses nothing")
	}
	return r.release(ctx, s)
}

func secrets(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	const canary = "canary-in-a-sensitive-setting"
	var names []string
	tree := r.given()
	plant(r.schema, tree, "", &names)
	if len(names) > 0 {
		raw, err := json.Marshal(replaced(tree, r.schema, canary))
		if err != nil {
			return err
		}
		if _, err := r.configure(ctx, raw, r.contract); err == nil {
			if s, err := r.newSandbox(ctx); err == nil {
				for _, p := range append([]phase.Phase{phase.PreparePlan}, setups[1:]...) {
					if r.has(p) {
						_, _ = r.do(ctx, s, p)
					}
				}
				_ = r.release(ctx, s)
			}
		}
	}
	r.drop()
	shown := r.printed.String() + r.said.String()
	if strings.Contains(shown, canary) {
		return fmt.Errorf("the value of a sensitive setting (%s) is in its log or in an answer", strings.Join(names, ", "))
	}
	for _, key := range r.keys {
		for line := range strings.Lines(key) {
			if line = strings.TrimSpace(line); len(line) > 40 && !strings.HasPrefix(line, "-----") && strings.Contains(shown, line) {
				return fmt.Errorf("its private key is in its log or in an answer")
			}
		}
	}
	return nil
}

// plant lists the sensitive strings of a configuration.
func plant(s extension.ConfigSchema, at map[string]any, path string, names *[]string) {
	for _, a := range s.Attributes {
		if a.Sensitive && a.Type == "string" {
			*names = append(*names, path+a.Name)
		}
	}
	for _, b := range s.Blocks {
		for name, body := range bodies(b, at[b.Type]) {
			plant(b.Body, body, path+b.Type+"."+name, names)
		}
	}
}

// replaced puts a value into every sensitive string.
func replaced(at map[string]any, s extension.ConfigSchema, value string) map[string]any {
	for _, a := range s.Attributes {
		if a.Sensitive && a.Type == "string" {
			at[a.Name] = value
		}
	}
	for _, b := range s.Blocks {
		for _, body := range bodies(b, at[b.Type]) {
			replaced(body, b.Body, value)
		}
	}
	return at
}

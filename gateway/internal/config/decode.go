package config

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/sandgate/sandgate/shared/extension"
)

// DecodeBody decodes a config block with the schema of whoever owns it, to JSON in the shape that the schema says.
// Who names the owner in the messages. A nil body is an empty block.
func DecodeBody(body hcl.Body, schema extension.ConfigSchema, ctx *hcl.EvalContext, at hcl.Range, who string) (json.RawMessage, hcl.Diagnostics) {
	d := &decoder{ctx: ctx, who: who}
	if body == nil {
		body = hcl.EmptyBody()
	}
	tree := d.body(body, schema, at)
	if d.diags.HasErrors() {
		return nil, d.diags
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		return nil, append(d.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Invalid configuration", Detail: err.Error(), Subject: &at})
	}
	return raw, d.diags
}

type decoder struct {
	ctx   *hcl.EvalContext
	who   string
	diags hcl.Diagnostics
}

func (d *decoder) wrong(at hcl.Range, summary, format string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &at})
}

func bodySchema(s extension.ConfigSchema) *hcl.BodySchema {
	out := &hcl.BodySchema{}
	for _, a := range s.Attributes {
		out.Attributes = append(out.Attributes, hcl.AttributeSchema{Name: a.Name, Required: a.Required})
	}
	for _, b := range s.Blocks {
		out.Blocks = append(out.Blocks, hcl.BlockHeaderSchema{Type: b.Type, LabelNames: b.Labels})
	}
	return out
}

func (d *decoder) body(body hcl.Body, s extension.ConfigSchema, at hcl.Range) map[string]any {
	content, diags := body.Content(bodySchema(s))
	for _, one := range diags {
		one.Detail += fmt.Sprintf(" So says %s.", d.who)
	}
	d.diags = append(d.diags, diags...)
	out := map[string]any{}
	if content == nil {
		return out
	}
	for _, a := range s.Attributes {
		attr, ok := content.Attributes[a.Name]
		switch {
		case ok:
			if v, ok := d.attribute(attr, a); ok {
				out[a.Name] = v
			}
		case a.Default != nil:
			out[a.Name] = a.Default
		}
	}
	for _, b := range s.Blocks {
		d.blocks(content, b, out, at)
	}
	return out
}

// attribute evaluates one attribute, converts it to its type and checks it.
func (d *decoder) attribute(attr *hcl.Attribute, a extension.Attribute) (any, bool) {
	if a.Deprecated != "" {
		d.diags = append(d.diags, &hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: "Deprecated attribute",
			Detail: fmt.Sprintf("%s is deprecated by %s: %s.", a.Name, d.who, a.Deprecated), Subject: &attr.NameRange})
	}
	typ, err := typeOf(a.Type)
	if err != nil {
		d.wrong(attr.NameRange, "Unusable schema", "The schema of %s declares %s with the type %q: %v.", d.who, a.Name, a.Type, err)
		return nil, false
	}
	v, diags := attr.Expr.Value(d.ctx)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return nil, false
	}
	if typ != cty.DynamicPseudoType {
		c, err := convert.Convert(v, typ)
		if err != nil {
			d.wrong(attr.Expr.Range(), "Wrong type", "%s of %s takes a %s: %v.", a.Name, d.who, a.Type, err)
			return nil, false
		}
		v = c
	}
	if v.IsNull() {
		if a.Required {
			d.wrong(attr.Expr.Range(), "Missing value", "%s of %s is required, and null is no value.", a.Name, d.who)
		}
		return a.Default, a.Default != nil
	}
	if v.Type().IsCollectionType() && hasNull(v) {
		d.wrong(attr.Expr.Range(), "Missing value", "%s of %s has a null in it, and null is no value.", a.Name, d.who)
		return nil, false
	}
	d.bounds(attr, a, v)
	return jsonOf(v)
}

func typeOf(text string) (cty.Type, error) {
	expr, diags := hclsyntax.ParseExpression([]byte(text), "type", hcl.InitialPos)
	if diags.HasErrors() {
		return cty.NilType, diags
	}
	if text == "any" {
		return cty.DynamicPseudoType, nil
	}
	t, diags := typeexpr.Type(expr)
	if diags.HasErrors() {
		return cty.NilType, diags
	}
	return t, nil
}

func hasNull(v cty.Value) (found bool) {
	_ = cty.Walk(v, func(_ cty.Path, v cty.Value) (bool, error) {
		found = found || v.IsNull()
		return !found, nil
	})
	return found
}

func jsonOf(v cty.Value) (any, bool) {
	raw, err := ctyjson.Marshal(v, v.Type())
	if err != nil {
		return nil, false
	}
	var out any
	err = json.Unmarshal(raw, &out)
	return out, err == nil
}

// bounds checks an enum and the limits of a number. A sensitive value is not repeated.
func (d *decoder) bounds(attr *hcl.Attribute, a extension.Attribute, v cty.Value) {
	got, _ := jsonOf(v)
	if len(a.Enum) > 0 && !slices.ContainsFunc(a.Enum, func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(got) }) {
		var names []string
		for _, e := range a.Enum {
			names = append(names, fmt.Sprint(e))
		}
		hint := ""
		if !a.Sensitive {
			hint = meant(fmt.Sprint(got), names)
		}
		d.wrong(attr.Expr.Range(), "Invalid value", "%s of %s is one of %s.%s", a.Name, d.who, strings.Join(names, ", "), hint)
	}
	if v.Type() != cty.Number {
		return
	}
	n := v.AsBigFloat()
	if _, exact := n.Int64(); a.Whole && exact != big.Exact {
		d.wrong(attr.Expr.Range(), "Not an integer", "%s of %s takes a whole number that 64 bits hold.", a.Name, d.who)
	}
	if a.Min != nil && n.Cmp(big.NewFloat(*a.Min)) < 0 || a.Max != nil && n.Cmp(big.NewFloat(*a.Max)) > 0 {
		d.wrong(attr.Expr.Range(), "Number out of range", "%s of %s takes a number%s.", a.Name, d.who, between(a))
	}
}

func between(a extension.Attribute) string {
	switch {
	case a.Min != nil && a.Max != nil:
		return fmt.Sprintf(" from %g to %g", *a.Min, *a.Max)
	case a.Min != nil:
		return fmt.Sprintf(" from %g", *a.Min)
	}
	return fmt.Sprintf(" up to %g", *a.Max)
}

// blocks decodes the blocks of one type: labelled ones to an object by label, one alone to an object, others to a list.
func (d *decoder) blocks(content *hcl.BodyContent, b extension.Block, out map[string]any, at hcl.Range) {
	found := content.Blocks.OfType(b.Type)
	if len(found) < b.Min {
		d.wrong(at, "Missing block", "%s needs at least %d %s block.", d.who, b.Min, b.Type)
	}
	if b.Max > 0 && len(found) > b.Max {
		d.wrong(found[b.Max].DefRange, "Too many blocks", "%s takes at most %d %s block.", d.who, b.Max, b.Type)
	}
	var list []any
	labelled := map[string]any{}
	for _, blk := range found {
		v := d.body(blk.Body, b.Body, blk.DefRange)
		if len(b.Labels) == 0 {
			list = append(list, v)
			continue
		}
		into := labelled
		for _, l := range blk.Labels[:len(blk.Labels)-1] {
			next, ok := into[l].(map[string]any)
			if !ok {
				next = map[string]any{}
				into[l] = next
			}
			into = next
		}
		last := blk.Labels[len(blk.Labels)-1]
		if _, twice := into[last]; twice {
			d.wrong(blk.DefRange, "Duplicate block", "There is a %s %q already.", b.Type, strings.Join(blk.Labels, "\" \""))
		}
		into[last] = v
	}
	switch {
	case len(b.Labels) > 0 && len(found) > 0:
		out[b.Type] = labelled
	case len(b.Labels) == 0 && b.Max == 1 && len(list) > 0:
		out[b.Type] = list[0]
	case len(b.Labels) == 0 && b.Max != 1 && len(list) > 0:
		out[b.Type] = list
	}
}

// Sensitive returns where in a body the values stand that its schema declares sensitive.
func Sensitive(body hcl.Body, schema extension.ConfigSchema) []hcl.Range {
	if body == nil {
		return nil
	}
	content, _, _ := body.PartialContent(bodySchema(schema))
	if content == nil {
		return nil
	}
	var out []hcl.Range
	for _, a := range schema.Attributes {
		if attr, ok := content.Attributes[a.Name]; ok && a.Sensitive {
			out = append(out, attr.Expr.Range())
		}
	}
	for _, b := range schema.Blocks {
		for _, blk := range content.Blocks.OfType(b.Type) {
			out = append(out, Sensitive(blk.Body, b.Body)...)
		}
	}
	return out
}

// Secrets returns the texts in a decoded body that its schema declares sensitive.
func Secrets(raw json.RawMessage, schema extension.ConfigSchema) []string {
	var tree any
	if json.Unmarshal(raw, &tree) != nil {
		return nil
	}
	return secretsOf(tree, schema)
}

func secretsOf(tree any, schema extension.ConfigSchema) []string {
	var out []string
	switch t := tree.(type) {
	case []any:
		for _, v := range t {
			out = append(out, secretsOf(v, schema)...)
		}
	case map[string]any:
		for _, a := range schema.Attributes {
			if v, ok := t[a.Name]; ok && a.Sensitive {
				out = append(out, texts(v)...)
			}
		}
		for _, b := range schema.Blocks {
			out = append(out, blockSecrets(t[b.Type], b, len(b.Labels))...)
		}
	}
	return out
}

// blockSecrets goes through the labels of a block to its bodies.
func blockSecrets(v any, b extension.Block, labels int) []string {
	labelled, ok := v.(map[string]any)
	if labels == 0 || !ok {
		return secretsOf(v, b.Body)
	}
	var out []string
	for _, x := range labelled {
		out = append(out, blockSecrets(x, b, labels-1)...)
	}
	return out
}

// texts returns every text and number of a value, as it might be quoted.
func texts(v any) []string {
	switch t := v.(type) {
	case nil, bool:
		return nil
	case []any:
		var out []string
		for _, x := range t {
			out = append(out, texts(x)...)
		}
		return out
	case map[string]any:
		var out []string
		for _, x := range t {
			out = append(out, texts(x)...)
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

// RangeOf finds where in a block a path stands that its owner found wrong, for example "pool.sandboxes.cidr". What it
// cannot find it answers with the nearest block around it.
func RangeOf(body hcl.Body, schema extension.ConfigSchema, path string, at hcl.Range) hcl.Range {
	if body == nil || path == "" {
		return at
	}
	content, _, _ := body.PartialContent(bodySchema(schema))
	if content == nil {
		return at
	}
	head, rest, _ := strings.Cut(path, ".")
	if attr, ok := content.Attributes[head]; ok {
		return attr.Expr.Range()
	}
	for _, b := range schema.Blocks {
		if b.Type != head {
			continue
		}
		for _, blk := range content.Blocks.OfType(head) {
			tail, ok := rest, true
			for _, l := range blk.Labels {
				if tail, ok = strings.CutPrefix(tail, l); !ok {
					break
				}
				tail = strings.TrimPrefix(tail, ".")
			}
			if ok {
				return RangeOf(blk.Body, b.Body, tail, blk.DefRange)
			}
		}
	}
	return at
}

package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/sandgate/sandgate/shared/extension"
)

// inJSON is a body in HCL's JSON syntax.
func inJSON(t *testing.T, body *hclsyntax.Body, src []byte) map[string]any {
	t.Helper()
	out := map[string]any{}
	for name, a := range body.Attributes {
		r := a.Expr.Range()
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() || !v.IsWhollyKnown() {
			out[name] = "${" + string(src[r.Start.Byte:r.End.Byte]) + "}"
			if _, ok := a.Expr.(*hclsyntax.ObjectConsExpr); ok {
				out[name] = objectInJSON(t, a.Expr.(*hclsyntax.ObjectConsExpr), src)
			}
			continue
		}
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			t.Fatal(err)
		}
		out[name] = json.RawMessage(raw)
	}
	for _, b := range body.Blocks {
		var one any = inJSON(t, b.Body, src)
		for _, l := range slices.Backward(b.Labels) {
			one = map[string]any{l: one}
		}
		list, _ := out[b.Type].([]any)
		out[b.Type] = append(list, one)
	}
	return out
}

func objectInJSON(t *testing.T, o *hclsyntax.ObjectConsExpr, src []byte) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, item := range o.Items {
		key, _ := item.KeyExpr.Value(nil)
		r := item.ValueExpr.Range()
		if v, diags := item.ValueExpr.Value(nil); !diags.HasErrors() {
			out[key.AsString()] = v.AsString()
			continue
		}
		out[key.AsString()] = "${" + string(src[r.Start.Byte:r.End.Byte]) + "}"
	}
	return out
}

// placeForm is a place that a finding refers to.
var placeForm = regexp.MustCompile(`FILE:[\d,-]+`)

// said is what was found, without where. What HCL itself says of a name that it does not know differs with the syntax.
func said(f *Findings) []string {
	var out []string
	for _, d := range f.diags {
		switch d.Summary {
		case "Unsupported argument", "Unsupported block type", "Extraneous JSON object property":
			out = append(out, "there is no such thing")
			continue
		}
		detail := d.Detail
		if f := d.Subject; f != nil {
			detail = placeForm.ReplaceAllString(strings.ReplaceAll(detail, f.Filename, "FILE"), "FILE")
		}
		out = append(out, d.Summary+": "+strings.Join(strings.FieldsFunc(detail, func(r rune) bool { return r == '\n' }), " "))
	}
	slices.Sort(out)
	return out
}

// Every broken configuration is found as broken in HCL's JSON syntax, with places that are within the file, also where
// all of it stands on one line; and no secret is shown.
func TestJSONSyntaxGivesTheSameFindings(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			parsed, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
			if diags.HasErrors() {
				return // what is no HCL has no JSON form
			}
			compared++
			raw, err := json.Marshal(inJSON(t, parsed.Body.(*hclsyntax.Body), src))
			if err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(t.TempDir(), "site.hcl.json")
			if err := os.WriteFile(other, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			o := options()
			o.SkipFiles = false
			_, want := Load([]string{name}, o)
			_, got := Load([]string{other}, o)
			if diff := cmp.Diff(said(want), said(got)); diff != "" {
				t.Errorf("what is said (-HCL +JSON):\n%s\n%s", diff, raw)
			}
			wellPlaced(t, got, raw)
		})
	}
	if compared < 20 {
		t.Errorf("only %d configurations were compared", compared)
	}
}

// wellPlaced checks the report that programs read against the source.
func wellPlaced(t *testing.T, f *Findings, src []byte) {
	t.Helper()
	var text, out bytes.Buffer
	if err := f.Render(&text); err != nil {
		t.Fatal(err)
	}
	if err := f.JSON(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String()+out.String(), "hush") {
		t.Errorf("a secret is shown:\n%s", text.String())
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.FormatVersion != "1.0" || r.Valid == f.HasErrors() || r.ErrorCount+r.WarningCount != len(r.Diagnostics) {
		t.Errorf("the head of the report: %+v", r)
	}
	for _, d := range r.Diagnostics {
		if d.Range == nil {
			continue
		}
		s := d.Snippet
		if d.Range.Start.Byte > d.Range.End.Byte || d.Range.End.Byte > len(src) || s == nil || s.From > s.To || s.To > len(s.Code) {
			t.Errorf("%s stands at %+v, %+v, in a file of %d bytes", d.Summary, d.Range, s, len(src))
			continue
		}
		if marked := s.Code[s.From:s.To]; !strings.Contains(marked, "···") && !strings.HasPrefix(string(src[d.Range.Start.Byte:d.Range.End.Byte]), marked) {
			t.Errorf("%s marks %q, and its range is %q", d.Summary, marked, src[d.Range.Start.Byte:d.Range.End.Byte])
		}
	}
}

// A directory is read whole, in either syntax, and secrets on one line are all hidden, at their bytes.
func TestAMixedDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.hcl":      "driver \"native\" {}\n",
		"b.hcl.json": `{"extension": [{"ä": {"env": {"A": "hush1"}, "command": "x"}}, {"b": {"env": {"B": "hush2"}, "command": 7}}], "store": {"postgres": {"url": "hush3"}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, f := Load([]string{dir}, Options{Types: []string{"native"}})
	if cfg != nil || len(f.diags) == 0 {
		t.Fatal("it is not refused")
	}
	var text bytes.Buffer
	if err := f.Render(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "hush") || !strings.Contains(text.String(), `{"ä": {"env": ···, "command": "x"}}, {"b": {"env": ···, "command": 7}}], "store": {"postgres": {"url": ···}}}`) {
		t.Errorf("it is shown as\n%s", text.String())
	}
}

// The body of somebody else's block decodes to the same, and what is wrong in it is found at the same value.
func TestDecodeBodyInJSON(t *testing.T) {
	schema := extension.ConfigSchema{
		Attributes: []extension.Attribute{{Name: "mood", Type: "string", Enum: []any{"calm", "cross"}}, {Name: "token", Type: "string", Sensitive: true}},
		Blocks:     []extension.Block{{Type: "pool", Labels: []string{"name"}, Body: extension.ConfigSchema{Attributes: []extension.Attribute{{Name: "size", Type: "number", Required: true}}}}},
	}
	decode := func(name, text string) (string, hcl.Diagnostics, []byte, hcl.Range) {
		f := NewFindings()
		body := f.parse([]byte(text), name).Body
		raw, diags := DecodeBody(body, schema, nil, hcl.Range{Filename: name}, "x")
		return string(raw), diags, []byte(text), RangeOf(body, schema, "pool.a.size", hcl.Range{})
	}
	one, _, src, at := decode("x.hcl", "mood = \"calm\"\ntoken = \"t\"\npool \"a\" { size = 3 }\n")
	two, _, src2, at2 := decode("x.json", `{"mood": "calm", "token": "t", "pool": {"a": {"size": 3}}}`)
	if one != two || one == "" {
		t.Errorf("it is %s, and in JSON %s", one, two)
	}
	if string(src[at.Start.Byte:at.End.Byte]) != "3" || string(src2[at2.Start.Byte:at2.End.Byte]) != "3" {
		t.Errorf("the size stands at %v, in JSON at %v", at, at2)
	}
	_, wrong, src, _ := decode("x.hcl", "mood = \"clam\"\npool \"a\" { size = \"much\" }\n")
	_, wrong2, src2, _ := decode("x.json", `{"mood": "clam", "pool": {"a": {"size": "much"}}}`)
	if len(wrong) != 2 || len(wrong2) != 2 {
		t.Fatalf("it finds %v, and in JSON %v", wrong, wrong2)
	}
	for i, d := range wrong {
		o := wrong2[i]
		if d.Summary != o.Summary || d.Detail != o.Detail || string(src[d.Subject.Start.Byte:d.Subject.End.Byte]) != string(src2[o.Subject.Start.Byte:o.Subject.End.Byte]) {
			t.Errorf("it finds %v, and in JSON %v", d, o)
		}
	}
}

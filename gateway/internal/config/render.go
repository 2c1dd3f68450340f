package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcled"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Render writes the findings for people: what, where, the line with a mark under it, and what was expected.
func (f *Findings) Render(w io.Writer) error {
	f.sort()
	for _, d := range f.diags {
		if _, err := io.WriteString(w, f.text(d)+"\n"); err != nil {
			return err
		}
	}
	return nil
}

func severity(d *hcl.Diagnostic) string {
	if d.Severity == hcl.DiagWarning {
		return "warning"
	}
	return "error"
}

func (f *Findings) text(d *hcl.Diagnostic) string {
	var b strings.Builder
	word := severity(d)
	fmt.Fprintf(&b, "%s%s: %s\n", strings.ToUpper(word[:1]), word[1:], d.Summary)
	if d.Subject != nil {
		fmt.Fprintf(&b, "  on %s line %d:\n", d.Subject.Filename, d.Subject.Start.Line)
		if line, ok := f.line(*d.Subject); ok {
			number := fmt.Sprintf("%4d: ", d.Subject.Start.Line)
			fmt.Fprintf(&b, "%s%s\n%s%s\n", number, line.text, strings.Repeat(" ", len(number)), line.caret())
		}
	}
	for _, l := range strings.Split(d.Detail, "\n") {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	return b.String()
}

// shown is a source line as it may be shown, with the part of it that a finding is about. What is secret in it is gone.
type shown struct {
	text     string
	from, to int // bytes of text
}

// line returns the source line on which a range begins.
func (f *Findings) line(r hcl.Range) (shown, bool) {
	file := f.files[r.Filename]
	if file == nil || r.Start.Line < 1 {
		return shown{}, false
	}
	rest, begin := file.Bytes, 0
	for range r.Start.Line - 1 {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			return shown{}, false
		}
		rest, begin = rest[i+1:], begin+i+1
	}
	raw, _, _ := bytes.Cut(rest, []byte("\n"))
	raw = bytes.TrimSuffix(raw, []byte("\r"))
	hidden := f.secret(file, r.Filename, begin, begin+len(raw))
	s := shown{from: -1, to: -1}
	var b strings.Builder
	for i := 0; i <= len(raw); {
		at := begin + i
		if s.from < 0 && at >= r.Start.Byte {
			s.from = b.Len()
		}
		if s.to < 0 && at >= r.End.Byte {
			s.to = b.Len()
		}
		if len(hidden) > 0 && hidden[0][0] == at && at < hidden[0][1] {
			b.WriteString("···")
			i, hidden = hidden[0][1]-begin, hidden[1:]
			continue
		}
		if i < len(raw) {
			b.WriteByte(raw[i])
		}
		i++
	}
	s.text = b.String()
	if s.to < 0 {
		s.to = len(s.text)
	}
	s.from = min(max(s.from, 0), s.to)
	return s, true
}

// caret is a line with marks under the part.
func (s shown) caret() string {
	pad := strings.Map(func(c rune) rune {
		if c == '\t' {
			return '\t'
		}
		return ' '
	}, s.text[:s.from])
	return pad + strings.Repeat("^", max(1, utf8.RuneCountInString(s.text[s.from:s.to])))
}

// secret returns the spans of a line, from and to in bytes of the file, that hold values of an env map, a store's url, or
// what Hide named: in order, and none over another.
func (f *Findings) secret(file *hcl.File, name string, begin, end int) [][2]int {
	var spans [][2]int
	for _, r := range append(secretRanges(file.Body), f.hidden...) {
		from, to := max(r.Start.Byte, begin), min(r.End.Byte, end)
		if r.Filename == name && from < to {
			spans = append(spans, [2]int{from, to})
		}
	}
	slices.SortFunc(spans, func(a, b [2]int) int { return a[0] - b[0] })
	var out [][2]int
	for _, s := range spans {
		if last := len(out) - 1; last >= 0 && s[0] <= out[last][1] {
			out[last][1] = max(out[last][1], s[1])
			continue
		}
		out = append(out, s)
	}
	return out
}

// secretRanges returns where secrets may stand as literals: the values of env in an extension, and a store's url. A body
// that is wrong elsewhere has them, too.
func secretRanges(body hcl.Body) []hcl.Range {
	if body == nil {
		return nil
	}
	content, _, _ := body.PartialContent(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
		{Type: "extension", LabelNames: []string{"name"}}, {Type: "store", LabelNames: []string{"type"}}}})
	if content == nil {
		return nil
	}
	var out []hcl.Range
	for _, b := range content.Blocks {
		in, _, _ := b.Body.PartialContent(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "env"}, {Name: "url"}}})
		if in == nil {
			continue
		}
		for _, attr := range in.Attributes {
			out = append(out, attr.Expr.Range())
		}
	}
	return out
}

// JSON writes the findings in the shape that Terraform's validate -json has, which editors know.
func (f *Findings) JSON(w io.Writer) error {
	f.sort()
	out := report{FormatVersion: "1.0", Valid: !f.HasErrors(), Diagnostics: []diagnostic{}}
	for _, d := range f.diags {
		x := f.diagnostic(d)
		if x.Severity == "error" {
			out.ErrorCount++
		} else {
			out.WarningCount++
		}
		out.Diagnostics = append(out.Diagnostics, x)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

func (f *Findings) diagnostic(d *hcl.Diagnostic) diagnostic {
	x := diagnostic{Severity: severity(d), Summary: d.Summary, Detail: d.Detail}
	if d.Subject == nil {
		return x
	}
	s := d.Subject
	x.Range = &place{Filename: s.Filename, Start: position{s.Start.Line, s.Start.Column, s.Start.Byte}, End: position{s.End.Line, s.End.Column, s.End.Byte}}
	if line, ok := f.line(*s); ok {
		x.Snippet = &snippet{Code: line.text, StartLine: s.Start.Line, From: line.from, To: line.to, Values: []struct{}{}}
		if context := hcled.ContextString(f.files[s.Filename], s.Start.Byte); context != "" {
			x.Snippet.Context = &context
		}
	}
	return x
}

// The shape of Terraform's validate -json.
type (
	report struct {
		FormatVersion string       `json:"format_version"`
		Valid         bool         `json:"valid"`
		ErrorCount    int          `json:"error_count"`
		WarningCount  int          `json:"warning_count"`
		Diagnostics   []diagnostic `json:"diagnostics"`
	}
	diagnostic struct {
		Severity string   `json:"severity"`
		Summary  string   `json:"summary"`
		Detail   string   `json:"detail"`
		Range    *place   `json:"range,omitempty"`
		Snippet  *snippet `json:"snippet,omitempty"`
	}
	place struct {
		Filename string   `json:"filename"`
		Start    position `json:"start"`
		End      position `json:"end"`
	}
	position struct {
		Line   int `json:"line"`
		Column int `json:"column"`
		Byte   int `json:"byte"`
	}
	snippet struct {
		Context   *string    `json:"context"` // the block around it
		Code      string     `json:"code"`
		StartLine int        `json:"start_line"`
		From      int        `json:"highlight_start_offset"` // bytes of code
		To        int        `json:"highlight_end_offset"`
		Values    []struct{} `json:"values"` // of its variables: there are none
	}
)

// Format returns the source in canonical form. An error says that it cannot be parsed.
func Format(src []byte, name string) ([]byte, *Findings) {
	f := NewFindings()
	if strings.HasSuffix(name, ".json") {
		f.add(nil, "No canonical form", name+" is in HCL's JSON syntax, which has none here: format it as any JSON.")
		return nil, f
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	f.files[name] = file
	f.extend(diags)
	if f.HasErrors() {
		return nil, f
	}
	return hclwrite.Format(src), f
}

package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Render writes the findings for people: what, where, the line with a mark under it, and what was expected.
func (f *Findings) Render(w io.Writer) error {
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
			fmt.Fprintf(&b, "%s%s\n%s%s\n", number, line, strings.Repeat(" ", len(number)), caret(line, *d.Subject))
		}
	}
	for _, l := range strings.Split(d.Detail, "\n") {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	return b.String()
}

// line returns the source line on which a range begins. A line that holds a secret literal is shown without it.
func (f *Findings) line(r hcl.Range) (string, bool) {
	file := f.files[r.Filename]
	if file == nil {
		return "", false
	}
	sc := bufio.NewScanner(bytes.NewReader(file.Bytes))
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		if n == r.Start.Line {
			return f.hide(file, r.Filename, r.Start.Line, sc.Text()), true
		}
	}
	return "", false
}

// hide replaces what stands on a line by dots where it is the value of an env map, a store's url, or what Hide named.
func (f *Findings) hide(file *hcl.File, name string, line int, text string) string {
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return text
	}
	for _, r := range append(secretRanges(body), f.hidden...) {
		if r.Filename != name || r.Start.Line > line || r.End.Line < line {
			continue
		}
		from, to := 0, len(text)
		if r.Start.Line == line {
			from = min(r.Start.Column-1, len(text))
		}
		if r.End.Line == line {
			to = min(r.End.Column-1, len(text))
		}
		if from < to {
			text = text[:from] + strings.Repeat("·", 3) + text[to:]
		}
	}
	return text
}

// secretRanges returns where secrets may stand as literals: the values of env in an extension, and a store's url.
func secretRanges(body *hclsyntax.Body) []hcl.Range {
	var out []hcl.Range
	for _, b := range body.Blocks {
		if attr := b.Body.Attributes["env"]; b.Type == "extension" && attr != nil {
			out = append(out, attr.Expr.Range())
		}
		if attr := b.Body.Attributes["url"]; b.Type == "store" && attr != nil {
			out = append(out, attr.Expr.Range())
		}
	}
	return out
}

func caret(line string, r hcl.Range) string {
	from := min(max(r.Start.Column-1, 0), len(line))
	to := len(line)
	if r.End.Line == r.Start.Line {
		to = min(r.End.Column-1, len(line))
	}
	pad := strings.Map(func(c rune) rune {
		if c == '\t' {
			return '\t'
		}
		return ' '
	}, line[:from])
	return pad + strings.Repeat("^", max(1, to-from))
}

// JSON writes the findings in the shape that Terraform's validate -json has, which editors know.
func (f *Findings) JSON(w io.Writer) error {
	type pos struct {
		Line   int `json:"line"`
		Column int `json:"column"`
		Byte   int `json:"byte"`
	}
	type place struct {
		Filename string `json:"filename"`
		Start    pos    `json:"start"`
		End      pos    `json:"end"`
	}
	type snippet struct {
		Code      string `json:"code"`
		StartLine int    `json:"start_line"`
	}
	type diagnostic struct {
		Severity string   `json:"severity"`
		Summary  string   `json:"summary"`
		Detail   string   `json:"detail"`
		Range    *place   `json:"range,omitempty"`
		Snippet  *snippet `json:"snippet,omitempty"`
	}
	out := struct {
		FormatVersion string       `json:"format_version"`
		Valid         bool         `json:"valid"`
		ErrorCount    int          `json:"error_count"`
		WarningCount  int          `json:"warning_count"`
		Diagnostics   []diagnostic `json:"diagnostics"`
	}{FormatVersion: "1.0", Valid: !f.HasErrors(), Diagnostics: []diagnostic{}}
	for _, d := range f.diags {
		x := diagnostic{Severity: severity(d), Summary: d.Summary, Detail: d.Detail}
		if x.Severity == "error" {
			out.ErrorCount++
		} else {
			out.WarningCount++
		}
		if s := d.Subject; s != nil {
			x.Range = &place{Filename: s.Filename, Start: pos{s.Start.Line, s.Start.Column, s.Start.Byte}, End: pos{s.End.Line, s.End.Column, s.End.Byte}}
			if line, ok := f.line(*s); ok {
				x.Snippet = &snippet{Code: line, StartLine: s.Start.Line}
			}
		}
		out.Diagnostics = append(out.Diagnostics, x)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// Format returns the source in canonical form. An error says that it cannot be parsed.
func Format(src []byte, name string) ([]byte, *Findings) {
	f := NewFindings()
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	f.files[name] = file
	f.extend(diags)
	if f.HasErrors() {
		return nil, f
	}
	return hclwrite.Format(src), f
}

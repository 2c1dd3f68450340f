package pipeline

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// What an extension or a driver says to people is kept in the journal and in the audit, and goes to every client that lists them.
// A decision stands however long its words are, so they are cut rather than refused. What would steer a terminal is left
// out.

// abridge keeps of diagnostics as much as fits.
func abridge(list []fault.Diagnostic) []fault.Diagnostic {
	if len(list) > extension.MaxDiagnostics {
		list = list[:extension.MaxDiagnostics]
	}
	left := extension.MaxWords
	var out []fault.Diagnostic
	for _, d := range list {
		short := fault.Diagnostic{Path: cut(plain(d.Path), &left), Summary: cut(plain(d.Summary), &left), Detail: cut(plain(d.Detail), &left)}
		if short != (fault.Diagnostic{}) {
			out = append(out, short)
		}
	}
	return out
}

// Shorten does the same to an error, of a driver too. One that is short, or none, stays what it is.
func Shorten(err error) error {
	if err == nil {
		return nil
	}
	diagnostics, text := fault.DiagnosticsOf(err), err.Error()
	size, clean := len(text), plain(text) == text
	for _, d := range diagnostics {
		size += len(d.Path) + len(d.Summary) + len(d.Detail)
		clean = clean && plain(d.Path) == d.Path && plain(d.Summary) == d.Summary && plain(d.Detail) == d.Detail
	}
	if clean && size <= extension.MaxWords && len(diagnostics) <= extension.MaxDiagnostics {
		return err
	}
	left := extension.MaxWords
	return (&fault.Error{Code: fault.CodeOf(err), Message: cut(plain(text), &left), Err: err}).With(abridge(diagnostics)...)
}

// Words does the same to a text, of which it keeps limit bytes.
func Words(s string, limit int) string { return cut(plain(s), &limit) }

// plain returns the text without the control characters that no line of text has: a terminal obeys them.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// cut keeps what fits into what is left, says how much does not, and takes it off what is left.
func cut(s string, left *int) string {
	if len(s) <= *left {
		*left -= len(s)
		return s
	}
	kept := strings.ToValidUTF8(s[:*left], "")
	*left = 0
	if kept == "" {
		return ""
	}
	return fmt.Sprintf("%s… (%d bytes more)", kept, len(s)-len(kept))
}

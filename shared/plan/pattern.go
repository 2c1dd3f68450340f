package plan

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// Pattern names a place in a plan: "Kind", or "Kind.path.to.field". A key of a map or of an item of a keyed list may
// be written in brackets, and has to be where it holds a dot: "Process.environment[HOME]". "*" stands for any one
// segment. A pattern covers everything below it.
type Pattern string

const maxPattern = 1024

var kindForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)

// ParsePattern checks the form.
func ParsePattern(s string) (Pattern, error) {
	if len(s) > maxPattern {
		return "", fault.New(fault.Invalid, "a pattern of %d bytes is too long; at most %d", len(s), maxPattern)
	}
	segments, ok := split(s)
	if !ok || !kindForm.MatchString(segments[0]) {
		return "", fault.New(fault.Invalid, "%q is not a place in a plan: write Kind or Kind.path.to.field, with a key that holds a dot in brackets", s)
	}
	return Pattern(s), nil
}

// Kind returns the kind, the part before the first dot.
func (p Pattern) Kind() string {
	if i := strings.IndexAny(string(p), ".["); i >= 0 {
		return string(p[:i])
	}
	return string(p)
}

// Covers reports whether everything that q names lies within p.
func (p Pattern) Covers(q Pattern) bool {
	ps, ok1 := split(string(p))
	qs, ok2 := split(string(q))
	return ok1 && ok2 && covers(ps, qs)
}

// covers reports whether the segments of a pattern are a prefix of those of a place.
func covers(pattern, place []string) bool {
	if len(pattern) > len(place) {
		return false
	}
	for i, s := range pattern {
		if s != place[i] && (s != "*" || i == 0) {
			return false
		}
	}
	return true
}

// split takes a pattern apart. A bracket is a segment like one after a dot.
func split(s string) ([]string, bool) {
	var out []string
	for first := true; s != ""; first = false {
		switch {
		case s[0] == '[':
			key, rest, ok := bracket(s)
			if !ok || first {
				return nil, false
			}
			out, s = append(out, key), rest
			if s != "" && s[0] != '.' && s[0] != '[' {
				return nil, false
			}
			continue
		case s[0] == '.' && !first:
			s = s[1:]
		case !first:
			return nil, false
		}
		end := strings.IndexAny(s, ".[")
		if end < 0 {
			end = len(s)
		}
		if end == 0 || strings.ContainsAny(s[:end], "]") {
			return nil, false
		}
		out, s = append(out, s[:end]), s[end:]
	}
	return out, len(out) > 0
}

// bracket takes "[key]" off the front. Within it a backslash takes the next byte as it is.
func bracket(s string) (key, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case ']':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// escape is what a key needs within brackets.
var escape = strings.NewReplacer(`\`, `\\`, `]`, `\]`)

// join is the inverse of split.
func join(segments []string) string {
	var b strings.Builder
	for i, s := range segments {
		switch {
		case strings.ContainsAny(s, `.[]\`) || s == "":
			b.WriteString("[" + escape.Replace(s) + "]")
		case i > 0:
			b.WriteString("." + s)
		default:
			b.WriteString(s)
		}
	}
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

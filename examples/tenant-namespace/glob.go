package main

import "strings"

// match reports whether s fits a pattern in which each "*" stands for any text, also for none and for one with
// slashes; images have slashes.
func match(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], more
	}
}

// matchAny reports whether s fits one of the patterns. No patterns fit everything.
func matchAny(patterns []string, s string) bool {
	for _, p := range patterns {
		if match(p, s) {
			return true
		}
	}
	return len(patterns) == 0
}

// closer orders patterns that fit the same text: one without "*" first, then the one that says more letters, then by
// alphabet.
func closer(a, b string) int {
	if exact := boolToInt(strings.Contains(a, "*")) - boolToInt(strings.Contains(b, "*")); exact != 0 {
		return exact
	}
	if longer := letters(b) - letters(a); longer != 0 {
		return longer
	}
	return strings.Compare(a, b)
}

func letters(pattern string) int { return len(pattern) - strings.Count(pattern, "*") }

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

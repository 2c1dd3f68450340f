package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "team-a", true}, {"", "", true}, {"", "a", false},
		{"team-*", "team-a", true}, {"team-*", "team-", true}, {"team-*", "tea", false},
		{"registry.example/*", "registry.example/a/b:1", true}, {"registry.example/*", "registry.example.evil/a", false},
		{"*/tools:*", "registry/x/tools:1", true}, {"*/tools:*", "registry/x/tools", false},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "abbc", true}, {"a*b*c", "acb", false},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// The definition itself, which takes exponential time: a star is nothing, or a letter and a star.
func TestMatchAgainstItsDefinition(t *testing.T) {
	var naive func(p, s string) bool
	naive = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			return naive(p[1:], s) || s != "" && naive(p, s[1:])
		}
		return s != "" && s[0] == p[0] && naive(p[1:], s[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringOfN(rapid.SampledFrom([]rune("ab*")), 0, 8, -1).Draw(t, "pattern")
		s := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 0, 8, -1).Draw(t, "text")
		if got, want := match(p, s), naive(p, s); got != want {
			t.Fatalf("match(%q, %q) = %v, want %v", p, s, got, want)
		}
	})
}

func TestCloserPatternsComeFirst(t *testing.T) {
	got := strings.Fields("* team-* team-a* team-a b* *b team-b* *-team-a")
	slices.SortFunc(got, closer)
	want := strings.Fields("team-a *-team-a team-a* team-b* team-* *b b* *")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

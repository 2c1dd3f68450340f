package pipeline

import (
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
)

// What may be held has to be releasable. A manifest shows it where it declares a part of the releasing phases; one
// that declares none of them may be meant to hold nothing, and is found out by its first answer.
func TestScenario33AManifestThatCannotReleaseEverything(t *testing.T) {
	schema, err := drivertest.Schema()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		phases  []phase.Phase
		refused string
	}{
		"only after_delete":     {[]phase.Phase{phase.BeforeCreate, phase.AfterDelete}, "on_create_failed"},
		"only on_create_failed": {[]phase.Phase{phase.AfterCreate, phase.OnCreateFailed}, "after_delete"},
		"neither":               {[]phase.Phase{phase.BeforeCreate}, ""},
		"both":                  {[]phase.Phase{phase.BeforeCreate, phase.AfterDelete, phase.OnCreateFailed}, ""},
		"releases alone":        {[]phase.Phase{phase.AfterDelete}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, wrong := Negotiate(&extension.Manifest{Name: "a", Version: "1", Phases: c.phases}, &Bind{Extension: "a", ID: "fake/a", Mode: Enforce}, "fake", nil, schema)
			var said strings.Builder
			for _, d := range wrong {
				said.WriteString(d.Summary + " " + d.Detail)
			}
			if (c.refused == "") != (len(wrong) == 0) || !strings.Contains(said.String(), c.refused) {
				t.Errorf("it says %q", said.String())
			}
		})
	}
}

// An answer with an entry that no phase will release is a failed call.
func TestScenario33AnEntryThatNothingReleases(t *testing.T) {
	entry := []extension.Entry{{Kind: "thing", ID: "one"}}
	for p, declared := range map[phase.Phase]phase.Set{
		phase.BeforeCreate:    {phase.BeforeCreate},
		phase.AfterCreate:     {phase.AfterCreate, phase.AfterDelete},
		phase.BeforeStart:     {phase.BeforeStart, phase.AfterDelete, phase.OnCreateFailed},
		phase.EnsureWorkspace: {phase.EnsureWorkspace, phase.AfterStop},
	} {
		if err := judge(&Bind{Extension: "a", Phases: declared}, p, &extension.Answer{Entries: entry}); err == nil {
			t.Errorf("%s with %v may hold", p, declared)
		}
		if err := judge(&Bind{Extension: "a", Phases: append(declared, phase.Releasers(p.Takes())...)}, p, &extension.Answer{Entries: entry}); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// An extension that is activated on request has no part in preparing a workspace, and the operator is told so.
func TestUncalled(t *testing.T) {
	declared := phase.Set{phase.BeforeCreate, phase.EnsureWorkspace, phase.DeleteWorkspace}
	for name, c := range map[string]struct {
		bind Bind
		want int
	}{
		"global":               {Bind{Mode: Enforce, Phases: declared}, 0},
		"on request":           {Bind{Mode: Enforce, Phases: declared, OnRequest: true}, 2},
		"on request, without":  {Bind{Mode: Enforce, Phases: phase.Set{phase.BeforeCreate}, OnRequest: true}, 0},
		"observed, on request": {Bind{Mode: Observe, Phases: declared, OnRequest: true}, 0},
	} {
		if got := c.bind.Uncalled(); len(got) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

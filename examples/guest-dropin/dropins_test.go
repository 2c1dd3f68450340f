package main

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	"github.com/sandgate/sandgate/shared/phase"
)

// serveSwitch makes the test binary the program.
const serveSwitch = "serve"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveSwitch {
		main()
		return
	}
	os.Exit(m.Run())
}

var feature = plugin.Feature{Name: featureDropIns, Point: "GuestInitDropin"}

func TestConformance(t *testing.T) {
	raw, err := json.Marshal(config{DropIns: map[string]dropIn{"10-motd.sh": {Contents: "#!/bin/sh\n"}}})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: raw, Features: []plugin.Feature{feature}})
}

func TestEveryWorkspaceGetsItsDropIns(t *testing.T) {
	x := plugintest.New(t, &dropIns{})
	cfg := config{DropIns: map[string]dropIn{
		"50-all.sh":  {Contents: "#!/bin/sh\n"},
		"10-team.sh": {Contents: "#!/bin/sh\nteam\n", Workspaces: []string{"team-*", "ops"}},
	}}
	if wrong := x.Use(cfg, feature); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	for workspace, want := range map[string][]string{
		"team-a": {"GuestInitDropin/10-team.sh", "GuestInitDropin/50-all.sh"}, "ops": {"GuestInitDropin/10-team.sh", "GuestInitDropin/50-all.sh"},
		"default": {"GuestInitDropin/50-all.sh"},
	} {
		c := x.Of(phase.PreparePlan, "one")
		c.Workspace.Name, c.Sandbox.Workspace = workspace, workspace
		var got []string
		for _, o := range x.Do(c).Contribute {
			got = append(got, o.Ref())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s gets %v, want %v", workspace, got, want)
		}
	}
}

func TestWhatCannotRunIsRefused(t *testing.T) {
	for name, d := range map[string]dropIn{
		"../escape":  {Contents: "#!/bin/sh\n"},
		".hidden":    {Contents: "#!/bin/sh\n"},
		"a b":        {Contents: "#!/bin/sh\n"},
		"10-text":    {Contents: "echo hello\n"},
		"10-glob.sh": {Contents: "#!/bin/sh\n", Workspaces: []string{"["}},
	} {
		x := plugintest.New(t, &dropIns{})
		if wrong := x.Use(config{DropIns: map[string]dropIn{name: d}}, feature); len(wrong) != 1 {
			t.Errorf("%s: %v", name, wrong)
		}
	}
}

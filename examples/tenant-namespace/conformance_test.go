package main

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
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

func TestConformance(t *testing.T) {
	config, err := json.Marshal(config{Tenants: map[string]tenantConfig{"team-*": {Labels: map[string]string{"tier": "gold"}, Network: true,
		LabelKeys: []string{"app"}, Require: []string{"app"}, Defaults: amounts{Memory: "1GiB"}}}})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: config, Workspace: "team-a",
		Labels: map[string]string{"app": "x"}})
}

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
	config, err := json.Marshal(config{Store: t.TempDir(), Pools: map[string]poolConfig{"sandboxes": {CIDR: "10.80.0.0/16", SubnetPrefix: 24}}})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: config})
}

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	"github.com/sandgate/sandgate/shared/extension"
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

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	raw, err := json.Marshal(config{Directory: dir, Domain: "sandboxes.example", Port: 8080})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: raw})
}

func newRoutes(t *testing.T) (*plugintest.Pipe, string) {
	t.Helper()
	dir := t.TempDir()
	x := plugintest.New(t, &routes{})
	if wrong := x.Use(config{Directory: dir, Domain: "sandboxes.example", Port: 8080}); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	return x, dir
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestOneThatIsReadyIsPublished(t *testing.T) {
	x, dir := newRoutes(t)
	if err := os.WriteFile(filepath.Join(dir, "others.yml"), []byte("http: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := x.Of(phase.AfterReady, "one")
	c.Addresses, c.Config = []string{"fd00::7/64", "10.80.0.7/24"}, json.RawMessage(`{"port": 9000}`)
	a := x.Do(c)
	want := []extension.Entry{{Kind: "route", ID: "one", Text: "name-of-one.default.sandboxes.example → http://[fd00::7]:9000"}}
	if diff := cmp.Diff(want, a.Entries); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "one.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := yaml.Unmarshal(raw, &got); err != nil {
		t.Fatalf("the proxy cannot read it: %v\n%s", err, raw)
	}
	if diff := cmp.Diff(map[string]any{"http": map[string]any{
		"routers":  map[string]any{"sandgate-one": map[string]any{"rule": "Host(`name-of-one.default.sandboxes.example`)", "service": "sandgate-one"}},
		"services": map[string]any{"sandgate-one": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": "http://[fd00::7]:9000"}}}}},
	}}, got); diff != "" {
		t.Errorf("the proxy reads (-want +got):\n%s", diff)
	}
	for range 2 { // a release that is repeated succeeds
		x.Do(x.Of(phase.AfterStop, "one"))
	}
	if diff := cmp.Diff([]string{"others.yml"}, files(t, dir)); diff != "" {
		t.Errorf("left are (-want +got):\n%s", diff)
	}
}

func TestWhatCannotBePublished(t *testing.T) {
	x, dir := newRoutes(t)
	c := x.Of(phase.ValidateRequest, "one")
	c.Config = json.RawMessage(`{"port": 70000}`)
	if a := x.Do(c); !a.Denied || !strings.Contains(a.Diagnostics[0].Summary, "70000") {
		t.Errorf("a port that is none: %+v", a)
	}
	c = x.Of(phase.ValidateRequest, "two")
	c.Sandbox.Name = strings.Repeat("x", 64)
	if a := x.Do(c); !a.Denied {
		t.Errorf("a name that is too long for the DNS: %+v", a)
	}
	c = x.Of(phase.AfterReady, "three")
	c.Addresses = nil
	if _, err := x.Call(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("without an address: %v", err)
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("published is %v", left)
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  config
		path string
	}{
		"a directory that is relative": {config{Directory: "routes", Domain: "example.com", Port: 1}, "directory"},
		"no domain":                    {config{Directory: "/routes", Domain: "", Port: 1}, "domain"},
		"a domain with a rule in it":   {config{Directory: "/routes", Domain: "a`) || Host(`b", Port: 1}, "domain"},
		"a domain with an empty label": {config{Directory: "/routes", Domain: "a..b", Port: 1}, "domain"},
	} {
		wrong := plugintest.New(t, &routes{}).Use(tt.cfg)
		if len(wrong) != 1 || wrong[0].Path != tt.path {
			t.Errorf("%s: %+v", name, wrong)
		}
	}
}

package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"

	"golang.org/x/sys/unix"
)

func readDoc(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// What operators read says of every state what it means and what to do.
func TestEveryStateIsExplained(t *testing.T) {
	doc := readDoc(t, "docs/operations.md")
	_, doc, _ = strings.Cut(doc, "## States, and what to do")
	states, _, _ := strings.Cut(doc, "## The kill switch")
	for path, kinds := range map[string]map[string]string{
		"gateway/internal/supervisor/state.go": {"State": "Extensions"},
		"shared/sandbox/sandbox.go":            {"State": "Sandboxes"},
		"gateway/internal/engine/record.go":    {"OperationState": "Operations", "StepState": "Operations", "WorkspaceState": "Workspaces"},
	} {
		source := readDoc(t, path)
		for kind, heading := range kinds {
			_, section, _ := strings.Cut(states, "### "+heading)
			section, _, _ = strings.Cut(section, "\n### ")
			found := regexp.MustCompile(` `+kind+` += "(\w+)"`).FindAllStringSubmatch(source, -1)
			if len(found) < 5 && kind != "OperationState" {
				t.Errorf("%s has %d constants of type %s: this test does not find them", path, len(found), kind)
			}
			for _, m := range found {
				if !strings.Contains(section, "`"+m[1]+"`") {
					t.Errorf("docs/operations.md does not explain the state %q under %s", m[1], heading)
				}
			}
		}
	}
}

// Every metric that the dashboard and the alerts name is one that a gateway has.
func TestTheDashboardNamesMetricsThatExist(t *testing.T) {
	s, _ := observedSite(t)
	s.start()
	defer s.end()
	text := s.scrapeOfTrouble()
	named := regexp.MustCompile(`\b(?:sandgate|go|process)_[a-z_]+`)
	dashboard := readDoc(t, "docs/dashboard.json")
	var board struct {
		Panels []struct {
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Definition string } }
	}
	if err := json.Unmarshal([]byte(dashboard), &board); err != nil {
		t.Fatal(err)
	}
	asked := map[string]string{}
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			for _, name := range named.FindAllString(q.Expr, -1) {
				asked[name] = "the panel " + p.Title
			}
		}
	}
	for _, v := range board.Templating.List {
		for _, name := range named.FindAllString(v.Definition, -1) {
			asked[name] = "a variable of the dashboard"
		}
	}
	_, metrics, _ := strings.Cut(readDoc(t, "docs/operations.md"), "## Metrics")
	metrics, _, _ = strings.Cut(metrics, "## Tracing")
	for _, name := range named.FindAllString(metrics, -1) {
		asked[name] = "docs/operations.md"
	}
	if len(asked) < 20 {
		t.Fatalf("only %d metrics are named: this test does not find them", len(asked))
	}
	for name, by := range asked {
		if !regexp.MustCompile(`(?m)^` + name + `(_count)?[{ ]`).MatchString(text) {
			t.Errorf("%s asks for %s, which no scrape has", by, name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (sandgate_\w+) `).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(metrics, m[1]) || !strings.Contains(dashboard, m[1]) {
			t.Errorf("the metric %s is not in docs/operations.md, or not in docs/dashboard.json", m[1])
		}
	}
}

// scrapeOfTrouble reads the metrics while a create is in flight and a release is stuck.
func (s *site) scrapeOfTrouble() string {
	s.t.Helper()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		s.t.Fatal(err)
	}
	held := filepath.Join(s.dir, "held-"+id.ID)
	if err := os.Remove(held); err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(held, "inside"), 0o700); err != nil { // what cannot be removed
		s.t.Fatal(err)
	}
	h, err := s.d.engine.DeleteSandbox(id.ID, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	gate := filepath.Join(s.dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		s.t.Fatal(err)
	}
	h, _, err = s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Name: "two",
		Spec: sandbox.Spec{Command: []string{"/bin/true"}, Labels: map[string]string{"gate": gate}}})
	if err != nil {
		s.t.Fatal(err)
	}
	var open *os.File
	s.until("the create is in flight", func() bool {
		open, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0)
		return err == nil
	})
	text := s.scrape()
	if err := open.Close(); err != nil {
		s.t.Error(err)
	}
	if _, err := h.Wait(s.t.Context()); err != nil {
		s.t.Error(fmt.Errorf("the second create: %w", err))
	}
	return text
}

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// A stock client of an OpenShell gateway asks for an extension by a label or in driver_config; the operator's rules decide.
// What was decided at a sandbox's create holds for its life.
func TestAStockClientAsksForAnExtension(t *testing.T) {
	s := newSite(t)
	rule := fmt.Sprintf("activation \"keeper\" {\n  when {\n    workspace = \"team-*\"\n    caller    = [\"uid:%d\"]\n  }\n}\n", os.Getuid())
	configure := func(rules string) {
		path := s.write(s.keeperBlock(""), fmt.Sprintf("bind \"keeper\" {\n    activation = \"on_request\"\n  }\n  expose {\n    socket = \"%s/acme.d/driver.sock\"\n    allow_driver_config = true\n  }", s.dir))
		raw, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, append(raw, rules...), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	configure(rule)
	s.start()
	defer s.end()
	g := s.openshell("acme", openshelltest.Table{AllowDriverConfig: true})
	label := func(v string) func(*computev1.DriverSandbox) {
		return func(m *computev1.DriverSandbox) {
			m.Spec.Template.Labels = map[string]string{"openshell.io/extension.keeper": v}
		}
	}
	byConfig := func(m *computev1.DriverSandbox) {
		c, err := structpb.NewStruct(map[string]any{"extensions": map[string]any{"keeper": map[string]any{}}})
		if err != nil {
			t.Fatal(err)
		}
		m.Spec.Template.DriverConfig = c
	}
	asked := func(id, workspace string, how func(*computev1.DriverSandbox)) *computev1.DriverSandbox {
		m := wanted(id, id)
		m.Workspace = workspace
		if how != nil {
			how(m)
		}
		return m
	}
	for _, tt := range []struct {
		id  string
		how func(*computev1.DriverSandbox)
		on  bool
	}{{"plain", nil, false}, {"no", label("no"), false}, {"label", label("enabled"), true}, {"config", byConfig, true}} {
		if err := g.Create(t.Context(), asked(tt.id, "team-a", tt.how), "token"); err != nil {
			t.Fatalf("%s: %v", tt.id, err)
		}
		if on := s.holds(tt.id); on != tt.on {
			t.Errorf("%s: the extension takes part: %t", tt.id, on)
		}
		if !tt.on && s.told() {
			t.Errorf("%s: the extension was asked", tt.id)
		}
	}
	for name, m := range map[string]*computev1.DriverSandbox{"another workspace": asked("refused", "other", label("enabled")),
		"one that is not bound": asked("refused", "team-a", func(m *computev1.DriverSandbox) {
			m.Spec.Template.Labels = map[string]string{"openshell.io/extension.ghost": "true"}
		})} {
		_, err := g.Client().ValidateSandboxCreate(t.Context(), &computev1.ValidateSandboxCreateRequest{Sandbox: m})
		if code := status.Code(err); code != codes.PermissionDenied {
			t.Errorf("%s: validate says %v", name, err)
		}
		if err := g.Create(t.Context(), m, "token"); openshelltest.CodeOf(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "was asked for") {
			t.Errorf("%s: create says %v", name, err)
		}
	}

	configure("") // nobody may ask any more
	s.mustReload()
	if err := g.Create(t.Context(), asked("late", "team-a", label("on")), "token"); openshelltest.CodeOf(err) != codes.PermissionDenied {
		t.Errorf("without a rule: %v", err)
	}
	for _, id := range []string{"plain", "no", "label", "config"} {
		if err := g.Delete(t.Context(), id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	s.until("what was held is released", func() bool { return s.held() == 0 })
}

// holds reports whether the keeper holds something for a sandbox.
func (s *site) holds(id string) bool {
	_, err := os.Stat(filepath.Join(s.dir, "held-"+id))
	return err == nil
}

// told reports whether the keeper was called at all.
func (s *site) told() bool {
	_, err := os.Stat(filepath.Join(s.dir, "dump"))
	return err == nil
}

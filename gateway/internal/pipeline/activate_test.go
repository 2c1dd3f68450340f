package pipeline

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func TestActivate(t *testing.T) {
	byName := func(s *Subject) { s.Spec.Extensions = []string{"asked"} }
	byConfig := func(s *Subject) { s.ExtensionsConfig = map[string]json.RawMessage{"asked": json.RawMessage(`{}`)} }
	byLabel := func(value string) func(*Subject) {
		return func(s *Subject) { s.Spec.Labels = map[string]string{labelPrefix + "asked": value} }
	}
	any := []Rule{{}}
	type test struct {
		rules []Rule
		ask   func(*Subject)
		want  string // of those on request; "denied": the request is refused
	}
	tests := map[string]test{
		"nobody asks":                         {any, nil, ""},
		"by name":                             {any, byName, "asked"},
		"by configuration, even an empty one": {any, byConfig, "asked"},
		"by all three at once":                {any, func(s *Subject) { byName(s); byConfig(s); byLabel("on")(s) }, "asked"},
		"no rule at all":                      {nil, byName, "denied"},
		"a default rule needs no asking":      {[]Rule{{Default: true}}, nil, "asked"},
		"a default rule allows asking":        {[]Rule{{Default: true}}, byName, "asked"},
		"a default rule elsewhere":            {[]Rule{{Default: true, Workspace: []string{"other"}}}, nil, ""},
		"any of several rules":                {[]Rule{{Driver: []string{"other"}}, {Workspace: []string{"team-*"}}}, byName, "asked"},
		"another driver":                      {[]Rule{{Driver: []string{"other"}}}, byName, "denied"},
		"another workspace":                   {[]Rule{{Workspace: []string{"team"}}}, byName, "denied"},
		"an image below the registry":         {[]Rule{{Image: []string{"registry.example/*"}}}, byName, "asked"},
		"another image":                       {[]Rule{{Image: []string{"registry.example"}}}, byName, "denied"},
		"the caller":                          {[]Rule{{Caller: []string{"uid:0", "uid:1000"}}}, byName, "asked"},
		"another caller":                      {[]Rule{{Caller: []string{"uid:0"}}}, byName, "denied"},
		"all conditions of one rule hold":     {[]Rule{{Driver: []string{"acme"}, Workspace: []string{"team-*"}, Image: []string{"*"}, Caller: []string{"uid:1000"}}}, byName, "asked"},
		"one condition of one rule does not":  {[]Rule{{Driver: []string{"acme"}, Workspace: []string{"team-*"}, Image: []string{"*"}, Caller: []string{"uid:0"}}}, byName, "denied"},
		"half of one rule, half of another":   {[]Rule{{Driver: []string{"acme"}, Caller: []string{"uid:0"}}, {Driver: []string{"other"}, Caller: []string{"uid:1000"}}}, byName, "denied"},
		"one that is not bound":               {any, func(s *Subject) { s.Spec.Extensions = []string{"absent"} }, "denied"},
		"one that is always on":               {any, func(s *Subject) { s.Spec.Extensions = []string{"always"} }, ""},
		"a label that is almost ours":         {any, func(s *Subject) { s.Spec.Labels = map[string]string{"openshell.io/extensions.asked": "on"} }, ""},
	}
	for _, yes := range []string{"enabled", "enable", "requested", "request", "true", "1", "yes", "on", "t", "y", "TRUE", "Enabled", " on", "true "} {
		tests["the label says "+yes] = test{any, byLabel(yes), "asked"}
	}
	for _, no := range []string{"", "false", "0", "no", "off", "disabled", "maybe", "2", "o n"} {
		tests["the label says "+no] = test{any, byLabel(no), ""}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &Chain{binds: []*Bind{{Extension: "always"}, {Extension: "asked", OnRequest: true, Rules: tt.rules}}}
			s := &Subject{Workspace: sandbox.Workspace{Driver: "acme", Name: "team-a"}, Origin: sandbox.Origin{Caller: "uid:1000"},
				Spec: &sandbox.Spec{Image: "registry.example/agents/base:1"}}
			if tt.ask != nil {
				tt.ask(s)
			}
			got, err := c.Activate(s)
			switch {
			case tt.want == "denied":
				if !fault.Is(err, fault.Denied) || !slices.ContainsFunc([]string{`"asked"`, `"absent"`}, func(n string) bool { return strings.Contains(err.Error(), n) }) {
					t.Errorf("active are %v, error %v, want a denial that names it", got, err)
				}
			case err != nil:
				t.Error(err)
			case strings.Join(got, " ") != strings.TrimSpace("always "+tt.want):
				t.Errorf("active are %v", got)
			}
		})
	}
}

package plugintest

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// greeter is what an author might test.
type greeter struct{}

type greeting struct {
	Word string `json:"word"`
}

func (greeter) Info() plugin.Info {
	return plugin.Info{Name: "greeter", Version: "1.0.0", Uses: []string{"labels"}, Config: &greeting{}}
}

func (greeter) Configure(_ context.Context, c *plugin.Config) error {
	if c.Value.(*greeting).Word == "" {
		c.Invalid("word", "is empty", "")
	}
	return nil
}

func (greeter) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	f, ok := r.Feature("labels")
	if !ok {
		return nil
	}
	return p.Set(f, map[string]string{"greeting": r.Driver()})
}

func (greeter) EnsureWorkspace(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	if strings.HasPrefix(r.SubjectID(), "big") {
		return s.SetState(1, strings.Repeat("x", 70_000))
	}
	s.Hold("greeting", r.SubjectID(), "")
	return nil
}

func (greeter) DeleteWorkspace(context.Context, *plugin.Request) error { return nil }

const serveSwitch = "serve"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveSwitch {
		_ = plugin.Serve(greeter{})
		return
	}
	os.Exit(m.Run())
}

func TestAnExtensionAtTheOtherEndOfAPipe(t *testing.T) {
	x := New(t, greeter{})
	if wrong := x.Use(greeting{}); len(wrong) != 1 || wrong[0].Path != "word" {
		t.Errorf("an empty word: %v", wrong)
	}
	if wrong := x.Use(greeting{Word: "hello"}, plugin.Feature{Name: "labels", Point: "Process.labels", Object: "main"}); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	if a := x.Do(x.Of(phase.PreparePlan, "one")); len(a.Contribute) != 1 || a.Contribute[0].Ref() != "Process/main" {
		t.Errorf("contributed: %+v", a.Contribute)
	}
	if a := x.Do(x.Of(phase.EnsureWorkspace, "w")); len(a.Entries) != 1 || a.Entries[0].ID != "w" {
		t.Errorf("held: %+v", a.Entries)
	}
	older := x.Of(phase.EnsureWorkspace, "w")
	x.Do(x.Of(phase.EnsureWorkspace, "w"))
	if _, err := x.Call(t.Context(), older); !fault.Is(err, fault.Conflict) {
		t.Errorf("a call that was overtaken: %v", err)
	}
	if _, err := x.Call(t.Context(), x.Of(phase.EnsureWorkspace, "big")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a state that is too large: %v", err)
	}
	nobody := x.Of(phase.EnsureWorkspace, "")
	if _, err := x.Call(t.Context(), nobody); !fault.Is(err, fault.Invalid) {
		t.Errorf("a call for nobody: %v", err)
	}
}

func TestVerifyOfATestBinary(t *testing.T) {
	Verify(t, conformance.Program{Command: os.Args[0], Args: []string{serveSwitch}, Config: []byte(`{"word":"hello"}`)})
}

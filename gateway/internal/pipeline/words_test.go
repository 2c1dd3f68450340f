package pipeline

import (
	"context"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// talker answers every call with the same.
type talker struct {
	answer *extension.Answer
	err    error
}

func (t talker) Call(context.Context, *extension.Call) (*extension.Answer, error) {
	return t.answer, t.err
}

func (t talker) Reconcile(context.Context, string, string, iter.Seq[extension.Item]) ([]extension.Item, error) {
	return nil, nil
}

// However much an extension says, what is kept of it and told to clients is short, and a denial stays one.
func TestWhatAnExtensionSaysIsCut(t *testing.T) {
	long := strings.Repeat("é", 1<<15)
	many := make([]fault.Diagnostic, 100)
	for i := range many {
		many[i] = fault.Diagnostic{Path: "a", Summary: long, Detail: long}
	}
	for name, c := range map[string]struct {
		says talker
		code fault.Code
	}{
		"a denial":        {talker{answer: &extension.Answer{Denied: true, Diagnostics: many}}, fault.Denied},
		"an error":        {talker{err: fault.New(fault.ResourceExhausted, "%s", long).With(many...)}, fault.ResourceExhausted},
		"its diagnostics": {talker{err: fault.New(fault.ResourceExhausted, "no").With(many...)}, fault.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Bind{Extension: "talker", Program: c.says, Default: PhasePolicy{Timeout: time.Minute}}
			res := New([]*Bind{b}, nil, nil).Call(t.Context(), "talker", &Request{Phase: phase.BeforeCreate, Subject: &Subject{}})
			if fault.CodeOf(res.Err) != c.code {
				t.Errorf("%v, want %v", fault.CodeOf(res.Err), c.code)
			}
			size := len(res.Err.Error())
			for _, d := range append(fault.DiagnosticsOf(res.Err), res.Diagnostics...) {
				size += len(d.Path) + len(d.Summary) + len(d.Detail)
			}
			if size > 5*extension.MaxWords {
				t.Errorf("%d bytes are kept", size)
			}
			if text := res.Err.Error(); len(text) > extension.MaxWords/2 && !strings.Contains(text, "bytes more") {
				t.Error("it is not said that something is missing")
			}
		})
	}
}

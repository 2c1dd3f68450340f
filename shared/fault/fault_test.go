package fault

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatusRoundTrip(t *testing.T) {
	for code := Invalid; code <= Internal; code++ {
		err := New(code, "pool %q is full", "sandboxes").With(Diagnostic{Summary: "full", Detail: "254 of 254", Path: "pool.sandboxes"})
		got := FromStatus(ToStatus(fmt.Errorf("ipam: %w", err)))
		if CodeOf(got) != code {
			t.Errorf("%v came back as %v", code, CodeOf(got))
		}
		if got.Error() != "ipam: "+err.Message {
			t.Errorf("message came back as %q", got.Error())
		}
		if diff := cmp.Diff(err.Diagnostics, DiagnosticsOf(got)); diff != "" {
			t.Errorf("diagnostics of %v (-sent +received):\n%s", code, diff)
		}
		if ParseCode(code.String()) != code {
			t.Errorf("%v does not parse back", code)
		}
	}
}

func TestCodeOf(t *testing.T) {
	for want, err := range map[Code]error{
		OK:               nil,
		Canceled:         fmt.Errorf("call: %w", context.Canceled),
		DeadlineExceeded: context.DeadlineExceeded,
		Internal:         fmt.Errorf("plain"),
		NotFound:         fmt.Errorf("outer: %w", New(NotFound, "inner")),
		Denied:           New(Denied, "outer: %w", New(NotFound, "inner")),
	} {
		if got := CodeOf(err); got != want {
			t.Errorf("CodeOf(%v) = %v, want %v", err, got, want)
		}
	}
}

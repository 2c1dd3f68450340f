package enginetest

import (
	"testing"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// Health contributes a health check: a sandbox is ready when it passes and fails when it does not, and may become ready
// still.
func Health(t *testing.T, e *Engine, open Opener) {
	t.Helper()
	r := newRig(t, e, open)
	r.must("EnsureWorkspace", r.ensure())
	v := r.watch()
	s := r.sandboxOf("checked", Image, `sleep 3; : >/tmp/ok; `+sleeps)
	check := plan.Object{Kind: "Container", Name: "main", Fields: map[string]any{"health": map[string]any{
		"test": []any{"CMD-SHELL", "test -e /tmp/ok"}, "interval": "300ms", "timeout": "5s", "retries": int64(2)}}}
	s.create.Plan = r.with(s.create.Plan, phase.BeforeCreate, "Container.health", check)
	r.must("Create", s.make())
	if st := v.becomes("before the first check", s, driver.Running); st.Reason != "HealthCheckStarting" {
		t.Errorf("before its check it is %s %s", st.State, st.Reason)
	}
	if st := v.becomes("the check does not pass", s, driver.Failed); st.Reason != "HealthCheckFailed" {
		t.Errorf("while its check fails it is %s %s", st.State, st.Reason)
	}
	v.becomes("the check passes", s, driver.Ready)
	r.must("Delete", s.delete())
	r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
}

package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/phase"
)

func TestLaunchDescribeConfigureCallClose(t *testing.T) {
	r := newRig(t)
	h, err := r.Launch(r.ctx(), r.probe("noop"))
	if err != nil {
		t.Fatal(err)
	}
	if m := h.Manifest(); m.Name != "probe" || m.Version != "1.0.0" {
		t.Errorf("manifest %+v", m)
	}
	if err := h.Configure(r.ctx(), []byte(`{"pool":"a"}`), nil); err != nil {
		t.Fatal(err)
	}
	answer, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "config"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`{"pool":"a"}`, answer.Diagnostics[0].Summary); diff != "" {
		t.Errorf("configuration that it has (-want +got):\n%s", diff)
	}
	status := h.Status()
	if status.State != Ready || status.PID == 0 || status.Digest == "" {
		t.Errorf("status %+v", status)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	pidGone(t, status.PID)
	var states []State
	for _, e := range r.events {
		if e.From != e.To {
			states = append(states, e.To)
		}
	}
	if diff := cmp.Diff([]State{Verified, Starting, Negotiated, Configured, Ready, Stopped}, states); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

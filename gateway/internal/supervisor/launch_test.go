package supervisor

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// TestConfigureHangs: a program that never takes its configuration holds up nobody for ever, and not its own end.
func TestConfigureHangs(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timing.Configure, c.Timing.Stop = 300*time.Millisecond, time.Second })
	for _, mode := range []string{"undecided", "undecided-frozen"} {
		t.Run(mode, func(t *testing.T) {
			h, err := r.Launch(r.ctx(), r.probe(mode))
			if err != nil {
				t.Fatal(err)
			}
			err = h.Configure(r.ctx(), nil, nil)
			if !fault.Is(err, fault.DeadlineExceeded) || !strings.Contains(err.Error(), "did not take its configuration within 300ms") {
				t.Errorf("it came to %v", err)
			}
			if st := h.Status(); st.State != Negotiated {
				t.Errorf("afterwards it is %s", st.State)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

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

package enginetest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
)

// soon is how long a machine under load may take for what otherwise takes a fraction of a second; what it took is logged.
const soon = 10 * time.Second

// viewer is a Watch that goes on.
type viewer struct {
	r      *rig
	events chan driver.Event
}

func (r *rig) watch() *viewer {
	v := &viewer{r: r, events: make(chan driver.Event, 1024)}
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.d.Watch(ctx, func(ev driver.Event) error { v.events <- ev; return nil })
	}()
	r.Cleanup(func() { cancel(); <-done })
	v.next("the snapshot", func(ev driver.Event) bool { return ev.Synced })
	return v
}

func (v *viewer) next(what string, ok func(driver.Event) bool) driver.Event {
	v.r.Helper()
	late := time.NewTimer(soon)
	defer late.Stop()
	for began := time.Now(); ; {
		select {
		case ev := <-v.events:
			if ok(ev) {
				v.r.Logf("%s: told after %v", what, time.Since(began).Round(time.Millisecond))
				return ev
			}
		case <-late.C:
			v.r.Fatalf("%s: not told within %v", what, soon)
		}
	}
}

func (v *viewer) becomes(what string, s *subject, state driver.State) *driver.Status {
	v.r.Helper()
	return v.next(what, func(ev driver.Event) bool {
		return ev.Status != nil && ev.Status.Identity == s.id() && ev.Status.State == state
	}).Status
}

// Meddling lets somebody else do to containers what people do: whoever watches is told at once, and the driver goes on
// with what is there.
func Meddling(t *testing.T, e *Engine, open Opener) {
	t.Helper()
	r := newRig(t, e, open)
	empty := r.inventory()
	r.must("EnsureWorkspace", r.ensure())
	v := r.watch()
	post := func(path string) { r.must("meddle", e.Call(http.MethodPost, "/v1.40/containers/"+path, nil, nil)) }
	remove := func(name string) {
		r.must("meddle", e.Call(http.MethodDelete, "/v1.40/containers/"+name+"?force=1", nil, nil))
	}
	begin := func(name string) (*subject, string) {
		s := r.sandbox(name)
		r.must("Create", s.make())
		return s, v.becomes("created", s, driver.Ready).Objects[0].Name
	}

	killed, name := begin("killed")
	post(name + "/kill")
	if st := v.becomes("killed by somebody", killed, driver.Exited); st.ExitCode == nil || *st.ExitCode != 137 {
		t.Errorf("exit code of what was killed: %+v, want 137", st)
	}
	post(name + "/start")
	if st := v.becomes("started by somebody", killed, driver.Failed); st.Reason != "StartedByOthers" || st.Run != 1 {
		t.Errorf("what somebody has started again: %+v", st)
	}
	r.must("Stop", killed.stop())
	v.becomes("stopped by us", killed, driver.Stopped)
	r.must("Start", killed.start(2, killed.address))
	v.becomes("started by us", killed, driver.Ready)

	stopped, name := begin("stopped")
	post(name + "/stop?t=5")
	v.becomes("stopped by somebody", stopped, driver.Exited)

	renamed, name := begin("renamed")
	post(name + "/rename?name=somebody-elses")
	v.next("renamed by somebody", func(ev driver.Event) bool {
		return ev.Status != nil && ev.Status.Identity == renamed.id() && ev.Status.Objects[0].Name == "somebody-elses"
	})
	r.must("Create again", renamed.make()) // it is found by its marks
	r.must("Stop", renamed.stop())
	v.becomes("stopped by us", renamed, driver.Stopped)

	removed, name := begin("removed")
	remove(name)
	v.next("removed by somebody", func(ev driver.Event) bool { return ev.Status == nil && ev.Deleted == removed.id() })
	for _, s := range []*subject{killed, stopped, renamed, removed} {
		r.must("Delete", s.delete())
	}
	r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
	r.same("all of it", empty)
}

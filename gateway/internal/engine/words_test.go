package engine

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What a driver says is kept in records, history and audit: it is cut as an extension's words are.
func TestALongErrorOfTheDriverIsCut(t *testing.T) {
	for _, call := range []drivertest.Call{drivertest.CallWorkspaceLayers, drivertest.CallEnsureWorkspace, drivertest.CallLayers,
		drivertest.CallResolve, drivertest.CallCreate} {
		bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
			r.world.Inject(drivertest.Fault{Call: call, Err: fault.New(fault.FailedPrecondition, "%s", strings.Repeat("x", 5*extension.MaxWords))})
			id, err := r.create("one")
			if err == nil || len(err.Error()) > 2*extension.MaxWords || !strings.Contains(err.Error(), "bytes more") {
				t.Fatalf("%s: the create failed with %d bytes", call, len(fmt.Sprint(err)))
			}
			lines, err := r.engine.Audit(t.Context(), id.ID, 0)
			r.must(err)
			for _, l := range lines {
				if len(l.Text) > 2*extension.MaxWords {
					t.Errorf("%s: the audit has %d bytes of %s", call, len(l.Text), l.What)
				}
			}
		})
	}
}

// The same holds for what it says of a sandbox that cannot run.
func TestALongReasonOfTheDriverIsCut(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		id, err := r.create("one")
		r.must(err)
		r.world.SetFailed(id.ID, "Broken", "\x1b[2J"+strings.Repeat("x", 5*extension.MaxWords))
		synctest.Wait()
		sb, _ := r.engine.Lookup(id.ID)
		if sb.State != sandbox.Failing || len(sb.Reason) > 2*extension.MaxWords || !strings.Contains(sb.Reason, "bytes more") || strings.Contains(sb.Reason, "\x1b") {
			t.Errorf("it is %s, with %d bytes of a reason", sb.State, len(sb.Reason))
		}
	})
	many := make([]driver.RealObject, 2*maxTold)
	many[0].Name = strings.Repeat("n", 2*maxToldWord)
	if got := named(many); len(got) != maxTold || len(got[0].Name) > maxToldWord+len("… (512 bytes more)") {
		t.Errorf("%d objects, the first with %d bytes", len(got), len(got[0].Name))
	}
	if got := words(nil); got != nil {
		t.Errorf("of none come %v", got)
	}
}

package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
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

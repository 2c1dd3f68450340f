package engine

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// after_ready is where an extension is told how the sandbox is reached: before, nobody knows, and after the run it may be
// another's.
func TestAfterReadyHasTheAddress(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a"}, func(t *testing.T, r *rig) {
		a := r.exts[0]
		told := map[phase.Phase][]string{}
		for _, p := range []phase.Phase{phase.BeforeStart, phase.AfterReady, phase.AfterStop, phase.AfterDelete} {
			a.on(p, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
				told[p] = append(told[p], c.Addresses...)
				return a.effect(c)
			})
		}
		a.on(phase.BeforeCreate, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
			answer, err := a.effect(c)
			answer.Contribute = []plan.Object{{Kind: drivertest.KindBox, Name: drivertest.Main, Fields: map[string]any{"address": "10.0.0.7/24"}}}
			return answer, err
		})
		id := r.life()
		synctest.Wait()
		r.must(r.stop(id))
		r.must(r.start(id))
		synctest.Wait()
		r.must(r.remove(id))
		if diff := cmp.Diff(map[phase.Phase][]string{phase.BeforeStart: nil, phase.AfterReady: {"10.0.0.7/24", "10.0.0.7/24"}, phase.AfterStop: nil, phase.AfterDelete: nil}, told); diff != "" {
			t.Errorf("addresses by phase (-want +got):\n%s", diff)
		}
	})
}

package engine

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
)

// resolved notes what every Resolve is told to be required.
type resolved struct {
	driver.Driver
	required [][]string
}

func (d *resolved) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	d.required = append(d.required, r.Requires)
	return d.Driver.Resolve(ctx, r)
}

// What an extension requires goes with it when it is left out, of the sandbox or of one run.
func TestWhatIsLeftOutRequiresNothing(t *testing.T) {
	for _, failing := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
		bubble(t, rigOptions{policy: pipeline.FailOpen, attempts: 1}, []string{"a", "b"}, func(t *testing.T, r *rig) {
			synctest.Wait() // the engine watches the driver
			d := &resolved{Driver: r.catalog.Current().Drivers["fake"].Driver}
			r.catalog.Current().Drivers["fake"].Driver = d
			for i, features := range [][]string{{"labels", "annotations"}, {"labels"}} {
				r.exts[i].on(phase.PreparePlan, func(context.Context, *extension.Call) (*extension.Answer, error) {
					return &extension.Answer{Requires: features}, nil
				})
			}
			r.exts[0].on(failing, broken)
			_, err := r.create("one")
			r.must(err)
			if len(d.required) != 2 || !slices.Equal(d.required[0], []string{"annotations", "labels"}) || !slices.Equal(d.required[1], []string{"labels"}) {
				t.Errorf("%s fails: the driver was told that %v are required", failing, d.required)
			}
		})
	}
}

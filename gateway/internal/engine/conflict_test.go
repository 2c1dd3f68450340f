package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// contributes lets an extension do what the phase is for, and contribute to the box.
func (x *scripted) contributes(p phase.Phase, fields map[string]any) {
	x.on(p, func(_ context.Context, c *extension.Call) (*extension.Answer, error) {
		a, err := x.effect(c)
		a.Contribute = []plan.Object{{Kind: drivertest.KindBox, Name: drivertest.Main, Fields: fields}}
		return a, err
	})
}

// nothingStays fails unless a create left nothing but its history and its workspace.
func (r *rig) nothingStays() {
	r.t.Helper()
	r.nothingHeld()
	if live := r.engine.Sandboxes(false); len(live) > 0 {
		r.t.Errorf("there is still %+v", live)
	}
	if n := r.world.Calls(drivertest.CallCreate); n != 0 {
		r.t.Errorf("the driver was asked to create %d times", n)
	}
}

// told fails unless the error is of that code and says all of it.
func (r *rig) told(err error, code fault.Code, all ...string) {
	r.t.Helper()
	if !fault.Is(err, code) {
		r.t.Errorf("it is %v, want %v: %v", fault.CodeOf(err), code, err)
	}
	for _, want := range all {
		if err == nil || !strings.Contains(err.Error(), want) {
			r.t.Errorf("it does not say %q: %v", want, err)
		}
	}
}

// Two extensions that set one field to two values fail the create, in whatever phases and under every policy.
func TestAConflictFailsTheCreate(t *testing.T) {
	phases := []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	for i, first := range phases {
		for _, second := range phases[i:] {
			for _, policy := range []pipeline.FailurePolicy{pipeline.FailClosed, pipeline.FailOpen} {
				t.Run(fmt.Sprintf("%s %s %s", first, second, policy), func(t *testing.T) {
					bubble(t, rigOptions{policy: policy}, []string{"a", "b"}, func(t *testing.T, r *rig) {
						r.exts[0].contributes(first, map[string]any{"annotations": map[string]any{"note": "of-a"}})
						r.exts[1].contributes(second, map[string]any{"annotations": map[string]any{"note": "of-b"}})
						_, err := r.create("one")
						r.told(err, fault.Conflict, "Box/main", "annotations", "note", "a set it to", "b wants", `"of-a"`, `"of-b"`)
						r.nothingStays()
						var conflict *plan.ConflictError
						if second == phase.PreparePlan && !errors.As(err, &conflict) {
							t.Errorf("%T is not a conflict with its parts", err)
						}
					})
				})
			}
		}
	}
}

// The same value is no conflict: the field stays the first owner's.
func TestTheSameValueIsNoConflict(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		for _, x := range r.exts {
			x.contributes(phase.BeforeCreate, map[string]any{"annotations": map[string]any{"note": "same"}})
		}
		id, err := r.create("one")
		r.must(err)
		p, err := r.engine.PlanOf(id.ID)
		r.must(err)
		for _, f := range p.Fields() {
			if strings.HasPrefix(f.Path, "annotations") && f.Owner != "a" {
				t.Errorf("%s is %s's", f.Path, f.Owner)
			}
		}
	})
}

func TestScenario42ASensitiveConflictShowsDigestsOnly(t *testing.T) {
	for _, p := range []phase.Phase{phase.PreparePlan, phase.BeforeCreate} {
		bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
			r.exts[0].contributes(phase.PreparePlan, map[string]any{"environment": map[string]any{"KEY": "s3cret-of-a"}})
			r.exts[1].contributes(p, map[string]any{"environment": map[string]any{"KEY": "s3cret-of-b"}})
			var written []byte
			r.journal.Hook(func(writes []journal.Write) {
				for _, w := range writes {
					written = append(written, w.Record.Body...)
				}
			}, nil)
			id, err := r.create("one")
			r.told(err, fault.Conflict, "environment", "KEY", "a set it to (sensitive, ", "b wants (sensitive, ")
			detail, _ := json.Marshal(fault.DiagnosticsOf(err))
			audit, aerr := r.engine.Audit(t.Context(), "", 0)
			r.must(aerr)
			said, _ := json.Marshal(audit)
			ops, oerr := r.engine.Operations(t.Context(), id.ID)
			r.must(oerr)
			history, _ := json.Marshal(ops)
			for where, text := range map[string]string{"the error": fmt.Sprint(err), "its diagnostics": string(detail), "the audit": string(said), "the history": string(history), "the journal": string(written)} {
				if strings.Contains(text, "s3cret") {
					t.Errorf("%s tells it: %s", where, text)
				}
			}
			r.nothingStays()
		})
	}
}

// What lies outside the grant is refused whole, naming the mutation point and the line of the bind.
func TestAContributionOutsideItsGrant(t *testing.T) {
	for name, c := range map[string]struct {
		phase  phase.Phase
		fields map[string]any
		says   []string
	}{
		"not granted":    {phase.PreparePlan, map[string]any{"annotations": map[string]any{"x": "y"}, "size": "large"}, []string{"Box.size", "grant"}},
		"of the gateway": {phase.PreparePlan, map[string]any{"hostname": "other"}, []string{"Box.hostname", "gateway"}},
		"too late":       {phase.BeforeStart, map[string]any{"address": "10.0.0.9"}, []string{"Box.address", "before_start"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, rigOptions{policy: pipeline.FailOpen}, []string{"a", "b"}, func(t *testing.T, r *rig) {
				r.exts[1].contributes(c.phase, c.fields)
				_, err := r.create("one")
				r.told(err, fault.Denied, append(c.says, "b contributes", "test.hcl:1")...)
				r.nothingStays()
			})
		})
	}
}

// The image that the caller wrote is replaced with override, and is a conflict without.
func TestTheImageOfTheRequest(t *testing.T) {
	for _, p := range []phase.Phase{phase.PreparePlan, phase.BeforeStart} {
		for _, override := range []bool{false, true} {
			bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
				if !override {
					r.catalog.Current().Drivers["fake"].Chain.Bind("a").Grant.Override = nil
				}
				r.exts[0].contributes(p, map[string]any{"image": "mirror/alpine"})
				id, err := r.create("one")
				if !override {
					r.told(err, fault.Conflict, "image", "request set it to", "a wants", `"alpine"`, `"mirror/alpine"`)
					r.nothingStays()
					return
				}
				r.must(err)
				synctest.Wait()
				if got := r.box(id.ID)["image"]; got != "mirror/alpine" {
					t.Errorf("the driver has the image %v", got)
				}
				lines, err := r.engine.Audit(t.Context(), id.ID, 0)
				r.must(err)
				found := false
				for _, l := range lines {
					found = found || l.What == "override" && l.Extension == "a" && strings.Contains(l.Text, "image") && strings.Contains(l.Text, "request")
				}
				if !found {
					t.Errorf("the override is not in the audit: %+v", lines)
				}
			})
		}
	}
}

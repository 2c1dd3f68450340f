package bench

import (
	"context"
	"maps"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// idle is a driver that does nothing: what is left is the gateway's own. It keeps no sandboxes, and says that one is
// ready only where somebody has asked for events.
type idle struct{ events chan driver.Event }

var _ driver.Driver = (*idle)(nil)

const boxSchema = `types:
- name: Box
  map:
    fields:
    - {name: id, type: {scalar: string}}
    - {name: hostname, type: {scalar: string}}
    - {name: image, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
`

func (d *idle) Describe(context.Context) (*driver.Description, error) {
	return &driver.Description{Type: "idle", Version: "1",
		Kinds:  []plan.Kind{{Name: "Box", Scope: plan.ScopeSandbox, Schema: boxSchema, Sensitive: []string{"environment"}}},
		Points: []plan.Point{{Pattern: "Box.annotations", Phases: []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}}}}, nil
}

func (d *idle) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	box := func(owner plan.Owner, fields map[string]any) plan.Layer {
		return plan.Layer{Owner: owner, Objects: []plan.Object{{Kind: "Box", Name: "main", Fields: fields}}}
	}
	command := make([]any, len(r.Spec.Command))
	for i, c := range r.Spec.Command {
		command[i] = c
	}
	return []plan.Layer{
		box(plan.OwnerGateway, map[string]any{"id": r.Identity.ID, "hostname": r.Identity.Name}),
		box(plan.OwnerRequest, map[string]any{"image": r.Spec.Image, "command": command, "environment": anyMap(r.Spec.Environment),
			"labels": anyMap(r.Spec.Labels)}),
	}, nil
}

func anyMap(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k := range maps.Keys(m) {
		out[k] = m[k]
	}
	return out
}

func (d *idle) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return nil, nil
}
func (d *idle) Resolve(context.Context, *driver.ResolveRequest) error { return nil }

func (d *idle) Create(ctx context.Context, r *driver.CreateRequest) error {
	if d.events == nil {
		return nil
	}
	select {
	case d.events <- driver.Event{Status: &driver.Status{Identity: r.Identity, Operation: r.Operation, Run: r.Run, State: driver.Ready}}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *idle) Start(context.Context, *driver.StartRequest) error   { return nil }
func (d *idle) Stop(context.Context, sandbox.Identity) error        { return nil }
func (d *idle) Delete(context.Context, *driver.DeleteRequest) error { return nil }

func (d *idle) Get(_ context.Context, id sandbox.Identity) (*driver.Status, error) {
	return nil, fault.New(fault.NotFound, "there is no sandbox %q", id.ID)
}

func (d *idle) List(context.Context) ([]*driver.Status, error) { return nil, nil }

func (d *idle) Watch(ctx context.Context, fn func(driver.Event) error) error {
	if err := fn(driver.Event{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case ev := <-d.events: // for ever where nobody has asked for events
			if err := fn(ev); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *idle) EnsureWorkspace(context.Context, *driver.WorkspaceRequest) error { return nil }
func (d *idle) DeleteWorkspace(context.Context, sandbox.Workspace) error        { return nil }
func (d *idle) Close() error                                                    { return nil }

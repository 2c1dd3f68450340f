package main

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

const schema = `types:
- name: Command
  map:
    fields:
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
`

const (
	kind        = "Command"
	mainCommand = "main"
)

// command is the one object of the plan as Go has it.
type command struct {
	Command     []string          `json:"command,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

func commandOf(p *plan.Plan) (c command) {
	o, _ := p.Object(kind, mainCommand)
	raw, err := json.Marshal(o.Fields)
	if err == nil {
		_ = json.Unmarshal(raw, &c) // the fields fit the schema, and so the type
	}
	return c
}

func (c command) environment() []string {
	out := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		out = append(out, name+"="+c.Environment[name])
	}
	return out
}

// Describe implements driver.Driver.
func (p *processes) Describe(context.Context) (*driver.Description, error) {
	phases := []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	points := []plan.Point{
		{Pattern: "Command.environment", Phases: phases, Overridable: true, Feature: "environment", Object: mainCommand, Doc: "variables of the command"},
		{Pattern: "Command.labels", Phases: phases, Overridable: true, Feature: "labels", Object: mainCommand, Doc: "for people"},
	}
	d := &driver.Description{Type: "processes", Version: "1.0.0", Instance: p.instance, Points: points,
		Kinds: []plan.Kind{{Name: kind, Scope: plan.ScopeSandbox, Schema: schema, Sensitive: []string{"environment"}}}}
	for _, pt := range points {
		d.Features = append(d.Features, extension.Feature{Name: pt.Feature, Point: pt.Pattern, Object: pt.Object})
	}
	return d, nil
}

// Layers implements driver.Driver.
func (p *processes) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	if len(r.Config) > 0 && string(r.Config) != "{}" {
		return nil, fault.New(fault.Invalid, "driver_config: this driver takes none").With(fault.Diagnostic{Path: "driver_config", Summary: "this driver takes none"})
	}
	raw, err := json.Marshal(command{Command: r.Spec.Command, Environment: r.Spec.Environment, Labels: r.Spec.Labels})
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	return []plan.Layer{{Owner: plan.OwnerRequest, Objects: []plan.Object{{Kind: kind, Name: mainCommand, Fields: fields}}}}, nil
}

// WorkspaceLayers implements driver.Driver: a workspace has nothing here.
func (p *processes) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return nil, nil
}

// Resolve implements driver.Driver.
func (p *processes) Resolve(_ context.Context, r *driver.ResolveRequest) error {
	for _, name := range r.Requires {
		if name != "environment" && name != "labels" {
			return fault.New(fault.FailedPrecondition, "feature %q is required, and this driver does not have it", name)
		}
	}
	if len(commandOf(r.Plan).Command) == 0 {
		return fault.New(fault.Invalid, "command: it is empty")
	}
	if n, err := p.read(r.Identity.ID); err == nil {
		return fault.New(fault.Conflict, "sandbox %s is there already, of operation %s", r.Identity.ID, n.Operation)
	}
	return nil
}

// EnsureWorkspace implements driver.Driver.
func (p *processes) EnsureWorkspace(context.Context, *driver.WorkspaceRequest) error { return nil }

// DeleteWorkspace implements driver.Driver.
func (p *processes) DeleteWorkspace(context.Context, sandbox.Workspace) error { return nil }

// Get implements driver.Driver.
func (p *processes) Get(_ context.Context, id sandbox.Identity) (*driver.Status, error) {
	n, err := p.read(id.ID)
	if err != nil {
		return nil, err
	}
	return p.status(n), nil
}

// List implements driver.Driver.
func (p *processes) List(ctx context.Context) ([]*driver.Status, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, err
	}
	var out []*driver.Status
	for _, e := range entries {
		st, err := p.Get(ctx, sandbox.Identity{ID: e.Name()})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}

// lookInterval is how often the processes of an earlier program are looked at: nobody tells when they end.
const lookInterval = 200 * time.Millisecond

// Watch implements driver.Driver: it looks at every change, and now and then.
func (p *processes) Watch(ctx context.Context, fn func(driver.Event) error) error {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	sent := map[string]driver.Status{}
	for synced := false; ; {
		p.mu.Lock()
		changed := p.changed // taken before looking
		p.mu.Unlock()
		all, err := p.List(ctx)
		if err != nil {
			return err
		}
		if err := tell(all, sent, fn); err != nil {
			return err
		}
		if !synced {
			if err := fn(driver.Event{Synced: true}); err != nil {
				return err
			}
			synced = true
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell sends what differs from what was sent.
func tell(all []*driver.Status, sent map[string]driver.Status, fn func(driver.Event) error) error {
	here := map[string]bool{}
	for _, st := range all {
		here[st.Identity.ID] = true
		old, known := sent[st.Identity.ID]
		if known && old.State == st.State && old.Run == st.Run {
			continue
		}
		sent[st.Identity.ID] = *st
		if err := fn(driver.Event{Status: st}); err != nil {
			return err
		}
	}
	for id, st := range sent {
		if here[id] {
			continue
		}
		delete(sent, id)
		if err := fn(driver.Event{Deleted: st.Identity}); err != nil {
			return err
		}
	}
	return nil
}

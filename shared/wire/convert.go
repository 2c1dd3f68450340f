// Package wire translates between the contracts told in Go and their form on the wire, and has the handshake by which
// a host and a program meet. It is the only place that knows both.
package wire

import (
	"encoding/json"
	"fmt"
	"math"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// maxDepth bounds the nesting of a value that comes over the wire.
const maxDepth = 64

// ManifestToProto and ManifestFromProto translate what an extension says of itself.
func ManifestToProto(m *extension.Manifest) *extensionv1.Manifest {
	return &extensionv1.Manifest{
		Name: m.Name, Version: m.Version, Phases: texts(m.Phases), Points: m.Points, Requires: m.Requires, Uses: m.Uses,
		Provides: m.Provides, ConfigSchema: m.ConfigSchema, StateReads: ints(m.StateReads), StateWrites: int32(m.StateWrites),
	}
}

// ManifestFromProto is the inverse of ManifestToProto.
func ManifestFromProto(m *extensionv1.Manifest) *extension.Manifest {
	out := &extension.Manifest{
		Name: m.GetName(), Version: m.GetVersion(), Phases: phases(m.GetPhases()), Points: m.GetPoints(), Requires: m.GetRequires(),
		Uses: m.GetUses(), Provides: m.GetProvides(), ConfigSchema: m.GetConfigSchema(), StateWrites: int(m.GetStateWrites()),
	}
	for _, v := range m.GetStateReads() {
		out.StateReads = append(out.StateReads, int(v))
	}
	return out
}

// ContractToProto translates what was negotiated.
func ContractToProto(c *extension.Contract) *extensionv1.Contract {
	out := &extensionv1.Contract{Bind: c.Bind, Driver: c.Driver, Phases: texts(c.Phases), Missing: c.Missing, ObserveOnly: c.ObserveOnly}
	for _, f := range c.Features {
		out.Features = append(out.Features, featureToProto(f))
	}
	for _, p := range c.Points {
		out.Points = append(out.Points, pointToProto(p))
	}
	return out
}

// ContractFromProto is the inverse of ContractToProto.
func ContractFromProto(c *extensionv1.Contract) *extension.Contract {
	out := &extension.Contract{Bind: c.GetBind(), Driver: c.GetDriver(), Phases: phases(c.GetPhases()), Missing: c.GetMissing(),
		ObserveOnly: c.GetObserveOnly()}
	for _, f := range c.GetFeatures() {
		out.Features = append(out.Features, featureFromProto(f))
	}
	for _, p := range c.GetPoints() {
		out.Points = append(out.Points, pointFromProto(p))
	}
	return out
}

// DiagnosticsToProto translates diagnostics.
func DiagnosticsToProto(list []fault.Diagnostic) []*extensionv1.Diagnostic {
	var out []*extensionv1.Diagnostic
	for _, d := range list {
		out = append(out, &extensionv1.Diagnostic{Summary: d.Summary, Detail: d.Detail, Path: d.Path})
	}
	return out
}

// DiagnosticsFromProto is the inverse of DiagnosticsToProto.
func DiagnosticsFromProto(list []*extensionv1.Diagnostic) []fault.Diagnostic {
	var out []fault.Diagnostic
	for _, d := range list {
		out = append(out, fault.Diagnostic{Summary: d.GetSummary(), Detail: d.GetDetail(), Path: d.GetPath()})
	}
	return out
}

// ObjectsToProto translates plan objects. Numbers become doubles on the wire; whole ones come back whole.
func ObjectsToProto(list []plan.Object) ([]*extensionv1.Object, error) {
	var out []*extensionv1.Object
	for _, o := range list {
		fields, err := structpb.NewStruct(o.Fields)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s holds what JSON cannot: %v", o.Ref(), err)
		}
		out = append(out, &extensionv1.Object{Kind: o.Kind, Name: o.Name, Fields: fields})
	}
	return out, nil
}

// ObjectsFromProto is the inverse of ObjectsToProto. It refuses what is nested too deeply.
func ObjectsFromProto(list []*extensionv1.Object) ([]plan.Object, error) {
	var out []plan.Object
	for _, o := range list {
		fields := make(map[string]any, len(o.GetFields().GetFields()))
		for k, v := range o.GetFields().GetFields() {
			x, err := value(v, 0)
			if err != nil {
				return nil, fault.New(fault.Invalid, "%s/%s: %v", o.GetKind(), o.GetName(), err)
			}
			fields[k] = x
		}
		out = append(out, plan.Object{Kind: o.GetKind(), Name: o.GetName(), Fields: fields})
	}
	return out, nil
}

func value(v *structpb.Value, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("a value is nested more than %d levels deep", maxDepth)
	}
	switch x := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		out := make(map[string]any, len(x.StructValue.GetFields()))
		for k, e := range x.StructValue.GetFields() {
			c, err := value(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = c
		}
		return out, nil
	case *structpb.Value_ListValue:
		out := make([]any, 0, len(x.ListValue.GetValues()))
		for _, e := range x.ListValue.GetValues() {
			c, err := value(e, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
		return out, nil
	case *structpb.Value_NumberValue:
		f := x.NumberValue
		switch {
		case math.IsNaN(f) || math.IsInf(f, 0):
			return nil, fmt.Errorf("a number is not finite")
		case f == math.Trunc(f) && math.Abs(f) < 1<<53:
			return int64(f), nil
		}
		return f, nil
	case *structpb.Value_StringValue:
		return x.StringValue, nil
	case *structpb.Value_BoolValue:
		return x.BoolValue, nil
	}
	return nil, nil
}

func identityToProto(id *sandbox.Identity) *extensionv1.Identity {
	if id == nil {
		return nil
	}
	return &extensionv1.Identity{Id: id.ID, Driver: id.Driver, Workspace: id.Workspace, WorkspaceId: id.WorkspaceID, Name: id.Name}
}

func identityFromProto(id *extensionv1.Identity) *sandbox.Identity {
	if id == nil {
		return nil
	}
	return &sandbox.Identity{ID: id.GetId(), Driver: id.GetDriver(), Workspace: id.GetWorkspace(), WorkspaceID: id.GetWorkspaceId(), Name: id.GetName()}
}

func workspaceToProto(w sandbox.Workspace) *extensionv1.Workspace {
	return &extensionv1.Workspace{Id: w.ID, Driver: w.Driver, Name: w.Name}
}

func workspaceFromProto(w *extensionv1.Workspace) sandbox.Workspace {
	return sandbox.Workspace{ID: w.GetId(), Driver: w.GetDriver(), Name: w.GetName()}
}

func stateToProto(s *extension.State) *extensionv1.State {
	if s == nil {
		return nil
	}
	return &extensionv1.State{SchemaVersion: int32(s.SchemaVersion), Payload: s.Payload}
}

func stateFromProto(s *extensionv1.State) *extension.State {
	if s == nil {
		return nil
	}
	return &extension.State{SchemaVersion: int(s.GetSchemaVersion()), Payload: s.GetPayload()}
}

func entriesToProto(list []extension.Entry) []*extensionv1.Entry {
	var out []*extensionv1.Entry
	for _, e := range list {
		out = append(out, &extensionv1.Entry{Kind: e.Kind, Id: e.ID, Text: e.Text})
	}
	return out
}

func entriesFromProto(list []*extensionv1.Entry) []extension.Entry {
	var out []extension.Entry
	for _, e := range list {
		out = append(out, extension.Entry{Kind: e.GetKind(), ID: e.GetId(), Text: e.GetText()})
	}
	return out
}

func stepToProto(c *extension.Call) *extensionv1.Step {
	return &extensionv1.Step{Phase: string(c.Phase), Bind: c.Bind, Operation: c.Operation, Kind: string(c.Kind), Attempt: int32(c.Attempt),
		Number: c.Number, Key: c.Key, Cause: string(c.Cause), Preview: c.Preview, TraceParent: c.TraceParent}
}

func stepFromProto(s *extensionv1.Step, c *extension.Call) {
	c.Phase, c.Bind, c.Operation, c.Kind = phase.Phase(s.GetPhase()), s.GetBind(), s.GetOperation(), phase.Operation(s.GetKind())
	c.Attempt, c.Number, c.Key, c.Cause = int(s.GetAttempt()), s.GetNumber(), s.GetKey(), phase.Cause(s.GetCause())
	c.Preview, c.TraceParent = s.GetPreview(), s.GetTraceParent()
}

func subjectToProto(c *extension.Call) *extensionv1.Subject {
	return &extensionv1.Subject{Sandbox: identityToProto(c.Sandbox), Workspace: workspaceToProto(c.Workspace), Labels: c.Labels, Image: c.Image,
		Resources: &extensionv1.Resources{MilliCpu: c.Resources.MilliCPU, Memory: c.Resources.Memory, Pids: c.Resources.PIDs},
		Config:    c.Config, Run: int32(c.Run), Addresses: c.Addresses}
}

func subjectFromProto(s *extensionv1.Subject, c *extension.Call) {
	r := s.GetResources()
	c.Sandbox, c.Workspace = identityFromProto(s.GetSandbox()), workspaceFromProto(s.GetWorkspace())
	c.Labels, c.Image, c.Run, c.Addresses = s.GetLabels(), s.GetImage(), int(s.GetRun()), s.GetAddresses()
	c.Resources = sandbox.Resources{MilliCPU: r.GetMilliCpu(), Memory: r.GetMemory(), PIDs: r.GetPids()}
	if len(s.GetConfig()) > 0 {
		c.Config = json.RawMessage(s.GetConfig())
	}
}

// ItemToProto translates one subject of a reconcile.
func ItemToProto(i extension.Item) *extensionv1.ReconcileItem {
	return &extensionv1.ReconcileItem{Sandbox: identityToProto(i.Sandbox), Workspace: workspaceToProto(i.Workspace), Number: i.Number,
		State: stateToProto(i.State), Lifetime: string(i.Lifetime), Entries: entriesToProto(i.Entries)}
}

// ItemFromProto is the inverse of ItemToProto.
func ItemFromProto(i *extensionv1.ReconcileItem) extension.Item {
	return extension.Item{Sandbox: identityFromProto(i.GetSandbox()), Workspace: workspaceFromProto(i.GetWorkspace()), Number: i.GetNumber(),
		State: stateFromProto(i.GetState()), Lifetime: phase.Lifetime(i.GetLifetime()), Entries: entriesFromProto(i.GetEntries())}
}

func texts[T ~string](list []T) []string {
	var out []string
	for _, p := range list {
		out = append(out, string(p))
	}
	return out
}

func phases(list []string) []phase.Phase {
	var out []phase.Phase
	for _, p := range list {
		out = append(out, phase.Phase(p))
	}
	return out
}

func ints(list []int) []int32 {
	var out []int32
	for _, v := range list {
		out = append(out, int32(v))
	}
	return out
}

package wire

import (
	"encoding/json"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// DescriptionToProto and DescriptionFromProto translate what a driver is and offers.
func DescriptionToProto(d *driver.Description, logs bool) *driverv1.DescribeResponse {
	out := &driverv1.DescribeResponse{Type: d.Type, Version: d.Version, Instance: d.Instance, Missing: d.Missing,
		DefaultImage: d.DefaultImage, ManagesLifecycle: d.ManagesLifecycle, Logs: logs}
	for _, f := range d.Features {
		out.Features = append(out.Features, featureToProto(f))
	}
	for _, k := range d.Kinds {
		out.Kinds = append(out.Kinds, &driverv1.Kind{Name: k.Name, Scope: string(k.Scope), Schema: k.Schema, Sensitive: k.Sensitive})
	}
	for _, p := range d.Points {
		out.Points = append(out.Points, pointToProto(p))
	}
	for _, l := range d.Listeners {
		out.Listeners = append(out.Listeners, &driverv1.Listener{Reason: l.Reason, Address: l.Address, DefaultRoute: l.DefaultRoute, Loopback: l.Loopback})
	}
	return out
}

// DescriptionFromProto is the inverse of DescriptionToProto; logs says whether they are kept.
func DescriptionFromProto(m *driverv1.DescribeResponse) (d *driver.Description, logs bool) {
	d = &driver.Description{Type: m.GetType(), Version: m.GetVersion(), Instance: m.GetInstance(), Missing: m.GetMissing(),
		DefaultImage: m.GetDefaultImage(), ManagesLifecycle: m.GetManagesLifecycle()}
	for _, f := range m.GetFeatures() {
		d.Features = append(d.Features, featureFromProto(f))
	}
	for _, k := range m.GetKinds() {
		d.Kinds = append(d.Kinds, plan.Kind{Name: k.GetName(), Scope: plan.Scope(k.GetScope()), Schema: k.GetSchema(), Sensitive: k.GetSensitive()})
	}
	for _, p := range m.GetPoints() {
		d.Points = append(d.Points, pointFromProto(p))
	}
	for _, l := range m.GetListeners() {
		d.Listeners = append(d.Listeners, driver.Listener{Reason: l.GetReason(), Address: l.GetAddress(), DefaultRoute: l.GetDefaultRoute(), Loopback: l.GetLoopback()})
	}
	return d, m.GetLogs()
}

func featureToProto(f extension.Feature) *extensionv1.Feature {
	return &extensionv1.Feature{Name: f.Name, Attributes: f.Attributes, Point: string(f.Point), Object: f.Object}
}

func featureFromProto(f *extensionv1.Feature) extension.Feature {
	return extension.Feature{Name: f.GetName(), Attributes: f.GetAttributes(), Point: plan.Pattern(f.GetPoint()), Object: f.GetObject()}
}

func pointToProto(p plan.Point) *extensionv1.Point {
	return &extensionv1.Point{Pattern: string(p.Pattern), Phases: texts(p.Phases), Overridable: p.Overridable, Feature: p.Feature, Object: p.Object, Doc: p.Doc,
		Except: texts(p.Except)}
}

func pointFromProto(p *extensionv1.Point) plan.Point {
	return plan.Point{Pattern: plan.Pattern(p.GetPattern()), Phases: phases(p.GetPhases()), Overridable: p.GetOverridable(),
		Feature: p.GetFeature(), Object: p.GetObject(), Doc: p.GetDoc(), Except: patterns(p.GetExcept())}
}

// layersToProto translates a plan's layers. What a driver made of Go values is brought into the form of JSON first.
func layersToProto(layers []plan.Layer) ([]*driverv1.Layer, error) {
	out := make([]*driverv1.Layer, 0, len(layers))
	for _, l := range layers {
		m := &driverv1.Layer{Owner: string(l.Owner), Phase: string(l.Phase), Override: texts(l.Override)}
		for _, o := range l.Objects {
			raw, err := json.Marshal(o.Fields)
			fields := &structpb.Struct{}
			if err == nil {
				err = fields.UnmarshalJSON(raw)
			}
			if err != nil {
				return nil, fault.New(fault.Invalid, "%s holds what JSON cannot", o.Ref())
			}
			m.Objects = append(m.Objects, &extensionv1.Object{Kind: o.Kind, Name: o.Name, Fields: fields})
		}
		out = append(out, m)
	}
	return out, nil
}

func layersFromProto(list []*driverv1.Layer) ([]plan.Layer, error) {
	var out []plan.Layer
	for _, m := range list {
		objects, err := ObjectsFromProto(m.GetObjects())
		if err != nil {
			return nil, err
		}
		out = append(out, plan.Layer{Owner: plan.Owner(m.GetOwner()), Phase: phase.Phase(m.GetPhase()), Objects: objects, Override: patterns(m.GetOverride())})
	}
	return out, nil
}

func patterns(list []string) []plan.Pattern {
	var out []plan.Pattern
	for _, p := range list {
		out = append(out, plan.Pattern(p))
	}
	return out
}

func specToProto(s *sandbox.Spec) *driverv1.Spec {
	return &driverv1.Spec{Image: s.Image, Command: s.Command, Environment: s.Environment, Labels: s.Labels, Request: s.Request,
		Resources: &extensionv1.Resources{MilliCpu: s.Resources.MilliCPU, Memory: s.Resources.Memory, Pids: s.Resources.PIDs}}
}

func specFromProto(m *driverv1.Spec) sandbox.Spec {
	return sandbox.Spec{Image: m.GetImage(), Command: m.GetCommand(), Environment: m.GetEnvironment(), Labels: m.GetLabels(), Request: m.GetRequest(),
		Resources: sandbox.Resources{MilliCPU: m.GetResources().GetMilliCpu(), Memory: m.GetResources().GetMemory(), PIDs: m.GetResources().GetPids()}}
}

// StatusToProto and StatusFromProto translate what a driver has under an id.
func statusToProto(s *driver.Status) *driverv1.Status {
	m := &driverv1.Status{Identity: identityToProto(&s.Identity), Operation: s.Operation, Run: int32(s.Run), State: string(s.State),
		Reason: s.Reason, Message: s.Message, Addresses: s.Addresses}
	if s.ExitCode != nil {
		code := int32(*s.ExitCode)
		m.ExitCode = &code
	}
	for _, o := range s.Objects {
		m.Objects = append(m.Objects, &driverv1.RealObject{Kind: o.Kind, Name: o.Name})
	}
	if !s.Since.IsZero() {
		m.Since = timestamppb.New(s.Since)
	}
	return m
}

func statusFromProto(m *driverv1.Status) *driver.Status {
	s := &driver.Status{Operation: m.GetOperation(), Run: int(m.GetRun()), State: driver.State(m.GetState()), Reason: m.GetReason(),
		Message: m.GetMessage(), Addresses: m.GetAddresses()}
	if id := identityFromProto(m.GetIdentity()); id != nil {
		s.Identity = *id
	}
	if m.ExitCode != nil {
		code := int(m.GetExitCode())
		s.ExitCode = &code
	}
	for _, o := range m.GetObjects() {
		s.Objects = append(s.Objects, driver.RealObject{Kind: o.GetKind(), Name: o.GetName()})
	}
	if m.GetSince().IsValid() {
		s.Since = m.GetSince().AsTime()
	}
	return s
}

func noticeToProto(n *driver.Notice) *driverv1.Notice {
	return &driverv1.Notice{Identity: identityToProto(&n.Identity), At: timestamppb.New(n.At), Warning: n.Warning, Source: n.Source,
		Reason: n.Reason, Message: n.Message, Metadata: n.Metadata}
}

func noticeFromProto(m *driverv1.Notice) *driver.Notice {
	n := &driver.Notice{Warning: m.GetWarning(), Source: m.GetSource(), Reason: m.GetReason(), Message: m.GetMessage(), Metadata: m.GetMetadata()}
	if id := identityFromProto(m.GetIdentity()); id != nil {
		n.Identity = *id
	}
	if m.GetAt().IsValid() {
		n.At = m.GetAt().AsTime()
	}
	return n
}

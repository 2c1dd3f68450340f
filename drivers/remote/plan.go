package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The one kind of the plan, and the name of its one object.
const (
	kindSandbox = "DriverSandbox"
	mainSandbox = "main"
)

// featureAuthentication is the feature of a driver.Authenticator.
const featureAuthentication = "sandbox-authentication"

// Structs of the message are free-form: the other driver has their schema.
const sandboxSchema = `types:
- name: DriverSandbox
  map:
    fields:
    - {name: id, type: {scalar: string}}
    - {name: name, type: {scalar: string}}
    - {name: workspace, type: {scalar: string}}
    - {name: image, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - name: resources
      type:
        map:
          fields:
          - {name: cpu_request, type: {scalar: string}}
          - {name: cpu_limit, type: {scalar: string}}
          - {name: memory_request, type: {scalar: string}}
          - {name: memory_limit, type: {scalar: string}}
    - {name: platform_config, type: {namedType: free}}
    - {name: driver_config, type: {namedType: free}}
- name: free
  scalar: untyped
  list:
    elementRelationship: atomic
    elementType: {namedType: free}
  map:
    elementType: {namedType: free}
    elementRelationship: separable
`

// content is the object as Go has it.
type content struct {
	ID             string            `json:"id,omitempty"`
	Name           string            `json:"name,omitempty"`
	Workspace      string            `json:"workspace,omitempty"`
	Image          string            `json:"image,omitempty"`
	Command        []string          `json:"command,omitempty"`
	Environment    map[string]string `json:"environment,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Resources      quantities        `json:"resources,omitzero"`
	PlatformConfig map[string]any    `json:"platform_config,omitempty"`
	DriverConfig   map[string]any    `json:"driver_config,omitempty"`
}

type quantities struct {
	CPURequest    string `json:"cpu_request,omitempty"`
	CPULimit      string `json:"cpu_limit,omitempty"`
	MemoryRequest string `json:"memory_request,omitempty"`
	MemoryLimit   string `json:"memory_limit,omitempty"`
}

// describe says what the other driver is and offers, in our words.
func describe(caps *computev1.GetCapabilitiesResponse, needs []*computev1.GatewayListenerRequirement) *driver.Description {
	early := []phase.Phase{phase.PreparePlan}
	late := []phase.Phase{phase.PreparePlan, phase.BeforeCreate}
	about := &driver.Description{
		Type: "remote", Version: caps.GetDriverName() + " " + caps.GetDriverVersion(),
		DefaultImage: caps.GetDefaultImage(), ManagesLifecycle: caps.GetGatewayManagesLifecycle(), Listeners: listeners(needs),
		Kinds: []plan.Kind{{Name: kindSandbox, Scope: plan.ScopeSandbox, Schema: sandboxSchema,
			Sensitive: []string{"environment", "driver_config", "platform_config"}}},
		Points: []plan.Point{
			{Pattern: "DriverSandbox.image", Phases: early, Overridable: true, Feature: "image", Object: mainSandbox, Doc: "the image, as the other driver resolves it"},
			{Pattern: "DriverSandbox.environment", Phases: late, Overridable: true, Feature: "environment", Object: mainSandbox, Doc: "variables of the command"},
			{Pattern: "DriverSandbox.labels", Phases: late, Overridable: true, Feature: "labels", Object: mainSandbox, Doc: "labels of the template"},
			{Pattern: "DriverSandbox.resources", Phases: early, Overridable: true, Feature: "resources", Object: mainSandbox, Doc: "processor and memory, as Kubernetes writes quantities"},
			{Pattern: "DriverSandbox.platform_config", Phases: late, Overridable: true, Feature: "platform_config", Object: mainSandbox, Doc: "what the platform of the other driver understands"},
			{Pattern: "DriverSandbox.driver_config", Phases: late, Overridable: true, Feature: "driver_config", Object: mainSandbox, Doc: "what the other driver understands"},
		},
	}
	for _, p := range about.Points {
		about.Features = append(about.Features, extension.Feature{Name: p.Feature, Point: p.Pattern, Object: p.Object})
	}
	about.Features = append(about.Features, extension.Feature{Name: "compute-request"})
	if caps.GetSupportsSandboxAuthentication() {
		about.Features = append(about.Features, extension.Feature{Name: featureAuthentication})
	}
	has := caps.GetResourceCapabilities()
	for name, ok := range map[string]bool{"cpu": has.GetCpu().GetLimitSupported(), "memory": has.GetMemory().GetLimitSupported(), "gpu": has.GetGpu() == nil || has.GetGpu().GetDefaultSelectionSupported()} {
		if ok {
			about.Features = append(about.Features, extension.Feature{Name: name})
		}
	}
	slices.SortFunc(about.Features, func(a, b extension.Feature) int { return strings.Compare(a.Name, b.Name) })
	return about
}

func listeners(needs []*computev1.GatewayListenerRequirement) []driver.Listener {
	var out []driver.Listener
	for _, n := range needs {
		out = append(out, driver.Listener{Reason: n.GetReason(), Address: n.GetExactBindAddress(),
			DefaultRoute: n.GetDefaultRouteInterface() != nil, Loopback: n.GetLoopbackInterface() != nil})
	}
	return out
}

// Layers implements driver.Driver: what the caller wrote, and who the sandbox is.
func (d *Driver) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	asked, err := contentOf(&r.Spec, r.Config)
	if err != nil {
		return nil, err
	}
	request, err := object(asked)
	if err != nil {
		return nil, err
	}
	who, err := object(&content{ID: r.Identity.ID, Name: r.Identity.Name, Workspace: r.Identity.Workspace})
	if err != nil {
		return nil, err
	}
	return []plan.Layer{{Owner: plan.OwnerGateway, Objects: []plan.Object{who}}, {Owner: plan.OwnerRequest, Objects: []plan.Object{request}}}, nil
}

// WorkspaceLayers implements driver.Driver: a workspace of the contract is a name.
func (d *Driver) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return nil, nil
}

// contentOf reads what the caller asks for, out of its message where there is one.
func contentOf(spec *sandbox.Spec, config json.RawMessage) (*content, error) {
	c := &content{Image: spec.Image, Command: spec.Command, Environment: spec.Environment, Labels: spec.Labels}
	if len(config) > 0 {
		if err := json.Unmarshal(config, &c.DriverConfig); err != nil {
			return nil, fault.New(fault.Invalid, "driver_config: it is no JSON object")
		}
	}
	if len(spec.Request) > 0 {
		m, err := parse(spec.Request)
		if err != nil {
			return nil, err
		}
		t := m.GetSpec().GetTemplate()
		q := t.GetResources()
		c.Resources = quantities{CPURequest: q.GetCpuRequest(), CPULimit: q.GetCpuLimit(), MemoryRequest: q.GetMemoryRequest(), MemoryLimit: q.GetMemoryLimit()}
		c.PlatformConfig = t.GetPlatformConfig().AsMap()
		return c, nil
	}
	if n := spec.Resources.MilliCPU; n > 0 {
		c.Resources.CPULimit = resource.NewMilliQuantity(n, resource.DecimalSI).String()
	}
	if n := spec.Resources.Memory; n > 0 {
		c.Resources.MemoryLimit = resource.NewQuantity(n, resource.BinarySI).String()
	}
	return c, nil
}

func parse(raw []byte) (*computev1.DriverSandbox, error) {
	m := &computev1.DriverSandbox{}
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, fault.New(fault.Internal, "the request that was kept cannot be read: %w", err)
	}
	return m, nil
}

// object makes a plan's object of a content.
func object(c *content) (plan.Object, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return plan.Object{}, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return plan.Object{}, err
	}
	return plan.Object{Kind: kindSandbox, Name: mainSandbox, Fields: fields}, nil
}

// message is what the other driver is sent: the caller's own message, unknown fields included, with what the plan says
// in its place.
func message(id sandbox.Identity, request []byte, p *plan.Plan) (*computev1.DriverSandbox, error) {
	m, err := parse(request)
	if err != nil {
		return nil, err
	}
	o, ok := p.Object(kindSandbox, mainSandbox)
	if !ok {
		return nil, fault.New(fault.Internal, "the plan has no %s/%s", kindSandbox, mainSandbox)
	}
	raw, err := json.Marshal(o.Fields)
	if err != nil {
		return nil, fault.New(fault.Internal, "the plan cannot be read: %w", err)
	}
	var c content
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fault.New(fault.Internal, "the plan cannot be read: %w", err)
	}
	m.Id, m.Name, m.Workspace = id.ID, id.Name, id.Workspace
	if m.Spec == nil {
		m.Spec = &computev1.DriverSandboxSpec{}
	}
	if m.Spec.Template == nil {
		m.Spec.Template = &computev1.DriverSandboxTemplate{}
	}
	m.Spec.Command, m.Spec.Template.Image = c.Command, c.Image
	mergeEnvironment(m.Spec, c.Environment)
	m.Spec.Template.Labels = c.Labels
	setResources(m.Spec.Template, c.Resources)
	if m.Spec.Template.PlatformConfig, err = structOf("platform_config", c.PlatformConfig); err != nil {
		return nil, err
	}
	m.Spec.Template.DriverConfig, err = structOf("driver_config", c.DriverConfig)
	return m, err
}

// mergeEnvironment leaves each variable where the caller wrote it, and puts what is new or has another value to the
// ones that win.
func mergeEnvironment(spec *computev1.DriverSandboxSpec, want map[string]string) {
	own := map[string]string{}
	for k, v := range want {
		if t, ok := spec.Template.Environment[k]; ok && t == v {
			if _, also := spec.Environment[k]; !also {
				continue
			}
		}
		own[k] = v
	}
	spec.Environment = own
	maps.DeleteFunc(spec.Template.Environment, func(k, _ string) bool { _, ok := want[k]; return !ok })
}

func setResources(t *computev1.DriverSandboxTemplate, q quantities) {
	if q == (quantities{}) && t.Resources == nil {
		return
	}
	if t.Resources == nil {
		t.Resources = &computev1.DriverResourceRequirements{}
	}
	t.Resources.CpuRequest, t.Resources.CpuLimit = q.CPURequest, q.CPULimit
	t.Resources.MemoryRequest, t.Resources.MemoryLimit = q.MemoryRequest, q.MemoryLimit
}

func structOf(field string, m map[string]any) (*structpb.Struct, error) {
	if len(m) == 0 {
		return nil, nil
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", field, fmt.Errorf("it cannot be sent: %w", err))
	}
	return s, nil
}

package api

import (
	"context"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// createRequest reads what a caller asks for. What the driver has no ability for is refused, not ignored.
func (d *ComputeDoor) createRequest(ctx context.Context, m *computev1.DriverSandbox) (engine.CreateRequest, error) {
	spec, template := m.GetSpec(), m.GetSpec().GetTemplate()
	out := engine.CreateRequest{ID: m.GetId(), Driver: d.driver, Workspace: m.GetWorkspace(), Name: m.GetName(), Origin: d.origin(ctx)}
	if m.GetId() == "" || m.GetName() == "" {
		return out, fault.New(fault.Invalid, "a sandbox needs the id and the name that its gateway gave it")
	}
	resources, err := d.resources(spec)
	if err != nil {
		return out, err
	}
	config, err := object("template.driver_config", template.GetDriverConfig())
	if err != nil {
		return out, err
	}
	if len(template.GetPlatformConfig().GetFields()) > 0 && !d.about.Features[featureRequest] {
		return out, invalidField("template.platform_config", "driver %q takes none", d.driver)
	}
	environment := maps.Clone(template.GetEnvironment())
	if environment == nil {
		environment = map[string]string{}
	}
	maps.Copy(environment, spec.GetEnvironment())
	out.Spec = sandbox.Spec{Image: template.GetImage(), Command: spec.GetCommand(), Environment: environment, Labels: template.GetLabels(),
		Resources: resources, DriverConfig: config, Token: []byte(spec.GetSandboxToken())}
	if d.about.Features[featureRequest] {
		if out.Spec.Request, err = proto.Marshal(m); err != nil {
			return out, fault.New(fault.Invalid, "the sandbox cannot be passed on: %w", err)
		}
	}
	return out, nil
}

// startRequest is what a caller's start holds beside the sandbox, for a driver that passes it on.
func (d *ComputeDoor) startRequest(m *computev1.StartSandboxRequest) ([]byte, error) {
	if !d.about.Features[featureRequest] {
		return nil, nil
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the start cannot be passed on: %w", err)
	}
	return raw, nil
}

// ListenerRequirement says what a driver needs of its OpenShell gateway's listeners.
func ListenerRequirement(l driver.Listener) *computev1.GatewayListenerRequirement {
	m := &computev1.GatewayListenerRequirement{Reason: l.Reason}
	switch {
	case l.DefaultRoute:
		m.Selector = &computev1.GatewayListenerRequirement_DefaultRouteInterface{DefaultRouteInterface: &computev1.GatewayDefaultRouteInterfaceRequirement{}}
	case l.Loopback:
		m.Selector = &computev1.GatewayListenerRequirement_LoopbackInterface{LoopbackInterface: &computev1.GatewayLoopbackInterfaceRequirement{}}
	default:
		m.Selector = &computev1.GatewayListenerRequirement_ExactBindAddress{ExactBindAddress: l.Address}
	}
	return m
}

// resources reads quantities as Kubernetes writes them; a limit counts before a request.
func (d *ComputeDoor) resources(spec *computev1.DriverSandboxSpec) (r sandbox.Resources, err error) {
	if spec.GetResourceRequirements().GetGpu() != nil && !d.about.Features["gpu"] {
		return r, fault.New(fault.FailedPrecondition, "resource_requirements.gpu: driver %q gives no GPU", d.driver)
	}
	want := spec.GetTemplate().GetResources()
	cpu, err := quantity("template.resources.cpu", want.GetCpuLimit(), want.GetCpuRequest())
	if err != nil {
		return r, err
	}
	memory, err := quantity("template.resources.memory", want.GetMemoryLimit(), want.GetMemoryRequest())
	if err != nil {
		return r, err
	}
	return sandbox.Resources{MilliCPU: cpu.MilliValue(), Memory: memory.Value()}, nil
}

func quantity(field string, limit, request string) (resource.Quantity, error) {
	suffix, text := "_limit", limit
	if text == "" {
		suffix, text = "_request", request
	}
	if text == "" {
		return resource.Quantity{}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return q, invalidField(field+suffix, "%q is no quantity, for example \"500m\" or \"2Gi\"", text)
	}
	return q, nil
}

// object returns a Struct as JSON; nothing where it is empty.
func object(field string, s *structpb.Struct) ([]byte, error) {
	if len(s.GetFields()) == 0 {
		return nil, nil
	}
	raw, err := s.MarshalJSON()
	if err != nil {
		return nil, invalidField(field, "it cannot be read as JSON")
	}
	return raw, nil
}

func invalidField(field, format string, args ...any) error {
	summary := fmt.Sprintf(format, args...)
	return fault.New(fault.Invalid, "%s: %s", field, summary).With(fault.Diagnostic{Path: field, Summary: summary})
}

// shown reports whether callers see a sandbox: until its end, and while its releases go on, for as long as a delete
// waits for them. A create that is being undone is one that has not been answered yet.
func shown(sb engine.Sandbox) bool {
	if sb.Undone && sb.Ended != nil {
		return false
	}
	return sb.State != sandbox.Deleted && !sb.Overdue
}

// driverSandbox says how a sandbox is, in the words that an OpenShell gateway derives a phase from.
func driverSandbox(sb engine.Sandbox) *computev1.DriverSandbox {
	status := &computev1.DriverSandboxStatus{Name: sb.Name, InstanceId: sb.ID,
		Deleting: !sb.Undone && (sb.State == sandbox.Deleting || sb.State == sandbox.Releasing)}
	for _, c := range conditions(sb) {
		at := c.at
		if at.IsZero() {
			at = sb.Created
		}
		status.Conditions = append(status.Conditions, &computev1.DriverCondition{Type: c.kind, Status: c.status, Reason: c.reason,
			Message: c.message, LastTransitionTime: at.UTC().Format(time.RFC3339), TransitionTime: timestamppb.New(at.UTC())})
	}
	return &computev1.DriverSandbox{Id: sb.ID, Name: sb.Name, Workspace: sb.Workspace, Status: status}
}

type condition struct {
	kind, status, reason, message string
	at                            time.Time
}

// The reasons that mean more than they say: the first three are read as passing, the others as the end of a run.
const (
	reasonStarting  = "Starting"
	reasonWaiting   = "DependenciesNotReady"
	reasonReady     = "BackendReady"
	reasonStopped   = "ContainerStopped"
	reasonExited    = "ContainerExited"
	reasonFailed    = "BackendFailed"
	typeReady       = "Ready"
	typeSuspended   = "Suspended"
	statusTrue      = "True"
	statusFalse     = "False"
	reasonStopping  = "PodTerminating"
	messageStarting = "it is being started"
)

// conditions maps our states. What passes by itself (a start, extensions that are tried again, a restore) has only
// reasons that a gateway waits for; an error that the driver reports is what it is.
func conditions(sb engine.Sandbox) []condition {
	ended := time.Time{}
	if sb.Run.Ended != nil {
		ended = *sb.Run.Ended
	}
	ready := func(status, reason, message string, at time.Time) condition {
		return condition{typeReady, status, reason, message, at}
	}
	switch sb.State {
	case sandbox.Ready:
		return []condition{ready(statusTrue, reasonReady, "", sb.Run.Started)}
	case sandbox.Stopping:
		return []condition{ready(statusTrue, reasonReady, "", sb.Run.Started), {typeSuspended, statusFalse, reasonStopping, "it is being stopped", sb.Run.Started}}
	case sandbox.Stopped:
		return []condition{ready(statusFalse, reasonStopped, sb.Reason, ended), {typeSuspended, statusTrue, reasonStopped, sb.Reason, ended}}
	case sandbox.Exited:
		message := "its process ended"
		if code := sb.Run.ExitCode; code != nil {
			message = fmt.Sprintf("its process ended with the exit code %d", *code)
		}
		return []condition{ready(statusFalse, reasonExited, message, ended)}
	case sandbox.Failing:
		reason := reasonFailed
		if sb.Passing() {
			reason = reasonWaiting
		}
		return []condition{ready(statusFalse, reason, sb.Reason, sb.Run.Started)}
	default:
		return []condition{ready(statusFalse, reasonStarting, messageStarting, sb.Run.Started)}
	}
}

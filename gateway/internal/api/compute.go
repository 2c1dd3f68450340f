package api

import (
	"context"
	"net"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What both sides say of themselves in the second generation's negotiation.
const (
	protocolMajor      = 1
	computeContract    = "openshell.compute.contract"
	implementationName = "sandgate/gateway"
	maxPeerText        = 128 // bytes of a name, a version or a capability
	maxCapabilities    = 128
)

// Features of a driver that this door goes by: it passes a caller's message on whole, and tells whose a credential is.
const (
	featureRequest        = "compute-request"
	featureAuthentication = "sandbox-authentication"
)

// ComputeDoor serves one driver, with its chain, as openshell.compute.v1.ComputeDriver: an OpenShell gateway uses it as
// its compute driver. Both generations of the contract are served at once; a peer is of the second when it says who it
// is in GetCapabilities, and what is only of one generation is in fields that the other ignores.
//
// Ids, names and workspaces are the caller's. A refusal that the caller can mend comes in ValidateSandboxCreate, which
// is a preview: nothing is held. A create answers when it has ended, and one that failed is undone by then. A delete
// answers when it is journaled, and Deleted follows on the watch when the releases are done or have had their time.
type ComputeDoor struct {
	computev1.UnimplementedComputeDriverServer
	engine *engine.Engine
	driver string
	about  ComputeAbout
	server *grpc.Server
	left   context.Context // ends when the door is shut
	leave  context.CancelFunc
}

// ComputeAbout is what the door says of its driver.
type ComputeAbout struct {
	Version          string
	DefaultImage     string
	ManagesLifecycle bool // the caller stops the sandboxes when it ends, and starts them again when it begins
	Listeners        []*computev1.GatewayListenerRequirement
	Admission        string          // the acknowledgement of the resource admission policy
	Features         map[string]bool // of the driver
}

// NewComputeDoor makes the door of a driver. Options carry the credentials of its listener.
func NewComputeDoor(e *engine.Engine, driver string, about ComputeAbout, opts ...grpc.ServerOption) *ComputeDoor {
	opts = append(opts, faults(e.Logger)...)
	d := &ComputeDoor{engine: e, driver: driver, about: about, server: grpc.NewServer(opts...)}
	d.left, d.leave = context.WithCancel(context.Background())
	computev1.RegisterComputeDriverServer(d.server, d)
	return d
}

// Serve serves callers until the door is shut.
func (d *ComputeDoor) Serve(l net.Listener) error { return d.server.Serve(l) }

// Shut lets nobody in any more and ends the streams, whose readers come back elsewhere. Calls in flight may finish,
// within ctx: a create that is cut off is one that its caller takes for failed.
func (d *ComputeDoor) Shut(ctx context.Context) {
	d.leave()
	stop := context.AfterFunc(ctx, d.server.Stop)
	defer stop()
	d.server.GracefulStop()
}

// GetCapabilities implements the service. It asks nobody: the second generation calls it before each create and start.
func (d *ComputeDoor) GetCapabilities(_ context.Context, r *computev1.GetCapabilitiesRequest) (*computev1.GetCapabilitiesResponse, error) {
	out := &computev1.GetCapabilitiesResponse{
		DriverName: d.driver, DriverVersion: d.about.Version, DefaultImage: d.about.DefaultImage,
		GatewayManagesLifecycle: d.about.ManagesLifecycle, DriverReportsRuntimeReadiness: true,
		ResourceCapabilities: &computev1.ResourceCapabilities{
			Cpu:    &computev1.CpuCapabilities{LimitSupported: d.about.Features["cpu"]},
			Memory: &computev1.MemoryCapabilities{LimitSupported: d.about.Features["memory"]},
			Gpu: &computev1.GpuCapabilities{DefaultSelectionSupported: d.about.Features["gpu"],
				CountSelectionSupported: d.about.Features["gpu"]},
		},
		ResourceAdmissionPolicy:       d.about.Admission,
		SupportsSandboxAuthentication: d.about.Features[featureAuthentication],
	}
	if r.GetGateway() == nil {
		return out, nil // of the first generation
	}
	if err := checkPeer(r.GetGateway()); err != nil {
		return nil, err
	}
	out.Extension = &computev1.PeerMetadata{
		ProtocolVersion:    &computev1.ProtocolVersion{Major: protocolMajor},
		ImplementationName: implementationName, ImplementationVersion: d.about.Version,
		SupportedCapabilities: []string{computeContract},
	}
	return out, nil
}

// checkPeer refuses a gateway that speaks another contract, or that says who it is in a way that cannot be shown.
func checkPeer(p *computev1.PeerMetadata) error {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.FailedPrecondition, "peer metadata: "+format, args...)
	}
	if major := p.GetProtocolVersion().GetMajor(); major != protocolMajor {
		return refuse("protocol version %d is not served, %d is", major, protocolMajor)
	}
	for what, text := range map[string]string{"implementation_name": p.GetImplementationName(), "implementation_version": p.GetImplementationVersion()} {
		if text == "" || len(text) > maxPeerText || strings.ContainsFunc(text, unicode.IsControl) {
			return refuse("%s is to have 1 to %d bytes without control characters", what, maxPeerText)
		}
	}
	for what, list := range map[string][]string{"supported_capabilities": p.GetSupportedCapabilities(), "required_capabilities": p.GetRequiredCapabilities()} {
		if err := checkCapabilities(list); err != nil {
			return refuse("%s: %w", what, err)
		}
	}
	if !slices.Contains(p.GetSupportedCapabilities(), computeContract) {
		return refuse("%s is not among the supported capabilities", computeContract)
	}
	for _, c := range p.GetRequiredCapabilities() {
		if c != computeContract {
			return refuse("capability %q is required and not offered; %s is", c, computeContract)
		}
	}
	return nil
}

// capabilityForm is how a capability is written: at least three segments, of which the first is openshell.
var capabilityForm = regexp.MustCompile(`^openshell(\.[a-z0-9-]+){2,}$`)

func checkCapabilities(list []string) error {
	if len(list) > maxCapabilities {
		return fault.New(fault.Invalid, "%d capabilities, at most %d are read", len(list), maxCapabilities)
	}
	seen := map[string]bool{}
	for _, c := range list {
		if len(c) > maxPeerText || !capabilityForm.MatchString(c) {
			return fault.New(fault.Invalid, "%.140q is no capability, for example %s", c, computeContract)
		}
		if seen[c] {
			return fault.New(fault.Invalid, "%q is named twice", c)
		}
		seen[c] = true
	}
	return nil
}

// GetGatewayListenerRequirements implements the service.
func (d *ComputeDoor) GetGatewayListenerRequirements(context.Context, *computev1.GetGatewayListenerRequirementsRequest) (*computev1.GetGatewayListenerRequirementsResponse, error) {
	return &computev1.GetGatewayListenerRequirementsResponse{Requirements: d.about.Listeners}, nil
}

// origin says who calls, and through which door.
func (d *ComputeDoor) origin(ctx context.Context) sandbox.Origin {
	o := origin(ctx)
	o.Door = d.driver
	return o
}

// ValidateSandboxCreate implements the service.
func (d *ComputeDoor) ValidateSandboxCreate(ctx context.Context, r *computev1.ValidateSandboxCreateRequest) (*computev1.ValidateSandboxCreateResponse, error) {
	req, err := d.createRequest(ctx, r.GetSandbox())
	if err != nil {
		return nil, err
	}
	if _, err := d.engine.Preview(ctx, req); err != nil {
		return nil, err
	}
	return &computev1.ValidateSandboxCreateResponse{}, nil
}

// CreateSandbox implements the service. It answers when the sandbox was started or, where that failed, undone.
func (d *ComputeDoor) CreateSandbox(ctx context.Context, r *computev1.CreateSandboxRequest) (*computev1.CreateSandboxResponse, error) {
	req, err := d.createRequest(ctx, r.GetSandbox())
	if err != nil {
		return nil, err
	}
	h, id, err := d.engine.CreateSandbox(req)
	if err == nil {
		_, err = h.Wait(ctx)
	}
	if err != nil {
		return nil, mended(err)
	}
	runtime, err := d.runtimeIdentity(id)
	return &computev1.CreateSandboxResponse{RuntimeIdentity: runtime}, err
}

// authenticator is the driver where it can tell whose a credential is.
func (d *ComputeDoor) authenticator() (driver.Authenticator, error) {
	refused := fault.New(fault.Unimplemented, "driver %q does not authenticate sandboxes", d.driver)
	drv := d.engine.Catalog.Current().Drivers[d.driver]
	if drv == nil || !d.about.Features[featureAuthentication] {
		return nil, refused
	}
	a, ok := driver.As[driver.Authenticator](drv.Driver)
	if !ok {
		return nil, refused
	}
	return a, nil
}

// runtimeIdentity is what a caller of the second generation is told of the run that was begun, where it was told that
// sandboxes are authenticated.
func (d *ComputeDoor) runtimeIdentity(id sandbox.Identity) (string, error) {
	a, err := d.authenticator()
	if fault.Is(err, fault.Unimplemented) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return a.RuntimeIdentity(id)
}

// AuthenticateSandbox implements the service: the driver says whose a credential is. One of another name's sandboxes is
// nobody's here.
func (d *ComputeDoor) AuthenticateSandbox(ctx context.Context, r *computev1.AuthenticateSandboxRequest) (*computev1.AuthenticateSandboxResponse, error) {
	a, err := d.authenticator()
	if err != nil {
		return nil, err
	}
	id, runtime, err := a.Authenticate(ctx, r.GetCredential())
	if err != nil {
		return nil, err
	}
	if _, err := d.find(id.ID, ""); err != nil {
		return nil, fault.New(fault.Unauthenticated, "the credential is no sandbox's of driver %q", d.driver)
	}
	return &computev1.AuthenticateSandboxResponse{SandboxId: id.ID, RuntimeIdentity: runtime}, nil
}

// mended gives what a caller could mend the only code under which a create's message reaches it.
func mended(err error) error {
	switch fault.CodeOf(err) {
	case fault.Invalid, fault.Denied, fault.Conflict:
		return fault.New(fault.FailedPrecondition, "%w", err).With(fault.DiagnosticsOf(err)...)
	}
	return err
}

// find returns a sandbox of this driver. The id says which; a name that is not its own is a mistake of the caller's.
func (d *ComputeDoor) find(id, name string) (engine.Sandbox, error) {
	sb, ok := d.engine.Lookup(id)
	if !ok || sb.Driver != d.driver || !shown(sb) {
		return engine.Sandbox{}, fault.New(fault.NotFound, "driver %q has no sandbox with the id %q", d.driver, id)
	}
	if name != "" && name != sb.Name {
		return engine.Sandbox{}, fault.New(fault.Invalid, "sandbox %q is called %q, not %q", id, sb.Name, name)
	}
	return sb, nil
}

// GetSandbox implements the service.
func (d *ComputeDoor) GetSandbox(_ context.Context, r *computev1.GetSandboxRequest) (*computev1.GetSandboxResponse, error) {
	sb, err := d.find(r.GetSandboxId(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &computev1.GetSandboxResponse{Sandbox: driverSandbox(sb)}, nil
}

// ListSandboxes implements the service.
func (d *ComputeDoor) ListSandboxes(context.Context, *computev1.ListSandboxesRequest) (*computev1.ListSandboxesResponse, error) {
	out := &computev1.ListSandboxesResponse{}
	for _, sb := range d.own() {
		out.Sandboxes = append(out.Sandboxes, driverSandbox(sb))
	}
	return out, nil
}

// own returns the driver's sandboxes that its callers see.
func (d *ComputeDoor) own() []engine.Sandbox {
	var out []engine.Sandbox
	for _, sb := range d.engine.Sandboxes(false) {
		if sb.Driver == d.driver && shown(sb) {
			out = append(out, sb)
		}
	}
	return out
}

// operate carries an operation out and answers when it has ended.
func (d *ComputeDoor) operate(ctx context.Context, id, name string, do func(string, sandbox.Origin) (*engine.Handle, error)) error {
	sb, err := d.find(id, name)
	if err != nil {
		return err
	}
	h, err := do(sb.ID, d.origin(ctx))
	if err != nil {
		return err
	}
	_, err = h.Wait(ctx)
	return err
}

// StopSandbox implements the service. It answers when the compute has stopped.
func (d *ComputeDoor) StopSandbox(ctx context.Context, r *computev1.StopSandboxRequest) (*computev1.StopSandboxResponse, error) {
	if err := d.operate(ctx, r.GetSandboxId(), r.GetName(), d.engine.StopSandbox); err != nil {
		return nil, err
	}
	return &computev1.StopSandboxResponse{}, nil
}

// StartSandbox implements the service.
func (d *ComputeDoor) StartSandbox(ctx context.Context, r *computev1.StartSandboxRequest) (*computev1.StartSandboxResponse, error) {
	request, err := d.startRequest(r)
	if err != nil {
		return nil, err
	}
	err = d.operate(ctx, r.GetSandboxId(), r.GetName(), func(id string, o sandbox.Origin) (*engine.Handle, error) {
		return d.engine.StartSandbox(id, request, o)
	})
	if err != nil {
		return nil, err
	}
	sb, err := d.find(r.GetSandboxId(), "")
	if err != nil {
		return nil, err
	}
	runtime, err := d.runtimeIdentity(sb.Identity)
	return &computev1.StartSandboxResponse{RuntimeIdentity: runtime}, err
}

// DeleteSandbox implements the service. What is not there, or is on its way out, is deleted.
func (d *ComputeDoor) DeleteSandbox(ctx context.Context, r *computev1.DeleteSandboxRequest) (*computev1.DeleteSandboxResponse, error) {
	sb, err := d.find(r.GetSandboxId(), r.GetName())
	if fault.Is(err, fault.NotFound) {
		return &computev1.DeleteSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := d.engine.DeleteSandbox(sb.ID, d.origin(ctx))
	if err == nil {
		_, err = h.Accepted(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &computev1.DeleteSandboxResponse{Deleted: true}, nil
}

// EnsureWorkspace implements the service.
func (d *ComputeDoor) EnsureWorkspace(ctx context.Context, r *computev1.EnsureWorkspaceRequest) (*computev1.EnsureWorkspaceResponse, error) {
	h, err := d.engine.EnsureWorkspace(d.driver, r.GetWorkspace(), d.origin(ctx))
	if err == nil {
		_, err = h.Wait(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &computev1.EnsureWorkspaceResponse{}, nil
}

// DeleteWorkspace implements the service. One that is not there is deleted.
func (d *ComputeDoor) DeleteWorkspace(ctx context.Context, r *computev1.DeleteWorkspaceRequest) (*computev1.DeleteWorkspaceResponse, error) {
	h, err := d.engine.DeleteWorkspace(d.driver, r.GetWorkspace(), d.origin(ctx))
	if err == nil {
		_, err = h.Wait(ctx)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return &computev1.DeleteWorkspaceResponse{}, nil
}

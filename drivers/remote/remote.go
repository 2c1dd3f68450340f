// Package remote drives any compute driver of somebody else's that speaks openshell.compute.v1 on a Unix socket, of
// either generation. Its plan is the request itself: what extensions contribute to is what the other driver is sent,
// and what this program does not know of a request passes through untouched. DESIGN.md says why it is as it is.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Config says where the other driver is.
type Config struct {
	Name    string        // under which it is configured
	Socket  string        // path of its Unix socket
	Dir     string        // a directory of its own, for its notes
	Version string        // of this gateway, told to the other side
	Logger  *slog.Logger  // nil: none
	Connect time.Duration // how long it may take to appear the first time; 0 for ten seconds
}

// How long the calls may take that the gateway does not bound itself, and how often a delete looks whether it is done.
const (
	connectTimeout = 10 * time.Second // one that is started beside the gateway is there by then
	readTimeout    = 30 * time.Second
	maxList        = 256 << 20       // bytes of one message: a list has every sandbox that the driver has
	backTimeout    = 2 * time.Second // that a call waits for a connection which was lost: the driver is being restarted
	lookFirst      = 50 * time.Millisecond
	lookMost       = 2 * time.Second
)

// Driver is a compute driver on the other side of a socket.
type Driver struct {
	cfg    Config
	conn   *grpc.ClientConn
	client computev1.ComputeDriverClient
	notes  *notes
	about  *driver.Description
	agreed atomic.Bool // it has said that it is what about says, to this process
}

// Open connects, and asks the other driver what it is. It waits for a driver that is not there yet, unless that was there
// before: then what it said holds until it is back.
func Open(cfg Config) (driver.Driver, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Connect <= 0 {
		cfg.Connect = connectTimeout
	}
	kept, err := openNotes(cfg.Dir)
	if err != nil {
		return nil, err
	}
	// The other side may check the authority against nothing: it is behind its socket's permissions.
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 250 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxList)),
		grpc.WithChainUnaryInterceptor(tracedUnary, connected), grpc.WithChainStreamInterceptor(tracedStream))
	if err != nil {
		return nil, fault.New(fault.Invalid, "socket %s: %w", cfg.Socket, err)
	}
	d := &Driver{cfg: cfg, conn: conn, client: computev1.NewComputeDriverClient(conn), notes: kept}
	if err = d.meet(); err != nil {
		return nil, errors.Join(fmt.Errorf("compute driver on %s: %w", cfg.Socket, err), conn.Close())
	}
	return d, nil
}

// tracedUnary and tracedStream pass the trace on in the way of the contract: as W3C traceparent.
func tracedUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(traced(ctx), method, req, reply, cc, opts...)
}

func tracedStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return stream(traced(ctx), desc, cc, method, opts...)
}

// connected waits a moment for a connection that is not there, before anything was sent. When it does not come, the
// call says why.
func connected(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	bounded, cancel := context.WithTimeout(ctx, backTimeout)
	defer cancel()
	for state := cc.GetState(); state != connectivity.Ready; state = cc.GetState() {
		cc.Connect()
		if !cc.WaitForStateChange(bounded, state) {
			break
		}
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

func traced(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	if parent := carrier["traceparent"]; parent != "" {
		return metadata.AppendToOutgoingContext(ctx, "traceparent", parent)
	}
	return ctx
}

// ask returns what the other driver is. It is asked as a gateway of the second generation asks, which one of the first
// does not notice.
func (d *Driver) ask(ctx context.Context) (*driver.Description, error) {
	caps, err := d.client.GetCapabilities(ctx, &computev1.GetCapabilitiesRequest{Gateway: &computev1.PeerMetadata{
		ProtocolVersion:    &computev1.ProtocolVersion{Major: 1},
		ImplementationName: "sandgate/gateway", ImplementationVersion: cmp.Or(d.cfg.Version, "dev"),
		SupportedCapabilities: []string{computeContract}, RequiredCapabilities: []string{computeContract},
	}}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	if e := caps.GetExtension(); e != nil && e.GetProtocolVersion().GetMajor() != 1 {
		return nil, fault.New(fault.FailedPrecondition, "it speaks version %d of the compute contract, and this gateway version 1", e.GetProtocolVersion().GetMajor())
	}
	needs, err := d.client.GetGatewayListenerRequirements(ctx, &computev1.GetGatewayListenerRequirementsRequest{})
	if err != nil && status.Code(err) != codes.Unimplemented {
		return nil, fault.FromStatus(err)
	}
	return describe(caps, needs.GetRequirements()), nil
}

const computeContract = "openshell.compute.contract"

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// Close implements driver.Driver.
func (d *Driver) Close() error { return d.conn.Close() }

// Resolve implements driver.Driver: the other driver validates what it would be sent, without secrets that it needs
// only to create.
func (d *Driver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	bounded, cancel := context.WithTimeout(ctx, agreeTimeout)
	defer cancel()
	if err := d.agree(bounded); err != nil {
		return err
	}
	m, err := message(r.Identity, r.Request, r.Plan)
	if err != nil {
		return err
	}
	if err := d.offers(r.Requires); err != nil {
		return err
	}
	m.Spec.SandboxToken, m.Spec.LaunchAuthentication = "", nil
	_, err = d.client.ValidateSandboxCreate(ctx, &computev1.ValidateSandboxCreateRequest{Sandbox: m})
	return fault.FromStatus(err)
}

// offers refuses what the other driver is not known to have.
func (d *Driver) offers(required []string) error {
	for _, name := range required {
		if !slices.ContainsFunc(d.about.Features, func(f extension.Feature) bool { return f.Name == name }) {
			return fault.New(fault.FailedPrecondition, "feature %q is required, and driver %q does not have it", name, d.cfg.Name)
		}
	}
	return nil
}

// Create implements driver.Driver. The sandbox's id is the only mark that the other driver keeps; a note of ours, made
// before the call, says which operation it is of.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	id := r.Identity.ID
	n, again := d.notes.get(id)
	if again && n.Operation != r.Operation {
		return fault.New(fault.AlreadyExists, "sandbox %s was made by another operation", id)
	}
	if again {
		if _, err := d.look(ctx, r.Identity); err == nil {
			return d.confirm(id, r.Run, n.Runtime)
		} else if !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	m, err := message(r.Identity, r.Request, r.Plan)
	if err != nil {
		return err
	}
	if len(r.Token) > 0 {
		m.Spec.SandboxToken = string(r.Token)
	}
	if err := d.notes.put(note{Identity: r.Identity, Operation: r.Operation, Run: r.Run}); err != nil {
		return err
	}
	answer, err := d.client.CreateSandbox(ctx, &computev1.CreateSandboxRequest{Sandbox: m})
	if status.Code(err) == codes.AlreadyExists && !again {
		// Nothing of it is ours: not the id that is there, nor the name that somebody else has.
		return errors.Join(fault.FromStatus(err), d.notes.remove(id))
	}
	if status.Code(err) == codes.AlreadyExists { // it is at work on the call before, and does not show it yet
		return fault.New(fault.Unavailable, "%w", err)
	}
	if err != nil {
		return fault.FromStatus(err)
	}
	return d.confirm(id, r.Run, answer.GetRuntimeIdentity())
}

// confirm notes that a run has begun, and what the answer said that it is.
func (d *Driver) confirm(id string, run int, runtime string) error {
	n, ok := d.notes.get(id)
	if !ok {
		return fault.New(fault.NotFound, "there is no note of sandbox %s", id)
	}
	n.Run, n.Begun, n.Runtime = run, true, runtime
	return d.notes.put(n)
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	n, ok := d.notes.get(r.Identity.ID)
	if !ok {
		return fault.New(fault.NotFound, "there is no sandbox %s", r.Identity.ID)
	}
	n.Run, n.Begun, n.Runtime = r.Run, false, ""
	if err := d.notes.put(n); err != nil {
		return err
	}
	m := &computev1.StartSandboxRequest{}
	if err := proto.Unmarshal(r.Request, m); err != nil {
		return fault.New(fault.Internal, "read the caller's request: %w", err)
	}
	m.SandboxId, m.Name = r.Identity.ID, r.Identity.Name
	answer, err := d.client.StartSandbox(ctx, m)
	if err != nil {
		return fault.FromStatus(err)
	}
	return d.confirm(r.Identity.ID, r.Run, answer.GetRuntimeIdentity())
}

// Authenticate implements driver.Authenticator.
func (d *Driver) Authenticate(ctx context.Context, credential string) (sandbox.Identity, string, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	r, err := d.client.AuthenticateSandbox(ctx, &computev1.AuthenticateSandboxRequest{Credential: credential})
	if err != nil {
		return sandbox.Identity{}, "", fault.FromStatus(err)
	}
	n, ok := d.notes.get(r.GetSandboxId())
	if !ok {
		return sandbox.Identity{}, "", fault.New(fault.Unauthenticated, "the credential is no sandbox's of driver %q", d.cfg.Name)
	}
	return n.Identity, r.GetRuntimeIdentity(), nil
}

// RuntimeIdentity implements driver.Authenticator.
func (d *Driver) RuntimeIdentity(id sandbox.Identity) (string, error) {
	n, ok := d.notes.get(id.ID)
	if !ok {
		return "", fault.New(fault.NotFound, "there is no sandbox %s", id.ID)
	}
	return n.Runtime, nil
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	_, err := d.client.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: id.ID, Name: id.Name})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return fault.FromStatus(err)
}

// Delete implements driver.Driver. The other driver only begins to delete; this returns when nothing is there any more.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	if n, ok := d.notes.get(r.Identity.ID); !ok || n.Operation != r.Operation {
		return nil // what is there bears no mark of this operation's
	}
	_, err := d.client.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: r.Identity.ID, Name: r.Identity.Name})
	if err != nil && status.Code(err) != codes.NotFound {
		return fault.FromStatus(err)
	}
	for pause := lookFirst; ; pause = min(2*pause, lookMost) {
		_, err := d.look(ctx, r.Identity)
		if fault.Is(err, fault.NotFound) {
			return d.notes.remove(r.Identity.ID)
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look asks for one sandbox.
func (d *Driver) look(ctx context.Context, id sandbox.Identity) (*computev1.DriverSandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	r, err := d.client.GetSandbox(ctx, &computev1.GetSandboxRequest{SandboxId: id.ID, Name: id.Name})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	if got := r.GetSandbox().GetId(); got != id.ID {
		return nil, fault.New(fault.Internal, "asked for sandbox %s, it answered with %q", id.ID, got)
	}
	return r.GetSandbox(), nil
}

// Get implements driver.Driver.
func (d *Driver) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	m, err := d.look(ctx, id)
	if err != nil {
		return nil, err
	}
	return d.status(m), nil
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]*driver.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	r, err := d.client.ListSandboxes(ctx, &computev1.ListSandboxesRequest{})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	var out []*driver.Status
	for _, m := range r.GetSandboxes() {
		out = append(out, d.status(m))
	}
	return out, nil
}

// Watch implements driver.Driver. The stream is opened before the list is taken, so that nothing falls between.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := d.agree(ctx); err != nil {
		return err
	}
	stream, err := d.client.WatchSandboxes(ctx, &computev1.WatchSandboxesRequest{})
	if err != nil {
		return fault.FromStatus(err)
	}
	all, err := d.List(ctx)
	if err != nil {
		return err
	}
	for _, st := range all {
		if err := fn(driver.Event{Status: st}); err != nil {
			return err
		}
	}
	if err := fn(driver.Event{Synced: true}); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return fault.FromStatus(err)
		}
		event, ok := d.event(m)
		if !ok {
			continue
		}
		if err := fn(event); err != nil {
			return err
		}
	}
}

// EnsureWorkspace implements driver.Driver. A driver without workspaces has nothing to do.
func (d *Driver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	if err := d.notes.ensured(r.Workspace); err != nil {
		return err
	}
	_, err := d.client.EnsureWorkspace(ctx, &computev1.EnsureWorkspaceRequest{Workspace: r.Workspace.Name})
	return tolerated(err)
}

// DeleteWorkspace implements driver.Driver. To the other driver a workspace is a name: it goes with the last one of
// ours that is called so, and never for one that is gone already.
func (d *Driver) DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error {
	here, last := d.notes.workspace(w)
	if !here {
		return nil
	}
	if last {
		_, err := d.client.DeleteWorkspace(ctx, &computev1.DeleteWorkspaceRequest{Workspace: w.Name})
		if err := tolerated(err); err != nil {
			return err
		}
	}
	return d.notes.removed(w)
}

func tolerated(err error) error {
	if code := status.Code(err); code == codes.Unimplemented || code == codes.NotFound {
		return nil
	}
	return fault.FromStatus(err)
}

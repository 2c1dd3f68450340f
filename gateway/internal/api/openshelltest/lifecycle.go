package openshelltest

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Seen is an error as the gateway's own caller gets it.
type Seen struct {
	Code    codes.Code
	Message string
}

func (s *Seen) Error() string { return fmt.Sprintf("%s: %s", s.Code, s.Message) }

func seen(c codes.Code, format string, args ...any) error {
	return &Seen{Code: c, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code that a user sees; OK for no error.
func CodeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if s, ok := err.(*Seen); ok {
		return s.Code
	}
	return codes.Unknown
}

// Create makes a sandbox: it is validated, its row is stored, and then the driver is told. m has what the user asks
// for and the id; the token is the gateway's.
func (g *Gateway) Create(ctx context.Context, m *computev1.DriverSandbox, token string) error {
	if g.opts.Generation == Second && !g.opts.Table.AllowDriverConfig && len(m.GetSpec().GetTemplate().GetDriverConfig().GetFields()) > 0 {
		return seen(codes.FailedPrecondition, "driver_config is not allowed by the table of the driver")
	}
	if t := m.GetSpec().GetTemplate(); t != nil && t.Image == "" {
		t.Image = g.caps.GetDefaultImage()
	}
	m.Status = &computev1.DriverSandboxStatus{Name: m.GetName(), Conditions: []*computev1.DriverCondition{
		{Type: "Ready", Status: "False", Reason: "Provisioning"}}}
	if err := g.admitted(ctx); err != nil {
		return err
	}
	if _, err := g.client.ValidateSandboxCreate(ctx, &computev1.ValidateSandboxCreateRequest{Sandbox: m}); err != nil {
		return seen(status.Code(err), "%s", status.Convert(err).Message())
	}
	row := &Row{ID: m.GetId(), Name: m.GetName(), Workspace: m.GetWorkspace(), Phase: Provisioning}
	if !g.store.insert(row) {
		return seen(codes.AlreadyExists, "there is a sandbox %q", m.GetName())
	}
	if m.Spec != nil {
		m.Spec.SandboxToken = token
	}
	err := g.admitted(ctx)
	if err == nil {
		err = g.create(ctx, m)
	}
	if err != nil {
		g.store.remove(m.GetId())
	}
	return err
}

// create maps what the driver says to what a user sees. No delete follows: the driver has undone its part.
func (g *Gateway) create(ctx context.Context, m *computev1.DriverSandbox) error {
	r, err := g.client.CreateSandbox(ctx, &computev1.CreateSandboxRequest{Sandbox: m})
	text := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.OK:
	case codes.AlreadyExists:
		return seen(codes.AlreadyExists, "sandbox already exists")
	case codes.FailedPrecondition:
		return seen(codes.FailedPrecondition, "%s", text)
	default:
		return seen(codes.Internal, "create sandbox failed: %s", text)
	}
	if g.opts.Generation == Second && g.caps.GetSupportsSandboxAuthentication() && r.GetRuntimeIdentity() == "" {
		_, _ = g.client.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: m.GetId(), Name: m.GetName()})
		return seen(codes.Internal, "the driver gave no runtime identity")
	}
	g.store.update(m.GetId(), func(row *Row) { row.Runtime = r.GetRuntimeIdentity() })
	return nil
}

// Stop stops a sandbox that is ready.
func (g *Gateway) Stop(ctx context.Context, id string) error {
	before := g.store.Get(id)
	switch before.Phase {
	case Stopped:
		return nil
	case Ready, Stopping:
	default:
		return seen(codes.FailedPrecondition, "sandbox is %s", before.Phase)
	}
	g.store.set(id, Stopping, "")
	_, err := g.client.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: id, Name: before.Name})
	if err == nil {
		g.store.update(id, func(r *Row) { r.Phase, r.Reason, r.Session = Stopped, "", false })
		return nil
	}
	g.settle(ctx, id, before, Stopping)
	return seen(status.Code(err), "stop sandbox: %s", status.Convert(err).Message())
}

// Start starts a sandbox that is stopped. It is Starting until its supervisor has a session again.
func (g *Gateway) Start(ctx context.Context, id string) error {
	before := g.store.Get(id)
	switch before.Phase {
	case Ready:
		return nil
	case Stopped, Starting:
	default:
		return seen(codes.FailedPrecondition, "sandbox is %s", before.Phase)
	}
	if err := g.admitted(ctx); err != nil {
		return err
	}
	g.store.set(id, Starting, "")
	r := &computev1.StartSandboxRequest{SandboxId: id, Name: before.Name}
	if g.opts.Generation == Second {
		r.GenerationId, r.LaunchAuthentication, r.ExpectedRuntimeIdentity = "gen-"+id, []byte("launch"), before.Runtime
	}
	answer, err := g.client.StartSandbox(ctx, r)
	if err != nil {
		g.settle(ctx, id, before, Starting)
		return seen(status.Code(err), "start sandbox: %s", status.Convert(err).Message())
	}
	if g.opts.Generation == Second && g.caps.GetSupportsSandboxAuthentication() && answer.GetRuntimeIdentity() == "" {
		_, _ = g.client.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: id, Name: before.Name})
		return seen(codes.Internal, "the driver gave no runtime identity")
	}
	g.store.update(id, func(row *Row) { row.Runtime = answer.GetRuntimeIdentity() })
	return nil
}

// settle finds out what an error of a stop or a start has left.
func (g *Gateway) settle(ctx context.Context, id string, before Row, want Phase) {
	sb, err := g.get(ctx, id, before.Name)
	if err != nil {
		return // it stays under way
	}
	backend, reason := Derive(g.opts.Generation, sb.GetStatus())
	switch {
	case want == Stopping && ended(g.opts.Generation, sb.GetStatus()):
		g.store.set(id, Stopped, reason)
	case want == Stopping && stopping(sb.GetStatus()):
	case backend == Error:
		g.store.set(id, Error, reason)
	default:
		g.store.set(id, before.Phase, before.Reason)
	}
}

// Delete removes a sandbox. Its row goes when the driver says that it is gone.
func (g *Gateway) Delete(ctx context.Context, id string) error {
	before := g.store.Get(id)
	switch before.Phase {
	case Deleting:
		return nil // the driver is not asked again
	case Gone:
		return seen(codes.NotFound, "there is no sandbox %q", id)
	}
	g.store.set(id, Deleting, "")
	r, err := g.client.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: id, Name: before.Name})
	switch {
	case err == nil && !r.GetDeleted():
		g.store.remove(id)
	case err != nil:
		g.settleDelete(ctx, before)
		return seen(codes.Internal, "delete sandbox failed: %s", status.Convert(err).Message())
	}
	return nil
}

func (g *Gateway) settleDelete(ctx context.Context, before Row) {
	sb, err := g.get(ctx, before.ID, before.Name)
	switch {
	case status.Code(err) == codes.NotFound:
		g.store.remove(before.ID)
	case err != nil:
		g.store.set(before.ID, before.Phase, before.Reason)
	case sb.GetStatus() != nil:
		g.store.set(before.ID, before.Phase, before.Reason)
		g.apply(sb)
	}
}

// EnsureWorkspace and DeleteWorkspace tolerate a driver that has none.
func (g *Gateway) EnsureWorkspace(ctx context.Context, name string) error {
	_, err := g.client.EnsureWorkspace(ctx, &computev1.EnsureWorkspaceRequest{Workspace: name})
	return workspaceError(err)
}

// DeleteWorkspace removes one.
func (g *Gateway) DeleteWorkspace(ctx context.Context, name string) error {
	_, err := g.client.DeleteWorkspace(ctx, &computev1.DeleteWorkspaceRequest{Workspace: name})
	return workspaceError(err)
}

func workspaceError(err error) error {
	if c := status.Code(err); c != codes.OK && c != codes.Unimplemented {
		return seen(c, "%s", status.Convert(err).Message())
	}
	return nil
}

// get asks for one sandbox; one that answers with another id is an error.
func (g *Gateway) get(ctx context.Context, id, name string) (*computev1.DriverSandbox, error) {
	r, err := g.client.GetSandbox(ctx, &computev1.GetSandboxRequest{SandboxId: id, Name: name})
	if err != nil {
		return nil, err
	}
	if got := r.GetSandbox().GetId(); got != id {
		g.complain("asked for %q, it answers with %q", id, got)
		return nil, seen(codes.Internal, "it answers with another sandbox")
	}
	return r.GetSandbox(), nil
}

// Has reports whether a phase was ever seen of the row.
func (r Row) Has(p Phase) bool { return slices.Contains(r.Seen, p) }

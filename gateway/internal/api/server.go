// Package api has the doors of the gateway: the gRPC services that others call. It translates between the wire and
// the engine, and decides nothing.
package api

import (
	"bytes"
	"context"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Host is what the door needs of the daemon behind it, besides the engine.
type Host interface {
	// Version says what runs.
	Version() *gatewayv1.GetVersionResponse
	// Reload loads the configuration anew, on the word of the caller, and says what changed.
	Reload(ctx context.Context, caller string) (*gatewayv1.ReloadResponse, error)
	Programs
	// Drivers returns every configured driver.
	Drivers() []*gatewayv1.Driver
	// Logs copies what a sandbox wrote.
	Logs(ctx context.Context, sb engine.Sandbox, follow bool, out io.Writer) error
}

// Programs are the extensions that run.
type Programs interface {
	// Extensions returns every extension program, with what was negotiated.
	Extensions() []*gatewayv1.Extension
	// Program returns one of them, or the program of a driver by the driver's name; nil: there is none.
	Program(name string) *gatewayv1.Extension
	// RestartExtension replaces an extension's process in good order, and starts one again that has failed.
	RestartExtension(ctx context.Context, name string) error
	// ExtensionLogs hands over what an extension printed, and with follow what comes.
	ExtensionLogs(ctx context.Context, name string, follow bool, each func([]*gatewayv1.ExtensionLogLine) error) error
}

// Server serves sandgate.gateway.v1.
type Server struct {
	gatewayv1.UnimplementedGatewayServer
	engine *engine.Engine
	host   Host
	health *health.Server
}

// New makes the gateway's gRPC server, with reflection and health. Options carry the listener's credentials.
func New(e *engine.Engine, host Host, opts ...grpc.ServerOption) (*grpc.Server, *Server) {
	s := &Server{engine: e, host: host, health: health.NewServer()}
	opts = append(opts, faults(e.Logger)...)
	opts = append(opts, grpc.ChainUnaryInterceptor(unaryLimits), grpc.ChainStreamInterceptor(streamLimits))
	g := grpc.NewServer(opts...)
	gatewayv1.RegisterGatewayServer(g, s)
	healthv1.RegisterHealthServer(g, s.health)
	reflection.Register(g)
	s.health.SetServingStatus(gatewayv1.Gateway_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	return g, s
}

// Shutdown makes the health service say that the gateway is going away.
func (s *Server) Shutdown() { s.health.Shutdown() }

func (s *Server) GetVersion(context.Context, *gatewayv1.GetVersionRequest) (*gatewayv1.GetVersionResponse, error) {
	return s.host.Version(), nil
}

func (s *Server) Reload(ctx context.Context, _ *gatewayv1.ReloadRequest) (*gatewayv1.ReloadResponse, error) {
	return s.host.Reload(ctx, origin(ctx).Caller)
}

func (s *Server) CreateSandbox(ctx context.Context, r *gatewayv1.CreateSandboxRequest) (*gatewayv1.OperationResponse, error) {
	req, err := createRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	h, id, err := s.engine.CreateSandbox(req)
	if err != nil {
		return nil, err
	}
	res, err := s.accepted(ctx, h)
	if err != nil {
		return nil, err
	}
	sb, err := s.engine.Find(engine.Ref{IDOrName: id.ID})
	if err != nil {
		return nil, err
	}
	res.Sandbox = s.sandbox(sb)
	return res, nil
}

// accepted waits until an operation is journaled and says which it is.
func (s *Server) accepted(ctx context.Context, h *engine.Handle) (*gatewayv1.OperationResponse, error) {
	id, err := h.Accepted(ctx)
	if err != nil {
		return nil, err
	}
	op, err := s.engine.Operation(ctx, id)
	if fault.Is(err, fault.NotFound) {
		op, _ = h.Wait(ctx) // there was nothing to do, and so nothing was written
		return &gatewayv1.OperationResponse{Operation: operation(op)}, nil
	}
	if err != nil {
		return nil, err
	}
	return &gatewayv1.OperationResponse{Operation: operation(op)}, nil
}

func (s *Server) PlanSandbox(ctx context.Context, r *gatewayv1.PlanSandboxRequest) (*gatewayv1.PlanSandboxResponse, error) {
	req, err := createRequest(ctx, r.GetCreate())
	if err != nil {
		return nil, err
	}
	p, err := s.engine.Preview(ctx, req)
	if err != nil {
		return nil, err
	}
	out := &gatewayv1.PlanSandboxResponse{Driver: p.Identity.Driver, Workspace: p.Identity.Workspace, Name: p.Identity.Name,
		Fields: fields(p.Plan.Fields()), Active: p.Active, Without: p.Without, Observed: observations(p.Observed),
		WorkspaceNotEnsured: p.WorkspacePlan == nil, Notes: p.Notes}
	if p.WorkspacePlan != nil {
		out.WorkspaceFields = fields(p.WorkspacePlan.Fields())
	}
	for _, l := range p.Late {
		out.Late = append(out.Late, &gatewayv1.LatePoint{Extension: l.Extension, Pattern: string(l.Pattern), Phase: string(l.Phase)})
	}
	return out, nil
}

func (s *Server) GetSandboxPlan(_ context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.PlanSandboxResponse, error) {
	sb, err := s.engine.Find(ref(r))
	if err != nil {
		return nil, err
	}
	p, err := s.engine.PlanOf(sb.ID)
	if err != nil {
		return nil, err
	}
	return &gatewayv1.PlanSandboxResponse{Driver: sb.Driver, Workspace: sb.Workspace, Name: sb.Name, Fields: fields(p.Fields())}, nil
}

func (s *Server) GetSandbox(_ context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.Sandbox, error) {
	sb, err := s.engine.Find(ref(r))
	if err != nil {
		return nil, err
	}
	m := s.sandbox(sb)
	for _, n := range s.engine.Notices(sb.ID, 0) {
		m.Notices = append(m.Notices, &gatewayv1.Notice{At: stamp(n.At), Warning: n.Warning, Source: n.Source, Reason: n.Reason, Message: n.Message})
	}
	return m, nil
}

func (s *Server) ListSandboxes(_ context.Context, r *gatewayv1.ListSandboxesRequest) (*gatewayv1.ListSandboxesResponse, error) {
	out := &gatewayv1.ListSandboxesResponse{}
	for _, sb := range s.matching(r) {
		out.Sandboxes = append(out.Sandboxes, s.sandbox(sb))
	}
	return out, nil
}

func (s *Server) matching(r *gatewayv1.ListSandboxesRequest) []engine.Sandbox {
	want := r.GetRef().GetIdOrName()
	var list []engine.Sandbox
	if want != "" {
		list = s.engine.Named(engine.Ref{IDOrName: want})
	} else {
		list = s.engine.Sandboxes(r.GetAll())
	}
	return slices.DeleteFunc(list, func(sb engine.Sandbox) bool {
		return r.GetDriver() != "" && sb.Driver != r.GetDriver() || r.GetWorkspace() != "" && sb.Workspace != r.GetWorkspace()
	})
}

// WatchSandboxes looks again at every change and sends what differs from what was sent.
func (s *Server) WatchSandboxes(r *gatewayv1.ListSandboxesRequest, stream gatewayv1.Gateway_WatchSandboxesServer) error {
	all := &gatewayv1.ListSandboxesRequest{Driver: r.GetDriver(), Workspace: r.GetWorkspace(), Ref: r.GetRef(), All: true}
	sent, first := map[string]string{}, true
	var one <-chan struct{} // where the caller wants one sandbox by its id
	id := r.GetRef().GetIdOrName()
	if list := s.engine.Named(engine.Ref{IDOrName: id}); len(list) == 1 && list[0].ID == id {
		var stop func()
		one, stop = s.engine.Subscribe(id)
		defer stop()
	}
	for {
		changed := one
		if changed == nil {
			changed = s.engine.Changed()
		}
		for _, sb := range s.matching(all) {
			m := s.sandbox(sb)
			text := m.String()
			_, known := sent[sb.ID]
			if sent[sb.ID] == text || first && !known && sb.State == sandbox.Deleted && !r.GetAll() {
				sent[sb.ID] = text
				continue
			}
			sent[sb.ID] = text
			if err := stream.Send(&gatewayv1.WatchSandboxesResponse{Sandbox: m}); err != nil {
				return err
			}
		}
		if first {
			if err := stream.Send(&gatewayv1.WatchSandboxesResponse{Synced: true}); err != nil {
				return err
			}
			first = false
		}
		if err := await(stream.Context(), s.engine, changed); err != nil {
			return err
		}
	}
}

// await waits for a change, for as long as somebody listens and the engine goes on.
func await(ctx context.Context, e *engine.Engine, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.Done():
		return errStopping
	}
}

var errStopping = fault.New(fault.Unavailable, "the gateway is stopping")

func (s *Server) StartSandbox(ctx context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.OperationResponse, error) {
	return s.operate(ctx, r, func(id string, o sandbox.Origin) (*engine.Handle, error) { return s.engine.StartSandbox(id, nil, o) })
}

func (s *Server) StopSandbox(ctx context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.OperationResponse, error) {
	return s.operate(ctx, r, s.engine.StopSandbox)
}

func (s *Server) DeleteSandbox(ctx context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.OperationResponse, error) {
	return s.operate(ctx, r, s.engine.DeleteSandbox)
}

func (s *Server) operate(ctx context.Context, r *gatewayv1.SandboxRef, do func(string, sandbox.Origin) (*engine.Handle, error)) (*gatewayv1.OperationResponse, error) {
	sb, err := s.engine.Find(ref(r))
	if err != nil {
		return nil, err
	}
	h, err := do(sb.ID, origin(ctx))
	if err != nil {
		return nil, err
	}
	return s.accepted(ctx, h)
}

func (s *Server) GetHistory(ctx context.Context, r *gatewayv1.SandboxRef) (*gatewayv1.GetHistoryResponse, error) {
	sb, err := s.engine.Find(ref(r))
	if err != nil {
		return nil, err
	}
	ops, err := s.engine.Operations(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	out := &gatewayv1.GetHistoryResponse{Sandbox: s.sandbox(sb)}
	for _, op := range slices.Backward(ops) {
		m, err := s.withSteps(ctx, op)
		if err != nil {
			return nil, err
		}
		out.Operations = append(out.Operations, m)
	}
	return out, nil
}

func (s *Server) withSteps(ctx context.Context, op engine.Operation) (*gatewayv1.Operation, error) {
	st, err := s.engine.Steps(ctx, op.ID)
	if err != nil {
		return nil, err
	}
	m := operation(op)
	m.Steps = steps(st)
	return m, nil
}

// chunk is the most that one message of a log carries, in bytes.
const chunk = 32 << 10

type logWriter struct {
	stream gatewayv1.Gateway_GetLogsServer
}

func (w logWriter) Write(p []byte) (int, error) {
	for part := range slices.Chunk(p, chunk) {
		if err := w.stream.Send(&gatewayv1.GetLogsResponse{Data: bytes.Clone(part)}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (s *Server) GetLogs(r *gatewayv1.GetLogsRequest, stream gatewayv1.Gateway_GetLogsServer) error {
	sb, err := s.engine.Find(ref(r.GetRef()))
	if err != nil {
		return err
	}
	return s.host.Logs(stream.Context(), sb, r.GetFollow(), logWriter{stream})
}

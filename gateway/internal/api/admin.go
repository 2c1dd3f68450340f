package api

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

func (s *Server) EnsureWorkspace(ctx context.Context, r *gatewayv1.WorkspaceRef) (*gatewayv1.OperationResponse, error) {
	h, err := s.engine.EnsureWorkspace(r.GetDriver(), r.GetName(), origin(ctx))
	if err != nil {
		return nil, err
	}
	return s.accepted(ctx, h)
}

func (s *Server) DeleteWorkspace(ctx context.Context, r *gatewayv1.WorkspaceRef) (*gatewayv1.OperationResponse, error) {
	h, err := s.engine.DeleteWorkspace(r.GetDriver(), r.GetName(), origin(ctx))
	if err != nil {
		return nil, err
	}
	return s.accepted(ctx, h)
}

func (s *Server) GetWorkspace(_ context.Context, r *gatewayv1.WorkspaceRef) (*gatewayv1.Workspace, error) {
	ws, err := s.engine.FindWorkspace(r.GetDriver(), r.GetName())
	if err != nil {
		return nil, err
	}
	m := s.workspace(ws)
	p, err := s.engine.WorkspacePlanOf(ws.ID)
	if err != nil {
		return nil, err
	}
	m.Fields = fields(p.Fields())
	return m, nil
}

func (s *Server) ListWorkspaces(_ context.Context, r *gatewayv1.ListWorkspacesRequest) (*gatewayv1.ListWorkspacesResponse, error) {
	out := &gatewayv1.ListWorkspacesResponse{}
	for _, ws := range s.engine.Workspaces(false) {
		if r.GetDriver() == "" || ws.Driver == r.GetDriver() {
			out.Workspaces = append(out.Workspaces, s.workspace(ws))
		}
	}
	return out, nil
}

func (s *Server) ListExtensions(context.Context, *gatewayv1.ListExtensionsRequest) (*gatewayv1.ListExtensionsResponse, error) {
	out := &gatewayv1.ListExtensionsResponse{Extensions: s.host.Extensions()}
	for _, x := range out.Extensions {
		x.Disabled, x.Bypass = s.engine.Disabled(x.Name)
	}
	return out, nil
}

// GetExtension answers for the program of a driver, too.
func (s *Server) GetExtension(_ context.Context, r *gatewayv1.GetExtensionRequest) (*gatewayv1.Extension, error) {
	x := s.host.Program(r.GetName())
	if x == nil {
		return nil, fault.New(fault.NotFound, "there is no extension %q, nor a driver of that name which is a program", r.GetName())
	}
	x.Disabled, x.Bypass = s.engine.Disabled(x.Name)
	return x, nil
}

func (s *Server) DisableExtension(ctx context.Context, r *gatewayv1.DisableExtensionRequest) (*gatewayv1.DisableExtensionResponse, error) {
	if !slices.ContainsFunc(s.host.Extensions(), func(x *gatewayv1.Extension) bool { return x.Name == r.GetName() }) {
		return nil, fault.New(fault.NotFound, "there is no extension %q", r.GetName())
	}
	return &gatewayv1.DisableExtensionResponse{}, s.engine.Disable(r.GetName(), r.GetBypass(), origin(ctx).Caller)
}

func (s *Server) EnableExtension(ctx context.Context, r *gatewayv1.EnableExtensionRequest) (*gatewayv1.EnableExtensionResponse, error) {
	if disabled, _ := s.engine.Disabled(r.GetName()); !disabled {
		return nil, fault.New(fault.FailedPrecondition, "extension %q is not disabled", r.GetName())
	}
	return &gatewayv1.EnableExtensionResponse{}, s.engine.Enable(r.GetName(), origin(ctx).Caller)
}

func (s *Server) RestartExtension(ctx context.Context, r *gatewayv1.RestartExtensionRequest) (*gatewayv1.RestartExtensionResponse, error) {
	get := &gatewayv1.GetExtensionRequest{Name: r.GetName()}
	if _, err := s.GetExtension(ctx, get); err != nil {
		return nil, err
	}
	err := s.host.RestartExtension(ctx, r.GetName())
	if err := errors.Join(err, s.engine.Restarted(r.GetName(), origin(ctx).Caller, err)); err != nil {
		return nil, err
	}
	x, err := s.GetExtension(ctx, get)
	return &gatewayv1.RestartExtensionResponse{Extension: x}, err
}

// logBatch is how many lines one message carries at most.
const logBatch = 100

func (s *Server) GetExtensionLogs(r *gatewayv1.GetExtensionLogsRequest, stream gatewayv1.Gateway_GetExtensionLogsServer) error {
	if _, err := s.GetExtension(stream.Context(), &gatewayv1.GetExtensionRequest{Name: r.GetName()}); err != nil {
		return err
	}
	return s.host.ExtensionLogs(stream.Context(), r.GetName(), r.GetFollow(), func(lines []*gatewayv1.ExtensionLogLine) error {
		for part := range slices.Chunk(lines, logBatch) {
			if err := stream.Send(&gatewayv1.GetExtensionLogsResponse{Lines: part}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Server) ListDrivers(context.Context, *gatewayv1.ListDriversRequest) (*gatewayv1.ListDriversResponse, error) {
	return &gatewayv1.ListDriversResponse{Drivers: s.drivers()}, nil
}

// drivers returns the configured drivers with the number of their sandboxes.
func (s *Server) drivers() []*gatewayv1.Driver {
	out := s.host.Drivers()
	count := map[string]int32{}
	for _, sb := range s.engine.Sandboxes(false) {
		count[sb.Driver]++
	}
	for _, d := range out {
		d.Sandboxes = count[d.Name]
	}
	return out
}

func (s *Server) GetDriver(_ context.Context, r *gatewayv1.GetDriverRequest) (*gatewayv1.Driver, error) {
	for _, d := range s.drivers() {
		if d.Name == r.GetName() {
			return d, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no driver %q", r.GetName())
}

func (s *Server) ListResources(_ context.Context, r *gatewayv1.ListResourcesRequest) (*gatewayv1.ListResourcesResponse, error) {
	only := ""
	if r.GetRef().GetIdOrName() != "" {
		sb, err := s.engine.Find(ref(r.GetRef()))
		if err != nil {
			return nil, err
		}
		only = sb.ID
	}
	return &gatewayv1.ListResourcesResponse{Resources: s.resources(only)}, nil
}

func (s *Server) ListOperations(ctx context.Context, r *gatewayv1.ListOperationsRequest) (*gatewayv1.ListOperationsResponse, error) {
	subject := r.GetSubject()
	var unknown error
	if subject != "" {
		var sb engine.Sandbox
		if sb, unknown = s.engine.Find(engine.Ref{IDOrName: subject}); unknown == nil {
			subject = sb.ID
		}
	}
	ops, err := s.engine.Operations(ctx, subject)
	if err != nil {
		return nil, err
	}
	if len(ops) == 0 && unknown != nil && !strings.Contains(subject, "/") { // a bind without any has nothing to tell
		return nil, unknown
	}
	if subject == "" {
		owing, err := s.engine.Owing(ctx)
		if err != nil {
			return nil, err
		}
		ops = append(ops, owing...)
	}
	out := &gatewayv1.ListOperationsResponse{}
	for _, op := range ops {
		m, err := s.withSteps(ctx, op)
		if err != nil {
			return nil, err
		}
		out.Operations = append(out.Operations, m)
	}
	return out, nil
}

func (s *Server) GetOperation(ctx context.Context, r *gatewayv1.GetOperationRequest) (*gatewayv1.Operation, error) {
	op, err := s.engine.Operation(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return s.withSteps(ctx, op)
}

// WatchOperation looks again at every change and sends the operation when it differs from what was sent; once more when
// the gateway stops, which waits for what is in flight: who waited for the last of it learns how it ended.
func (s *Server) WatchOperation(r *gatewayv1.GetOperationRequest, stream gatewayv1.Gateway_WatchOperationServer) error {
	sent := ""
	changed, stop := s.engine.Subscribe(r.GetId())
	defer stop()
	for stopping := false; ; {
		m, err := s.GetOperation(stream.Context(), r)
		if err != nil {
			return err
		}
		if text := m.String(); text != sent {
			sent = text
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if m.Ended != nil {
			return nil
		}
		if stopping {
			return errStopping
		}
		err = await(stream.Context(), s.engine, changed)
		if stopping = errors.Is(err, errStopping); err != nil && !stopping {
			return err
		}
	}
}

func (s *Server) Abandon(ctx context.Context, r *gatewayv1.AbandonRequest) (*gatewayv1.AbandonResponse, error) {
	op, err := s.engine.Operation(ctx, r.GetOperation())
	if err != nil {
		return nil, err
	}
	if (r.GetExtension() != "") == r.GetDriver() {
		return nil, fault.New(fault.Invalid, "say whose part is abandoned: an extension's, or the driver's")
	}
	if r.GetDriver() {
		return &gatewayv1.AbandonResponse{}, s.engine.AbandonDriver(op.Subject, r.GetReason(), origin(ctx).Caller)
	}
	return &gatewayv1.AbandonResponse{}, s.engine.AbandonRelease(ctx, op.Subject, r.GetExtension(), r.GetReason(), origin(ctx).Caller)
}

// defaultAudit is how many lines of the audit are sent when none was said.
const defaultAudit = 1000

func (s *Server) ListAudit(ctx context.Context, r *gatewayv1.ListAuditRequest) (*gatewayv1.ListAuditResponse, error) {
	subject := ""
	if r.GetRef().GetIdOrName() != "" {
		sb, err := s.engine.Find(ref(r.GetRef()))
		if err != nil {
			return nil, err
		}
		subject = sb.ID
	}
	limit := int(r.GetLimit())
	if limit <= 0 {
		limit = defaultAudit
	}
	list, err := s.engine.Audit(ctx, subject, limit)
	if err != nil {
		return nil, err
	}
	out := &gatewayv1.ListAuditResponse{}
	for _, a := range list {
		out.Entries = append(out.Entries, auditEntry(a))
	}
	return out, nil
}

// resources lists the ledger's entries, what waits to be released, and the drivers' objects; of one subject where it
// is named.
func (s *Server) resources(only string) []*gatewayv1.Resource {
	names := map[string]engine.Sandbox{}
	var out []*gatewayv1.Resource
	for _, sb := range s.engine.Sandboxes(true) {
		names[sb.ID] = sb
		if only != "" && sb.ID != only {
			continue
		}
		for _, o := range sb.Objects {
			out = append(out, &gatewayv1.Resource{Subject: sb.ID, Name: sb.Name, Driver: sb.Driver, Workspace: sb.Workspace,
				Lifetime: string(phase.Sandbox), Kind: o.Kind, Id: o.Name, State: "exists"})
		}
	}
	workspaces := map[string]string{}
	for _, ws := range s.engine.Workspaces(true) {
		workspaces[ws.ID] = ws.Name
	}
	for _, h := range s.engine.Holdings() {
		if only == "" || h.Subject == only {
			out = append(out, held(h, names[h.Subject], workspaces[h.Subject])...)
		}
	}
	return out
}

func held(h engine.Holding, sb engine.Sandbox, workspace string) []*gatewayv1.Resource {
	base := func() *gatewayv1.Resource {
		r := &gatewayv1.Resource{Subject: h.Subject, Driver: h.Driver, Extension: h.Extension, Name: sb.Name, Workspace: sb.Workspace}
		if h.Workspace {
			r.Name, r.Workspace = workspace, workspace
		}
		return r
	}
	waiting := map[phase.Lifetime]engine.Release{}
	for _, r := range h.Releases {
		waiting[r.Phase.Releases()] = r
	}
	var out []*gatewayv1.Resource
	for _, l := range []phase.Lifetime{phase.Workspace, phase.Sandbox, phase.Run} {
		release, releasing := waiting[l]
		doubt, inDoubt := h.Doubt[l]
		for _, en := range h.Entries[l] {
			r := base()
			r.Lifetime, r.Kind, r.Id, r.Text, r.State = string(l), en.Kind, en.ID, en.Text, "held"
			if releasing {
				r.State, r.Error, r.Attempts = "releasing", release.Error, int32(release.Attempts)
			}
			out = append(out, r)
		}
		if inDoubt || releasing && len(h.Entries[l]) == 0 {
			r := base()
			r.Lifetime, r.State = string(l), "in_doubt"
			if inDoubt {
				r.Text = "unknown (" + string(doubt.Phase) + " in doubt)"
			}
			if releasing {
				r.State, r.Error, r.Attempts = "releasing", release.Error, int32(release.Attempts)
			}
			out = append(out, r)
		}
	}
	return out
}

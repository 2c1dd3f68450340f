package wire

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// DriverServer serves a driver over sandgate.driver.v1, once it was opened.
type DriverServer struct {
	driverv1.UnimplementedDriverServer

	mu     sync.Mutex
	driver driver.Driver
	schema *plan.Schema
	about  *driver.Description
}

// Open gives the server its driver. There is one for the life of a process.
func (s *DriverServer) Open(ctx context.Context, d driver.Driver) error {
	about, err := d.Describe(ctx)
	if err != nil {
		return err
	}
	schema, err := plan.NewSchema(about.Kinds, about.Points, nil)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver, s.schema, s.about = d, schema, about
	return nil
}

// Opened reports whether there is a driver.
func (s *DriverServer) Opened() bool { return s.get() != nil }

func (s *DriverServer) get() driver.Driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.driver
}

// with runs fn on the driver, and makes a status of its error.
func (s *DriverServer) with(fn func(driver.Driver) error) error {
	d := s.get()
	if d == nil {
		return fault.ToStatus(fault.New(fault.FailedPrecondition, "the driver was not configured yet"))
	}
	return fault.ToStatus(fn(d))
}

// compute makes a plan of the layers that came over the wire.
func (s *DriverServer) compute(list []*driverv1.Layer) (*plan.Plan, error) {
	layers, err := layersFromProto(list)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	schema := s.schema
	s.mu.Unlock()
	return schema.Compute(layers)
}

// who returns the sandbox that a request is about.
func who(r interface{ GetIdentity() *extensionv1.Identity }) sandbox.Identity {
	if id := identityFromProto(r.GetIdentity()); id != nil {
		return *id
	}
	return sandbox.Identity{}
}

func (s *DriverServer) both(own, workspace []*driverv1.Layer, has bool) (p, ws *plan.Plan, err error) {
	if p, err = s.compute(own); err != nil || !has {
		return p, nil, err
	}
	ws, err = s.compute(workspace)
	return p, ws, err
}

// Describe implements the service.
func (s *DriverServer) Describe(context.Context, *driverv1.DescribeRequest) (out *driverv1.DescribeResponse, err error) {
	err = s.with(func(d driver.Driver) error {
		_, logs := driver.As[driver.Logger](d)
		s.mu.Lock()
		defer s.mu.Unlock()
		out = DescriptionToProto(s.about, logs)
		return nil
	})
	return out, err
}

// Layers implements the service.
func (s *DriverServer) Layers(ctx context.Context, r *driverv1.LayersRequest) (*driverv1.LayersResponse, error) {
	out := &driverv1.LayersResponse{}
	err := s.with(func(d driver.Driver) error {
		layers, err := d.Layers(ctx, &driver.Request{Identity: who(r), Spec: specFromProto(r.GetSpec()), Config: r.GetConfig()})
		if err == nil {
			out.Layers, err = layersToProto(layers)
		}
		return err
	})
	return out, err
}

// WorkspaceLayers implements the service.
func (s *DriverServer) WorkspaceLayers(ctx context.Context, r *driverv1.WorkspaceLayersRequest) (*driverv1.WorkspaceLayersResponse, error) {
	out := &driverv1.WorkspaceLayersResponse{}
	err := s.with(func(d driver.Driver) error {
		layers, err := d.WorkspaceLayers(ctx, workspaceFromProto(r.GetWorkspace()))
		if err == nil {
			out.Layers, err = layersToProto(layers)
		}
		return err
	})
	return out, err
}

// Resolve implements the service.
func (s *DriverServer) Resolve(ctx context.Context, r *driverv1.ResolveRequest) (*driverv1.ResolveResponse, error) {
	out := &driverv1.ResolveResponse{}
	err := s.with(func(d driver.Driver) error {
		p, ws, err := s.both(r.GetPlan(), r.GetWorkspace(), r.GetHasWorkspace())
		if err != nil {
			return err
		}
		return d.Resolve(ctx, &driver.ResolveRequest{Identity: who(r), Plan: p, Workspace: ws, Requires: r.GetRequires(),
			Request: r.GetRequest(), Preview: r.GetPreview(), Note: func(text string) { out.Notes = append(out.Notes, text) }})
	})
	return out, err
}

// Create implements the service.
func (s *DriverServer) Create(ctx context.Context, r *driverv1.CreateRequest) (*driverv1.CreateResponse, error) {
	return &driverv1.CreateResponse{}, s.with(func(d driver.Driver) error {
		p, ws, err := s.both(r.GetPlan(), r.GetWorkspace(), r.GetHasWorkspace())
		if err != nil {
			return err
		}
		return d.Create(ctx, &driver.CreateRequest{Identity: who(r), Operation: r.GetOperation(), Run: int(r.GetRun()),
			Plan: p, Workspace: ws, Token: r.GetToken(), Request: r.GetRequest()})
	})
}

// Start implements the service.
func (s *DriverServer) Start(ctx context.Context, r *driverv1.StartRequest) (*driverv1.StartResponse, error) {
	return &driverv1.StartResponse{}, s.with(func(d driver.Driver) error {
		p, ws, err := s.both(r.GetPlan(), r.GetWorkspace(), r.GetHasWorkspace())
		if err != nil {
			return err
		}
		return d.Start(ctx, &driver.StartRequest{Identity: who(r), Operation: r.GetOperation(), Run: int(r.GetRun()),
			Plan: p, Workspace: ws, Token: r.GetToken(), Request: r.GetRequest()})
	})
}

// Stop implements the service.
func (s *DriverServer) Stop(ctx context.Context, r *driverv1.StopRequest) (*driverv1.StopResponse, error) {
	return &driverv1.StopResponse{}, s.with(func(d driver.Driver) error { return d.Stop(ctx, who(r)) })
}

// Delete implements the service.
func (s *DriverServer) Delete(ctx context.Context, r *driverv1.DeleteRequest) (*driverv1.DeleteResponse, error) {
	return &driverv1.DeleteResponse{}, s.with(func(d driver.Driver) error {
		return d.Delete(ctx, &driver.DeleteRequest{Identity: who(r), Operation: r.GetOperation()})
	})
}

// Get implements the service.
func (s *DriverServer) Get(ctx context.Context, r *driverv1.GetRequest) (*driverv1.GetResponse, error) {
	out := &driverv1.GetResponse{}
	err := s.with(func(d driver.Driver) error {
		st, err := d.Get(ctx, who(r))
		if err == nil {
			out.Status = statusToProto(st)
		}
		return err
	})
	return out, err
}

// List implements the service.
func (s *DriverServer) List(_ *driverv1.ListRequest, stream driverv1.Driver_ListServer) error {
	return s.with(func(d driver.Driver) error {
		all, err := d.List(stream.Context())
		if err != nil {
			return err
		}
		for _, st := range all {
			if err := stream.Send(&driverv1.ListResponse{Status: statusToProto(st)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Watch implements the service.
func (s *DriverServer) Watch(_ *driverv1.WatchRequest, stream driverv1.Driver_WatchServer) error {
	return s.with(func(d driver.Driver) error {
		return d.Watch(stream.Context(), func(e driver.Event) error { return stream.Send(eventToProto(e)) })
	})
}

func eventToProto(e driver.Event) *driverv1.WatchResponse {
	switch {
	case e.Status != nil:
		return &driverv1.WatchResponse{Event: &driverv1.WatchResponse_Status{Status: statusToProto(e.Status)}}
	case e.Synced:
		return &driverv1.WatchResponse{Event: &driverv1.WatchResponse_Synced{Synced: true}}
	case e.Notice != nil:
		return &driverv1.WatchResponse{Event: &driverv1.WatchResponse_Notice{Notice: noticeToProto(e.Notice)}}
	}
	return &driverv1.WatchResponse{Event: &driverv1.WatchResponse_Deleted{Deleted: identityToProto(&e.Deleted)}}
}

// EnsureWorkspace implements the service.
func (s *DriverServer) EnsureWorkspace(ctx context.Context, r *driverv1.EnsureWorkspaceRequest) (*driverv1.EnsureWorkspaceResponse, error) {
	return &driverv1.EnsureWorkspaceResponse{}, s.with(func(d driver.Driver) error {
		p, err := s.compute(r.GetPlan())
		if err != nil {
			return err
		}
		return d.EnsureWorkspace(ctx, &driver.WorkspaceRequest{Workspace: workspaceFromProto(r.GetWorkspace()), Plan: p})
	})
}

// DeleteWorkspace implements the service.
func (s *DriverServer) DeleteWorkspace(ctx context.Context, r *driverv1.DeleteWorkspaceRequest) (*driverv1.DeleteWorkspaceResponse, error) {
	return &driverv1.DeleteWorkspaceResponse{}, s.with(func(d driver.Driver) error { return d.DeleteWorkspace(ctx, workspaceFromProto(r.GetWorkspace())) })
}

// logChunk is the most that one message of a log carries, in bytes.
const logChunk = 32 << 10

type logStream struct{ driverv1.Driver_LogsServer }

func (l logStream) Write(p []byte) (int, error) {
	for part := range slices.Chunk(p, logChunk) {
		if err := l.Send(&driverv1.LogsResponse{Data: bytes.Clone(part)}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Logs implements the service.
func (s *DriverServer) Logs(r *driverv1.LogsRequest, stream driverv1.Driver_LogsServer) error {
	return s.with(func(d driver.Driver) error {
		l, ok := driver.As[driver.Logger](d)
		if !ok {
			return fault.New(fault.Unimplemented, "this driver keeps no logs")
		}
		return l.Logs(stream.Context(), who(r), r.GetFollow(), logStream{stream})
	})
}

package wire

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Reach makes one call on the connection to a driver program: of what, about whom. It waits for a program that is being
// restarted, and says how one has ended under the call.
type Reach func(ctx context.Context, call, subject string, fn func(context.Context, grpc.ClientConnInterface) error) error

// Driver is a driver in a program at the other end. Its errors are faults.
type Driver struct {
	reach Reach
	about *driver.Description
	close func() error
}

var _ driver.Driver = (*Driver)(nil)

// NewDriver asks the program what its driver is. Closing the driver calls end. It is a driver.Logger where logs are kept.
func NewDriver(ctx context.Context, reach Reach, end func() error) (driver.Driver, error) {
	d := &Driver{reach: reach, close: end}
	var logs bool
	err := d.do(ctx, "describe", "", func(ctx context.Context, c driverv1.DriverClient) error {
		m, err := c.Describe(ctx, &driverv1.DescribeRequest{})
		if err == nil {
			d.about, logs = DescriptionFromProto(m)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if logs {
		return &loggingDriver{d}, nil
	}
	return d, nil
}

func (d *Driver) do(ctx context.Context, call, subject string, fn func(context.Context, driverv1.DriverClient) error) error {
	return d.reach(ctx, call, subject, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return fault.FromStatus(fn(ctx, driverv1.NewDriverClient(conn)))
	})
}

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// Close implements driver.Driver.
func (d *Driver) Close() error { return d.close() }

// Layers implements driver.Driver.
func (d *Driver) Layers(ctx context.Context, r *driver.Request) (layers []plan.Layer, err error) {
	req := &driverv1.LayersRequest{Identity: identityToProto(&r.Identity), Spec: specToProto(&r.Spec), Config: r.Config}
	err = d.do(ctx, "layers", r.Identity.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		m, err := c.Layers(ctx, req)
		if err == nil {
			layers, err = layersFromProto(m.GetLayers())
		}
		return err
	})
	return layers, err
}

// WorkspaceLayers implements driver.Driver.
func (d *Driver) WorkspaceLayers(ctx context.Context, w sandbox.Workspace) (layers []plan.Layer, err error) {
	err = d.do(ctx, "workspace_layers", w.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		m, err := c.WorkspaceLayers(ctx, &driverv1.WorkspaceLayersRequest{Workspace: workspaceToProto(w)})
		if err == nil {
			layers, err = layersFromProto(m.GetLayers())
		}
		return err
	})
	return layers, err
}

// plans translates the plan of a sandbox and that of its workspace.
func plans(p, ws *plan.Plan) (own, workspace []*driverv1.Layer, has bool, err error) {
	if own, err = layersToProto(p.Layers()); err != nil || ws == nil {
		return own, nil, false, err
	}
	workspace, err = layersToProto(ws.Layers())
	return own, workspace, true, err
}

// Resolve implements driver.Driver.
func (d *Driver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	req := &driverv1.ResolveRequest{Identity: identityToProto(&r.Identity), Requires: r.Requires, Preview: r.Preview, Request: r.Request}
	var err error
	if req.Plan, req.Workspace, req.HasWorkspace, err = plans(r.Plan, r.Workspace); err != nil {
		return err
	}
	return d.do(ctx, "resolve", r.Identity.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		res, err := c.Resolve(ctx, req)
		if r.Note != nil {
			for _, text := range res.GetNotes() {
				r.Note(text)
			}
		}
		return err
	})
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	req := &driverv1.CreateRequest{Identity: identityToProto(&r.Identity), Operation: r.Operation, Run: int32(r.Run), Token: r.Token, Request: r.Request}
	var err error
	if req.Plan, req.Workspace, req.HasWorkspace, err = plans(r.Plan, r.Workspace); err != nil {
		return err
	}
	return d.do(ctx, "create", r.Identity.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.Create(ctx, req)
		return err
	})
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	req := &driverv1.StartRequest{Identity: identityToProto(&r.Identity), Operation: r.Operation, Run: int32(r.Run), Token: r.Token, Request: r.Request}
	var err error
	if req.Plan, req.Workspace, req.HasWorkspace, err = plans(r.Plan, r.Workspace); err != nil {
		return err
	}
	return d.do(ctx, "start", r.Identity.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.Start(ctx, req)
		return err
	})
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.do(ctx, "stop", id.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.Stop(ctx, &driverv1.StopRequest{Identity: identityToProto(&id)})
		return err
	})
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	return d.do(ctx, "delete", r.Identity.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.Delete(ctx, &driverv1.DeleteRequest{Identity: identityToProto(&r.Identity), Operation: r.Operation})
		return err
	})
}

// Get implements driver.Driver.
func (d *Driver) Get(ctx context.Context, id sandbox.Identity) (st *driver.Status, err error) {
	err = d.do(ctx, "get", id.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		m, err := c.Get(ctx, &driverv1.GetRequest{Identity: identityToProto(&id)})
		if err == nil {
			st = statusFromProto(m.GetStatus())
		}
		return err
	})
	return st, err
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) (out []*driver.Status, err error) {
	err = d.do(ctx, "list", "", func(ctx context.Context, c driverv1.DriverClient) error {
		stream, err := c.List(ctx, &driverv1.ListRequest{})
		for err == nil {
			var m *driverv1.ListResponse
			if m, err = stream.Recv(); err == nil {
				out = append(out, statusFromProto(m.GetStatus()))
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
	return out, err
}

// Watch implements driver.Driver.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	var own error
	err := d.do(ctx, "watch", "", func(ctx context.Context, c driverv1.DriverClient) error {
		stream, err := c.Watch(ctx, &driverv1.WatchRequest{})
		for err == nil {
			var m *driverv1.WatchResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if own = fn(eventFromProto(m)); own != nil {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unavailable, "the driver ended its events")
		}
		return err
	})
	return errors.Join(own, err)
}

func eventFromProto(m *driverv1.WatchResponse) driver.Event {
	switch e := m.GetEvent().(type) {
	case *driverv1.WatchResponse_Status:
		return driver.Event{Status: statusFromProto(e.Status)}
	case *driverv1.WatchResponse_Deleted:
		if id := identityFromProto(e.Deleted); id != nil {
			return driver.Event{Deleted: *id}
		}
	case *driverv1.WatchResponse_Notice:
		return driver.Event{Notice: noticeFromProto(e.Notice)}
	}
	return driver.Event{Synced: m.GetSynced()}
}

// EnsureWorkspace implements driver.Driver.
func (d *Driver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	layers, err := layersToProto(r.Plan.Layers())
	if err != nil {
		return err
	}
	return d.do(ctx, "ensure_workspace", r.Workspace.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.EnsureWorkspace(ctx, &driverv1.EnsureWorkspaceRequest{Workspace: workspaceToProto(r.Workspace), Plan: layers})
		return err
	})
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error {
	return d.do(ctx, "delete_workspace", w.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		_, err := c.DeleteWorkspace(ctx, &driverv1.DeleteWorkspaceRequest{Workspace: workspaceToProto(w)})
		return err
	})
}

// loggingDriver is a driver that keeps logs.
type loggingDriver struct{ *Driver }

// Logs implements driver.Logger.
func (d *loggingDriver) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	return d.do(ctx, "logs", id.ID, func(ctx context.Context, c driverv1.DriverClient) error {
		stream, err := c.Logs(ctx, &driverv1.LogsRequest{Identity: identityToProto(&id), Follow: follow})
		for err == nil {
			var m *driverv1.LogsResponse
			if m, err = stream.Recv(); err == nil {
				_, err = out.Write(m.GetData())
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
}

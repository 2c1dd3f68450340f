package kubernetes

import (
	"context"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func (d *Driver) Create(context.Context, *driver.CreateRequest) error { return errNotYet }
func (d *Driver) Start(context.Context, *driver.StartRequest) error   { return errNotYet }
func (d *Driver) Stop(context.Context, sandbox.Identity) error        { return errNotYet }
func (d *Driver) Delete(context.Context, *driver.DeleteRequest) error { return errNotYet }
func (d *Driver) Get(context.Context, sandbox.Identity) (*driver.Status, error) {
	return nil, errNotYet
}
func (d *Driver) List(context.Context) ([]*driver.Status, error)                  { return nil, errNotYet }
func (d *Driver) Watch(context.Context, func(driver.Event) error) error           { return errNotYet }
func (d *Driver) EnsureWorkspace(context.Context, *driver.WorkspaceRequest) error { return errNotYet }
func (d *Driver) DeleteWorkspace(context.Context, sandbox.Workspace) error        { return errNotYet }

package kubernetes

import (
	"context"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// describe says what the driver is and offers.
func (d *Driver) describe(context.Context) (*driver.Description, error) {
	return &driver.Description{Type: "kubernetes", Version: d.cluster.version, Instance: d.cluster.instance, DefaultImage: d.cfg.DefaultImage}, nil
}

// Layers implements driver.Driver.
func (d *Driver) Layers(context.Context, *driver.Request) ([]plan.Layer, error) {
	return nil, errNotYet
}

// WorkspaceLayers implements driver.Driver.
func (d *Driver) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return []plan.Layer{{Owner: plan.OwnerDriver}}, nil
}

// Resolve implements driver.Driver.
func (d *Driver) Resolve(context.Context, *driver.ResolveRequest) error { return errNotYet }

// render returns the API objects of a sandbox's plan, the one that is the sandbox first (the Sandbox, or the Pod where
// sandboxes are plain Pods), then the others in the order of resources. They have the marks, and no owner references.
func (d *Driver) render(_ sandbox.Identity, _ string, _, _ *plan.Plan) ([]object, error) {
	return nil, errNotYet
}

// renderWorkspace returns the API objects of a workspace's plan in the order of resources, with its marks.
func (d *Driver) renderWorkspace(_ sandbox.Workspace, _ *plan.Plan) ([]object, error) {
	return nil, errNotYet
}

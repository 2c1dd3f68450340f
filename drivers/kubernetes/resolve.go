package kubernetes

import (
	"context"

	"github.com/sandgate/sandgate/shared/driver"
)

// Resolve implements driver.Driver.
func (d *Driver) Resolve(_ context.Context, r *driver.ResolveRequest) error {
	_, err := d.render(r.Identity, "", r.Plan, r.Workspace)
	return err
}

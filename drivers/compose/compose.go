// Package compose gives a driver a name of its own over another one, its base, so that a chain of extensions can be
// bound to that name.
//
// A composed driver resolves three things and delegates all else to the driver that its bases end in: the name, since
// it shows only what bears its own; the capabilities, which are its base's; and a sandbox's driver_config, of which
// the keys base and extensions are for others (see SplitConfig). Composed drivers stack: the base may be composed
// too, and each layer takes its own part of driver_config off. The chain itself is not called here.
package compose

import (
	"context"
	"encoding/json"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/plan"
)

// New returns a driver of that name over base, which stays its opener's to close: several names may share one.
func New(name string, base driver.Driver) driver.Driver {
	return &composed{named: named{Driver: root(base), name: name}, base: base}
}

// Named returns base as it is under its own name: the same driver, without the sandboxes of names composed over it.
// Like New it leaves closing to the opener.
func Named(name string, base driver.Driver) driver.Driver {
	return &named{Driver: root(base), name: name}
}

// Splitter returns what takes the parts for extensions out of a sandbox's driver_config, by extension, those of bases
// included. It is nil for a driver that is not composed.
func Splitter(d driver.Driver) func(json.RawMessage) (map[string]json.RawMessage, error) {
	c, ok := d.(*composed)
	if !ok {
		return nil
	}
	return c.extensions
}

// named is a driver that shows only what bears its name.
type named struct {
	driver.Driver // the one at the bottom, which knows the sandboxes of every name
	name          string
}

// Unwrap returns the driver at the bottom, for driver.As.
func (n *named) Unwrap() driver.Driver { return n.Driver }

// List implements driver.Driver.
func (n *named) List(ctx context.Context) ([]*driver.Status, error) {
	all, err := n.Driver.List(ctx)
	if err != nil {
		return nil, err
	}
	var own []*driver.Status
	for _, s := range all {
		if s.Identity.Driver == n.name {
			own = append(own, s)
		}
	}
	return own, nil
}

// Watch implements driver.Driver.
func (n *named) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return n.Driver.Watch(ctx, func(e driver.Event) error {
		if e.Synced || n.name == e.Driver() {
			return fn(e)
		}
		return nil
	})
}

// Close implements driver.Driver. There is nothing of its own to end.
func (n *named) Close() error { return nil }

// composed is a named driver that also takes driver_config apart.
type composed struct {
	named
	base driver.Driver // the next one down, which takes its own part of driver_config
}

// Layers implements driver.Driver: those of the base, for the base's part of the configuration.
func (c *composed) Layers(ctx context.Context, r *driver.Request) ([]plan.Layer, error) {
	_, base, _, err := c.split(r.Config)
	if err != nil {
		return nil, err
	}
	inner := *r
	inner.Config, inner.Spec.DriverConfig = base, base
	layers, err := c.base.Layers(ctx, &inner)
	if err != nil {
		return nil, inBase(err)
	}
	return layers, nil
}

// root returns the driver that a stack of names ends in.
func root(d driver.Driver) driver.Driver {
	switch d := d.(type) {
	case *named:
		return d.Driver
	case *composed:
		return d.Driver
	default:
		return d
	}
}

package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// lateNetwork is how long a network may take to show that was asked for by a gateway that was killed: the engine goes
// on with the call, and until it has, the subnet is neither free nor anybody's.
const lateNetwork = 2 * time.Second

// EnsureWorkspace implements driver.Driver.
func (d *Driver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	return d.mutate(ctx, "workspace/"+r.Workspace.ID, func(w *work) error {
		for _, o := range networksOf(r.Plan) {
			if err := w.next(); err != nil {
				return err
			}
			if err := d.ensureNetwork(w, r.Workspace, o); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *Driver) ensureNetwork(w *work, ws sandbox.Workspace, o net) error {
	name, marks := d.networkName(ws, o.Name), d.workspaceMarks(ws)
	var have *NetworkSpec
	err := d.awaitLate(w, d.asked(ws) == name, func() (there bool, err error) {
		have, err = d.engine.FindNetwork(w, name)
		return !fault.Is(err, fault.NotFound), err
	})
	if fault.Is(err, fault.NotFound) {
		return d.createNetwork(w, ws, &NetworkSpec{Name: name, Subnet: o.Subnet, Internal: o.Internal, Options: o.Options, Labels: merge(o.Labels, marks)})
	}
	if err != nil {
		return err
	}
	for k, want := range marks {
		if have.Labels[k] != want {
			return fault.New(fault.Conflict, "the network %s is in the way: it bears no marks of this workspace", name)
		}
	}
	if o.Subnet != "" && have.Subnet != o.Subnet {
		return fault.New(fault.FailedPrecondition, "the network %s has the subnet %s, and the plan says %s: an engine cannot change that; delete the workspace first", name, have.Subnet, o.Subnet)
	}
	return nil
}

// createNetwork notes that the engine is asked before it is, until its answer was read.
func (d *Driver) createNetwork(w *work, ws sandbox.Workspace, s *NetworkSpec) error {
	path := d.askedPath(ws)
	if err := replace(path, []byte(s.Name), true); err != nil {
		return fault.New(fault.Internal, "note that a network is made for workspace %q: %w", ws.Name, err)
	}
	err := d.engine.CreateNetwork(w, s)
	if driver.InDoubt(err) {
		return err
	}
	return errors.Join(err, d.answered(ws))
}

func (d *Driver) askedPath(ws sandbox.Workspace) string {
	return filepath.Join(d.cfg.Dir, "asked", ws.ID)
}

// asked returns the network of the workspace that the engine was asked for, where nobody has read its answer.
func (d *Driver) asked(ws sandbox.Workspace) string {
	name, _ := os.ReadFile(d.askedPath(ws))
	return string(name)
}

// answered forgets that the engine was asked for a network: what it made, or refused, is known.
func (d *Driver) answered(ws sandbox.Workspace) error {
	if err := os.Remove(d.askedPath(ws)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Internal, "forget that a network was made for workspace %q: %w", ws.Name, err)
	}
	return nil
}

// awaitLate looks once, and where something may come late, again and again until it is there or lateNetwork has passed.
func (d *Driver) awaitLate(ctx context.Context, late bool, look func() (there bool, err error)) error {
	there, err := look()
	if there || !late {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(lateNetwork); ; {
		select {
		case <-tick.C:
			if there, err = look(); there {
				return err
			}
		case <-end:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(ctx context.Context, ws sandbox.Workspace) error {
	if sandbox.CheckID("workspace", ws.ID) != nil {
		return nil
	}
	return d.mutate(ctx, "workspace/"+ws.ID, func(w *work) error {
		var names []string
		asked := d.asked(ws)
		err := d.awaitLate(w, asked != "", func() (there bool, err error) {
			names, err = d.engine.ListNetworks(w, map[string]string{ownerLabel: d.owner, workspaceIDLabel: ws.ID})
			return slices.Contains(names, asked) || err != nil, err
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := w.next(); err != nil {
				return err
			}
			if err := ignoreMissing(d.engine.RemoveNetwork(w, name)); err != nil {
				return err
			}
		}
		return d.answered(ws)
	})
}

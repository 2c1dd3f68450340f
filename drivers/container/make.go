package container

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		if d.other.Load() { // as the watch has seen
			if err := d.sameEngine(w); err != nil {
				return err
			}
		}
		c, err := d.findMarked(w, r.Identity)
		switch {
		case fault.Is(err, fault.NotFound):
			return d.createNew(w, r)
		case err != nil:
			return err
		case c.Labels[operationLabel] != r.Operation || identity(c.Labels) != r.Identity:
			return others(r.Identity)
		}
		return d.begin(w, c, (*driver.StartRequest)(r))
	})
}

func others(id sandbox.Identity) error {
	return fault.New(fault.AlreadyExists, "there is a sandbox %q of another operation", id.ID)
}

// createNew makes the volumes and the container, and starts it.
func (d *Driver) createNew(w *work, r *driver.CreateRequest) error {
	spec, err := d.spec(r)
	if err != nil {
		return err
	}
	if spec.Image, err = d.image(w, boxOf(r.Plan).Image); err != nil {
		return err
	}
	made, err := d.makeVolumes(w, r)
	if err == nil {
		err = w.next()
	}
	var id string
	if err == nil {
		id, err = d.engine.CreateContainer(w, spec)
	}
	if fault.Is(err, fault.AlreadyExists) { // what it made before is removed: nobody will ask for that
		for _, name := range made {
			err = errors.Join(err, ignoreMissing(d.engine.RemoveVolume(w, name)))
		}
	}
	if err != nil {
		return err
	}
	return d.begin(w, &Found{ID: id, Name: spec.Name, State: StateCreated, Labels: spec.Labels, Wanted: wanted(spec.Endpoints)}, (*driver.StartRequest)(r))
}

func wanted(ends []Endpoint) map[string]string {
	out := map[string]string{}
	for _, e := range ends {
		out[e.Network] = e.Address
	}
	return out
}

// makeVolumes makes those of the plan, and returns the names of the ones that were not there before.
func (d *Driver) makeVolumes(w *work, r *driver.CreateRequest) (made []string, err error) {
	for _, v := range volumesOf(r.Plan) {
		if err := w.next(); err != nil {
			return made, err
		}
		name := d.volumeName(r.Identity, v.Name)
		marks := d.marks(r.Identity)
		marks[operationLabel] = r.Operation
		labels, err := d.engine.CreateVolume(w, &VolumeSpec{Name: name, Driver: v.Driver, Options: v.Options, Labels: merge(v.Labels, marks)})
		if err != nil {
			return made, err
		}
		for k, want := range marks {
			if labels[k] != want {
				return made, fault.New(fault.AlreadyExists, "the volume %s is in the way: it bears no marks of this sandbox and operation", name)
			}
		}
		made = append(made, name)
	}
	return made, nil
}

// merge lays over over under.
func merge(under, over map[string]string) map[string]string {
	out := make(map[string]string, len(under)+len(over))
	for k, v := range under {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

// image returns the id of an image, which is fetched as the policy says.
func (d *Driver) image(w *work, reference string) (string, error) {
	if d.cfg.ImagePolicy != PolicyAlways {
		id, err := d.engine.ImageID(w, reference)
		if err == nil || !fault.Is(err, fault.NotFound) {
			return id, err
		}
		if d.cfg.ImagePolicy == PolicyNever {
			return "", missingImage(err)
		}
	}
	// Nothing of the sandbox is made by this: it ends with its caller.
	err := d.engine.Pull(w.caller, reference, func(text string) { d.cfg.Logger.Debug("image", "reference", reference, "progress", text) })
	if err != nil {
		return "", err
	}
	id, err := d.engine.ImageID(w, reference)
	return id, missingImage(err)
}

// missingImage says that an image is not there, which is final: NotFound would be said of the sandbox.
func missingImage(err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.FailedPrecondition, "%w", err)
	}
	return err
}

// spec turns a plan into a container.
func (d *Driver) spec(r *driver.CreateRequest) (*Spec, error) {
	b, err := d.check(r.Plan, r.Workspace)
	if err != nil {
		return nil, err
	}
	ends, err := d.endpoints(*b, r.Identity, r.Workspace)
	if err != nil {
		return nil, err
	}
	check, err := b.healthCheck()
	if err != nil {
		return nil, err
	}
	s := &Spec{Name: d.containerName(r.Identity), Command: b.Command, Directory: b.Directory, Hostname: b.Hostname, User: b.User,
		Environment: b.Environment, Labels: merge(b.Labels, d.marks(r.Identity)), Annotations: b.Annotations, Limits: b.Limits,
		Mounts: b.Mounts, Devices: b.Devices, ExtraHosts: b.ExtraHosts, Health: check, Sysctls: b.Sysctls,
		UserNamespace: b.UserNamespace, Seccomp: b.Security.Seccomp, AppArmor: b.Security.AppArmor,
		NoNewPrivileges: b.Security.NoNewPrivileges, Network: d.cfg.Network, Endpoints: ends, StopTimeout: d.cfg.StopTimeout}
	s.Labels[operationLabel] = r.Operation
	for _, v := range volumesOf(r.Plan) {
		s.Mounts = append(s.Mounts, Mount{Type: "volume", Source: d.volumeName(r.Identity, v.Name), Target: v.Target, ReadOnly: v.ReadOnly})
	}
	if len(r.Token) > 0 {
		s.Environment = merge(s.Environment, map[string]string{"SANDGATE_TOKEN_FILE": tokenPath})
	}
	return s, nil
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		c, err := d.find(w, r.Identity)
		switch {
		case err != nil:
			return err
		case c.Labels[operationLabel] != r.Operation:
			return others(r.Identity)
		}
		return d.begin(w, c, r)
	})
}

// begin begins a run of a container, unless that run has begun.
func (d *Driver) begin(w *work, c *Found, r *driver.StartRequest) error {
	n, err := d.note(r.Identity.ID, c)
	if err != nil {
		return err
	}
	runs := c.State == StateRunning || c.State == StatePaused || c.State == StateRestarting
	if n.Run == r.Run && n.begun(c) {
		st, err := d.status(w, c)
		if err != nil || runs || st.State == driver.Exited {
			return err
		}
	} else if runs {
		return fault.New(fault.FailedPrecondition, "sandbox %q still runs, as run %d", r.Identity.ID, n.Run)
	}
	epoch, err := d.engine.Epoch(w)
	if err != nil {
		return err
	}
	ends, err := d.endpoints(boxOf(r.Plan), r.Identity, r.Workspace)
	if err != nil {
		return err
	}
	have := n.Wanted
	if c.Wanted != nil {
		have = c.Wanted
	}
	if err := d.save(r.Identity.ID, &note{Container: c.ID, Run: r.Run, Before: c.Started, Epoch: epoch.ID, Wanted: have}); err != nil {
		return err
	}
	if err := d.attach(w, c, r, ends, have); err != nil {
		return err
	}
	if len(r.Token) > 0 {
		if err := w.next(); err != nil {
			return err
		}
		if err := d.engine.PutFiles(w, c.ID, tokenFile(r.Token)); err != nil {
			return err
		}
	}
	if err := w.next(); err != nil {
		return err
	}
	return d.engine.StartContainer(w, c.ID)
}

// attach gives the container the addresses of the run that is begun, where it has others.
func (d *Driver) attach(w *work, c *Found, r *driver.StartRequest, ends []Endpoint, have map[string]string) error {
	for _, e := range ends {
		if e.Address == "" || have[e.Network] == e.Address {
			continue
		}
		if err := w.next(); err != nil {
			return err
		}
		if err := d.engine.Attach(w, c.ID, e); err != nil {
			return err
		}
		note := func(n *note) { n.Wanted = merge(n.Wanted, map[string]string{e.Network: e.Address}) }
		if err := d.amend(r.Identity.ID, c, r.Run, note); err != nil {
			return err
		}
	}
	return nil
}

// tokenFile is a tar of the token's file and the directories above it.
func tokenFile(token []byte) io.ReadSeeker {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	file := strings.TrimPrefix(tokenPath, "/")
	err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path.Dir(file) + "/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: file, Mode: 0o444, Size: int64(len(token))}))
	if err == nil {
		_, err = w.Write(token)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err) // a buffer takes everything
	}
	return bytes.NewReader(out.Bytes())
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.mutate(ctx, id.ID, func(w *work) error {
		c, err := d.find(w, id)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		st, err := d.status(w, c)
		if err != nil {
			return err
		}
		n, err := d.note(id.ID, c)
		if err != nil {
			return err
		}
		if n.Stopped != n.Run && st.State != driver.Exited {
			n.Stopped, n.StoppedAt = n.Run, time.Now()
			if err := d.save(id.ID, n); err != nil {
				return err
			}
		}
		return d.end(w, c)
	})
}

// end ends what a container runs.
func (d *Driver) end(w *work, c *Found) error {
	switch c.State {
	case StateCreated, StateExited, StateDead, StateRemoving:
		return nil
	}
	if err := w.next(); err != nil {
		return err
	}
	return ignoreMissing(d.engine.StopContainer(w, c.ID, d.cfg.StopTimeout))
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	if sandbox.CheckID("id", r.Identity.ID) != nil {
		return nil
	}
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		c, err := d.find(w, r.Identity)
		switch {
		case err != nil && !fault.Is(err, fault.NotFound):
			return err
		case err == nil && c.Labels[operationLabel] != r.Operation:
			return nil // it is not what was asked for
		case err == nil:
			if err := d.end(w, c); err != nil {
				return err
			}
			if err := w.next(); err != nil {
				return err
			}
			if err := ignoreMissing(d.engine.RemoveContainer(w, c.ID)); err != nil {
				return err
			}
		}
		if err := d.removeVolumes(w, r); err != nil {
			return err
		}
		return d.forget(r.Identity.ID)
	})
}

func (d *Driver) removeVolumes(w *work, r *driver.DeleteRequest) error {
	names, err := d.engine.ListVolumes(w, map[string]string{ownerLabel: d.owner, sandboxLabel: r.Identity.ID, operationLabel: r.Operation})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.next(); err != nil {
			return err
		}
		if err := ignoreMissing(d.engine.RemoveVolume(w, name)); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

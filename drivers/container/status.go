package container

import (
	"context"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
)

// shutdown is how long an engine may take to end its containers before it ends itself: what ended within that time
// before the engine began anew went away with it.
const shutdown = time.Minute

// begun reports whether the run that is noted has started.
func (n *note) begun(c *Found) bool { return !c.Started.IsZero() && !c.Started.Equal(n.Before) }

// status says what a sandbox is, from its container and what is noted of it.
func (d *Driver) status(ctx context.Context, c *Found) (*driver.Status, error) {
	id := identity(c.Labels)
	n, err := d.note(id.ID, c)
	if err != nil {
		return nil, err
	}
	st := &driver.Status{Identity: id, Operation: c.Labels[operationLabel], Run: n.Run, Since: c.Created, State: driver.Provisioning,
		Objects: []driver.RealObject{{Kind: "container", Name: c.Name}}}
	for _, v := range c.Volumes {
		st.Objects = append(st.Objects, driver.RealObject{Kind: "volume", Name: v})
	}
	switch c.State {
	case StateRemoving:
		st.State = driver.Removing
	case StateRestarting:
	case StateRunning, StatePaused:
		d.running(c, n, st)
	case StateDead:
		st.State, st.Reason, st.Message = driver.Failed, "ContainerDead", "the engine could not remove the container: "+c.Error
	default:
		return st, d.ended(ctx, c, n, st)
	}
	return st, nil
}

// running completes the status of a container that runs.
func (d *Driver) running(c *Found, n *note, st *driver.Status) {
	if !n.begun(c) {
		return
	}
	st.Since, st.Addresses = c.Started, c.Addresses
	switch {
	case n.Ended != nil && c.Started.After(n.Ended.When), n.Stopped == n.Run && c.Started.After(n.StoppedAt):
		st.State, st.Reason, st.Message = driver.Failed, "StartedByOthers", fmt.Sprintf("run %d has ended, and somebody has started the container again", n.Run)
	case c.State == StatePaused:
		st.State, st.Reason, st.Message = driver.Running, "ContainerPaused", "somebody has paused the container"
	case c.Health == "starting":
		st.State, st.Reason, st.Message = driver.Running, "HealthCheckStarting", "the health check has not passed yet"
	case c.Health == "unhealthy":
		st.State, st.Reason, st.Message = driver.Failed, "HealthCheckFailed", "the health check does not pass"
	default:
		st.State = driver.Ready
	}
}

// ended completes the status of a container that does not run.
func (d *Driver) ended(ctx context.Context, c *Found, n *note, st *driver.Status) error {
	if n.Ended == nil && !n.begun(c) && n.Stopped != n.Run && c.State == StateCreated && n.Epoch == "" {
		return nil // it was never started
	}
	if n.Ended == nil {
		if e, lost, err := d.settle(ctx, c, n); err != nil {
			return err
		} else if lost {
			st.State, st.Reason, st.Message = driver.Lost, "EngineRestarted", "the engine or its host went away under the run"
			return nil
		} else {
			n.Ended = e
		}
	}
	if e := n.Ended; e != nil {
		st.State, st.Reason, st.Message, st.ExitCode, st.Since = driver.Exited, e.Reason, e.Message, &e.Code, e.When
	}
	if n.Stopped == n.Run {
		st.State = driver.Stopped
	}
	return nil
}

// settle finds out how a run has ended: by itself, which is noted, or with the engine that held it. Neither: it has not
// begun.
func (d *Driver) settle(ctx context.Context, c *Found, n *note) (e *ending, lost bool, err error) {
	if n.Stopped != n.Run && n.Epoch != "" {
		now, err := d.engine.Epoch(ctx)
		if err != nil {
			return nil, false, err
		}
		// An engine that goes away ends its containers, and answers nobody who asks for its epoch.
		byItself := n.begun(c) && c.State == StateExited && c.Finished.After(c.Started) && c.Finished.Before(now.Since.Add(-shutdown))
		if now.ID != n.Epoch && !byItself {
			return nil, true, nil
		}
	}
	if !n.begun(c) || c.State != StateExited {
		return nil, false, nil
	}
	e = &ending{Code: c.ExitCode, Reason: "ProcessExited", Message: fmt.Sprintf("the process ended with exit code %d", c.ExitCode), When: c.Finished}
	if c.OOMKilled {
		e.Reason, e.Message = "OOMKilled", "the process was killed: it had used up its memory"
	}
	return e, false, d.amend(c.Labels[sandboxLabel], c, n.Run, func(n *note) {
		if n.Ended == nil {
			n.Ended = e
		}
	})
}

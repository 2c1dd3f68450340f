package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// launchAttempts is how often a call that builds something is made while its outcome is unknown; then it is undone.
const launchAttempts = 3

// drive makes one call of the driver. What takes away is repeated until nothing is left, however long that takes;
// what builds is settled by asking for the sandbox when its outcome is unknown, repeated a few times, then undone.
func (x *execution) drive(c call) error {
	s := x.begin(Step{Driver: string(c)})
	if s == nil {
		return nil
	}
	builds := c == callCreate || c == callStart || c == callEnsureWorkspace
	if builds || x.op.Kind == phase.OpStop {
		if err := x.overtaken(); err != nil {
			return err
		}
	}
	resumed := !s.Started.IsZero()
	s.Started = x.e.Now()
	x.putStep(*s)
	x.putFirst()
	if err := x.commit(); err != nil {
		return err
	}
	switch {
	case !builds:
		return x.takeAway(c, s)
	case resumed:
		s.Attempt++ // the one that was in flight when the gateway stopped
		if x.alreadyDone(c) {
			x.end(s, StepOK, nil)
			x.launched(c)
			return nil
		}
	}
	return x.build(c, s)
}

func (x *execution) build(c call, s *Step) error {
	for {
		s.Attempt++
		err := x.callDriver(x.ctx, c)
		if x.e.ctx.Err() != nil {
			return x.e.Err()
		}
		if err != nil && driver.InDoubt(err) && x.alreadyDone(c) {
			err = nil
		}
		if err == nil {
			x.end(s, StepOK, nil)
			x.launched(c)
			return nil
		}
		if x.ctx.Err() != nil {
			x.end(s, StepCancelled, err)
			return context.Cause(x.ctx)
		}
		if !driver.InDoubt(err) || s.Attempt >= launchAttempts {
			// After an attempt whose outcome is unknown something of ours may be there as well.
			x.op.Refused = c == callCreate && s.Attempt == 1 && fault.Is(err, fault.AlreadyExists)
			x.end(s, StepFailed, err)
			return fmt.Errorf("driver %q: %s: %w", x.d.Name, c, err)
		}
		if !sleep(x.ctx, x.e.backoff(s.Attempt, 200*time.Millisecond, 5*time.Second)) && x.e.ctx.Err() != nil {
			return x.e.Err()
		}
	}
}

// takeAway repeats a call that removes or stops until it succeeds or an operator states that the compute is gone.
func (x *execution) takeAway(c call, s *Step) error {
	ctx := x.life
	if x.op.Kind == phase.OpStop {
		ctx = x.ctx
	}
	for {
		s.Attempt++
		err := x.callDriver(ctx, c)
		switch {
		case x.e.ctx.Err() != nil:
			return x.e.Err()
		case err == nil:
			x.end(s, StepOK, nil)
			x.removed(c)
			return nil
		case ctx.Err() != nil:
			x.end(s, StepCancelled, err)
			return context.Cause(ctx)
		}
		x.waiting(fmt.Sprintf("driver %q: %s: %v", x.d.Name, c, err))
		x.e.Logger.Warn("the driver has something left", "driver", x.d.Name, "call", c, "subject", x.op.Subject, "attempt", s.Attempt, "err", err)
		abandoned := false
		if err := x.pause(func() error {
			select {
			case <-time.After(x.e.backoff(s.Attempt, 200*time.Millisecond, time.Minute)):
			case <-x.skip:
				abandoned = true
			case <-ctx.Done():
			}
			return nil
		}); err != nil {
			return err
		}
		if abandoned {
			s.Note = "abandoned by an operator"
			x.end(s, StepLeftOut, err)
			x.removed(c)
			return nil
		}
	}
}

// removed puts into the next commit that the driver has nothing left: the name is free from then on.
func (x *execution) removed(c call) {
	if c == callDelete {
		x.update(func(sb *Sandbox) {
			now := x.e.Now()
			sb.Ended, sb.Objects, sb.Addresses = &now, nil, nil
		})
	}
}

// alreadyDone settles a call in doubt by asking the driver for the sandbox.
func (x *execution) alreadyDone(c call) bool {
	if c == callEnsureWorkspace {
		return false // repeating it is how it is settled
	}
	ctx, cancel := context.WithTimeout(x.ctx, x.d.DriverTimeout)
	defer cancel()
	st, err := x.d.Driver.Get(ctx, x.sb.Identity)
	if err != nil || st.Operation != "" && st.Operation != x.sb.Operation || st.Run < x.sb.Run.Number {
		return false
	}
	return st.State == driver.Running || st.State == driver.Ready || st.State == driver.Exited
}

// callDriver makes the call once, under the driver's timeout.
func (x *execution) callDriver(ctx context.Context, c call) error {
	return pipeline.Shorten(x.makeCall(ctx, c))
}

func (x *execution) makeCall(ctx context.Context, c call) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.d.DriverTimeout,
		fault.New(fault.DeadlineExceeded, "no answer within %v; the outcome is unknown", x.d.DriverTimeout))
	defer cancel()
	d := x.d.Driver
	switch c {
	case callCreate:
		return d.Create(ctx, &driver.CreateRequest{Identity: x.sb.Identity, Operation: x.sb.Operation, Run: x.sb.Run.Number,
			Plan: x.plan, Workspace: x.wsPlan, Token: x.sb.Spec.Token, Request: x.sb.Spec.Request})
	case callStart:
		return d.Start(ctx, &driver.StartRequest{Identity: x.sb.Identity, Operation: x.sb.Operation, Run: x.sb.Run.Number,
			Plan: x.plan, Workspace: x.wsPlan, Token: x.sb.Spec.Token, Request: x.sb.Spec.StartRequest})
	case callStop:
		return d.Stop(ctx, x.sb.Identity)
	case callDelete:
		return d.Delete(ctx, &driver.DeleteRequest{Identity: x.sb.Identity, Operation: x.sb.Operation})
	case callEnsureWorkspace:
		return d.EnsureWorkspace(ctx, &driver.WorkspaceRequest{Workspace: x.ws.Workspace, Plan: x.plan})
	default:
		return d.DeleteWorkspace(ctx, x.ws.Workspace)
	}
}

// launched puts into the next commit that the sandbox is on its way.
func (x *execution) launched(c call) {
	if c == callCreate || c == callStart {
		x.update(func(sb *Sandbox) { sb.State, sb.Reason, sb.Lost = sandbox.Starting, "", false })
		x.e.expectReady(x.s, x.d, x.sb.Run.Number)
	}
}

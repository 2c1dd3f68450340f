package openshelltest

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Sweep lists what the driver has and asks again for each; then it asks for the rows that were not listed.
func (g *Gateway) Sweep(ctx context.Context) error {
	all, err := g.client.ListSandboxes(ctx, &computev1.ListSandboxesRequest{})
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, m := range all.GetSandboxes() {
		listed[m.GetId()] = true
		if g.store.Get(m.GetId()).Phase == Gone {
			continue // the store knows best
		}
		switch sb, err := g.get(ctx, m.GetId(), m.GetName()); status.Code(err) {
		case codes.OK:
			g.apply(sb)
		case codes.NotFound:
		default:
			return err
		}
	}
	for _, r := range g.store.Rows() {
		if listed[r.ID] || time.Since(r.created) < g.opts.Prune {
			continue
		}
		switch sb, err := g.get(ctx, r.ID, r.Name); status.Code(err) {
		case codes.OK:
			g.apply(sb)
		case codes.NotFound:
			g.absent(ctx, r)
		default:
			return err
		}
	}
	return nil
}

// absent settles a row whose sandbox is not there.
func (g *Gateway) absent(ctx context.Context, r Row) {
	switch r.Phase {
	case Stopping, Stopped, Starting:
		g.store.set(r.ID, Error, "ComputeResourceMissing")
	default:
		g.removed(ctx, r.ID)
	}
}

// removed drops a row; the second generation then has the driver reclaim what may be left.
func (g *Gateway) removed(ctx context.Context, id string) {
	name := g.store.Get(id).Name
	if !g.store.remove(id) || g.opts.Generation == First {
		return
	}
	g.wg.Go(func() {
		if _, err := g.client.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: id, Name: name}); err != nil && ctx.Err() == nil && !passing(err) {
			g.complain("delete of what is gone: %w", err)
		}
	})
}

// watch keeps a stream open for as long as the gateway lives.
func (g *Gateway) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := g.stream(ctx)
		g.mu.Lock()
		g.ends = append(g.ends, err)
		g.mu.Unlock()
		select {
		case <-time.After(g.opts.Reopen):
		case <-ctx.Done():
		}
	}
}

func (g *Gateway) stream(ctx context.Context) error {
	s, err := g.client.WatchSandboxes(ctx, &computev1.WatchSandboxesRequest{})
	if err != nil {
		return err
	}
	for {
		e, err := s.Recv()
		if err != nil {
			return err
		}
		switch p := e.GetPayload().(type) {
		case *computev1.WatchSandboxesEvent_Sandbox:
			g.apply(p.Sandbox.GetSandbox())
		case *computev1.WatchSandboxesEvent_Deleted:
			g.removed(ctx, p.Deleted.GetSandboxId())
		case *computev1.WatchSandboxesEvent_PlatformEvent:
			g.progress(p.PlatformEvent)
		default:
			g.complain("an event without a payload")
		}
	}
}

func (g *Gateway) progress(m *computev1.WatchSandboxesPlatformEvent) {
	e := m.GetEvent()
	if g.opts.Generation == Second && !e.GetEventTime().IsValid() {
		g.complain("an event of %s at no time", m.GetSandboxId())
		return
	}
	g.store.update(m.GetSandboxId(), func(r *Row) { r.Progress = append(r.Progress, e) })
}

// apply puts a snapshot into the row of its sandbox. What has no row is not the gateway's.
func (g *Gateway) apply(m *computev1.DriverSandbox) {
	for _, c := range m.GetStatus().GetConditions() {
		if g.opts.Generation == Second && c.GetTransitionTime() != nil && !c.GetTransitionTime().IsValid() {
			g.complain("sandbox %s has a condition at no time", m.GetId())
			return
		}
	}
	backend, reason := Derive(g.opts.Generation, m.GetStatus())
	g.store.update(m.GetId(), func(r *Row) {
		if r.Phase == Deleting {
			return
		}
		if m.GetName() != r.Name {
			g.complain("sandbox %s is called %q now, not %q", m.GetId(), m.GetName(), r.Name)
		}
		r.Name = m.GetName()
		if m.GetStatus() == nil {
			return
		}
		r.Conditions, r.Instance = m.GetStatus().GetConditions(), m.GetStatus().GetInstanceId()
		session := r.Session || g.opts.Generation == Second && g.caps.GetDriverReportsRuntimeReadiness() && backend == Ready
		next, why := compose(backend, reason, session)
		if kept := held(r.Phase, next); kept != next {
			return
		}
		r.Phase, r.Reason = next, why
	})
}

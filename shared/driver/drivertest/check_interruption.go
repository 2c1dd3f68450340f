package drivertest

import (
	"context"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// interruptionChecks are about calls that are cut short, and gateways that come back.
func interruptionChecks() []check {
	return []check{
		{name: "A Create under a context that has ended is settled by Delete", run: createEnded},
		{name: "A Create that was cancelled is settled by Delete", run: createCancelledDelete},
		{name: "A Create that was cancelled is finished by repeating it", run: createCancelledRepeat},
		{name: "A Start that was cancelled is settled by Stop", run: startCancelledStop},
		{name: "A Start that was cancelled is finished by repeating it", run: startCancelledRepeat},
		{name: "Stop and Delete that were cancelled are finished by repeating them", run: endsCancelled},
		{name: "Close leaves sandboxes running, and a driver opened again finds them", run: reopened},
		{name: "A driver opened again finds what was stopped", run: reopenedStopped},
		{name: "A driver opened again repeats a Create of before", run: reopenedCreate},
	}
}

// ended returns a context that has ended already.
func (r *rig) ended() context.Context {
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	return ctx
}

// interrupt makes a call and cancels it as soon as the driver shows that it has begun, or lets it end.
func (r *rig) interrupt(s *subject, call func(context.Context) error) {
	r.Helper()
	v := r.watch()
	v.snapshot()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- call(ctx) }()
	for {
		select {
		case e := <-v.events:
			if e.Status != nil && e.Status.Identity == s.id {
				cancel()
			}
		case err := <-result:
			r.Logf("the call that was cancelled answered: %v", err)
			v.end()
			return
		}
	}
}

func createEnded(r *rig) {
	s := r.sleeper()
	r.boxes = append(r.boxes, s)
	_ = r.d.Create(r.ended(), s.creation()) // whatever it says is in doubt
	r.settled(s)
	s.delete()
	s.gone()
}

// settled checks that Get knows: there is nothing, or what this operation has made.
func (r *rig) settled(s *subject) {
	r.Helper()
	st, err := r.d.Get(r.Context(), s.id)
	if fault.Is(err, fault.NotFound) {
		return
	}
	if err != nil || st.Operation != s.operation || st.Identity != s.id {
		r.Errorf("Get says %+v, %v; want nothing, or what this operation has made", st, err)
	}
}

func createCancelledDelete(r *rig) {
	s := r.sleeper()
	r.boxes = append(r.boxes, s)
	r.interrupt(s, func(ctx context.Context) error { return r.d.Create(ctx, s.creation()) })
	r.settled(s)
	s.delete()
	nothingMade(r, s)
}

func createCancelledRepeat(r *rig) {
	s := r.sleeper()
	r.boxes = append(r.boxes, s)
	r.interrupt(s, func(ctx context.Context) error { return r.d.Create(ctx, s.creation()) })
	r.settled(s)
	s.create()
	if st := s.until(driver.Ready); st.Run != 1 || st.Operation != s.operation {
		r.Errorf("ready as run %d of operation %s", st.Run, st.Operation)
	}
	if listed := r.list(); len(listed) != 1 {
		r.Errorf("List has %v, want one sandbox", listed)
	}
}

func startCancelledStop(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	_ = r.d.Start(r.ended(), s.beginning(2))
	r.interrupt(s, func(ctx context.Context) error { return r.d.Start(ctx, s.beginning(2)) })
	s.stop()
	if st := s.get(); st.State != driver.Stopped {
		r.Errorf("it is %s after Stop", st.State)
	}
	s.start(3)
	s.until(driver.Ready)
}

func startCancelledRepeat(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	r.interrupt(s, func(ctx context.Context) error { return r.d.Start(ctx, s.beginning(2)) })
	s.start(2)
	if st := s.until(driver.Ready); st.Run != 2 {
		r.Errorf("ready as run %d, want 2", st.Run)
	}
}

func endsCancelled(r *rig) {
	s := r.sleeper()
	s.ready()
	_ = r.d.Stop(r.ended(), s.id)
	r.interrupt(s, func(ctx context.Context) error { return r.d.Stop(ctx, s.id) })
	s.stop()
	if st := s.get(); st.State != driver.Stopped {
		r.Errorf("it is %s after Stop", st.State)
	}
	_ = r.d.Delete(r.ended(), s.deletion())
	r.interrupt(s, func(ctx context.Context) error { return r.d.Delete(ctx, s.deletion()) })
	s.delete()
	s.gone()
}

func reopened(r *rig) {
	s := r.sleeper()
	before := s.ready()
	r.restart()
	got := r.watch().snapshot()[s.id.ID]
	if got == nil {
		r.Fatal("the snapshot does not have the sandbox")
	}
	if diff := cmp.Diff(before, got, settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
	s.stop()
	s.start(2)
	s.until(driver.Ready)
	// The workspace is found again too.
	r.sandbox(s.space, "later", r.f.Commands.Sleep).ready()
	s.delete()
	s.gone()
}

func reopenedStopped(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	before := s.get()
	r.restart()
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
	s.start(2)
	s.until(driver.Ready)
}

func reopenedCreate(r *rig) {
	s := r.sleeper()
	before := s.ready()
	r.restart()
	if err := r.d.Create(r.Context(), s.creation()); err != nil {
		r.Fatalf("Create again: %v", err)
	}
	if diff := cmp.Diff(before, s.until(driver.Ready), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
	s.delete()
	r.restart()
	s.gone()
}

package drivertest

import (
	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// runChecks are about Stop and Start, and about runs that end without either.
func runChecks() []check {
	return []check{
		{name: "Stop ends the run and keeps the sandbox", run: stopKeeps},
		{name: "Stop of what is stopped succeeds", run: stopTwice},
		{name: "Start begins the next run", run: startNext},
		{name: "Start repeated changes nothing", run: startTwice},
		{name: "Start applies the plan that it is given", needs: []string{"network.subnet", "network.address"}, run: addressed},
		{name: "A run that was lost is started again", when: func(f *Factory) bool { return f.Lose != nil }, run: startLost},
		{name: "What someone else removed is gone", when: func(f *Factory) bool { return f.Vanish != nil }, run: vanished},
	}
}

func stopKeeps(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	st := s.get()
	if st.State != driver.Stopped || st.Run != 1 || st.Operation != s.operation || st.Identity != s.id {
		r.Errorf("after Stop: %+v; want run 1 stopped, with its marks", st)
	}
	if len(st.Addresses) > 0 {
		r.Errorf("a stopped sandbox has addresses %v", st.Addresses)
	}
	s.until(driver.Stopped)
}

func stopTwice(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	before := s.get()
	s.stop()
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
}

func startNext(r *rig) {
	s := r.sleeper()
	s.ready()
	for run := 2; run <= 3; run++ {
		s.stop()
		s.start(run)
		if st := s.until(driver.Ready); st.Run != run || st.Operation != s.operation {
			r.Errorf("ready as run %d of operation %s, want run %d of %s", st.Run, st.Operation, run, s.operation)
		}
	}
}

func startTwice(r *rig) {
	s := r.sleeper()
	s.ready()
	s.stop()
	s.start(2)
	before := s.until(driver.Ready)
	s.start(2)
	if diff := cmp.Diff(before, s.until(driver.Ready), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
}

// addressed gives a sandbox an address of its workspace's subnet, and expects it in every run.
func addressed(r *rig) {
	w := r.workspace("tenant", setting{"network.subnet", r.f.Subnet})
	s := r.sandbox(w, "addressed", r.f.Commands.Sleep, setting{"network.address", r.address(7)})
	for run := 1; run <= 2; run++ {
		if run == 1 {
			s.create()
		} else {
			s.stop()
			s.start(run)
		}
		if diff := cmp.Diff([]string{r.address(7)}, s.until(driver.Ready).Addresses); diff != "" {
			r.Errorf("addresses of run %d (-want +got):\n%s", run, diff)
		}
	}
	// Nobody else is given it while the sandbox is there.
	other := r.sandbox(w, "other", r.f.Commands.Sleep, setting{"network.address", r.address(8)})
	if st := other.ready(); len(st.Addresses) != 1 || st.Addresses[0] != r.address(8) {
		r.Errorf("the other's addresses are %v", st.Addresses)
	}
}

func startLost(r *rig) {
	s := r.sleeper()
	r.f.Lose(r, s.ready())
	if st := s.until(driver.Lost); st.Run != 1 || st.Operation != s.operation {
		r.Errorf("lost as run %d of operation %s", st.Run, st.Operation)
	}
	s.start(2)
	if st := s.until(driver.Ready); st.Run != 2 {
		r.Errorf("ready as run %d, want 2", st.Run)
	}
}

func vanished(r *rig) {
	s := r.sleeper()
	r.f.Vanish(r, s.ready())
	s.gone()
	r.wantCode("Start", r.d.Start(r.Context(), s.beginning(2)), fault.NotFound)
	s.stop()
	s.delete()
}

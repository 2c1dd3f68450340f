package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/phase"
)

// The gateway is killed while the witness holds a call open, before and after its effect, at each of the fourteen
// phases.
func TestKilledWhileACallIsHeldOpen(t *testing.T) {
	t.Parallel()
	throughAllPhases(t, snare{Gateway: true})
}

// An extension is killed at each phase, before and after its effect: the operation succeeds after its restart.
func TestAnExtensionKilledAtEveryPhase(t *testing.T) {
	t.Parallel()
	throughAllPhases(t, snare{})
}

func throughAllPhases(t *testing.T, s snare) {
	r := newRuin(t)
	r.budget, r.window = 1000, "1s" // the pause before a restart grows with those of the window
	r.configure()
	r.boot()
	var all tally
	for _, p := range phase.All() {
		for _, after := range []bool{false, true} {
			s.Phase, s.After = p, after
			r.meet(s, &all)
			if _, err := os.Stat(r.snare() + ".sprung"); err != nil {
				t.Errorf("%s was not called: %v", p, err)
			}
			_ = os.Remove(r.snare() + ".sprung")
		}
	}
	r.end()
	t.Logf("%d moments, %d kills of the gateway in an operation", 2*len(phase.All()), all.first)
}

func (r *ruin) snare() string { return filepath.Join(r.dir, "witness/snare") }

// meet lets a sandbox live, or fail to, such that the snare's phase is called.
func (r *ruin) meet(s snare, all *tally) {
	r.t.Helper()
	if s.Phase == phase.Reconcile {
		r.end()
	}
	raw, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(r.snare(), raw, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	switch s.Phase {
	case phase.Reconcile:
		if !r.boot() {
			r.boot()
		}
		r.settled()
	case phase.OnCreateFailed:
		r.sandbox++
		if a, alive := r.tell("create-bad", r.name, r.id()); !alive {
			r.boot()
		} else if a.Error == "" {
			r.t.Fatal("a command that is not there was run")
		}
		r.settled()
		if a := r.must("state", r.id()); a.State != "deleted" {
			r.t.Fatalf("it is %s", a.State)
		}
		r.must("delete-workspace", r.name)
		r.settled()
	default:
		r.cycle("none", "-", 1, 1000, all)
	}
	r.check(string(s.Phase))
}

// settled waits for rest, also if the gateway is killed meanwhile.
func (r *ruin) settled() {
	r.t.Helper()
	if _, alive := r.tell("settle"); !alive {
		r.boot()
		r.must("settle")
	}
}

// An extension that is killed at every attempt spends its crash budget: the create is undone, and what it held is
// released when the next configuration begins anew with it.
func TestASpentCrashBudgetUndoes(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.budget = 1
	r.configure()
	r.boot()
	for _, p := range []phase.Phase{phase.ValidateRequest, phase.EnsureWorkspace, phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart} {
		for _, after := range []bool{false, true} {
			raw, err := json.Marshal(snare{Phase: p, After: after, Always: true})
			if err == nil {
				err = os.WriteFile(r.snare(), raw, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.must("settle")
			r.sandbox++
			if a, alive := r.tell("create", r.name, r.id()); !alive || !strings.Contains(a.Error, "witness") {
				t.Fatalf("%s: alive %t, %q", p, alive, a.Error)
			}
			if err := os.Remove(r.snare()); err != nil {
				t.Fatal(err)
			}
			r.must("reload")
			r.must("settle")
			if a := r.must("state", r.id()); a.State != "deleted" && a.State != "absent" {
				t.Fatalf("%s: it is %s", p, a.State)
			}
			r.check(string(p) + " with a spent budget")
			r.must("create", r.name, r.id()+"-again")
			r.must("settle")
			r.check("a create after that")
			r.must("delete", r.id()+"-again")
			r.must("delete-workspace", r.name)
		}
	}
	r.end()
}

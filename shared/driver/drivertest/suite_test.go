package drivertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
)

func TestTheFakeConforms(t *testing.T) {
	f := fakeFactory(nil)
	Lifecycle(t, f)
	Workload(t, f)
}

func TestAFakeWithoutFeaturesConforms(t *testing.T) {
	f := fakeFactory(nil)
	f.Driver = "bare"
	f.Place = func(testing.TB) func() (driver.Driver, error) {
		w := NewWorld(Options{Without: []string{"network.subnet", "network.address", "environment", "labels", "annotations", "volume"}})
		return func() (driver.Driver, error) { return w.Open(), nil }
	}
	f.Lose, f.Vanish, f.Unusable, f.Commands.ExitLater = nil, nil, nil, nil
	Lifecycle(t, f)
	Workload(t, f)
}

// fakeFactory makes fakes, each dressed in a fault where one is given.
func fakeFactory(dress func(*Fake) driver.Driver) Factory {
	worlds := &sync.Map{} // sandbox id -> *World, for the functions that act behind the driver's back
	place := func(testing.TB) func() (driver.Driver, error) {
		w := NewWorld(Options{})
		w.options.Observe = func(e Entry) { worlds.Store(e.ID, w) }
		return func() (driver.Driver, error) {
			if dress == nil {
				return w.Open(), nil
			}
			return dress(w.Open()), nil
		}
	}
	of := func(s *driver.Status) *World { w, _ := worlds.Load(s.Identity.ID); return w.(*World) }
	return Factory{
		Place: place,
		Commands: Commands{
			Sleep:     []string{"sleep"},
			Exit:      func(code int) []string { return []string{"exit", fmt.Sprint(code)} },
			Echo:      func(text string) []string { return []string{"echo", text} },
			Printenv:  func(name string) []string { return []string{"printenv", name} },
			Count:     []string{"count"},
			ExitLater: func(code int) []string { return []string{"exit", fmt.Sprint(code)} },
		},
		Config: json.RawMessage(`{"size":"large"}`),
		Unusable: func(r *driver.Request) string {
			r.Config = json.RawMessage(`{"colour":"red"}`)
			return "driver_config.colour"
		},
		Lose:   func(_ testing.TB, s *driver.Status) { of(s).Lose(s.Identity.ID) },
		Vanish: func(_ testing.TB, s *driver.Status) { of(s).Vanish(s.Identity.ID) },
	}
}

// recorder stands in for the testing.T of one check and remembers how it went.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (r *recorder) Helper()             {}
func (r *recorder) Log(...any)          {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Cleanup(fn func())   { r.cleanups = append(r.cleanups, fn) }
func (r *recorder) Failed() bool        { return len(r.failures) > 0 }

func (r *recorder) Error(args ...any) { r.Errorf("%s", fmt.Sprint(args...)) }

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failuresOf runs one check on a driver and returns what it found. A check that never ends fails the test: within
// synctest's bubble that is a deadlock.
func failuresOf(t *testing.T, c check, f Factory) []string {
	r := &recorder{TB: t}
	inOrder := func(fn func()) {
		var wg sync.WaitGroup
		wg.Go(fn)
		wg.Wait()
	}
	inOrder(func() {
		if c.applies(&f, featuresOf(r, &f)) {
			c.run(newRig(r, &f))
		}
	})
	for _, fn := range slices.Backward(r.cleanups) {
		inOrder(fn)
	}
	return r.failures
}

func TestEachFaultIsFound(t *testing.T) {
	all := allChecks()
	byName := map[string]check{}
	for _, c := range all {
		byName[c.name] = c
	}
	proven := map[string]bool{}
	for _, b := range slices.Concat(brokenPlans(), brokenMaking(), brokenRuns(), brokenWatches(), brokenInterruptions(), brokenWorkspaces(), brokenWorkloads()) {
		proven[b.found] = true
		t.Run(b.fault, func(t *testing.T) {
			c, ok := byName[b.found]
			if !ok {
				t.Fatalf("there is no check %q", b.found)
			}
			synctest.Test(t, func(t *testing.T) {
				f := fakeFactory(func(fake *Fake) driver.Driver {
					d := newFaulty(fake)
					b.with(d)
					return d
				})
				f.Patience = time.Second // of the bubble's clock
				found := failuresOf(t, c, f)
				if len(found) == 0 {
					t.Errorf("%q did not find it", b.found)
				}
			})
		})
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if !proven[name] {
			t.Errorf("no fault proves that %q can fail", name)
		}
	}
}

func TestNoCheckFailsUnderTheRecorder(t *testing.T) {
	all := allChecks()
	for _, c := range all {
		synctest.Test(t, func(t *testing.T) {
			f := fakeFactory(func(fake *Fake) driver.Driver { return newFaulty(fake) })
			f.Patience = time.Second
			if found := failuresOf(t, c, f); len(found) > 0 {
				t.Errorf("%q fails on a driver without fault:\n%s", c.name, strings.Join(found, "\n"))
			}
		})
	}
}

func TestChecksHaveNamesOfTheirOwn(t *testing.T) {
	var all []string
	for _, c := range allChecks() {
		all = append(all, c.name)
	}
	once := slices.Compact(slices.Sorted(slices.Values(all)))
	if diff := cmp.Diff(once, slices.Sorted(slices.Values(all))); diff != "" {
		t.Errorf("a name is there twice (-want +got):\n%s", diff)
	}
}

func allChecks() []check {
	return slices.Concat(planChecks(), makingChecks(), runChecks(), watchChecks(), interruptionChecks(), workspaceChecks(), workloadChecks())
}

package engine

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// The simulation runs the real engine, pipeline and journal over a scripted driver and scripted extensions, under one
// seed and a fake clock. Every call out of the engine waits in a scheduler (sim_scheduler_test.go) that lets the seed
// choose what happens next; a checker with a model of its own (sim_checker_test.go) looks at every step.
//
// SIM_N and SIM_SEED say how many histories, and from which seed; SIM_TRACE=1 prints the steps of each.

// histories is how many are run where nobody says otherwise.
const histories = 2000

func simNumber(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// history runs one seed, and returns what broke, or "", and the trace.
func history(t *testing.T, seed uint64) (broken string, trace []string, steps int) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed)
		s.run()
		broken, trace, steps = s.broken, s.trace, s.step
	})
	return broken, trace, steps
}

func TestSimulation(t *testing.T) {
	n, first := simNumber(t, "SIM_N", histories), simNumber(t, "SIM_SEED", 1)
	most := simNumber(t, "SIM_FAILURES", 3)
	verbose := os.Getenv("SIM_TRACE") != ""
	if testing.Short() {
		n = min(n, 200)
	}
	var next, steps, failed atomic.Int64
	t.Run("histories", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1); i <= int64(n) && failed.Load() < int64(most); i = next.Add(1) {
					seed := uint64(first) + uint64(i) - 1
					broken, trace, k := history(t, seed)
					steps.Add(int64(k))
					if broken != "" {
						failed.Add(1)
						t.Errorf("seed %d, history %d, step %d: %s\nagain with: make simulate N=1 SEED=%d\n%s", seed, i, k, broken, seed,
							strings.Join(trace[max(0, len(trace)-60):], "\n"))
					}
					if verbose {
						t.Logf("seed %d:\n%s", seed, strings.Join(trace, "\n"))
					}
				}
			})
		}
	})
	t.Logf("%d histories from seed %d, %d steps", min(next.Load(), int64(n)), first, steps.Load())
}

// A seed that fails is of use only if it fails again, at the same step.
func TestSimulationReplays(t *testing.T) {
	n, first := simNumber(t, "SIM_REPLAYS", 40), simNumber(t, "SIM_SEED", 1)
	for seed := uint64(first); seed < uint64(first)+uint64(n); seed++ {
		_, one, _ := history(t, seed)
		_, two, _ := history(t, seed)
		if slices.Equal(one, two) {
			continue
		}
		at := 0
		for at < min(len(one), len(two)) && one[at] == two[at] {
			at++
		}
		t.Errorf("seed %d went two ways at line %d of %d and %d:\n%s\n-- or --\n%s", seed, at, len(one), len(two),
			strings.Join(one[max(0, at-3):min(len(one), at+3)], "\n"), strings.Join(two[max(0, at-3):min(len(two), at+3)], "\n"))
	}
}

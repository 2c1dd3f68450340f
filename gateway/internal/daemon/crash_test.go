package daemon

import (
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"
)

var (
	crashAll  = flag.Bool("crash-all", false, "a second kill at each commit of every recovery, not at one of each")
	crashSeed = flag.Int("crash-seed", int(time.Now().Unix()/3600), "which commit of a recovery the second kill is at")
)

// life is what a site's sandbox goes through, in order; a kill may be in each.
var life = []struct{ do, done, undone string }{
	{"create", "ready", "deleted"}, // undone: it is made again
	{"stop", "stopped", "ready"},
	{"start", "ready", "stopped"},
	{"delete", "deleted", "ready"},
	{"delete-workspace", "deleted", "deleted"},
}

// tally counts the kills of a whole run.
type tally struct {
	mu            sync.Mutex
	first, second int
	boots         int
	booting       time.Duration
}

// The gateway is killed with SIGKILL before and after every commit, and before, during and after every call of an
// extension and of the driver, in a create, a stop, a start, a delete and a delete of the workspace; and then a
// second time at a commit of the recovery. After each, a checker that never asks the gateway looks at everything.
func TestKilledAtEveryMoment(t *testing.T) {
	t.Parallel()
	var all tally
	began := time.Now()
	t.Logf("-crash-seed=%d", *crashSeed)
	t.Run("kill", func(t *testing.T) {
		for _, m := range []struct{ kind, when string }{{"commit", "before"}, {"commit", "after"}, {"call", "before"}, {"call", "during"}, {"call", "after"}} {
			t.Run(m.when+" each "+m.kind, func(t *testing.T) {
				t.Parallel()
				newRuin(t).suffer(m.kind, m.when, &all)
			})
		}
	})
	t.Logf("%d kill points, %d second kills in a recovery; %d starts of a gateway, each ready after %v on average; %v in all", all.first, all.second,
		all.boots, all.booting/time.Duration(max(all.boots, 1)), time.Since(began).Round(time.Second))
}

// suffer kills the gateway at the n-th moment of each operation, for every n that there is.
func (r *ruin) suffer(kind, when string, all *tally) {
	r.boot()
	for n, killed := 1, true; killed; n++ {
		killed = false
		second := 1 + (*crashSeed+n)%7
		if *crashAll {
			second = 1
		}
		for again := true; again; second++ {
			first, recovery := r.cycle(kind, when, n, second, all)
			killed = killed || first
			again = *crashAll && recovery
		}
	}
	r.end()
	all.mu.Lock()
	defer all.mu.Unlock()
	all.boots += r.boots
	all.booting += r.bootTime
}

// cycle is one life of a sandbox, with a kill at the n-th moment of each operation and one at the given commit of each
// recovery. It reports whether there were any.
func (r *ruin) cycle(kind, when string, n, second int, all *tally) (first, recovery bool) {
	r.t.Helper()
	r.sandbox++
	r.must("settle")
	for _, op := range life {
		about := r.id()
		if op.do == "delete-workspace" {
			about = r.name
		}
		r.must("arm", kind, when, fmt.Sprint(n))
		killed, again := r.endure(op.do, about, second)
		first, recovery = first || killed, recovery || again
		where := fmt.Sprintf("%s (%s %s %d, killed %t, again at %d: %t)", op.do, when, kind, n, killed, second, again)
		all.mu.Lock()
		if killed {
			all.first++
		}
		if again {
			all.second++
		}
		all.mu.Unlock()
		r.check(where)
		r.outcome(op.do, op.done, op.undone, about, where)
	}
	return first, recovery
}

// endure does an operation under which the gateway may be killed, and brings the gateway back.
func (r *ruin) endure(do, about string, second int) (killed, again bool) {
	r.t.Helper()
	a, alive := r.tell(r.words(do, about)...)
	if alive {
		if a.Error != "" {
			r.t.Fatalf("%s: %s\n%s", do, a.Error, r.logs())
		}
		_, alive = r.tell("settle") // being ready is a part of a create and of a start
	}
	if alive {
		_, alive = r.tell("disarm")
	}
	if alive {
		return false, false
	}
	when := []string{"before", "after"}[(*crashSeed+second)%2]
	if alive = r.boot("commit", when, fmt.Sprint(second)); alive {
		_, alive = r.tell("settle")
	}
	if alive {
		_, alive = r.tell("disarm")
	}
	if alive {
		return true, false
	}
	r.boot()
	r.must("settle")
	return true, true
}

func (r *ruin) words(do, about string) []string {
	if do == "create" {
		return []string{do, r.name, about}
	}
	return []string{do, about}
}

// outcome checks that the operation is finished or undone, and carries it out where it is not finished.
func (r *ruin) outcome(do, done, undone, about, where string) {
	r.t.Helper()
	if do == "delete-workspace" {
		r.must(do, about)
		r.must("settle")
		return
	}
	switch a := r.must("state", about); {
	case a.State == done:
	case a.State == undone, do == "create" && a.State == "absent":
		if do == "create" {
			r.sandbox++
			about = r.id()
		}
		r.must(r.words(do, about)...)
		r.must("settle")
		r.check(where + " and again")
	default:
		r.t.Fatalf("after %s the sandbox is %s\n%s", where, a.State, r.logs())
	}
}

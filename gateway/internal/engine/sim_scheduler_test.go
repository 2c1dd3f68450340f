package engine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/fault"
)

// sim is one history.
type sim struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand // the scheduler's alone
	odds  odds
	world *drivertest.World
	clock time.Time // when it began
	ids   atomic.Int64

	mu      sync.Mutex
	pending []*item
	trace   []string
	step    int
	broken  string // the first invariant that did not hold
	calm    bool
	full    bool // the store takes nothing
	check   *checker

	engine  atomic.Pointer[Engine]
	disk    *journal.Memory
	life    context.Context // of this incarnation's clients
	endLife context.CancelFunc
	catalog *simCatalog
	exts    []*simExt
	clients clients
	max     int
}

// odds is how likely what is, in this history, in thousandths of a step. Each history draws its own, many of them
// nought, so that some histories are all crashes and others all reloads.
type odds struct {
	client, advance, crash, reload, toggle, full, extCrash, freeze, exit, lose, vanish, driverEvent int
	fail, deny, lost, late, twice, garbage, never, ghost                                            int // per call
}

// item is one call out of the engine that waits for the scheduler.
type item struct {
	key  string
	kind string // "commit", "call", "answer", "drive", "driven", "event", "enter", "ghost"
	ext  *simExt
	hung bool
	run  func(verdict) // in place of a goroutine that waits
	verd chan verdict
	deny bool // it may be denied
	sure bool // it does not fail: what is asked has no error that means anything
}

// verdict is what the scheduler makes of a call.
type verdict struct {
	err     error // in place of the effect
	lost    error // in place of the answer, after the effect
	deny    bool
	garbage bool // an answer that cannot be used
	twice   bool
	partly  bool
	hold    bool // the answer waits for a turn of its own
	silent  bool // the effect, and never an answer
	empty   bool // it comes to hold nothing new
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 20)), clock: time.Now(), disk: journal.NewMemory(), max: 64}
	s.check = newChecker(s)
	pick := func(max int) int { // nought in half of the histories
		if s.rng.IntN(2) == 0 {
			return 0
		}
		return 1 + s.rng.IntN(max)
	}
	s.odds = odds{client: 60 + s.rng.IntN(120), advance: 20 + s.rng.IntN(60), crash: pick(12), reload: pick(15), toggle: pick(15),
		full: pick(12), extCrash: pick(15), freeze: pick(12), exit: pick(20), lose: pick(12), vanish: pick(12), driverEvent: pick(20),
		fail: pick(120), deny: pick(60), lost: pick(120), late: pick(500), twice: pick(60), garbage: pick(40), never: pick(30), ghost: pick(300)}
	if s.rng.IntN(3) == 0 {
		s.max = 1 + s.rng.IntN(3)
	}
	s.world = drivertest.NewWorld(drivertest.Options{ManualReady: s.rng.IntN(4) == 0, DiscardLog: true})
	s.catalog = &simCatalog{all: map[string]*Generation{}, config: map[string]simConfig{}}
	s.makeExtensions()
	s.reload()
	return s
}

// run is a history: faults for a while, then calm until all is quiet, then everything is removed.
func (s *sim) run() {
	s.open()
	for n := 80 + s.rng.IntN(220); n > 0 && !s.failed(); n-- {
		s.oneStep()
	}
	s.ceaseFaults()
	s.settleDown()
	s.check.quiet(false)
	for round := 0; round < 3 && !s.failed(); round++ {
		s.removeAll()
		s.settleDown()
	}
	s.check.quiet(true)
	s.close()
}

// tick lets a little time pass, so that no two timers are set at the same moment, and waits until all is quiet.
func (s *sim) tick(d time.Duration) {
	time.Sleep(d + time.Duration(1+s.rng.IntN(9999)))
	synctest.Wait()
}

// oneStep lets the seed choose what happens next.
func (s *sim) oneStep() {
	s.tick(0)
	s.step++
	s.check.everyStep()
	if s.disturb() {
		return
	}
	if it := s.choose(); it != nil {
		s.decide(it)
		return
	}
	if s.rng.IntN(3) == 0 {
		s.client()
		return
	}
	s.advance()
}

func (s *sim) advance() {
	d := []time.Duration{200 * time.Millisecond, 2 * time.Second, 31 * time.Second, 65 * time.Second, 6 * time.Minute, 11 * time.Minute}[s.rng.IntN(6)]
	s.note("time passes: %v", d)
	s.tick(d)
}

// choose takes one of the calls that wait, by the seed, from an order that does not depend on goroutines.
func (s *sim) choose() *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ready []*item
	for _, it := range s.pending {
		if !it.hung && (it.ext == nil || !it.ext.frozen) {
			ready = append(ready, it)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	slices.SortStableFunc(ready, func(a, b *item) int { return cmp.Compare(a.key, b.key) })
	it := ready[s.rng.IntN(len(ready))]
	s.pending = slices.DeleteFunc(s.pending, func(o *item) bool { return o == it })
	return it
}

// decide makes something of a call. In calm nothing goes wrong.
func (s *sim) decide(it *item) {
	v := verdict{}
	if !s.calm {
		v = s.judge(it)
		if it.hung {
			s.note("%s: no answer", it.key)
			s.mu.Lock()
			s.pending = append(s.pending, it)
			s.mu.Unlock()
			return
		}
	}
	if it.kind == "commit" && s.full {
		v = verdict{err: fault.New(fault.ResourceExhausted, "the disk is full")}
	}
	s.note("%s%s", it.key, v)
	if it.run != nil {
		it.run(v)
	} else {
		it.verd <- v
	}
	if v.silent {
		s.tick(0)
		s.crash("after it took effect")
	}
}

func (s *sim) judge(it *item) verdict {
	o, hit := s.odds, func(n int) bool { return s.rng.IntN(1000) < n }
	switch it.kind {
	case "commit":
		return verdict{silent: hit(o.crash)}
	case "answer", "driven":
		if hit(o.lost) {
			return verdict{lost: fault.New(fault.Unavailable, "the answer was lost")}
		}
		return verdict{}
	case "event":
		if hit(o.fail / 4) {
			return verdict{err: fault.New(fault.Unavailable, "the source of events went away")}
		}
		return verdict{twice: hit(o.twice)}
	case "ghost":
		return verdict{err: map[bool]error{true: errGhost}[hit(400)]}
	case "enter":
		return verdict{}
	}
	if !it.sure && hit(o.never) {
		it.hung = true
		return verdict{}
	}
	v := verdict{twice: hit(o.twice), hold: hit(o.late), empty: hit(80)}
	switch {
	case it.sure:
		return verdict{hold: v.hold}
	case hit(o.fail):
		codes := []fault.Code{fault.Unavailable, fault.Unavailable, fault.Internal, fault.DeadlineExceeded, fault.ResourceExhausted, fault.FailedPrecondition}
		v.err = fault.New(codes[s.rng.IntN(len(codes))], "it failed before it did anything")
	case it.kind == "drive" && hit(o.fail/3):
		v.partly = true
	case hit(o.lost):
		v.lost = fault.New(fault.Unavailable, "the answer was lost")
	case it.deny && hit(o.deny):
		v.deny = true
	case it.kind == "call" && hit(o.garbage):
		v.garbage = true
	}
	return v
}

func (v verdict) String() string {
	out := ""
	for _, p := range []struct {
		is   bool
		what string
	}{{v.err != nil, "fails"}, {v.lost != nil, "answer lost"}, {v.deny, "denied"}, {v.garbage, "garbage"}, {v.twice, "twice"},
		{v.partly, "partly"}, {v.hold, "held"}, {v.silent, "and the gateway dies"}} {
		if p.is {
			out += ": " + p.what
		}
	}
	return out
}

// park hands a call over to the scheduler and waits for what it makes of it, or for the end of ctx.
func (s *sim) park(ctx context.Context, it *item) (verdict, error) {
	it.verd = make(chan verdict, 1)
	s.mu.Lock()
	s.pending = append(s.pending, it)
	s.mu.Unlock()
	select {
	case v := <-it.verd:
		return v, nil
	case <-ctx.Done():
		s.mu.Lock()
		s.pending = slices.DeleteFunc(s.pending, func(o *item) bool { return o == it })
		s.mu.Unlock()
		return verdict{}, ctx.Err()
	}
}

// note writes a line of the trace.
func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trace = append(s.trace, fmt.Sprintf("%4d %9.3fs ", s.step, time.Since(s.clock).Seconds())+fmt.Sprintf(format, args...))
}

// fail keeps the first invariant that did not hold.
func (s *sim) fail(id, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(id, format, args...)
}

func (s *sim) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != ""
}

func (s *sim) failLocked(id, format string, args ...any) {
	if s.broken == "" {
		s.broken = id + ": " + fmt.Sprintf(format, args...)
		s.trace = append(s.trace, fmt.Sprintf("%4d BROKEN %s", s.step, s.broken))
	}
}

// open starts a gateway on what was committed.
func (s *sim) open() {
	s.life, s.endLife = context.WithCancel(context.Background())
	e, err := Open(context.Background(), Config{Journal: simJournal{s.disk, s}, Catalog: s.catalog, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: func() string { return fmt.Sprintf("id-%06d", s.ids.Add(1)) }, MaxOperations: s.max})
	if err != nil {
		s.fail("J0", "the journal cannot be read: %v", err)
		return
	}
	e.admit = s.admit
	s.engine.Store(e)
	e.Start()
}

// close ends the gateway and waits until nothing of it runs.
func (s *sim) close() {
	s.endLife()
	if err := s.engine.Load().Close(); err != nil {
		s.t.Error(err)
	}
	synctest.Wait()
}

// crash kills the gateway, and with it its extensions, and starts another.
func (s *sim) crash(when string) {
	s.note("the gateway dies %s", when)
	old := s.disk
	s.disk = old.Crash()
	s.close()
	s.mu.Lock()
	s.pending = nil // calls to extensions die with them
	for _, x := range s.exts {
		x.restart()
	}
	s.check.crashed()
	s.mu.Unlock()
	s.clients.crashed()
	s.open()
}

// admit makes the entry of an operation a call of its own, so that the seed chooses who is next for a place.
func (s *sim) admit(ctx context.Context, op *Operation) {
	_, _ = s.park(ctx, &item{kind: "enter", key: fmt.Sprintf("enter %s of %s", op.Kind, s.check.name(op.Subject))})
}

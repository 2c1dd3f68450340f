package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// checker judges what the engine does from outside: from the calls that it makes, from what is committed, and from
// what the world and the extensions have. It never asks the engine.
//
// Its invariants, by id (contract §2 and §5):
//
//	R1  nothing is released while compute may use it
//	R2  releases go to exactly those that started, newest first
//	R3  a run is released once, with the first cause
//	L1  the ledger is what extensions hold, when nothing is in doubt
//	E1  in the end every operation has ended, and nothing is held without a live sandbox or workspace
//	E2  in the end the record of a sandbox says what the driver has
//	O1  one operation of a subject at a time, one call at a time of an extension and of the driver
//	O2  numbers grow, and keys are the same for every retry of a step and of no other
//	I1  what is called was committed before
//	N1  a name is free only when the driver has nothing
//	B1  no more operations are carried out than max_operations
//	B2  calls have their timeouts, and the chain's calls of one operation its budget
//	P1  pure phases are not asked after the first commit
//	F1  what is fail_closed never runs without, what was left out stays out, plan included
//	G1  an operation ends under the generation with which it began, and begins under the current one
//	W1  a workspace is ensured once under a generation, never under an older one
//	K1  no setup step begins after a delete was accepted; a disabled extension gets none
//	D1  a delete that succeeded has left nothing
//	C1  what was accepted is not forgotten
//	X1  a repair takes nothing that the ledger has
type checker struct {
	s *sim

	// What was committed.
	ops        map[string]*Operation
	steps      map[string]*Step // by operation|unit
	sandboxes  map[string]*Sandbox
	workspaces map[string]*Workspace
	holdings   map[string]*Holding // by subject/extension
	ensured    map[string]string   // workspace -> the newest generation of an ensure that ended well
	current    []stamp             // when which generation came to be current

	names    map[string]string // of workspaces
	number   map[string]uint64 // the last, by extension|subject
	flight   map[string]*extension.Call
	flights  int
	drives   map[string]string // subject -> the call of the driver
	keys     map[string]string // operation|phase|extension -> key
	owners   map[string]string // and back
	pureGen  map[string]string
	asked    map[string]time.Duration // operation -> how long its chain's setup calls have taken
	started  map[string]bool          // subject|lifetime|run|extension, from the commit of the intent
	since    map[string]int           // the same: the newest step of it
	switches map[string]bool          // who is switched off, as committed
	released map[string]bool          // the same, from the effect of the release
	order    map[string]place         // operation|phase -> place in the chain of the last release
	causes   map[string]phase.Cause
	okay     map[string]bool // operation|phase|extension answered well
	off      map[string]bool
	bypassed map[string]time.Time // when it may last have been off with --bypass
	ghosts   map[string]bool      // sandboxes that a late create may bring back, or whose driver was given up
	given    map[string]bool      // extension|subject that an operator gave up
	deleted  map[string]bool
}

type stamp struct {
	at  time.Time
	gen string
}

func newChecker(s *sim) *checker {
	return &checker{s: s, ops: map[string]*Operation{}, steps: map[string]*Step{}, sandboxes: map[string]*Sandbox{},
		workspaces: map[string]*Workspace{}, holdings: map[string]*Holding{}, ensured: map[string]string{}, names: map[string]string{},
		number: map[string]uint64{}, flight: map[string]*extension.Call{}, drives: map[string]string{}, keys: map[string]string{},
		owners: map[string]string{}, pureGen: map[string]string{}, asked: map[string]time.Duration{}, started: map[string]bool{},
		released: map[string]bool{}, order: map[string]place{}, causes: map[string]phase.Cause{}, okay: map[string]bool{},
		off: map[string]bool{}, since: map[string]int{}, switches: map[string]bool{}, bypassed: map[string]time.Time{}, ghosts: map[string]bool{}, given: map[string]bool{}, deleted: map[string]bool{}}
}

func (k *checker) fail(id, format string, args ...any) { k.s.failLocked(id, format, args...) }

// name is what a subject is called in the trace: without ids that depend on the order of goroutines.
func (k *checker) name(id string) string {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	return k.nameLocked(id)
}

func (k *checker) nameLocked(id string) string {
	switch {
	case k.names[id] != "":
		return k.names[id]
	case strings.HasPrefix(id, "id-"):
		return "someone"
	}
	return id
}

func (k *checker) learn(id, name string) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.names[id] = "workspace " + name
}

// describe names what a commit writes, for the trace.
func (k *checker) describe(writes []journal.Write) string {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	ops := map[string]string{}
	for _, w := range writes {
		if w.Record.Kind == kindOperation && !w.Delete || w.Record.Kind == kindHistory {
			var op Operation
			if json.Unmarshal(w.Record.Body, &op) == nil {
				ops[op.ID] = string(op.Kind) + " of " + k.nameLocked(op.Subject)
			}
		}
	}
	var out []string
	for _, w := range writes {
		r, id := w.Record, ""
		switch r.Kind {
		case kindAudit:
			var a AuditEntry
			if len(writes) > 1 || json.Unmarshal(r.Body, &a) != nil {
				continue
			}
			id = a.What + " " + k.nameLocked(a.Subject) // a refusal is written by itself
		case kindOperation, kindHistory:
			id = ops[r.ID]
		case kindStep:
			var st Step
			if json.Unmarshal(r.Body, &st) == nil && !w.Delete {
				id = ops[st.Operation]
				if op := k.ops[st.Operation]; id == "" && op != nil {
					id = string(op.Kind) + " of " + k.nameLocked(op.Subject)
				}
				id += " " + st.unit() + " " + string(st.State)
			}
		case kindHolding:
			subject, ext, _ := strings.Cut(r.ID, "/")
			id = k.nameLocked(subject) + "/" + ext
		default:
			id = k.nameLocked(r.ID)
		}
		verb := ""
		if w.Delete {
			verb = "-"
		}
		out = append(out, verb+r.Kind+"("+id+")")
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// committed follows what is durable.
func (k *checker) committed(writes []journal.Write) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	var begun []*Step
	for _, w := range writes {
		switch w.Record.Kind {
		case kindOperation:
			if !w.Delete {
				k.committedOperation(keep(k.ops, w))
			}
		case kindHistory:
			if !w.Delete {
				k.committedOperation(keep(k.ops, w))
			}
		case kindStep:
			st, err := decode[Step](w.Record)
			if w.Delete || err != nil {
				continue
			}
			k.steps[st.Operation+"|"+st.unit()] = st
			if st.State == StepBegun && st.Phase.Takes() != phase.None {
				begun = append(begun, st)
			}
		case kindSandbox:
			keep(k.sandboxes, w)
		case kindWorkspace:
			if ws := keep(k.workspaces, w); ws != nil {
				k.names[ws.ID] = "workspace " + ws.Name
			}
		case kindHolding:
			keep(k.holdings, w)
		case kindSwitch:
			k.committedSwitch(w)
		}
	}
	for _, st := range begun {
		op := k.ops[st.Operation]
		if op == nil {
			k.fail("I1", "the step %s was committed without its operation", st.unit())
			continue
		}
		key := k.lifeKey(op.Subject, st.Phase.Takes(), k.runOf(op.Subject), st.Extension)
		k.started[key], k.since[key] = true, k.s.step
	}
	k.oneAtATime()
}

// committedSwitch follows what operators switched off, and until when it was off with --bypass.
func (k *checker) committedSwitch(w journal.Write) {
	name := w.Record.ID
	if k.switches[name] = !w.Delete; w.Delete {
		delete(k.off, name)
	}
	if !k.bypassed[name].IsZero() && k.bypassed[name].After(time.Now()) {
		k.bypassed[name] = time.Now()
	}
	if d, err := decode[Disabled](w.Record); !w.Delete && err == nil && d.Bypass {
		k.bypassed[name] = time.Now().Add(1000 * time.Hour)
	}
}

func keep[T any](m map[string]*T, w journal.Write) *T {
	if w.Delete {
		delete(m, w.Record.ID)
		return nil
	}
	v, err := decode[T](w.Record)
	if err != nil {
		panic(err)
	}
	m[w.Record.ID] = v
	return v
}

func (k *checker) lifeKey(subject string, l phase.Lifetime, run int, ext string) string {
	if l != phase.Run {
		run = 0
	}
	return fmt.Sprintf("%s|%s|%d|%s", subject, l, run, ext)
}

func (k *checker) runOf(subject string) int {
	if sb := k.sandboxes[subject]; sb != nil {
		return sb.Run.Number
	}
	return 0
}

// committedOperation looks at an operation that was written.
func (k *checker) committedOperation(op *Operation) {
	if op.Kind == phase.OpReconcile || op.Kind == phase.OpRepair {
		return
	}
	if op.State == OperationRunning {
		at := ""
		for _, c := range k.current {
			if !c.at.After(op.Started) {
				at = c.gen
			}
		}
		within := op.Kind == phase.OpWorkspaceEnsure && op.Origin.Door != "client-ensure" // of a create, under its generation
		if op.Generation < at && !within {
			k.fail("G1", "%s of %s, asked for under %s, began under %s", op.Kind, k.nameLocked(op.Subject), at, op.Generation)
		}
	}
	if op.Kind == phase.OpGone && op.State == OperationRunning && k.s.world.Sandbox(op.Subject) != nil && !k.ghosts[op.Subject] {
		k.fail("D1", "%s is taken for gone, and the driver has it", op.Subject)
	}
	if op.Kind == phase.OpWorkspaceEnsure && op.State == OperationDone {
		k.ensured[op.Subject] = max(k.ensured[op.Subject], op.Generation)
	}
	if op.Kind == phase.OpWorkspaceDelete && op.Ended != nil && op.State == OperationDone {
		delete(k.ensured, op.Subject)
	}
}

// oneAtATime: O1.
func (k *checker) oneAtATime() {
	running := map[string]*Operation{}
	for _, id := range slices.Sorted(maps.Keys(k.ops)) {
		op := k.ops[id]
		if op.Ended != nil || op.State != OperationRunning || op.Kind == phase.OpRepair || op.Kind == phase.OpReconcile {
			continue
		}
		if other := running[op.Subject]; other != nil {
			k.fail("O1", "%s runs while %s of %s does", op.Kind, other.Kind, k.nameLocked(op.Subject))
		}
		running[op.Subject] = op
	}
}

// running returns the operation of a subject that is being carried out.
func (k *checker) running(subject string) *Operation {
	for _, op := range k.ops {
		if op.Subject == subject && op.Ended == nil && op.State == OperationRunning && op.Kind != phase.OpRepair {
			return op
		}
	}
	return nil
}

// crashed: what was in flight died with the gateway.
func (k *checker) crashed() {
	k.flight, k.flights, k.drives = map[string]*extension.Call{}, 0, map[string]string{}
	k.asked, k.pureGen = map[string]time.Duration{}, map[string]string{}
}

// everyStep looks at what can be seen from outside at any time.
func (k *checker) everyStep() {
	k.s.clients.poll(k.s)
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if gen := k.s.catalog.Current().ID; len(k.current) == 0 || k.current[len(k.current)-1].gen != gen {
		k.current = append(k.current, stamp{time.Now(), gen})
	}
	k.ledger()
	for _, v := range k.s.world.Violations() {
		k.fail("D0", "the driver's contract was broken: %s", v)
	}
}

// answered looks at the answer that a client got.
func (k *checker) answered(a *asked) {
	if a.kind == phase.OpDelete && a.err == nil && k.s.world.Sandbox(a.subject) != nil && !k.ghosts[a.subject] {
		k.fail("D1", "the delete of %s succeeded, and the driver has it", a.subject)
	}
	if a.err != nil && fault.Is(a.err, fault.AlreadyExists) {
		k.fail("N1", "%s of %s failed: %v", a.kind, a.subject, a.err)
	}
}

// ledger: L1, for subjects that stand still.
func (k *checker) ledger() {
	if len(k.s.pending) > 0 || k.s.full {
		return
	}
	for _, x := range k.s.exts {
		keys := map[string]bool{}
		for key := range x.held {
			keys[key] = true
		}
		for _, h := range k.holdings {
			for l := range h.Entries {
				if h.Extension == x.name {
					keys[h.Subject+"|"+string(l)] = true
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			k.ledgerOf(x, key)
		}
	}
}

func (k *checker) ledgerOf(x *simExt, key string) {
	subject, l, _ := strings.Cut(key, "|")
	h := k.holdings[subject+"/"+x.name]
	if k.running(subject) != nil || k.flight[x.name+"|"+subject] != nil || k.given[x.name+"|"+subject] {
		return
	}
	var want []extension.Entry
	if h != nil {
		if len(h.Releases) > 0 || len(h.Doubt) > 0 {
			return
		}
		want = h.Entries[phase.Lifetime(l)]
	}
	got := x.entries(key)
	if !slices.Equal(want, got) {
		k.fail("L1", "of %s (%s) the ledger has %v, and extension %s holds %v", k.nameLocked(subject), l, want, x.name, got)
	}
}

// deadline: B2.
func (k *checker) deadline(ctx context.Context, what string, limit time.Duration) time.Time {
	at, ok := ctx.Deadline()
	if !ok || time.Until(at) > limit {
		k.fail("B2", "%s has until %v; at most %v", what, time.Until(at), limit)
	}
	return at
}

package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// called looks at a call to an extension as it is made; what it returns is told the answer.
func (k *checker) called(ctx context.Context, b *simBind, c *extension.Call) func(*extension.Answer, error) (*extension.Answer, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	x, subject := b.ext, subjectKey(c)
	k.deadline(ctx, string(c.Phase)+" of "+x.name, simTimeout)
	if c.Sandbox == nil {
		k.names[c.Workspace.ID] = "workspace " + c.Workspace.Name
	}
	if !x.phases.Has(c.Phase) {
		k.fail("R2", "extension %s does not declare %s and gets it", x.name, c.Phase)
	}
	if c.Phase.Setup() {
		k.setup(ctx, b, c, subject)
	}
	if c.Phase.Pure() {
		k.pure(b, c)
	} else {
		k.effectful(b, c, subject)
	}
	flight := x.name + "|" + subject + map[bool]string{true: "|" + c.Operation}[c.Phase.Pure()]
	k.flight[flight] = c
	k.places()
	began := time.Now()
	return func(a *extension.Answer, err error) (*extension.Answer, error) {
		k.s.mu.Lock()
		defer k.s.mu.Unlock()
		if c.Phase.Setup() && !c.Phase.Pure() {
			k.asked[c.Operation] += time.Since(began)
		}
		if k.flight[flight] == c {
			delete(k.flight, flight)
		}
		if err == nil && !a.Denied && ctx.Err() == nil {
			k.okay[c.Operation+"|"+string(c.Phase)+"|"+x.name] = true
		}
		return a, err
	}
}

// setup: K1, F1, and the budget of B2.
func (k *checker) setup(ctx context.Context, b *simBind, c *extension.Call, subject string) {
	name := b.ext.name
	if k.off[name] {
		k.fail("K1", "extension %s is disabled, and gets %s", name, c.Phase)
	}
	if k.deleted[subject] && !c.Preview {
		k.fail("K1", "the delete of %s was accepted, and %s gets %s", subject, name, c.Phase)
	}
	if at, _ := ctx.Deadline(); !c.Phase.Pure() && time.Until(at) > simChain-k.asked[c.Operation] {
		k.fail("B2", "%s of %s may take %v, and %v of the chain's budget are used up", c.Phase, name, time.Until(at), k.asked[c.Operation])
	}
	if sb := k.sandboxes[subject]; sb != nil && !c.Phase.Pure() && slices.Contains(sb.Binds, ActiveBind{Extension: name, Without: true}) {
		k.fail("F1", "%s runs without %s, which gets %s", subject, name, c.Phase)
	}
}

// pure: P1, and G1 for what is not committed yet.
func (k *checker) pure(b *simBind, c *extension.Call) {
	if op := k.ops[c.Operation]; op != nil {
		k.fail("P1", "%s of %s is asked for %s after its first commit", c.Phase, b.ext.name, c.Operation)
	}
	if gen := k.pureGen[c.Operation]; gen != "" && gen != b.gen {
		k.fail("G1", "%s was asked under %s and under %s", c.Operation, gen, b.gen)
	}
	k.pureGen[c.Operation] = b.gen
	if k.s.catalog.config[b.gen].mode[b.ext.name] == pipeline.Observe && !c.Preview {
		k.fail("F1", "%s only observes, and gets %s for good", b.ext.name, c.Phase)
	}
}

// effectful: O1, O2, I1, G1, and what the phase asks for.
func (k *checker) effectful(b *simBind, c *extension.Call, subject string) {
	name := b.ext.name
	pair := name + "|" + subject
	if other := k.flight[pair]; other != nil {
		k.fail("O1", "%s is called for %s of %s while %s is in flight", name, c.Phase, k.nameLocked(subject), other.Phase)
	}
	if c.Number <= k.number[pair] {
		k.fail("O2", "%s gets %s of %s with number %d after %d", name, c.Phase, k.nameLocked(subject), c.Number, k.number[pair])
	}
	k.number[pair] = c.Number
	step := fmt.Sprintf("%s|%s|%s|%d", c.Operation, c.Phase, name, c.Run)
	if key := k.keys[step]; key != "" && key != c.Key {
		k.fail("O2", "%s of %s had the key %q and now has %q", c.Phase, name, key, c.Key)
	}
	if owner := k.owners[c.Key]; owner != "" && owner != step {
		k.fail("O2", "the key %q was that of %s and is that of %s", c.Key, owner, step)
	}
	k.keys[step], k.owners[c.Key] = c.Key, step
	h, op := k.holdings[subject+"/"+name], k.ops[c.Operation]
	st := k.stepOf(c)
	if h == nil || h.Number != c.Number || op == nil || st == nil {
		k.fail("I1", "%s of %s for %s with number %d was not committed", c.Phase, name, k.nameLocked(subject), c.Number)
		return
	}
	background := c.Phase.Releases() != phase.None && st.State == StepWaiting
	if op.Ended == nil && !background && b.gen != op.Generation && k.s.catalog.config[op.Generation].policy[name] != "" {
		k.fail("G1", "%s of %s began under %s, and %s gets %s under %s", op.Kind, k.nameLocked(subject), op.Generation, name, c.Phase, b.gen)
	}
	if gen := k.s.catalog.Current().ID; op.Ended != nil && !background && b.gen != gen && k.s.catalog.config[gen].policy[name] != "" {
		k.fail("G1", "%s is bound under %s, and gets %s under %s", name, gen, c.Phase, b.gen)
	}
	if l := c.Phase.Releases(); l != phase.None {
		k.releasing(b, c, subject, op, l)
	}
	if c.Phase == phase.EnsureWorkspace {
		k.ensure(b.gen, subject, op)
	}
}

// stepOf is the step of a call, as it was committed.
func (k *checker) stepOf(c *extension.Call) *Step {
	return k.steps[c.Operation+"|"+strings.TrimPrefix(c.Key, c.Operation+"/")]
}

// releasing: R1, R2, R3.
func (k *checker) releasing(b *simBind, c *extension.Call, subject string, op *Operation, l phase.Lifetime) {
	name := b.ext.name
	if box := k.s.world.Sandbox(subject); box != nil && !k.ghosts[subject] && (runsIn(box.State) || l == phase.Sandbox) {
		k.fail("R1", "%s of %s is called while the driver has %s, which is %s", c.Phase, name, subject, box.State)
	}
	for _, ws := range k.s.world.Workspaces() {
		if l == phase.Workspace && ws.ID == subject {
			k.fail("R1", "%s of %s is called while the driver has %s", c.Phase, name, k.nameLocked(subject))
		}
	}
	if st := k.stepOf(c); st.State == StepOK || st.State == StepLeftOut {
		k.fail("R3", "%s of %s for %s was acknowledged, and is called again", c.Phase, name, k.nameLocked(subject))
	}
	takes := slices.ContainsFunc(phase.Takers(l), b.ext.phases.Has)
	undo := slices.Contains([]phase.Cause{phase.CauseBeforeCreateFailed, phase.CauseBeforeStartFailed, phase.CauseLaunchFailed, phase.CauseCancelled}, c.Cause)
	if takes && !k.started[k.lifeKey(subject, l, c.Run, name)] || !takes && undo {
		k.fail("R2", "%s of %s for %s, in which it did not start", c.Phase, name, k.nameLocked(subject))
	}
	at := fmt.Sprintf("%s|%s|%d", op.ID, c.Phase, c.Run)
	if c.Attempt == 1 && k.stepOf(c).State == StepBegun { // it did not wait behind an older release of its own
		k.newestFirst(at, place{slices.Index(k.s.exts, b.ext), k.since[k.lifeKey(subject, l, 0, name)]}, c, l)
	}
	if l == phase.Run {
		run := fmt.Sprintf("%s|%d", subject, c.Run)
		if cause, ok := k.causes[run]; ok && cause != c.Cause {
			k.fail("R3", "run %d of %s was released because %s, and now because %s", c.Run, subject, cause, c.Cause)
		}
		k.causes[run] = c.Cause
	}
}

// place is where somebody stands among those who release: in the chain, and by when it was last asked to take.
type place struct{ chain, since int }

// newestFirst: R2. A workspace outlives chains, so there either order will do.
func (k *checker) newestFirst(at string, p place, c *extension.Call, l phase.Lifetime) {
	last, ok := k.order[at]
	if ok && p.chain > last.chain && (l != phase.Workspace || p.since > last.since) {
		k.fail("R2", "%s for %s comes after that of an older one", c.Phase, k.nameLocked(subjectKey(c)))
	}
	k.order[at] = p
}

// served: a release took effect. The lock is held.
func (k *checker) served(x *simExt, c *extension.Call) {
	k.released[k.lifeKey(subjectKey(c), c.Phase.Releases(), c.Run, x.name)] = true
}

// places: B1.
func (k *checker) places() {
	busy := map[string]bool{}
	for _, c := range k.flight {
		if c.Phase.Releases() == phase.None && c.Phase != phase.Reconcile {
			busy[c.Operation] = true
		}
	}
	for subject := range k.drives {
		if op := k.running(subject); op != nil {
			busy[op.ID] = true
		}
	}
	if len(busy) > k.s.max {
		k.fail("B1", "%d operations are being carried out; at most %d", len(busy), k.s.max)
	}
}

// driving looks at a call of the driver with effects: O1, B1, B2, I1, G1.
func (k *checker) driving(ctx context.Context, d *simDriver, c drivertest.Call, subject string) func() {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if ctx.Err() != nil {
		return func() {}
	}
	k.deadline(ctx, "driver "+string(c), simDriveTimeout)
	if other := k.drives[subject]; other != "" {
		k.fail("O1", "driver %s of %s while %s is in flight", c, k.nameLocked(subject), other)
	}
	op := k.running(subject)
	ended := k.sandboxes[subject] != nil && k.sandboxes[subject].Ended != nil && c == drivertest.CallDelete
	switch {
	case op == nil && !ended:
		k.fail("I1", "driver %s of %s is called, and no operation of it was committed", c, k.nameLocked(subject))
	case op != nil && !ended && op.Generation != d.gen:
		k.fail("G1", "%s of %s began under %s, and the driver gets %s under %s", op.Kind, k.nameLocked(subject), op.Generation, c, d.gen)
	case op != nil && !ended && !k.intended(op):
		k.fail("I1", "driver %s of %s was not committed", c, k.nameLocked(subject))
	}
	if c == drivertest.CallCreate && k.deleted[subject] || c == drivertest.CallStart && k.deleted[subject] {
		k.fail("K1", "the delete of %s was accepted, and the driver gets %s", subject, c)
	}
	k.drives[subject] = string(c)
	k.places()
	drives := k.drives
	return func() {
		k.s.mu.Lock()
		defer k.s.mu.Unlock()
		delete(drives, subject)
	}
}

// intended reports whether a call of the driver is journaled as begun.
func (k *checker) intended(op *Operation) bool {
	for key, st := range k.steps {
		if strings.HasPrefix(key, op.ID+"|driver.") && st.State == StepBegun {
			return true
		}
	}
	return false
}

// building looks at the plan that the driver gets: F1.
func (k *checker) building(gen string, id sandbox.Identity, run int, p *plan.Plan) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	op, sb := k.running(id.ID), k.sandboxes[id.ID]
	if op == nil || sb == nil {
		k.fail("I1", "%s is built, and neither it nor its operation was committed", id.ID)
		return
	}
	create := k.ops[sb.Operation]
	marks := map[string]string{}
	for _, o := range p.Objects() {
		if notes, ok := o.Fields["annotations"].(map[string]any); ok {
			for key, v := range notes {
				marks[key] = fmt.Sprint(v)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(marks)) {
		name, ph, _ := strings.Cut(key, "|")
		switch {
		case slices.Contains(sb.Binds, ActiveBind{Extension: name, Without: true}):
			k.fail("F1", "%s is built with what %s contributed in %s, and runs without it", id.ID, name, ph)
		case ph == string(phase.BeforeStart) && marks[key] != fmt.Sprint(run):
			k.fail("F1", "run %d of %s is built with what %s contributed to run %s", run, id.ID, name, marks[key])
		}
	}
	for _, x := range k.s.catalog.config[gen].order {
		k.takesPart(x, gen, id.ID, run, op, create, sb, marks)
	}
}

// takesPart: what is bound fail_closed and active has agreed in every phase, and what it contributed is in the plan.
func (k *checker) takesPart(x *simExt, gen, id string, run int, op, create *Operation, sb *Sandbox, marks map[string]string) {
	cfg := k.s.catalog.config[gen]
	first := k.s.catalog.config[create.Generation]
	if cfg.mode[x.name] == pipeline.Observe || first.policy[x.name] == "" || slices.Contains(sb.Binds, ActiveBind{Extension: x.name, Without: true}) {
		return
	}
	for _, ph := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
		if !x.phases.Has(ph) || run > 1 && ph == phase.BeforeCreate {
			continue
		}
		okay := k.okay[op.ID+"|"+string(ph)+"|"+x.name]
		bypassed := !k.bypassed[x.name].Before(op.Started)
		mark := marks[x.name+"|"+string(ph)] != ""
		switch {
		case !okay && cfg.policy[x.name] == pipeline.FailClosed && !bypassed:
			k.fail("F1", "run %d of %s is built without %s of %s, which is fail_closed", run, id, ph, x.name)
		case okay && !mark && cfg.policy[x.name] == pipeline.FailClosed && !bypassed:
			k.fail("F1", "run %d of %s is built, and what %s contributed in %s is not in the plan", run, id, x.name, ph)
		}
	}
}

// made: N1. The sandbox is about to come into being.
func (k *checker) made(id sandbox.Identity) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	for _, b := range k.s.world.Sandboxes() {
		o := b.Identity
		if o.ID != id.ID && o.Workspace == id.Workspace && o.Name == id.Name && !k.ghosts[o.ID] && !k.ghosts[id.ID] {
			k.fail("N1", "%s is made under the name of %s, which the driver still has", id.ID, o.ID)
		}
	}
}

// ensuring and ensure: W1.
func (k *checker) ensuring(gen, id string) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if op := k.running(id); op != nil {
		k.ensure(gen, id, op)
	}
}

func (k *checker) ensure(gen, id string, op *Operation) {
	at := k.ensured[id]
	switch {
	case gen < at:
		k.fail("W1", "%s is ensured under %s, and was under %s", k.nameLocked(id), gen, at)
	case gen == at && op.Origin.Door != "client-ensure":
		k.fail("W1", "%s is ensured under %s a second time, and nobody asked for it", k.nameLocked(id), gen)
	}
}

package engine

import (
	"maps"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// settled reports whether nothing is left to do.
func (k *checker) settled() bool { return k.unsettled() == "" }

func (k *checker) unsettled() string {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(k.ops)) {
		if op := k.ops[id]; op.Ended == nil {
			return "the " + string(op.Kind) + " of " + k.nameLocked(op.Subject) + " has not ended"
		}
	}
	for _, id := range slices.Sorted(maps.Keys(k.holdings)) {
		if h := k.holdings[id]; len(h.Releases) > 0 {
			return h.Extension + " was not asked to release " + k.nameLocked(h.Subject) + ", or did not: " + h.Releases[0].Error
		}
	}
	if k.s.clients.waiting() > 0 {
		return "a client has no answer"
	}
	if len(k.s.pending) > 0 {
		return "a call waits: " + k.s.pending[0].key
	}
	return ""
}

// stuck: E1, when it does not settle.
func (k *checker) stuck() {
	if why := k.unsettled(); why != "" {
		k.s.fail("E1", "everything works, and it does not end: %s", why)
	}
}

// quiet looks at what is left when nothing goes wrong any more: E1, E2, C1. In the end everything was removed.
func (k *checker) quiet(end bool) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.broken != "" {
		return
	}
	for _, a := range k.s.clients.handles {
		if a.accepted && a.handle == nil && !a.ended && !k.endedAfterCrash(a) {
			k.fail("C1", "the %s of %s was accepted, and forgotten when the gateway died", a.kind, a.subject)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(k.sandboxes)) {
		k.agrees(k.sandboxes[id])
	}
	for _, b := range k.s.world.Sandboxes() {
		if sb := k.sandboxes[b.Identity.ID]; sb == nil || sb.Ended != nil {
			k.fail("E1", "the driver has %s, and the gateway does not", b.Identity.ID)
		}
	}
	k.heldByTheLiving()
	if !end {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(k.started)) {
		k.wasReleased(key)
	}
	if left := k.s.world.Leftovers(); len(left) > 0 {
		k.fail("E1", "everything was removed, and the driver has %v", left)
	}
	for id, h := range k.holdings {
		k.fail("E1", "everything was removed, and the ledger has %s: %+v", k.nameLocked(id), h)
	}
}

// endedAfterCrash reports whether an operation that was accepted before a crash has an end.
func (k *checker) endedAfterCrash(a *asked) bool {
	if a.kind == phase.OpDelete {
		sb := k.sandboxes[a.subject]
		return sb == nil || sb.Ended != nil
	}
	for _, op := range k.ops {
		if op.Kind == a.kind && op.Ended != nil && (a.subject == "" || op.Subject == a.subject) {
			return true
		}
	}
	return false
}

// agrees: E2.
func (k *checker) agrees(sb *Sandbox) {
	box := k.s.world.Sandbox(sb.ID)
	state := driver.State("nothing")
	if box != nil {
		state = box.State
	}
	ok := false
	switch sb.State {
	case sandbox.Ready:
		ok = state == driver.Ready && box.Run == sb.Run.Number
	case sandbox.Stopped, sandbox.Exited:
		ok = box != nil && !runsIn(state)
	case sandbox.Failing:
		ok = box != nil && sb.Lost
	case sandbox.Deleted:
		ok = box == nil
	}
	if !ok && !k.ghosts[sb.ID] {
		k.fail("E2", "%s is %s (%s), and the driver says that it is %s", sb.ID, sb.State, sb.Reason, state)
	}
}

// heldByTheLiving: E1, nothing is held without a live sandbox, run or workspace.
func (k *checker) heldByTheLiving() {
	for _, x := range k.s.exts {
		for _, key := range slices.Sorted(maps.Keys(x.held)) {
			subject, l, _ := strings.Cut(key, "|")
			sb, ws := k.sandboxes[subject], k.workspaces[subject]
			live := ws != nil && ws.Ended == nil
			if sb != nil {
				live = sb.Ended == nil && (l != string(phase.Run) || sb.Run.Active)
			}
			if len(x.held[key]) > 0 && !live && !k.given[x.name+"|"+subject] {
				k.fail("E1", "%s still holds %v of %s (%s)", x.name, x.entries(key), k.nameLocked(subject), l)
			}
		}
	}
}

// wasReleased: R2, whoever started was asked to release, if it declares that.
func (k *checker) wasReleased(key string) {
	part := strings.Split(key, "|")
	subject, l, name := part[0], phase.Lifetime(part[1]), part[3]
	x := k.s.exts[slices.IndexFunc(k.s.exts, func(x *simExt) bool { return x.name == name })]
	sb := k.sandboxes[subject]
	p := phase.AfterStop
	switch {
	case l == phase.Workspace:
		p = phase.DeleteWorkspace
	case l == phase.Sandbox && sb != nil && sb.Undone:
		p = phase.OnCreateFailed
	case l == phase.Sandbox:
		p = phase.AfterDelete
	}
	if x.phases.Has(p) && !k.released[key] && !k.given[name+"|"+subject] {
		k.fail("R2", "%s started for %s (%s), and never got %s", name, k.nameLocked(subject), key, p)
	}
}

// What the operator does, as far as it excuses the engine.

func (k *checker) switchedOff(name string) bool {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	return k.off[name]
}

func (k *checker) enabling(name string) { k.s.mu.Lock(); defer k.s.mu.Unlock(); delete(k.off, name) }

// disabled: an operator was told that an extension is disabled.
func (k *checker) disabled(name string) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.off[name] = k.switches[name]
}

func (k *checker) haunted(id string) { k.s.mu.Lock(); defer k.s.mu.Unlock(); k.ghosts[id] = true }

func (k *checker) abandoning(ext, subject string) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.given[ext+"|"+subject] = true
}

func (k *checker) abandoningDriver(id string) { k.haunted(id) }

// owing returns a release that waits, or "".
func (k *checker) owing() (ext, subject string) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(k.holdings), func(a, b string) int { return strings.Compare(k.nameLocked(a), k.nameLocked(b)) }) {
		if h := k.holdings[id]; len(h.Releases) > 0 {
			return h.Extension, h.Subject
		}
	}
	return "", ""
}

// mending: X1. A repair is about to take an entry away. The lock is held.
func (k *checker) mending(x *simExt, key string, e extension.Entry) {
	subject, l, _ := strings.Cut(key, "|")
	if h := k.holdings[subject+"/"+x.name]; h != nil && slices.Contains(h.Entries[phase.Lifetime(l)], e) {
		k.fail("X1", "a repair releases %s of %s, which the ledger has", e.ID, k.nameLocked(subject))
	}
}

package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// Disabled is an extension that an operator switched off.
type Disabled struct {
	Bypass bool      `json:"bypass,omitempty"` // what is fail_closed goes on without it
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at"`
}

// Disabled reports whether an extension is switched off, from the next call on. It is the pipeline's Switch.
func (e *Engine) Disabled(extension string) (disabled, bypass bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d, ok := e.switches[extension]
	return ok, d.Bypass
}

// Disable switches an extension off: no setup phase of it is called until Enable; its releases go on.
func (e *Engine) Disable(extension string, bypass bool, actor string) error {
	d := Disabled{Bypass: bypass, By: actor, At: e.Now()}
	var tx change
	tx.put(record(kindSwitch, extension, d), func() { e.switches[extension] = d })
	e.putAudit(&tx, AuditEntry{What: "operator", Extension: extension, Actor: actor,
		Text: "extension disable" + map[bool]string{true: " --bypass"}[bypass]})
	return e.commit(&tx, nil)
}

// Enable takes back a Disable.
func (e *Engine) Enable(extension, actor string) error {
	var tx change
	tx.delete(kindSwitch, extension, func() { delete(e.switches, extension) })
	e.putAudit(&tx, AuditEntry{What: "operator", Extension: extension, Actor: actor, Text: "extension enable"})
	return e.commit(&tx, nil)
}

// Restarted writes down that an operator had an extension restarted, and what came of it.
func (e *Engine) Restarted(extension, actor string, err error) error {
	a := AuditEntry{What: "operator", Extension: extension, Actor: actor, Outcome: "ok", Text: "extension restart"}
	if err != nil {
		a.Outcome, a.Text = "failed", a.Text+": "+err.Error()
	}
	var tx change
	e.putAudit(&tx, a)
	return e.commit(&tx, nil)
}

// Reloaded writes down that the configuration was loaded anew, and what that changed.
func (e *Engine) Reloaded(generation string, changes []string, actor string) error {
	var tx change
	e.putAudit(&tx, AuditEntry{What: "operator", Subject: generation, Actor: actor, Text: "gateway reload: " + strings.Join(changes, "; ")})
	return e.commit(&tx, nil)
}

// AbandonRelease ends one extension's releases for a subject, on the word of an operator, who says why.
func (e *Engine) AbandonRelease(ctx context.Context, subject, extension, reason, actor string) error {
	if reason == "" {
		return fault.New(fault.Invalid, "say why: a reason goes into the audit")
	}
	e.mu.Lock()
	s := e.subjects[subject]
	var h *holding
	if s != nil {
		h = s.holdings[extension]
	}
	e.mu.Unlock()
	if h == nil {
		return fault.New(fault.NotFound, "extension %q has no release of %q that waits", extension, subject)
	}
	if err := h.enter(ctx); err != nil {
		return err
	}
	defer func() {
		h.leave()
		s.push(&task{fixed: true, run: func(context.Context) { e.settle(s) }}, false)
	}()
	rec := h.rec
	if len(rec.Releases) == 0 {
		return fault.New(fault.FailedPrecondition, "extension %q has no release of %q that waits", extension, subject)
	}
	var tx change
	for _, r := range rec.Releases {
		l := r.Phase.Releases()
		rec.Entries, rec.Doubt = without(rec.Entries, l), without(rec.Doubt, l)
		e.putAudit(&tx, AuditEntry{What: "operator", Subject: subject, Operation: r.Operation, Extension: extension, Phase: r.Phase,
			Actor: actor, Outcome: "abandoned", Text: fmt.Sprintf("the release was abandoned after %d attempts: %s", r.Attempts, reason)})
		done := Step{Operation: r.Operation, Seq: r.Seq, Phase: r.Phase, Extension: extension, Cause: r.Cause, State: StepLeftOut,
			Attempt: r.Attempts, Error: r.Error, Started: r.Since, Note: "abandoned by an operator: " + reason}
		if r.Phase == phase.AfterStop {
			done.Run = r.Run
		}
		tx.put(done.record(), func() { e.showStep(&done) })
	}
	rec.Releases = nil
	e.putHolding(&tx, h, rec)
	return e.commit(&tx, func(error) {})
}

// AbandonDriver ends the driver's part of what is removing a subject: the operator states that the compute is gone.
// The releases follow.
func (e *Engine) AbandonDriver(subject, reason, actor string) error {
	if reason == "" {
		return fault.New(fault.Invalid, "say why: a reason goes into the audit")
	}
	e.mu.Lock()
	s := e.subjects[subject]
	e.mu.Unlock()
	if s == nil {
		return fault.New(fault.NotFound, "there is no sandbox or workspace with the id %q", subject)
	}
	s.mu.Lock()
	x := s.current
	s.mu.Unlock()
	if x == nil || !x.takesAway() {
		return fault.New(fault.FailedPrecondition, "nothing is waiting for the driver to remove %q", subject)
	}
	var tx change
	e.putAudit(&tx, AuditEntry{What: "operator", Subject: subject, Operation: x.op.ID, Actor: actor, Outcome: "abandoned",
		Text: "the driver's part was abandoned: " + reason})
	if err := e.commit(&tx, nil); err != nil {
		return err
	}
	x.abandon()
	return nil
}

// Holdings returns what extensions hold and owe, of every subject, sorted by subject and extension.
func (e *Engine) Holdings() []Holding {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Holding
	for _, s := range e.subjects {
		for _, h := range s.holdings {
			out = append(out, h.rec)
		}
	}
	slices.SortFunc(out, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Extension, b.Extension))
	})
	return out
}

// takesAway reports whether the operation has come to a call that removes or stops.
func (x *execution) takesAway() bool {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	for _, st := range x.e.steps[x.op.ID] {
		if st.State == StepBegun && (st.Driver == string(callDelete) || st.Driver == string(callStop) || st.Driver == string(callDeleteWorkspace)) {
			return true
		}
	}
	return false
}

func (x *execution) abandon() {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	select {
	case <-x.skip:
	default:
		close(x.skip)
	}
}

// References is what still refers to configurations: how many sandboxes and workspaces each driver has, and which
// generations are needed.
type References struct {
	Drivers     map[string]DriverReferences
	Generations map[string]bool // have to be kept
	Live        map[string]bool // are in use at the moment, or by an operation that has not ended
}

// DriverReferences is what refers to one driver.
type DriverReferences struct {
	Sandboxes, Workspaces int
	Instances             map[string]bool
	States                map[string]map[int]int // extension -> state schema version -> subjects that carry it
}

// References counts what a new configuration has to respect.
func (e *Engine) References() References {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.references()
}

// Switch puts another configuration into force, if what refers to the one before allows it: nothing new begins between
// the question and the answer.
func (e *Engine) Switch(allowed func(References) bool, use func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !allowed(e.references()) {
		return false
	}
	use()
	return true
}

func (e *Engine) references() References {
	out := References{Drivers: map[string]DriverReferences{}, Generations: map[string]bool{}, Live: map[string]bool{}}
	for _, op := range e.operations {
		out.Generations[op.Generation], out.Live[op.Generation] = true, true
	}
	for id := range e.using {
		out.Live[id] = true
	}
	for _, s := range e.subjects {
		e.reference(out, s)
	}
	for key, id := range e.names { // and those that are asked for, and in no record yet
		if s := e.subjects[id]; s != nil && s.sandbox == nil {
			name, _, _ := strings.Cut(key, "/")
			d := out.Drivers[name]
			d.Sandboxes++
			out.Drivers[name] = d
		}
	}
	return out
}

func (e *Engine) reference(out References, s *subject) {
	name, instance, live := "", "", false
	switch {
	case s.sandbox != nil:
		name, instance, live = s.sandbox.Driver, s.sandbox.Instance, s.sandbox.Ended == nil
	case s.workspace != nil:
		name, instance, live = s.workspace.Driver, s.workspace.Instance, s.workspace.Ended == nil
	}
	d := out.Drivers[name]
	if d.Instances == nil {
		d.Instances, d.States = map[string]bool{}, map[string]map[int]int{}
	}
	if live {
		d.Instances[instance] = true
		if s.sandbox != nil {
			d.Sandboxes++
		} else {
			d.Workspaces++
		}
	}
	for ext, h := range s.holdings {
		out.Generations[h.rec.Generation] = true
		if st := h.rec.State; st != nil {
			if d.States[ext] == nil {
				d.States[ext] = map[int]int{}
			}
			d.States[ext][st.SchemaVersion]++
		}
	}
	if name != "" {
		out.Drivers[name] = d
	}
}

// entriesOf lists what is held of a lifetime, for a repair to look at again.
func entriesOf(h Holding, l phase.Lifetime) map[string]bool {
	out := map[string]bool{}
	for _, en := range h.Entries[l] {
		out[en.Kind+"\x00"+en.ID] = true
	}
	return out
}

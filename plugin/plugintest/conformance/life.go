package conformance

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// life is what was seen of one: what the other rules need to know of the extension.
type life struct {
	err    error
	holds  map[phase.Lifetime]bool
	states bool // it keeps state
}

func wholeLife(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	r.live(ctx)
	return r.lived.err
}

// live lets two sandboxes live: one from create to delete, one whose create fails. It is done once.
func (r *rig) live(ctx context.Context) {
	if r.lived == nil {
		r.lived = &life{holds: map[phase.Lifetime]bool{}}
		r.lived.err = r.liveOnce(ctx)
	}
}

// alive returns what was seen of a whole life, with a process that is up. A rule that needs one does not apply where
// there is none: another rule says why.
func (r *rig) alive(ctx context.Context) (*life, error) {
	if _, err := r.up(ctx); err != nil {
		return nil, err
	}
	r.live(ctx)
	var na errNotApplicable
	switch {
	case errors.As(r.lived.err, &na):
		return nil, na
	case r.lived.err != nil:
		return nil, notApplicable("rule life is broken")
	}
	return r.lived, nil
}

func (r *rig) liveOnce(ctx context.Context) error {
	w := r.newWorkspace()
	if err := r.steps(ctx, w, phase.EnsureWorkspace); err != nil {
		return err
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	err = r.steps(ctx, s, phase.ValidateRequest, phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart, phase.AfterCreate, phase.AfterReady,
		phase.BeforeStop, phase.BeforeDelete, phase.AfterStop, phase.AfterDelete)
	if err != nil {
		return err
	}
	failed, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	if err := r.steps(ctx, failed, phase.BeforeCreate, phase.BeforeStart, phase.AfterStop, phase.OnCreateFailed); err != nil {
		return err
	}
	if err := r.steps(ctx, w, phase.DeleteWorkspace); err != nil {
		return err
	}
	r.subjects = slices.DeleteFunc(r.subjects, func(x *subject) bool { return x == s || x == failed || x == w })
	return nil
}

// steps takes a subject through those of the phases that are declared.
func (r *rig) steps(ctx context.Context, s *subject, phases ...phase.Phase) error {
	for _, p := range phases {
		if !r.has(p) {
			continue
		}
		a, err := r.do(ctx, s, p)
		if err != nil {
			return err
		}
		if l := p.Takes(); l != phase.None && len(a.Entries) > 0 {
			r.lived.holds[l] = true
		}
		if a.State != nil {
			r.lived.states = true
		}
	}
	return nil
}

// holding returns the phases in which it takes something, or says that the rule does not apply.
func (r *rig) holding(ctx context.Context) ([]phase.Phase, error) {
	l, err := r.alive(ctx)
	if err != nil {
		return nil, err
	}
	var out []phase.Phase
	for _, p := range r.takers() {
		if l.holds[p.Takes()] {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, notApplicable("it holds nothing")
	}
	return out, nil
}

// look judges what every answer has to keep to.
func (r *rig) look(c *extension.Call, a *extension.Answer) {
	fmt.Fprintf(&r.said, "%v %v %v\n", a.Diagnostics, a.Entries, a.Contribute)
	problem := func(rule, format string, args ...any) {
		text := string(c.Phase) + ": " + fmt.Sprintf(format, args...)
		if !slices.Contains(r.problems[rule], text) {
			r.problems[rule] = append(r.problems[rule], text)
		}
	}
	if len(a.Diagnostics) > extension.MaxDiagnostics {
		problem("entries", "%d diagnostics; at most %d", len(a.Diagnostics), extension.MaxDiagnostics)
	}
	if a.Denied && !slices.ContainsFunc(a.Diagnostics, func(d fault.Diagnostic) bool { return d.Summary != "" }) {
		problem("entries", "it denies without a diagnostic that says why")
	}
	if st := a.State; st != nil {
		fmt.Fprintf(&r.said, "%s\n", st.Payload)
		if len(st.Payload) > extension.MaxState {
			problem("state-versions", "%d bytes of state; at most %d", len(st.Payload), extension.MaxState)
		}
		if st.SchemaVersion != r.manifest.StateWrites {
			problem("state-versions", "state of version %d; the manifest says that it writes %d", st.SchemaVersion, r.manifest.StateWrites)
		}
	}
	switch {
	case c.Phase.Releases() != phase.None && len(a.Entries) > 0:
		problem("release-complete", "it is answered, and still holds %s", texts(a.Entries))
	case c.Phase.Takes() != phase.None && len(a.Entries) > 0 && !phase.Set(r.manifest.Phases).MayHold(c.Phase.Takes()):
		problem("entries", "it holds %s, and does not declare %s, which release it", texts(a.Entries), phase.Releasers(c.Phase.Takes()))
	}
	lookAtEntries(a.Entries, func(format string, args ...any) { problem("entries", format, args...) })
}

func lookAtEntries(list []extension.Entry, problem func(string, ...any)) {
	if len(list) > extension.MaxEntries {
		problem("%d entries; at most %d", len(list), extension.MaxEntries)
	}
	seen := map[[2]string]bool{}
	for _, e := range list {
		switch k := [2]string{e.Kind, e.ID}; {
		case e.Kind == "" || e.ID == "":
			problem("an entry has the kind %q and the id %q; neither may be empty", e.Kind, e.ID)
		case max(len(e.Kind), len(e.ID), len(e.Text)) > extension.MaxEntryField:
			problem("a field of an entry is longer than %d bytes", extension.MaxEntryField)
		case seen[k]:
			problem("the entry %s %s stands there twice", e.Kind, e.ID)
		default:
			seen[k] = true
		}
	}
}

// found returns what answers have shown of a rule in passing.
func (r *rig) found(rule string) error {
	if p := r.problems[rule]; len(p) > 0 {
		return fmt.Errorf("%s", strings.Join(p, "\n"))
	}
	return nil
}

// differ says how two answers differ, or nothing. State is the extension's own affair: it may count calls.
func differ(a, b *extension.Answer) string {
	switch {
	case a.Denied != b.Denied:
		return fmt.Sprintf("denied: %t, then %t (%s)", a.Denied, b.Denied, told(append(slices.Clone(a.Diagnostics), b.Diagnostics...)))
	case !reflect.DeepEqual(a.Diagnostics, b.Diagnostics):
		return fmt.Sprintf("diagnostics: %s, then %s", told(a.Diagnostics), told(b.Diagnostics))
	case !sameEntries(a.Entries, b.Entries):
		return fmt.Sprintf("held: %s, then %s", texts(a.Entries), texts(b.Entries))
	case !reflect.DeepEqual(a.Contribute, b.Contribute):
		return fmt.Sprintf("contributed: %v, then %v", a.Contribute, b.Contribute)
	case !reflect.DeepEqual(a.Requires, b.Requires):
		return fmt.Sprintf("required: %v, then %v", a.Requires, b.Requires)
	}
	return ""
}

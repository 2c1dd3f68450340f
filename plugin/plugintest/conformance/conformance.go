// Package conformance runs an extension program, in whatever language it is written, against the rules of the
// extension contract. It speaks the wire as a gateway does, with real processes that it starts, kills and starts again.
//
// A rule has an id, a reason why it is one, and an outcome: it is kept, it is broken, or it does not apply. What the
// kit does not see it does not judge: an extension that holds nothing has no leases to lose.
//
// Every sandbox and workspace of a run has fresh ids, and what the program holds for them is released at the end.
package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// Program says what is run, as an `extension` block does, and what the kit asks of it.
type Program struct {
	Command     string            // the program, or the script
	Args        []string          // after the program's own name
	Interpreter string            // of a script
	Files       []string          // what a script needs beside it
	Env         map[string]string // the whole environment
	// Config is the decoded config block, in the shape that the schema says. It has to be one that the program accepts.
	Config json.RawMessage

	// What the kit's sandboxes are like, where an extension does not take every one.
	Workspace string
	Image     string
	Labels    map[string]string
	// Features are those of the driver that the kit plays. Nil: one that has all that the native driver has, and
	// whatever else the manifest names.
	Features []extension.Feature

	// Patience is how long anything may take that ought to be quick. Zero: five seconds.
	Patience time.Duration
}

// Outcome is what came of a rule.
type Outcome string

// The outcomes.
const (
	Pass          Outcome = "pass"
	Fail          Outcome = "fail"
	NotApplicable Outcome = "not_applicable"
)

// Result is what came of one rule. Detail says what was seen, or why it does not apply.
type Result struct {
	Rule    string  `json:"rule"`
	Reason  string  `json:"reason"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Report is what came of all of them.
type Report struct {
	Program  string              `json:"program"`
	Manifest *extension.Manifest `json:"manifest,omitempty"`
	Passed   int                 `json:"passed"`
	Failed   int                 `json:"failed"`
	Results  []Result            `json:"results"`
}

// Broken returns the ids of the rules that are broken.
func (r *Report) Broken() []string {
	var out []string
	for _, x := range r.Results {
		if x.Outcome == Fail {
			out = append(out, x.Rule)
		}
	}
	return out
}

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	for _, x := range r.Results {
		word := map[Outcome]string{Pass: "pass", Fail: "FAIL", NotApplicable: "-"}[x.Outcome]
		fmt.Fprintf(&b, "%-4s  %-22s %s\n", word, x.Rule, x.Reason)
		if x.Outcome != Pass {
			fmt.Fprintf(&b, "      %-22s %s\n", "", strings.ReplaceAll(x.Detail, "\n", "\n"+strings.Repeat(" ", 29)))
		}
	}
	fmt.Fprintf(&b, "\n%s: %d rules kept, %d broken, %d do not apply\n", r.Program, r.Passed, r.Failed, len(r.Results)-r.Passed-r.Failed)
	_, err := io.WriteString(w, b.String())
	return err
}

// Rule is one rule of the contract.
type Rule struct {
	ID     string
	Reason string
	check  func(context.Context, *rig) error
}

// errNotApplicable says why a rule does not apply.
type errNotApplicable struct{ why string }

func (e errNotApplicable) Error() string { return e.why }

func notApplicable(format string, args ...any) error {
	return errNotApplicable{fmt.Sprintf(format, args...)}
}

// Run runs every rule, or those that are named. An error means that the rules could not be tried; a broken rule is
// none.
func Run(ctx context.Context, p Program, only ...string) (_ *Report, err error) {
	for _, id := range only {
		if !slices.ContainsFunc(Rules(), func(r Rule) bool { return r.ID == id }) {
			return nil, fault.New(fault.NotFound, "there is no rule %q", id)
		}
	}
	r, err := newRig(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	report := &Report{Program: p.Command}
	for _, rule := range Rules() {
		if len(only) > 0 && !slices.Contains(only, rule.ID) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		began := time.Now()
		res := Result{Rule: rule.ID, Reason: rule.Reason, Outcome: Pass}
		var na errNotApplicable
		switch err := rule.check(ctx, r); {
		case errors.As(err, &na):
			res.Outcome, res.Detail = NotApplicable, na.why
		case err != nil:
			res.Outcome, res.Detail = Fail, err.Error()
			report.Failed++
			r.settle(ctx) // whatever state it is in now, the next rule gets a fresh process
		default:
			report.Passed++
		}
		res.Seconds = time.Since(began).Round(time.Millisecond).Seconds()
		report.Results = append(report.Results, res)
	}
	report.Manifest = r.manifest
	return report, nil
}

// Describe asks a program for its manifest, for those who have to know its schema before they can configure it.
func Describe(ctx context.Context, p Program) (_ *extension.Manifest, err error) {
	r, err := newRig(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	if _, err := r.started(ctx); err != nil {
		return nil, err
	}
	return r.manifest, nil
}

package conformance

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const faultySwitch = "slots"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == faultySwitch {
		serveFaulty(os.Args[2])
		unix.Exit(0) // os.Exit of a program with the race detector takes a second
	}
	os.Exit(m.Run())
}

func program(t *testing.T, fault string) Program {
	t.Helper()
	config, err := json.Marshal(map[string]any{"dir": t.TempDir(), "size": 1000, "token": "s3cret-token", "tags": []string{"one", "two"},
		"zone": map[string]any{"a": map[string]any{"weight": 2}}})
	if err != nil {
		t.Fatal(err)
	}
	return Program{Command: os.Args[0], Args: []string{faultySwitch, fault}, Config: config, Patience: 2 * time.Second}
}

// An extension that does everything right keeps every rule, and every rule applies to it.
func TestAnHonestExtensionKeepsEveryRule(t *testing.T) {
	p := program(t, "none")
	p.Patience = 0
	report, err := Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := report.Write(&text); err != nil {
		t.Fatal(err)
	}
	if report.Passed != len(Rules()) {
		t.Errorf("not every rule is kept:\n%s", &text)
	}
}

// Every fault breaks the rule that is there for it.
func TestAFaultBreaksItsRule(t *testing.T) {
	for _, f := range faults {
		fault, rule := f.fault, f.rule
		t.Run(fault+" "+rule, func(t *testing.T) {
			t.Parallel()
			report, err := Run(t.Context(), program(t, fault), rule)
			if err != nil {
				t.Fatal(err)
			}
			res := report.Results[0]
			if res.Rule != rule || res.Outcome != Fail {
				t.Errorf("%s: %s %s", res.Rule, res.Outcome, res.Detail)
			}
			first, _, _ := strings.Cut(res.Detail, "\n")
			t.Logf("%s: %s", rule, first)
		})
	}
}

// Where one thing is wrong, a whole run names one rule.
func TestAFaultBreaksNothingElse(t *testing.T) {
	for _, fault := range []string{"serves-undeclared", "plans-hold", "small-messages", "keyed-by-name", "keeps-a-slot", "only-in-memory",
		"takes-nothing-back", "half-a-config"} {
		i := slices.IndexFunc(faults, func(f struct{ fault, rule string }) bool { return f.fault == fault })
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			p := program(t, fault)
			p.Patience = 0
			report, err := Run(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if got := report.Broken(); !slices.Equal(got, []string{faults[i].rule}) {
				var text bytes.Buffer
				_ = report.Write(&text)
				t.Errorf("it breaks %v, want %s alone:\n%s", got, faults[i].rule, &text)
			}
		})
	}
}

// A rule that nothing can break is none.
func TestEveryRuleHasAFault(t *testing.T) {
	for _, r := range Rules() {
		if !slices.ContainsFunc(faults, func(f struct{ fault, rule string }) bool { return f.rule == r.ID }) {
			t.Errorf("no faulty extension breaks %s", r.ID)
		}
	}
}

// faults says which rule a fault has to break.
var faults = []struct{ fault, rule string }{
	{"serves-by-hand", "by-hand"},
	{"banner", "handshake-line"},
	{"any-version", "handshake-versions"},
	{"one-read", "launch-line"},
	{"serves-anybody", "mutual-tls"},
	{"own-certificate", "health"},
	{"unknown-phase", "manifest"},
	{"declares-too-much", "phases-served"},
	{"serves-undeclared", "phases-undeclared"},
	{"counts-plans", "pure-repeat"},
	{"plans-hold", "pure-effect"},
	{"needs-features", "missing-features"},
	{"strict", "unknown-fields"},
	{"trusting", "malformed"},
	{"small-messages", "large-request"},
	{"refuses-its-config", "config-accepted"},
	{"fails-a-phase", "life"},
	{"stuck", "deadline"},
	{"stuck", "cancellation"},
	{"no-turns", "duplicate"},
	{"another-each-time", "replay"},
	{"any-number", "number-old"},
	{"no-turns", "one-at-a-time"},
	{"release-overtakes", "overtaking"},
	{"an-entry-twice", "entries"},
	{"no-release", "entries"},
	{"only-the-new-entry", "entries-complete"},
	{"keyed-by-name", "keyed-by-id"},
	{"keeps-a-slot", "release-complete"},
	{"releases-once", "release-again"},
	{"another-state-version", "state-versions"},
	{"state-of-a-process", "state-round-trip"},
	{"only-in-memory", "kill-keeps"},
	{"forgets-doubt", "kill-in-doubt"},
	{"hides-runs", "reconcile-holdings"},
	{"blind-to-binds", "reconcile-bind"},
	{"one-page", "reconcile-pages"},
	{"collects-garbage", "reconcile-keeps"},
	{"keeps-orphans", "repair-orphan"},
	{"takes-nothing-back", "repair-lost"},
	{"crash-on-config", "config-fuzz"},
	{"lost-diagnostic", "config-fuzz"},
	{"half-a-config", "config-keeps"},
	{"leaks-a-secret", "secrets"},
	{"logs-its-key", "secrets"},
	{"drains-for-ever", "drain"},
	{"ignores-sigterm", "terminate"},
	{"outlives-its-host", "parent-death"},
}

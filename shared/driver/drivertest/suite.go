package drivertest

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/plan"
)

// Factory says how the suite gets at a driver, and what it can ask of it.
type Factory struct {
	// Driver is the name under which the driver is configured; "" for its type.
	Driver string
	// Place prepares a place of its own for one check (a data directory, a name prefix), which it removes in
	// tb.Cleanup, and returns what opens the driver on it. Opened again after Close, it is the driver of a gateway
	// that was restarted. It is called for each check.
	Place func(tb testing.TB) (open func() (driver.Driver, error))

	Image    string          // of every sandbox
	Config   json.RawMessage // the driver_config of every sandbox
	Commands Commands

	// Unusable changes a request into one that the driver cannot use and returns the path of the field that its
	// error has to name. Nil: there is none, and the check is not made.
	Unusable func(r *driver.Request) (path string)
	// Lose takes the host or engine away under a run; Vanish removes a sandbox behind the gateway's back. Nil: the
	// checks that need it are not made.
	Lose, Vanish func(tb testing.TB, s *driver.Status)

	// Subnet is one in which the suite may give addresses, a /24; "" for 10.203.17.0/24.
	Subnet string
	// Patience is how long the suite waits for what a driver does by itself; 0 for a minute.
	Patience time.Duration

	schema *plan.Schema // of the driver's kinds; compiled once, since that takes longer than many a check
}

// Commands are what the sandboxes of the suite run. Sleep is needed by Lifecycle, all of them by Workload.
type Commands struct {
	Sleep    []string                   // runs until it is stopped
	Exit     func(code int) []string    // ends at once
	Echo     func(text string) []string // writes the text and a newline, and ends with 0
	Printenv func(name string) []string // writes the value of a variable and a newline, and ends with 0
	Count    []string                   // writes how often it was run in this work directory and a newline, and ends with 0
	// ExitLater ends by itself with the code, a second or so after it was started. Nil: the check is not made.
	ExitLater func(code int) []string
}

// Shell returns the commands for sandboxes that have a POSIX shell and begin in their work directory.
func Shell() Commands {
	sh := func(script string, args ...string) []string {
		return append([]string{"/bin/sh", "-c", script, "sh"}, args...)
	}
	number := func(n int) string { b, _ := json.Marshal(n); return string(b) }
	return Commands{
		Sleep:     sh(`trap 'exit 0' TERM; while :; do sleep 3600 & wait; done`),
		Exit:      func(code int) []string { return sh(`exit "$1"`, number(code)) },
		Echo:      func(text string) []string { return sh(`printf '%s\n' "$1"`, text) },
		Printenv:  func(name string) []string { return sh(`eval "printf '%s\n' \"\$$1\""`, name) },
		Count:     sh(`echo run >>runs; n=0; while read -r line; do n=$((n+1)); done <runs; echo "$n"`),
		ExitLater: func(code int) []string { return sh(`sleep 1; exit "$1"`, number(code)) },
	}
}

// Lifecycle checks what every driver promises: each check is a subtest named by the outcome. Checks of what a driver
// does not have (a feature, a function of the factory) are not made.
func Lifecycle(t *testing.T, f Factory) {
	t.Helper()
	run(t, f, slices.Concat(planChecks(), makingChecks(), runChecks(), watchChecks(), interruptionChecks(), workspaceChecks()))
}

// Workload checks what a driver promises that runs commands: exit codes, logs, environment, work directory.
func Workload(t *testing.T, f Factory) {
	t.Helper()
	run(t, f, workloadChecks())
}

// check is one promise.
type check struct {
	name  string
	needs []string              // features without which it is not made
	when  func(f *Factory) bool // nil: always
	run   func(r *rig)
}

func run(t *testing.T, f Factory, checks []check) {
	t.Helper()
	features := featuresOf(t, &f)
	for _, c := range checks {
		if c.applies(&f, features) {
			t.Run(c.name, func(t *testing.T) { c.run(newRig(t, &f)) })
		}
	}
}

// applies reports whether the driver has what the check needs.
func (c check) applies(f *Factory, features []string) bool {
	for _, need := range c.needs {
		if !slices.Contains(features, need) {
			return false
		}
	}
	return c.when == nil || c.when(f)
}

// featuresOf fills in the factory's defaults and returns the names of the driver's features.
func featuresOf(tb testing.TB, f *Factory) []string {
	tb.Helper()
	f.Subnet = cmp.Or(f.Subnet, "10.203.17.0/24")
	f.Patience = cmp.Or(f.Patience, time.Minute)
	d, err := f.Place(tb)()
	if err != nil {
		tb.Fatalf("open: %v", err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			tb.Errorf("Close: %v", err)
		}
	}()
	about, err := d.Describe(tb.Context())
	if err != nil {
		tb.Fatalf("Describe: %v", err)
	}
	f.Driver = cmp.Or(f.Driver, about.Type)
	return names(about.Features)
}

func names(features []extension.Feature) []string {
	var out []string
	for _, f := range features {
		out = append(out, f.Name)
	}
	return out
}

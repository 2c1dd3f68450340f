package plugintest

import (
	"testing"

	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
)

// Verify runs a program against the contract, a subtest for each rule. In the test of a program of package main the
// program can be the test binary itself: let TestMain call main when an argument says so.
func Verify(t *testing.T, p conformance.Program) {
	t.Helper()
	report, err := conformance.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, res := range report.Results {
		t.Run(res.Rule, func(t *testing.T) {
			switch res.Outcome {
			case conformance.Fail:
				t.Errorf("%s\n%s", res.Reason, res.Detail)
			case conformance.NotApplicable:
				t.Log("does not apply: " + res.Detail)
			}
		})
	}
}

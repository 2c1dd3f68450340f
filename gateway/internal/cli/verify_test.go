package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
)

func TestVerify(t *testing.T) {
	dir, err := examples()
	if err != nil {
		t.Fatal(err)
	}
	examplesBuilt = true
	good, bad := filepath.Join(t.TempDir(), "good.hcl"), filepath.Join(t.TempDir(), "bad.hcl")
	for path, text := range map[string]string{good: "store = \"${scratch}/leases\"\npool \"a\" {\n  cidr = \"10.80.0.0/16\"\n}\n", bad: "stove = \"x\"\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := Run(t.Context(), Env{Args: append([]string{"extension", "verify"}, args...), Stdout: &out, Stderr: &errs, Getenv: os.Getenv})
		return code, out.String(), errs.String()
	}

	code, out, errs := verify(dir+"/ipam", "--config", good, "-o", "json", "--rule", "handshake-line", "--rule", "life")
	var report conformance.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitOK || report.Passed != 2 || report.Manifest.Name != "ipam" {
		t.Errorf("%d %v %s %s", code, err, out, errs)
	}
	if code, _, errs := verify(dir+"/ipam", "--config", bad); code != exitConfig || !strings.Contains(errs, "bad.hcl line 1") || !strings.Contains(errs, "stove") {
		t.Errorf("a wrong configuration: %d %s", code, errs)
	}
	if code, out, _ := verify("/bin/true", "--rule", "handshake-line"); code != exitFailure || !strings.Contains(out, "FAIL  handshake-line") {
		t.Errorf("a program that is no extension: %d %s", code, out)
	}
	if code, _, errs := verify("/does/not/exist"); code != exitNotFound {
		t.Errorf("no program: %d %s", code, errs)
	}
	if code, _, errs := verify(dir+"/ipam", "--config", good, "--rule", "no-such-rule"); code != exitNotFound {
		t.Errorf("no rule: %d %s", code, errs)
	}
	if code, out, _ := verify("--rules"); code != exitOK || strings.Count(out, "\n") != len(conformance.Rules()) {
		t.Errorf("the rules: %d %s", code, out)
	}
}

// A development build has no published version that a project could require.
func TestNewNeedsACheckoutOrAVersion(t *testing.T) {
	run := func(args ...string) int {
		var out, errs bytes.Buffer
		return Run(t.Context(), Env{Args: append([]string{"extension", "new"}, args...), Stdout: &out, Stderr: &errs, Getenv: os.Getenv})
	}
	dir := filepath.Join(t.TempDir(), "x")
	if code := run("x", "--dir", dir); code != exitUsage {
		t.Errorf("no checkout: %d", code)
	}
	if code := run("x", "--dir", dir, "--replace", t.TempDir()); code != exitUsage {
		t.Errorf("what is no checkout: %d", code)
	}
	if code := run("x", "--dir", dir, "--replace", "../../.."); code != exitOK {
		t.Errorf("a checkout: %d", code)
	}
	if code := run("y", "--dir", dir, "--lang", "python"); code != exitRefused {
		t.Errorf("a directory that is not empty: %d", code)
	}
}

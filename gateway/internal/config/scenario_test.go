package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One extension in the chain of a base and in the wrapper is an error at the second bind.
func TestScenario31AnExtensionStandsOnceInAChain(t *testing.T) {
	const text = `extension "x" {
  command = "/usr/bin/true"
}
driver "native" {}
driver "inner" {
  base = "native"
  bind "x" {}
}
driver "outer" {
  base = "inner"
  bind "x" {}
}
`
	name := filepath.Join(t.TempDir(), "twice.hcl")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Dev = true
	cfg, f := Load([]string{name}, o)
	if cfg != nil && !f.HasErrors() {
		t.Fatal("it is not refused")
	}
	var said bytes.Buffer
	if err := f.Render(&said); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"twice.hcl line 11", `11:   bind "x" {}`, `"x" is in the chain of "outer" already`, "twice.hcl:7"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, said.String())
		}
	}
	if n := strings.Count(said.String(), "Error:"); n != 1 {
		t.Errorf("%d errors:\n%s", n, said.String())
	}
}

package podman

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The engine's instance outlives the host's name, and does not give away the machine's.
func TestMachine(t *testing.T) {
	const id = "b08dfa6083e7567a1921a715000001fb"
	for text, named := range map[string]bool{id + "\n": true, "uninitialized\n": false, "": false} {
		file := filepath.Join(t.TempDir(), "machine-id")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := machine(file); (got != "") != named || strings.Contains(got, id) || got != machine(file) {
			t.Errorf("%q is %q", text, got)
		}
	}
	if got := machine(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("a host without is %q", got)
	}
}

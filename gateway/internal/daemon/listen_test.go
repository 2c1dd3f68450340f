package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
)

// A path that is wrong must not cost the operator the file that is there.
func TestOnlyASocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenUnix("listen", "unix://"+path); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("on somebody's file: %v, %v", l, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "precious" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	left, err := listenUnix("listen", "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := left.(*named).Listener.Close(); err != nil { // as a gateway that was killed leaves it
		t.Fatal(err)
	}
	l, err := listenUnix("listen", "unix://"+path)
	if err != nil {
		t.Fatalf("on a socket that was left: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

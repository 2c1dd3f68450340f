package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// programOf makes a copy of this test binary with a digest of its own.
func (s *site) programOf(name string) string {
	s.t.Helper()
	raw, err := os.ReadFile(self(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, append(raw, name...), 0o755); err != nil { // what follows an ELF file's end is not read
		s.t.Fatal(err)
	}
	return path
}

// released reports whether an extension has answered its last release of a sandbox.
func (s *site) released(name string) bool {
	for _, n := range recorded(s.t, s.dir) {
		if n.Extension == name && n.Phase == phase.AfterDelete && n.Ended {
			return true
		}
	}
	return false
}

// owed returns why an extension's release of a sandbox waits; "" where it does not.
func (s *site) owed(name string) string {
	for _, h := range s.d.engine.Holdings() {
		if h.Extension == name && len(h.Releases) > 0 {
			return h.Releases[0].Error
		}
	}
	return ""
}

// TestOneLostProgramHoldsNoOtherUp: of a configuration that is only stored each extension releases for itself. The one
// whose program and copy are gone says so, and releases when its file is put back. Another driver of that configuration,
// which cannot be opened any more, is in nobody's way.
func TestOneLostProgramHoldsNoOtherUp(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	block := func(name string) string {
		return fmt.Sprintf("extension %q {\n  command = %q\n  args    = [%q, %q, %q]\n  paths {\n    write = [%q]\n  }\n}\n",
			name, s.programOf(name), recorderSwitch, s.dir, name, s.dir)
	}
	const bind = "bind %q {\n    grant { mutate = [\"Process.environment\", \"Process.labels\"] }\n  }\n"
	far := fmt.Sprintf("driver \"far\" {\n  command = %q\n}\n", driverProgram(t, s.dir))
	s.write(block("lost")+block("kept")+far, fmt.Sprintf(bind, "kept")+fmt.Sprintf(bind, "lost"))
	s.start()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	digest := s.d.catalog.current().copies["lost"]
	s.write("", "")
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	s.end()
	lost, away := filepath.Join(s.dir, "lost"), filepath.Join(s.dir, "away")
	for _, err := range []error{os.RemoveAll(filepath.Join(s.dir, "data/programs", strings.TrimPrefix(digest, "sha256:"))),
		os.Rename(lost, away), os.Remove(filepath.Join(s.dir, "kept")), os.Remove(filepath.Join(s.dir, "driver"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	defer s.end()
	h, err := s.d.engine.DeleteSandbox(id.ID, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if !s.released("kept") {
		t.Error("the extension whose copy is there has released nothing")
	}
	for _, want := range []string{`"lost"`, digest, lost + " does not exist", "back where it was"} {
		if got := s.owed("lost"); !strings.Contains(got, want) {
			t.Errorf("what waits does not say %q: %s", want, got)
		}
	}
	if err := os.Rename(away, lost); err != nil {
		t.Fatal(err)
	}
	s.until("what was lost has released too", func() bool {
		sb, err := s.d.engine.Find(engine.Ref{IDOrName: id.ID})
		return err == nil && sb.State == sandbox.Deleted && s.released("lost")
	})
}

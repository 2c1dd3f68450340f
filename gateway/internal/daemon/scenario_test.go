package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/sandbox"
)

// The driver names another instance than the one that the sandboxes live on: refused at load, nothing is released.
func TestScenario17ADriverOfAnotherInstanceIsRefused(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	s.start()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	s.end()
	found, err := filepath.Glob(filepath.Join(s.dir, "data/*/*/instance"))
	if more, _ := filepath.Glob(filepath.Join(s.dir, "data/*/instance")); err == nil {
		found = append(found, more...)
	}
	if err != nil || len(found) != 1 {
		t.Fatalf("the driver's instance is in %v, %v", found, err)
	}
	was, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(found[0], []byte("another-one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, f, err := New(t.Context(), s.options())
	var said bytes.Buffer
	if d != nil || f == nil || f.Render(&said) != nil {
		t.Fatalf("there is a daemon: %v", err)
	}
	for _, want := range []string{"Driver is another one", `driver "acme"`, "1 sandboxes", "another instance"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, said.String())
		}
	}
	if s.held() != 1 {
		t.Error("something was released")
	}
	if err := os.WriteFile(found[0], was, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.remove(id.ID)
	s.end()
}

// A new program that does not read the state that live sandboxes carry is refused with the count; the old one goes on.
func TestScenario36AStateVersionThatCannotBeRead(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	s.start()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(s.keeperBlock(""), fmt.Sprintf("%q]", s.dir), fmt.Sprintf("%q, %q]", s.dir, newerState), 1)
	s.write(newer, keeperBind)
	_, err = s.d.Reload(t.Context(), "test")
	for _, want := range []string{"State cannot be read", "1 sandboxes", "version 1", `"keeper"`, "[2]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	two, err := s.create("two", sandbox.Spec{})
	if err != nil {
		t.Fatalf("the old program does not go on: %v", err)
	}
	s.remove(id.ID)
	s.remove(two.ID)
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Errorf("nothing carries the old state any more: %v", err)
	}
	s.end()
}

package scaffold

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
)

// That the projects build and keep the rules, scripts/authors.sh tries from an empty directory.
func TestAProjectIsWrittenOnce(t *testing.T) {
	for lang, script := range map[string]string{"go": "main.go", "python": "two_words.py"} {
		dir := filepath.Join(t.TempDir(), "p")
		p := Project{Name: "two-words", Lang: lang, Dir: dir, Module: "example.com/x", Version: "v0.0.0", Replace: "/src"}
		names, err := p.Write()
		if err != nil || len(names) < 5 {
			t.Fatalf("%s: %v %v", lang, names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil || strings.Contains(string(text), "{{") || strings.Contains(name, ".tmpl") || strings.Contains(name, "NAME") {
				t.Errorf("%s: %v", name, err)
			}
		}
		text, err := os.ReadFile(filepath.Join(dir, script))
		if err != nil || !strings.Contains(string(text), `"two-words"`) {
			t.Errorf("%s does not name the extension: %v", script, err)
		}
		if _, err := p.Write(); !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("%s: written over what is there: %v", lang, err)
		}
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for _, p := range []Project{{Name: "Two Words", Lang: "go"}, {Name: "../x", Lang: "go"}, {Name: "x", Lang: "cobol"}} {
		p.Dir = filepath.Join(t.TempDir(), "p")
		if names, err := p.Write(); !fault.Is(err, fault.Invalid) || len(names) > 0 {
			t.Errorf("%+v: %v %v", p, names, err)
		}
	}
}

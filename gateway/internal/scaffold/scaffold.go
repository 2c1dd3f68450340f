// Package scaffold writes the beginning of an extension: a project that builds, keeps every rule of the contract and
// tests that it does.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	pythonlabels "github.com/sandgate/sandgate/examples/python-labels"
	"github.com/sandgate/sandgate/shared/fault"
)

// The templates end in .tmpl, so that nothing takes them for what they become. A file called NAME gets the
// extension's.
//
//go:embed all:templates
var templates embed.FS

// Project is what is to be written.
type Project struct {
	Name    string // of the extension
	Lang    string // "go" or "python"
	Dir     string // where; made if it is not there
	Module  string // of Go
	Version string // of the Sandgate module that a Go project requires
	Replace string // a checkout of Sandgate that is used in the place of that version
}

// File is the name of the extension where it has to be an identifier.
func (p Project) File() string { return strings.ReplaceAll(p.Name, "-", "_") }

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// Write writes the project, and returns the names of its files.
func (p Project) Write() ([]string, error) {
	if !nameForm.MatchString(p.Name) {
		return nil, fault.New(fault.Invalid, "%q cannot be the name of an extension: write lower-case letters and digits, with single dashes between", p.Name)
	}
	files, err := p.render()
	if err != nil {
		return nil, err
	}
	if left, err := os.ReadDir(p.Dir); err == nil && len(left) > 0 {
		return nil, fault.New(fault.AlreadyExists, "%s is not empty; nothing is written", p.Dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, f := range files {
		path := filepath.Join(p.Dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, f.text, f.mode); err != nil {
			return nil, err
		}
		names = append(names, path)
	}
	return names, nil
}

type file struct {
	name string
	text []byte
	mode fs.FileMode
}

// render makes the files of the language, and adds what it needs beside them.
func (p Project) render() ([]file, error) {
	root := "templates/" + p.Lang
	list, err := templates.ReadDir(root)
	if err != nil {
		return nil, fault.New(fault.Invalid, "there is no template for %q; there is one for go and one for python", p.Lang)
	}
	var out []file
	for _, e := range list {
		raw, err := templates.ReadFile(root + "/" + e.Name())
		if err != nil {
			return nil, err
		}
		t, err := template.New(e.Name()).Option("missingkey=error").Parse(string(raw))
		if err != nil {
			return nil, fmt.Errorf("read the template %s: %w", e.Name(), err)
		}
		var text bytes.Buffer
		if err := t.Execute(&text, p); err != nil {
			return nil, fmt.Errorf("fill in the template %s: %w", e.Name(), err)
		}
		f := file{name: strings.ReplaceAll(strings.TrimSuffix(e.Name(), ".tmpl"), "NAME", p.File()), text: text.Bytes(), mode: 0o644}
		if bytes.HasPrefix(f.text, []byte("#!")) {
			f.mode = 0o755
		}
		out = append(out, f)
	}
	if p.Lang != "python" {
		return out, nil
	}
	return out, fs.WalkDir(pythonlabels.Files, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := pythonlabels.Files.ReadFile(name)
		out = append(out, file{name: name, text: text, mode: 0o644})
		return err
	})
}

package main

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/plugin"
)

// featureDropIns is what a driver has to have.
const featureDropIns = "guest-init-dropins"

// config is the extension's block of the configuration.
type config struct {
	DropIns map[string]dropIn `json:"dropin" config:"block" doc:"a program that runs in the machine before its command"`
}

type dropIn struct {
	Contents   string   `json:"contents" doc:"the program: a script with its #! line"`
	Workspaces []string `json:"workspaces" config:"optional" doc:"globs: whose machines get it; absent: all"`
}

// dropIns is the extension.
type dropIns struct {
	mu         sync.Mutex
	configured map[string]dropIn
}

var _ interface {
	plugin.Configurer
	plugin.Planner
} = (*dropIns)(nil)

// Info implements plugin.Extension.
func (x *dropIns) Info() plugin.Info {
	return plugin.Info{Name: "guest-dropin", Version: "1.0.0", Requires: []string{featureDropIns}, Config: &config{}}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// Configure implements plugin.Configurer.
func (x *dropIns) Configure(_ context.Context, c *plugin.Config) error {
	cfg := c.Value.(*config)
	wrong := false
	for _, name := range slices.Sorted(maps.Keys(cfg.DropIns)) {
		at, d := "dropin."+name, cfg.DropIns[name]
		if !nameForm.MatchString(name) {
			wrong = true
			c.Invalid(at, fmt.Sprintf("%q cannot be the name of a file in a machine", name), "Use letters, digits, dots, dashes and underscores. Drop-ins run in the order of their names: 10-first.sh, 50-then.sh.")
		}
		if !strings.HasPrefix(d.Contents, "#!") {
			wrong = true
			c.Invalid(at+".contents", "does not begin with #! and an interpreter", "For a shell script of the image the first line is #!/bin/sh.")
		}
		for _, w := range d.Workspaces {
			if _, err := path.Match(w, ""); err != nil {
				wrong = true
				c.Invalid(at+".workspaces", fmt.Sprintf("%q is no glob", w), "")
			}
		}
	}
	if wrong {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.configured = cfg.DropIns
	return nil
}

// PreparePlan implements plugin.Planner: an object for each drop-in of the sandbox's workspace. One that somebody else
// has under its name, with other contents, is a conflict, and the sandbox is not made.
func (x *dropIns) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	f, ok := r.Feature(featureDropIns)
	if !ok {
		return fmt.Errorf("the driver has no %s, which was required", featureDropIns)
	}
	x.mu.Lock()
	configured := x.configured
	x.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		d := configured[name]
		if !d.of(r.Workspace().Name) {
			continue
		}
		f.Object = name
		if err := p.Set(f, map[string]string{"contents": d.Contents}); err != nil {
			return err
		}
	}
	return nil
}

func (d dropIn) of(workspace string) bool {
	return len(d.Workspaces) == 0 || slices.ContainsFunc(d.Workspaces, func(glob string) bool {
		fits, _ := path.Match(glob, workspace) // it was checked
		return fits
	})
}

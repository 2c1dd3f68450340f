package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
)

// part is one thing of a configuration, in a form that can be compared with that of another one.
type part struct {
	process *running // of an extension
	setting string
}

// parts returns what a generation consists of, by what it is called.
func (g *generation) parts() map[string]part {
	out := map[string]part{}
	for name, r := range g.extensions {
		out["extension "+name] = part{process: r}
	}
	for _, c := range g.config.Drivers {
		out["driver "+c.Name] = part{setting: driverSetting(c)}
		for _, b := range g.Drivers[c.Name].Chain.Binds() {
			if own, _ := g.config.Driver(c.Name); slices.ContainsFunc(own.Binds, func(x config.Bind) bool { return x.Extension == b.Extension }) {
				out["bind "+c.Name+"/"+b.Extension] = part{setting: bindSetting(b)}
			}
		}
	}
	return out
}

func driverSetting(c config.Driver) string {
	var chain []string
	for _, b := range c.Binds {
		chain = append(chain, b.Extension)
	}
	return fmt.Sprintf("%s %s %+v %s", c.Type, c.Base, c.Timeouts, strings.Join(chain, ","))
}

// bindSetting is all of a bind but its place and its program.
func bindSetting(b *pipeline.Bind) string {
	var policies strings.Builder
	for _, p := range slices.Sorted(maps.Keys(b.Policies)) {
		fmt.Fprintf(&policies, "%s %+v ", p, b.Policies[p])
	}
	grant := b.Grant
	grant.Source = ""
	return fmt.Sprintf("%s %t %+v %t %+v %v %s %+v", b.Mode, b.OnRequest, b.Rules, b.Authoritative, grant, b.Phases, policies.String(), b.Default)
}

// difference says what a reload did, a line for each thing.
func difference(was, is map[string]part) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(is)) {
		before, had := was[name]
		out = append(out, name+": "+change(before, is[name], had))
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		switch _, has := is[name]; {
		case has:
		case strings.HasPrefix(name, "driver "):
			out = append(out, name+": removed")
		default:
			out = append(out, name+": retiring; it releases what it still holds, and is removed then")
		}
	}
	return out
}

func change(before, now part, had bool) string {
	switch {
	case !had:
		return "added"
	case before.process != now.process:
		return "restarted; the process before ends with the operations that it serves"
	case before.setting != now.setting:
		return "reconfigured in place"
	}
	return "unchanged"
}

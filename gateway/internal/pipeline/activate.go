package pipeline

import (
	"path"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// labelPrefix begins the label by which a caller asks for an extension.
const labelPrefix = "openshell.io/extension."

// Activate decides which extensions are active for a new sandbox, in chain order. Asking for one that no rule
// allows, or that is not in the chain, is Denied and names it.
func (c *Chain) Activate(s *Subject) ([]string, error) {
	asked := askedFor(s)
	active := []string{}
	for _, b := range c.binds {
		switch {
		case !b.OnRequest:
			active = append(active, b.Extension)
		case slices.Contains(asked, b.Extension):
			if !b.allows(s, false) {
				return nil, fault.New(fault.Denied, "extension %q was asked for, and no activation rule allows it for driver %q, workspace %q, image %q and caller %q",
					b.Extension, s.Workspace.Driver, s.Workspace.Name, s.Spec.Image, s.Origin.Caller)
			}
			active = append(active, b.Extension)
		case b.allows(s, true):
			active = append(active, b.Extension)
		}
	}
	for _, name := range asked {
		if c.Bind(name) == nil {
			return nil, fault.New(fault.Denied, "extension %q was asked for, and is not bound to driver %q", name, s.Workspace.Driver)
		}
	}
	return active, nil
}

// askedFor returns the extensions that the caller asks for, by name, by configuration or by label.
func askedFor(s *Subject) []string {
	out := slices.Clone(s.Spec.Extensions)
	for name := range s.ExtensionsConfig {
		out = append(out, name)
	}
	for k, v := range s.Spec.Labels {
		if name, ok := strings.CutPrefix(k, labelPrefix); ok && enabling(v) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// enabling reports whether a label's value asks for something. Anything that is not known is no.
func enabling(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "enabled", "enable", "requested", "request", "true", "1", "yes", "on", "t", "y":
		return true
	}
	return false
}

// allows reports whether any rule matches; with byDefault only those that need no asking.
func (b *Bind) allows(s *Subject, byDefault bool) bool {
	return slices.ContainsFunc(b.Rules, func(r Rule) bool {
		return (!byDefault || r.Default) && matches(r.Driver, s.Workspace.Driver) && matches(r.Workspace, s.Workspace.Name) &&
			matches(r.Image, s.Spec.Image) && matches(r.Caller, s.Origin.Caller)
	})
}

// matches reports whether any glob matches the value; none means any value. A "*" crosses slashes, since images have
// them.
func matches(globs []string, value string) bool {
	flat := strings.NewReplacer("/", "\x00")
	return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool {
		ok, err := path.Match(flat.Replace(g), flat.Replace(value))
		return ok && err == nil
	})
}

package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// featurePrefix begins a wanted point that is named by its feature.
const featurePrefix = "feature:"

// Negotiate intersects what an extension declares, what a driver offers and what the bind grants. The bind given is
// the operator's part; on success it is completed with the extension's phases. What is required and missing, or
// cannot be, is returned as diagnostics, for the line of the bind.
func Negotiate(m *extension.Manifest, b *Bind, driver string, features []extension.Feature, schema *plan.Schema) (*extension.Contract, []fault.Diagnostic) {
	n := &negotiation{m: m, b: b, features: features, schema: schema,
		contract: &extension.Contract{Bind: b.ID, Driver: driver, ObserveOnly: b.Mode == Observe}}
	n.phases()
	n.abilities()
	n.points()
	n.grant()
	if len(n.wrong) > 0 {
		return nil, n.wrong
	}
	b.Phases, b.StateReads = phase.Set(n.contract.Phases), m.StateReads
	return n.contract, nil
}

// Uncalled returns the phases that the extension declares and that this bind is never called for: a workspace is prepared
// by those that take part in every sandbox of it, and not by one that has to be asked for.
func (b *Bind) Uncalled() []phase.Phase {
	if !b.OnRequest || b.Mode == Observe {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(b.Phases), func(p phase.Phase) bool { return !p.OfWorkspace() })
}

type negotiation struct {
	m        *extension.Manifest
	b        *Bind
	features []extension.Feature
	schema   *plan.Schema
	contract *extension.Contract
	wrong    []fault.Diagnostic
}

func (n *negotiation) refuse(summary, format string, args ...any) {
	n.wrong = append(n.wrong, fault.Diagnostic{Summary: summary, Detail: fmt.Sprintf(format, args...)})
}

func (n *negotiation) phases() {
	for _, p := range n.m.Phases {
		if !p.Known() {
			n.refuse("Unknown phase", "Extension %q %s declares the phase %q, which this gateway does not have.", n.b.Extension, n.m.Version, p)
			continue
		}
		n.contract.Phases = append(n.contract.Phases, p)
	}
	for p := range n.b.Policies {
		if p.Known() && !slices.Contains(n.m.Phases, p) {
			n.refuse("Phase is not declared", "The bind sets a policy for %s, which extension %q %s does not declare. It declares %s.",
				p, n.b.Extension, n.m.Version, joined(n.m.Phases))
		}
	}
	set := phase.Set(n.contract.Phases)
	for _, l := range []phase.Lifetime{phase.Sandbox, phase.Run, phase.Workspace} {
		takes := slices.ContainsFunc(phase.Takers(l), set.Has)
		releases := slices.ContainsFunc(phase.Releasers(l), set.Has)
		if takes && releases && !set.MayHold(l) {
			n.refuse("Releasing phase is missing", "Extension %q %s declares some of the phases that release what it holds for a %s, and not all: it needs %s.",
				n.b.Extension, n.m.Version, l, joined(phase.Releasers(l)))
		}
	}
}

func joined(phases []phase.Phase) string {
	out := make([]string, len(phases))
	for i, p := range phases {
		out[i] = string(p)
	}
	return strings.Join(out, ", ")
}

func (n *negotiation) feature(name string) *extension.Feature {
	for i := range n.features {
		if n.features[i].Name == name {
			return &n.features[i]
		}
	}
	return nil
}

func (n *negotiation) abilities() {
	for _, name := range n.m.Requires {
		f := n.feature(name)
		if f == nil {
			n.refuse("Missing feature", "Extension %q %s requires the feature %q, which driver %q does not offer. It offers %s.",
				n.b.Extension, n.m.Version, name, n.contract.Driver, n.offered())
			continue
		}
		if f.Point != "" && n.b.Mode != Observe && !n.granted(f.Point) {
			n.refuse("Missing grant", "Extension %q %s requires the feature %q, which is set at %s: add it to the grant's mutate.",
				n.b.Extension, n.m.Version, name, f.Point)
			continue
		}
		n.contract.Features = append(n.contract.Features, *f)
	}
	for _, name := range n.m.Uses {
		f := n.feature(name)
		if f == nil || f.Point != "" && !n.granted(f.Point) {
			n.contract.Missing = append(n.contract.Missing, name)
			continue
		}
		n.contract.Features = append(n.contract.Features, *f)
	}
}

func (n *negotiation) offered() string {
	var names []string
	for _, f := range n.features {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// granted reports whether the grant reaches a point, or part of it.
func (n *negotiation) granted(p plan.Pattern) bool {
	return slices.ContainsFunc(n.b.Grant.Mutate, func(g plan.Pattern) bool { return g.Covers(p) || p.Covers(g) })
}

// points lists where the bind may contribute: the driver's points that its grant reaches in a declared phase.
func (n *negotiation) points() {
	declared := phase.Set(n.contract.Phases)
	for _, pt := range n.schema.Points() {
		if n.granted(pt.Pattern) && slices.ContainsFunc(pt.Phases, declared.Has) {
			n.contract.Points = append(n.contract.Points, pt)
		}
	}
	for _, want := range n.m.Points {
		if name, ok := strings.CutPrefix(want, featurePrefix); ok {
			if f := n.feature(name); f != nil && f.Point != "" {
				want = string(f.Point)
			} else {
				continue // a feature that is wanted is in requires or uses
			}
		}
		p, err := plan.ParsePattern(want)
		if err != nil {
			n.refuse("Unusable mutation point", "Extension %q %s wants %q: %v.", n.b.Extension, n.m.Version, want, err)
			continue
		}
		if !slices.ContainsFunc(n.schema.Points(), func(pt plan.Point) bool { return pt.Pattern.Covers(p) || p.Covers(pt.Pattern) }) {
			n.refuse("Missing mutation point", "Extension %q %s wants to contribute to %s, which driver %q does not publish.", n.b.Extension, n.m.Version, want, n.contract.Driver)
		}
	}
}

// grant refuses patterns that can never reach anything: a slip of the pen would otherwise be an extension that is
// denied at run time.
func (n *negotiation) grant() {
	for _, g := range n.b.Grant.Mutate {
		if !slices.ContainsFunc(n.schema.Points(), func(pt plan.Point) bool { return g.Covers(pt.Pattern) || pt.Pattern.Covers(g) }) {
			n.refuse("Grant reaches nothing", "The grant's mutate has %s, and driver %q publishes no mutation point there. It publishes %s.",
				g, n.contract.Driver, n.published())
		}
	}
	for _, g := range n.b.Grant.Override {
		if !slices.ContainsFunc(n.schema.Points(), func(pt plan.Point) bool { return pt.Overridable && (g.Covers(pt.Pattern) || pt.Pattern.Covers(g)) }) {
			n.refuse("Override reaches nothing", "The grant's override has %s, and driver %q lets nothing there be overridden.", g, n.contract.Driver)
		}
	}
}

func (n *negotiation) published() string {
	var names []string
	for _, pt := range n.schema.Points() {
		names = append(names, string(pt.Pattern))
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

package engine

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// simSchema is the fake driver's, compiled once.
var simSchema = sync.OnceValues(func() (*plan.Schema, *driver.Description) {
	schema, err := drivertest.Schema()
	if err != nil {
		panic(err)
	}
	about, err := drivertest.NewWorld(drivertest.Options{}).Open().Describe(context.Background())
	if err != nil {
		panic(err)
	}
	return schema, about
})

// simExt is an extension as it is outside of the gateway: what it holds lies in a store of its own and outlives it.
type simExt struct {
	s        *sim
	name     string
	phases   phase.Set
	frozen   bool
	held     map[string]map[string]extension.Entry // subject|lifetime -> id
	whose    map[string]extension.Item
	answered map[string]uint64 // by subject; gone when it dies
}

// simBind is an extension under one generation.
type simBind struct {
	ext *simExt
	gen string
}

func (s *sim) makeExtensions() {
	for i := range 1 + s.rng.IntN(3) {
		s.exts = append(s.exts, &simExt{s: s, name: string(rune('a' + i)), phases: declares[s.rng.IntN(len(declares))],
			held: map[string]map[string]extension.Entry{}, whose: map[string]extension.Item{}, answered: map[string]uint64{}})
	}
}

// restart is what is left of an extension whose process ended. The scheduler's lock is held.
func (x *simExt) restart() { x.answered, x.frozen = map[string]uint64{}, false }

// die ends the process: its calls fail, and what was late in it never happens.
func (x *simExt) die() {
	s := x.s
	s.mu.Lock()
	x.restart()
	var dead []*item
	s.pending = slices.DeleteFunc(s.pending, func(it *item) bool {
		if it.ext == x {
			dead = append(dead, it)
		}
		return it.ext == x
	})
	s.mu.Unlock()
	for _, it := range dead {
		if it.run == nil {
			it.verd <- verdict{err: fault.New(fault.Unavailable, "the extension died"), lost: fault.New(fault.Unavailable, "the extension died")}
		}
	}
}

// Call implements pipeline.Extension.
func (b *simBind) Call(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	s := b.ext.s
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	what := fmt.Sprintf("%s %s of %s", c.Phase, b.ext.name, s.check.name(subjectKey(c)))
	if c.Cause != "" {
		what += " (" + string(c.Cause) + ")"
	}
	end := s.check.called(ctx, b, c)
	v, err := s.park(ctx, &item{kind: "call", key: what, ext: b.ext, deny: !c.Phase.Pure() && c.Phase.OnError() == phase.Refuses || c.Phase.Pure()})
	switch {
	case err != nil:
		b.late(c, what)
		return end(nil, err)
	case v.err != nil:
		return end(nil, v.err)
	}
	a, err := b.ext.effect(c, v)
	if v.twice && err == nil && !v.deny {
		a, err = b.ext.effect(c, v)
	}
	if err == nil && v.hold {
		h, herr := s.park(ctx, &item{kind: "answer", key: what + " answers", ext: b.ext})
		if herr != nil {
			return end(nil, herr)
		}
		v.lost = h.lost
	}
	switch {
	case err != nil:
		return end(nil, err)
	case v.lost != nil:
		return end(nil, v.lost)
	case v.garbage && c.Phase.Pure():
		a.State = &extension.State{}
	case v.garbage:
		a.Entries = []extension.Entry{{Kind: "", ID: ""}}
	}
	return end(a, nil)
}

// late keeps a call that nobody waits for any more: it may take effect yet, unless a newer one is answered first.
func (b *simBind) late(c *extension.Call, what string) {
	s := b.ext.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calm || c.Phase.Pure() {
		return
	}
	s.pending = append(s.pending, &item{kind: "ghost", key: "late " + what, ext: b.ext, run: func(v verdict) {
		if v.err == nil {
			_, _ = b.ext.effect(c, v) // nobody is left to be told
		}
	}})
}

// effect does what a phase is for.
func (x *simExt) effect(c *extension.Call, v verdict) (*extension.Answer, error) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	subject := subjectKey(c)
	if !c.Phase.Pure() {
		if c.Number < x.answered[subject] {
			return nil, fault.New(fault.Conflict, "number %d was overtaken by %d", c.Number, x.answered[subject])
		}
		x.answered[subject] = c.Number
	}
	key := subject + "|" + string(c.Phase.Lifetime())
	a := &extension.Answer{}
	switch l := c.Phase.Takes(); {
	case c.Phase == phase.Reconcile:
		x.mend(c, subject+"|"+string(c.Lifetime), a)
	case l != phase.None && x.phases.MayHold(l):
		if !v.empty {
			x.hold(key, extension.Entry{Kind: "thing", ID: x.name + " " + string(c.Phase) + " " + c.Key}, c)
		}
		a.Entries = x.entries(key)
		a.State = &extension.State{SchemaVersion: 1, Payload: []byte(c.Key)}
	case c.Phase.Releases() != phase.None:
		if v.garbage {
			break // what it answers cannot be used, and it did nothing
		}
		delete(x.held, key)
		x.s.check.served(x, c)
	}
	if v.deny {
		a.Denied, a.Diagnostics = true, []fault.Diagnostic{{Summary: "no"}}
		return a, nil
	}
	if c.Phase.Contributes() {
		a.Contribute = contribution(x, c)
	}
	return a, nil
}

// contribution marks the plan with who was asked in which phase of which run.
func contribution(x *simExt, c *extension.Call) []plan.Object {
	if c.Phase == phase.EnsureWorkspace {
		return []plan.Object{{Kind: drivertest.KindNet, Name: drivertest.Main, Fields: map[string]any{"labels": map[string]any{x.name: c.Key}}}}
	}
	return []plan.Object{{Kind: drivertest.KindBox, Name: drivertest.Main, Fields: map[string]any{
		"annotations": map[string]any{x.name + "|" + string(c.Phase): fmt.Sprint(c.Run)}}}}
}

func (x *simExt) hold(key string, e extension.Entry, c *extension.Call) {
	if x.held[key] == nil {
		x.held[key] = map[string]extension.Entry{}
	}
	x.held[key][e.ID] = e
	item := extension.Item{Workspace: c.Workspace}
	if c.Sandbox != nil {
		id := *c.Sandbox
		item.Sandbox = &id
	}
	x.whose[key] = item
}

func (x *simExt) mend(c *extension.Call, key string, a *extension.Answer) {
	for _, e := range c.Orphans {
		x.s.check.mending(x, key, e)
		delete(x.held[key], e.ID)
	}
	for _, e := range c.Lost {
		x.hold(key, e, c)
	}
	if len(x.held[key]) == 0 {
		delete(x.held, key)
	}
	a.Entries = x.entries(key)
}

func (x *simExt) entries(key string) []extension.Entry {
	var out []extension.Entry
	for _, k := range slices.Sorted(maps.Keys(x.held[key])) {
		out = append(out, x.held[key][k])
	}
	return out
}

// Reconcile implements pipeline.Extension.
func (b *simBind) Reconcile(ctx context.Context, bind, _ string, _ iter.Seq[extension.Item]) ([]extension.Item, error) {
	x := b.ext
	v, err := x.s.park(ctx, &item{kind: "call", key: "reconcile " + bind + " (" + b.gen + ")", ext: x})
	switch {
	case err != nil:
		return nil, err
	case v.err != nil:
		return nil, v.err
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	var out []extension.Item
	for _, key := range slices.Sorted(maps.Keys(x.held)) {
		id, l, _ := strings.Cut(key, "|")
		item := x.whose[key]
		item.Lifetime, item.Number, item.Entries = phase.Lifetime(l), x.answered[id], x.entries(key)
		out = append(out, item)
	}
	return out, nil
}

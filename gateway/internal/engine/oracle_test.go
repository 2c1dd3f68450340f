package engine

import (
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/phase"
)

// oracle says what has to be called, in which order, by the table of the contract (§2) as it is written there. It
// knows nothing of the engine's table, nor of package phase's.
type oracle struct {
	mix     map[string][]phase.Phase // what each of a, b and c declares
	fails   phase.Phase              // the phase that one extension fails in, and which
	culprit string
	began   map[string][]string // lifetime -> who was called in a phase that takes it, in order
	lines   []string
}

var chainOfThree = []string{"a", "b", "c"}

// lifetimes is the first table of §2.
var lifetimes = map[string]struct{ taken, released []phase.Phase }{
	"sandbox":   {[]phase.Phase{"before_create", "after_create"}, []phase.Phase{"after_delete", "on_create_failed"}},
	"run":       {[]phase.Phase{"before_start", "after_ready"}, []phase.Phase{"after_stop"}},
	"workspace": {[]phase.Phase{"ensure_workspace"}, []phase.Phase{"delete_workspace"}},
}

// withCause is the phases that have causes.
var withCause = []phase.Phase{"before_start", "after_ready", "after_stop", "on_create_failed", "delete_workspace"}

func (o *oracle) say(p phase.Phase, name, cause string) {
	o.lines = append(o.lines, strings.TrimSpace(string(p)+" "+name+" "+cause))
}

func (o *oracle) drive(calls ...string) {
	for _, c := range calls {
		o.lines = append(o.lines, "driver."+c)
	}
}

// up is a setup phase: bind order, up to the one that fails. It reports whether all went well.
func (o *oracle) up(p phase.Phase, cause string) bool {
	for _, name := range chainOfThree {
		if !slices.Contains(o.mix[name], p) {
			continue
		}
		o.say(p, name, cause)
		for l, t := range lifetimes {
			if slices.Contains(t.taken, p) && !slices.Contains(o.began[l], name) {
				o.began[l] = append(o.began[l], name)
			}
		}
		if p == o.fails && name == o.culprit && p != "after_create" && p != "after_ready" && p != "validate_request" {
			return false
		}
	}
	return p != o.fails || p != "validate_request" || !slices.Contains(o.mix[o.culprit], p)
}

// down is a teardown phase that releases nothing.
func (o *oracle) down(p phase.Phase) {
	for _, name := range []string{"c", "b", "a"} {
		if slices.Contains(o.mix[name], p) {
			o.say(p, name, "")
		}
	}
}

// release is a releasing phase: those that started, newest first, and where all went well those without a partner.
func (o *oracle) release(p phase.Phase, cause string, notice bool) {
	for l, t := range lifetimes {
		if !slices.Contains(t.released, p) {
			continue
		}
		for _, name := range []string{"c", "b", "a"} {
			partner := slices.ContainsFunc(t.taken, func(p phase.Phase) bool { return slices.Contains(o.mix[name], p) })
			if slices.Contains(o.mix[name], p) && (slices.Contains(o.began[l], name) || notice && !partner) {
				o.say(p, name, cause)
			}
		}
		o.began[l] = nil
	}
}

func (o *oracle) ensureWorkspace() bool {
	if o.up("ensure_workspace", "") {
		o.drive("EnsureWorkspace")
		return true
	}
	o.drive("DeleteWorkspace")
	o.release("delete_workspace", "", false)
	return false
}

// pure is what comes before a create's first effect.
func (o *oracle) pure() bool {
	return o.up("validate_request", "") && o.ensureWorkspace() && o.up("prepare_plan", "")
}

func (o *oracle) create() bool {
	if !o.pure() {
		return false
	}
	o.drive("Resolve")
	switch {
	case !o.up("before_create", ""):
		o.release("on_create_failed", "before_create_failed", false)
		return false
	case !o.up("before_start", "create"):
		o.release("after_stop", "before_start_failed", false)
		o.release("on_create_failed", "before_start_failed", false)
		return false
	}
	o.drive("Create")
	o.up("after_create", "")
	return true
}

func (o *oracle) begin(cause string) bool {
	if o.up("before_start", cause) {
		o.drive("Start")
		return true
	}
	o.drive("Stop")
	o.release("after_stop", "before_start_failed", false)
	return false
}

func (o *oracle) remove(ran bool) {
	if ran {
		o.down("before_stop")
	}
	o.down("before_delete")
	o.gone(ran)
}

func (o *oracle) gone(ran bool) {
	o.drive("Delete")
	if ran {
		o.release("after_stop", "deleted", true)
	}
	o.release("after_delete", "", true)
}

// mixes draws what three extensions declare; reconcile is nobody's step.
func mixes(rt *rapid.T) map[string][]phase.Phase {
	out := map[string][]phase.Phase{}
	for _, name := range chainOfThree {
		bits := rapid.Uint16().Draw(rt, name)
		out[name] = []phase.Phase{phase.Reconcile}
		for i, p := range phase.All() {
			if bits&(1<<i) != 0 && p != phase.Reconcile {
				out[name] = append(out[name], p)
			}
		}
	}
	return out
}

package enginetest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// Failures spoils every call of the engine in turn, in each mutating call of the driver, in every way. What was made is
// removed exactly, or the call is finished by repeating it; the neighbour and the workspace's network are untouched.
func Failures(t *testing.T, e *Engine, open Opener) {
	t.Helper()
	r := newRig(t, e, open)
	empty := r.inventory()
	deleteWorkspace := func() error { return r.d.DeleteWorkspace(r.Context(), r.ws) }
	r.each("EnsureWorkspace", r.ensure, func(what string) {
		r.must(what+", then EnsureWorkspace again", r.ensure())
		r.must(what+", then DeleteWorkspace", deleteWorkspace())
		r.same(what, empty)
	})
	r.must("EnsureWorkspace", r.ensure())
	neighbour := r.sandbox("neighbour")
	r.must("Create", neighbour.make())
	before, quiet := neighbour.until(driver.Ready), r.inventory()
	undisturbed := func(what string) {
		r.same(what, quiet)
		if diff := cmp.Diff(before, neighbour.until(driver.Ready)); diff != "" {
			r.Errorf("after %s the neighbour has changed (-before +after):\n%s", what, diff)
		}
	}
	s := r.sandbox("one")
	r.each("Create", func() error { return s.make() }, func(what string) {
		if strings.Contains(what, string(Lose)) { // whoever does not know asks again
			r.must(what+", then Create again", s.make())
			s.until(driver.Ready)
		}
		r.must(what+", then Delete", s.delete())
		undisturbed(what)
		s = r.sandbox("one")
	})
	r.ends()
	undisturbed("all of it")
	r.must("Delete", neighbour.delete())
	r.each("DeleteWorkspace", deleteWorkspace, func(what string) {
		r.must(what+", then DeleteWorkspace again", deleteWorkspace())
		r.same(what, empty)
		r.must(what+", then EnsureWorkspace", r.ensure())
	})
	r.must("DeleteWorkspace", deleteWorkspace())
	r.same("all of it", empty)
}

// ends spoils the calls that a sandbox that is there goes through.
func (r *rig) ends() {
	s := r.sandbox("one")
	r.must("Create", s.make())
	s.until(driver.Ready)
	run := 1
	addresses := [2]string{s.address, "10.214.7.200"} // another one at each start, so that the engine has to be told
	begin := func() error { return s.start(run+1, addresses[run%2]) }
	begun := func(what string) {
		r.must(what+", then Start again", begin())
		run++
		if st := s.until(driver.Ready); st.Run != run || len(st.Addresses) != 1 || st.Addresses[0] != addresses[(run+1)%2] {
			r.Errorf("after %s it is ready as run %d at %v, want run %d at %s", what, st.Run, st.Addresses, run, addresses[(run+1)%2])
		}
	}
	r.each("Stop", func() error { return s.stop() }, func(what string) {
		r.must(what+", then Stop again", s.stop())
		s.until(driver.Stopped)
		begun(what)
	})
	r.must("Stop", s.stop())
	r.each("Start", begin, func(what string) {
		begun(what)
		r.must("Stop", s.stop())
	})
	r.each("Delete", func() error { return s.delete() }, func(what string) {
		r.must(what+", then Delete again", s.delete())
		s = r.sandbox("one")
		r.must(what+", then Create", s.make())
		s.until(driver.Ready)
	})
	r.must("Delete", s.delete())
}

// each makes the call again and again, with another one of its engine's calls spoiled each time; settle puts in order
// what became of it.
func (r *rig) each(what string, call func() error, settle func(what string)) {
	r.Helper()
	for _, how := range []How{Refuse, Cut, Lose} {
		for n, hit := 1, "some"; hit != ""; n++ {
			r.proxy.Arm(n, how, how == Refuse)
			err := call()
			hit = r.proxy.Disarm()
			where := what + ", of which " + hit + " was " + string(how)
			switch {
			case hit == "":
				where = what + " of which nothing was spoiled"
				r.must(where, err)
			case err == nil:
				r.Errorf("%s: it says that all is well", where)
			case how == Refuse && (!fault.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), NoSpace)):
				r.Errorf("%s: %v (%s); want resource_exhausted in the engine's words", where, err, fault.CodeOf(err))
			case how != Refuse && !fault.Is(err, fault.Unavailable):
				r.Errorf("%s: %v (%s); want unavailable", where, err, fault.CodeOf(err))
			case !strings.Contains(err.Error(), r.about.Type+": "):
				r.Errorf("%s: %v; it does not name the call", where, err)
			}
			if hit != "" {
				r.Logf("%s: %v", where, err)
			}
			settle(where)
		}
	}
}

// Obstacles puts in the way what really may be: the error says what, and that is untouched.
func Obstacles(t *testing.T, e *Engine, open Opener) {
	t.Helper()
	r := newRig(t, e, open)
	empty := r.inventory()
	post := func(path, body string) {
		r.must("plant", e.Call(http.MethodPost, "/v1.40"+path, strings.NewReader(body), &struct{}{}))
	}
	remove := func(path string) { r.must("remove", e.Call(http.MethodDelete, "/v1.40"+path, nil, nil)) }

	r.must("EnsureWorkspace", r.ensure())
	network := r.added(empty, "network")
	r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
	post("/networks/create", `{"Name":"`+network+`"}`)
	r.wantCode("EnsureWorkspace where the network exists", r.ensure(), fault.Conflict)
	r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
	remove("/networks/" + network)
	r.must("EnsureWorkspace", r.ensure())

	quiet := r.inventory()
	s := r.sandbox("one")
	r.must("Create", s.make())
	name, volume := r.added(quiet, "container"), r.added(quiet, "volume")
	r.must("Delete", s.delete())
	post("/containers/create?name="+name, `{"Image":"`+Image+`","Cmd":["true"]}`)
	planted := r.inventory()
	r.wantCode("Create where the container's name is taken", s.make(), fault.AlreadyExists)
	r.same("a Create whose name was taken", planted)
	resolve := &driver.ResolveRequest{Identity: s.id(), Plan: s.create.Plan, Workspace: r.wplan}
	r.wantCode("Resolve where the container's name is taken", r.d.Resolve(r.Context(), resolve), fault.Conflict)
	remove("/containers/" + name + "?force=1")
	post("/volumes/create", `{"Name":"`+volume+`"}`)
	planted = r.inventory()
	r.wantCode("Create where the volume's name is taken", s.make(), fault.AlreadyExists)
	r.same("a Create whose volume was taken", planted)
	remove("/volumes/" + volume)

	r.must("Create", s.make())
	other := r.sandbox("other")
	other.create.Plan = s.create.Plan
	err := other.make()
	r.wantCode("Create where the address is in use", err, fault.Conflict)
	if err != nil && !strings.Contains(strings.ToLower(err.Error()), "alread") {
		r.Errorf("the error does not repeat the engine's words: %v", err)
	}
	r.must("Delete", other.delete())
	r.must("Delete", s.delete())
	r.same("an address that was in use", quiet)
	r.engineStopped(s, quiet)
	r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
	r.same("all of it", empty)
}

// engineStopped stops the engine under a driver.
func (r *rig) engineStopped(s *subject, quiet []string) {
	r.Helper()
	r.must("stop the engine", r.e.Order("stop"))
	for what, err := range map[string]error{"Create": s.make(), "Delete": s.delete(), "Stop": s.stop(), "EnsureWorkspace": r.ensure()} {
		r.wantCode(what+" while the engine is stopped", err, fault.Unavailable)
	}
	if _, err := r.d.Get(r.Context(), s.id()); !fault.Is(err, fault.Unavailable) {
		r.Errorf("Get while the engine is stopped: %v, want unavailable: it is no proof that nothing is there", err)
	}
	r.must("start the engine", r.e.Order("start"))
	r.must("Create", s.make())
	s.until(driver.Ready)
	r.must("Delete", s.delete())
	r.same("a stop of the engine", quiet)
}

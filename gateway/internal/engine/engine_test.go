package engine

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func TestPhaseOrder(t *testing.T) {
	bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
		check := func(what string, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, r.log.take()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		id, err := r.create("one")
		r.must(err)
		got := r.log.take()
		// validate_request is asked at once.
		if len(got) != 14 || !strings.HasPrefix(got[0], "validate_request") || !strings.HasPrefix(got[1], "validate_request") {
			t.Fatalf("create: %v", got)
		}
		if diff := cmp.Diff([]string{"ensure_workspace a", "ensure_workspace b", "prepare_plan a create", "prepare_plan b create",
			"before_create a create", "before_create b create", "before_start a create", "before_start b create",
			"after_create a create", "after_create b create", "after_ready a create", "after_ready b create"}, got[2:]); diff != "" {
			t.Errorf("create (-want +got):\n%s", diff)
		}
		if sb := r.get(id.ID); sb.State != sandbox.Ready {
			t.Fatalf("it is %s: %s", sb.State, sb.Reason)
		}
		r.must(r.wait(r.engine.StopSandbox(id.ID, sandbox.Origin{})))
		check("stop", "before_stop b", "before_stop a", "after_stop b stopped", "after_stop a stopped")
		r.must(r.wait(r.engine.StartSandbox(id.ID, nil, sandbox.Origin{})))
		check("start", "before_start a start", "before_start b start", "after_ready a start", "after_ready b start")
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		check("delete", "before_stop b", "before_stop a", "before_delete b", "before_delete a",
			"after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
		r.nothingHeld()
		if sb := r.get(id.ID); sb.State != sandbox.Deleted {
			t.Errorf("it is %s", sb.State)
		}
	})
}

func TestCrashAtEveryCommitOfACreate(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for n := 1; n < 40; n++ {
			done := false
			bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
				done = crashAt(r, when == "before", n)
			})
			if done {
				t.Logf("%d commits, crashed %s each", n-1, when)
				break
			}
		}
	}
}

// crashAt creates and deletes a sandbox with a crash at the n-th commit, and reports whether there are fewer.
func crashAt(r *rig, before bool, n int) bool {
	count, crashed := 0, make(chan struct{})
	hook := func(stop chan struct{}) func([]journal.Write) {
		return func([]journal.Write) {
			if count++; count == n {
				close(stop)
				<-r.engine.ctx.Done()
			}
		}
	}
	if before {
		r.journal.Hook(hook(crashed), nil)
	} else {
		r.journal.Hook(nil, hook(crashed))
	}
	_, id, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: "one"})
	r.must(err)
	synctest.Wait()
	select {
	case <-crashed:
	default:
		return true
	}
	r.crash()
	synctest.Wait()
	if sb, err := r.engine.Find(Ref{IDOrName: id.ID}); err == nil && sb.State != sandbox.Deleted {
		if sb.State != sandbox.Ready {
			r.t.Errorf("crash at %d: it is %s: %s", n, sb.State, sb.Reason)
		}
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
	}
	r.nothingHeld()
	return false
}

// A restore that is refused at first, with a crash at each of its commits: the lost run is released once, the new one
// once for each time that it began, and in the end it runs.
func TestCrashAtEveryCommitOfARestore(t *testing.T) {
	for n, more := 1, true; more; n++ {
		bubble(t, rigOptions{}, []string{"a", "b"}, func(t *testing.T, r *rig) {
			id, err := r.create("one")
			r.must(err)
			r.log.take()
			r.exts[1].on(phase.BeforeStart, deny("not now"))
			count, crashed := 0, make(chan struct{})
			r.journal.Hook(nil, func([]journal.Write) {
				if count++; count == n {
					close(crashed)
					<-r.engine.ctx.Done()
				}
			})
			r.world.Lose(id.ID)
			synctest.Wait()
			select {
			case <-crashed:
				r.crash()
				synctest.Wait()
			default:
				r.journal.Hook(nil, nil)
				more = false
			}
			if sb := r.get(id.ID); sb.State != sandbox.Failing || !strings.Contains(sb.Reason, "not now") {
				t.Errorf("crash at %d: it is %s: %s", n, sb.State, sb.Reason)
			}
			r.exts[1].on(phase.BeforeStart, nil)
			time.Sleep(11 * time.Minute)
			synctest.Wait()
			if sb := r.get(id.ID); sb.State != sandbox.Ready || !sb.Run.Active {
				t.Errorf("crash at %d: in the end it is %s: %s", n, sb.State, sb.Reason)
			}
			lost := map[string]bool{}
			for _, l := range r.log.take() {
				if strings.HasPrefix(l, "after_stop") {
					lost[l] = true
				}
			}
			if !lost["after_stop a lost"] || !lost["after_stop b lost"] || !lost["after_stop b before_start_failed"] || !lost["after_stop a before_start_failed"] {
				t.Errorf("crash at %d: released: %v", n, lost)
			}
			r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
			r.nothingHeld()
		})
	}
}

func TestReleasesGoOnlyWhereTheyAreDeclared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOptions{})
		defer r.close()
		a := newScripted("a", r.log, phase.EnsureWorkspace, phase.BeforeCreate, phase.BeforeStart)
		b := newScripted("b", r.log, phase.BeforeStart, phase.AfterStop)
		c := newScripted("c", r.log, phase.AfterDelete, phase.AfterStop, phase.DeleteWorkspace, phase.OnCreateFailed)
		r.exts = []*scripted{a, b, c}
		r.configure(a, b, c)
		id, err := r.create("one")
		r.must(err)
		r.must(r.wait(r.engine.DeleteSandbox(id.ID, sandbox.Origin{})))
		r.must(r.wait(r.engine.DeleteWorkspace("fake", sandbox.DefaultWorkspace, sandbox.Origin{})))
		if diff := cmp.Diff([]string{"ensure_workspace a", "before_create a create", "before_start a create", "before_start b create",
			"after_stop c deleted", "after_stop b deleted", "after_delete c", "delete_workspace c"}, r.log.take()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		r.nothingHeld()
		// Scenario 35: a create that fails releases exactly those that started.
		b.on(phase.BeforeStart, deny("no"))
		if _, err := r.create("two"); err == nil {
			t.Fatal("it was created")
		}
		got := r.log.take()
		if last := got[len(got)-1]; last != "after_stop b before_start_failed" {
			t.Errorf("it ended with %q", last)
		}
	})
}

// Orphans planted on each side among live leases: exactly those are reported, and mended where the bind is
// authoritative, once two passes agree.
func TestReconcile(t *testing.T) {
	for _, authoritative := range []bool{false, true} {
		bubble(t, rigOptions{authority: authoritative, max: 64}, []string{"a"}, func(t *testing.T, r *rig) {
			const live, planted = 200, 40
			var handles []*Handle
			for i := range live {
				h, _, err := r.engine.CreateSandbox(CreateRequest{Driver: "fake", Name: fmt.Sprintf("sb-%03d", i)})
				r.must(err)
				handles = append(handles, h)
			}
			for _, h := range handles {
				_, err := h.Wait(t.Context())
				r.must(err)
			}
			synctest.Wait()
			a := r.exts[0]
			before := a.holds()
			a.mu.Lock()
			for i, sb := range r.engine.Sandboxes(false) {
				switch {
				case i < planted: // the extension forgot both things of its run
					delete(a.held, sb.ID+"|run")
				case i < 2*planted: // the ledger does not know it
					a.hold(sb.ID+"|sandbox", extension.Entry{Kind: "thing", ID: "orphan-" + sb.ID})
				case i == 2*planted: // nobody's at all
					a.hold("stranger|sandbox", extension.Entry{Kind: "thing", ID: "orphan-stranger"})
				}
			}
			a.mu.Unlock()
			damaged := a.holds()
			time.Sleep(15 * time.Minute) // one pass
			synctest.Wait()
			if diff := cmp.Diff(damaged, a.holds()); diff != "" {
				t.Errorf("one pass has mended something:\n%s", diff)
			}
			time.Sleep(30 * time.Minute) // more than a second one
			synctest.Wait()
			want := damaged
			if authoritative {
				want = before
			}
			if diff := cmp.Diff(want, a.holds()); diff != "" {
				t.Errorf("authoritative %t (-want +got):\n%s", authoritative, diff)
			}
			ops, err := r.engine.Operations(t.Context(), "fake/a")
			r.must(err)
			if last := ops[len(ops)-1]; len(last.Report) != 3*planted+1 {
				t.Errorf("the first pass that found something reports %d differences, want %d", len(last.Report), 3*planted+1)
			}
		})
	}
}

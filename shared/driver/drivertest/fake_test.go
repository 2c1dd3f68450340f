package drivertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// stage is a world with a driver and one sandbox that is planned in a workspace that is ensured.
type stage struct {
	*testing.T
	w    *World
	d    *Fake
	id   sandbox.Identity
	ws   sandbox.Workspace
	plan *plan.Plan
	net  *plan.Plan
}

func newStage(t *testing.T, o Options, command ...string) *stage {
	t.Helper()
	s := &stage{T: t, w: NewWorld(o), ws: sandbox.Workspace{ID: "w1", Driver: "fake", Name: "tenant"},
		id: sandbox.Identity{ID: "s1", Driver: "fake", Workspace: "tenant", WorkspaceID: "w1", Name: "one"}}
	s.d = s.w.Open()
	s.plan = s.compute(boxLayers(&driver.Request{Identity: s.id, Spec: sandbox.Spec{Command: command}}))
	s.net = s.compute(netLayers(s.ws), nil)
	s.check(s.d.EnsureWorkspace(t.Context(), &driver.WorkspaceRequest{Workspace: s.ws, Plan: s.net}))
	return s
}

func (s *stage) compute(layers []plan.Layer, err error) *plan.Plan {
	s.Helper()
	s.check(err)
	schema, err := Schema()
	s.check(err)
	p, err := schema.Compute(layers)
	s.check(err)
	return p
}

func (s *stage) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *stage) create(ctx context.Context) error {
	return s.d.Create(ctx, &driver.CreateRequest{Identity: s.id, Operation: "op", Run: 1, Plan: s.plan, Workspace: s.net, Token: []byte("t")})
}

func (s *stage) start(run int) error {
	return s.d.Start(s.Context(), &driver.StartRequest{Identity: s.id, Operation: "op", Run: run, Plan: s.plan, Workspace: s.net})
}

func (s *stage) delete(ctx context.Context) error {
	return s.d.Delete(ctx, &driver.DeleteRequest{Identity: s.id, Operation: "op"})
}

// effects returns the verbs of the log that are no calls.
func (s *stage) effects() []Verb {
	var out []Verb
	for _, e := range s.w.Log() {
		if e.Verb != Called && e.Verb != Answered {
			out = append(out, e.Verb)
		}
	}
	return out
}

func (s *stage) state() driver.State {
	if st := s.w.Sandbox(s.id.ID); st != nil {
		return st.State
	}
	return "nothing"
}

func TestFaultsBeforeAndAfterTheEffect(t *testing.T) {
	custom := fault.New(fault.ResourceExhausted, "full")
	tests := []struct {
		fault Fault
		want  driver.State // after Create
		code  fault.Code
		then  driver.State // after the same Create once more
	}{
		{Fault{How: FailBefore, Times: 1}, "nothing", fault.Unavailable, driver.Ready},
		{Fault{How: FailBefore, Times: 1, Err: custom}, "nothing", fault.ResourceExhausted, driver.Ready},
		{Fault{How: FailPartly, Times: 1}, driver.Provisioning, fault.DeadlineExceeded, driver.Ready},
		{Fault{How: FailAfter, Times: 1}, driver.Ready, fault.DeadlineExceeded, driver.Ready},
		{Fault{How: FailAfter, Times: 1, Err: custom}, driver.Ready, fault.ResourceExhausted, driver.Ready},
		{Fault{How: FailBefore}, "nothing", fault.Unavailable, "nothing"},
		{Fault{How: FailBefore, Skip: 1}, driver.Ready, fault.OK, driver.Ready},
		{Fault{How: FailBefore, Call: CallDelete}, driver.Ready, fault.OK, driver.Ready},
		{Fault{How: FailBefore, Call: CallCreate, ID: "other"}, driver.Ready, fault.OK, driver.Ready},
		{Fault{How: FailBefore, Call: CallCreate, ID: "s1", Times: 2}, "nothing", fault.Unavailable, "nothing"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%+v", test.fault), func(t *testing.T) {
			s := newStage(t, Options{})
			i := s.w.Inject(test.fault)
			if err := s.create(t.Context()); fault.CodeOf(err) != test.code || s.state() != test.want {
				t.Errorf("Create: %v, and it is %s; want %s and %s", err, s.state(), test.code, test.want)
			}
			_ = s.create(t.Context())
			if s.state() != test.then {
				t.Errorf("after Create once more it is %s, want %s", s.state(), test.then)
			}
			i.Release()
			s.check(s.create(t.Context()))
		})
	}
}

func TestFailPartlyOfEachCall(t *testing.T) {
	s := newStage(t, Options{})
	half := func(c Call) { s.w.Inject(Fault{Call: c, How: FailPartly, Times: 1}) }
	s.plan = s.withVolume()
	want := func(call string, err error, state driver.State, objects int) {
		t.Helper()
		st := s.w.Sandbox(s.id.ID)
		if err == nil || st == nil || st.State != state || len(st.Objects) != objects {
			t.Fatalf("%s: %v, and it is %+v; want %s with %d objects", call, err, st, state, objects)
		}
	}
	half(CallCreate)
	want("Create", s.create(t.Context()), driver.Provisioning, 1)
	s.check(s.create(t.Context()))
	half(CallStop)
	want("Stop", s.d.Stop(t.Context(), s.id), driver.Ready, 2)
	s.check(s.d.Stop(t.Context(), s.id))
	half(CallStart)
	want("Start", s.start(2), driver.Provisioning, 2)
	s.check(s.start(2))
	half(CallDelete)
	want("Delete", s.delete(t.Context()), driver.Removing, 1)
	s.check(s.delete(t.Context()))
	half(CallDeleteWorkspace)
	if err := s.d.DeleteWorkspace(t.Context(), s.ws); err == nil || len(s.w.Workspaces()) != 1 {
		t.Fatalf("DeleteWorkspace: %v, and there are %d workspaces", err, len(s.w.Workspaces()))
	}
	s.check(s.d.DeleteWorkspace(t.Context(), s.ws))
	if left := s.w.Leftovers(); left != nil {
		t.Errorf("left: %v", left)
	}
	if v := s.w.Violations(); v != nil {
		t.Errorf("violations: %v", v)
	}
}

// withVolume returns the plan with a further object of an extension.
func (s *stage) withVolume() *plan.Plan {
	s.Helper()
	_, p, err := s.plan.Apply("ext", "prepare_plan", plan.Grant{Mutate: []plan.Pattern{KindVolume}},
		[]plan.Object{{Kind: KindVolume, Name: "data", Fields: map[string]any{"size": "1GiB"}}})
	s.check(err)
	return p
}

func TestHeldCalls(t *testing.T) {
	tests := []struct {
		how              How
		held             driver.State // while it is held
		cancelled, freed driver.State // after its context has ended, and after Release
		code             fault.Code   // of the call that was cancelled
	}{
		{HoldBefore, "nothing", "nothing", "nothing", fault.Canceled},
		{HoldAfter, driver.Ready, driver.Ready, driver.Ready, fault.Canceled},
		{FinishLate, "nothing", "nothing", driver.Ready, fault.Canceled},
		{HoldDeaf, "nothing", "nothing", driver.Ready, fault.OK},
	}
	for _, test := range tests {
		t.Run(test.how.String()+", cancelled", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, Options{})
				i := s.w.Inject(Fault{Call: CallCreate, How: test.how})
				ctx, cancel := context.WithCancel(t.Context())
				answer := make(chan error, 1)
				go func() { answer <- s.create(ctx) }()
				<-i.Reached()
				if s.state() != test.held {
					t.Errorf("held, it is %s, want %s", s.state(), test.held)
				}
				cancel()
				synctest.Wait()
				if s.state() != test.cancelled {
					t.Errorf("cancelled, it is %s, want %s", s.state(), test.cancelled)
				}
				i.Release()
				if err := <-answer; fault.CodeOf(err) != test.code {
					t.Errorf("the call answered %v, want %s", err, test.code)
				}
				if s.state() != test.freed {
					t.Errorf("released, it is %s, want %s", s.state(), test.freed)
				}
			})
		})
		t.Run(test.how.String()+", released", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, Options{})
				i := s.w.Inject(Fault{Call: CallCreate, How: test.how})
				answer := make(chan error, 1)
				go func() { answer <- s.create(t.Context()) }()
				<-i.Reached()
				i.Release()
				if err := <-answer; err != nil || s.state() != driver.Ready || i.Hits() != 1 {
					t.Errorf("the call answered %v after %d hits, and it is %s", err, i.Hits(), s.state())
				}
			})
		})
	}
}

func TestACrashEndsWhatIsHeldAndKeepsTheWorld(t *testing.T) {
	for how, want := range map[How]driver.State{HoldBefore: "nothing", HoldAfter: driver.Ready} {
		t.Run(how.String(), func(t *testing.T) {
			s := newStage(t, Options{})
			i := s.w.Inject(Fault{Call: CallCreate, How: how, Times: 1})
			answer := make(chan error, 1)
			go func() { answer <- s.create(t.Context()) }()
			<-i.Reached()
			s.check(s.d.Close())
			if err := <-answer; !fault.Is(err, fault.Unavailable) {
				t.Errorf("the held call answered %v", err)
			}
			if _, err := s.d.List(t.Context()); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a closed driver answers %v", err)
			}
			s.d = s.w.Open()
			if s.state() != want {
				t.Errorf("after the crash it is %s, want %s", s.state(), want)
			}
			s.check(s.create(t.Context()))
			if s.state() != driver.Ready {
				t.Errorf("repeated, it is %s", s.state())
			}
		})
	}
}

func TestTheLogHasEffectsInOrder(t *testing.T) {
	s := newStage(t, Options{})
	s.check(s.create(t.Context()))
	s.check(s.create(t.Context())) // no effect
	s.check(s.d.Stop(t.Context(), s.id))
	s.check(s.start(2))
	s.w.Exit("s1", 9)
	s.check(s.start(3))
	s.w.Lose("s1")
	s.check(s.start(4))
	s.check(s.delete(t.Context()))
	s.check(s.d.DeleteWorkspace(t.Context(), s.ws))
	want := []Verb{WorkspaceMade, Made, Began, ReadyNow, Ended, Began, ReadyNow, ExitedNow, Began, ReadyNow, LostNow, Began, ReadyNow,
		Ended, Removed, WorkspaceRemoved}
	if diff := cmp.Diff(want, s.effects()); diff != "" {
		t.Errorf("effects (-want +got):\n%s", diff)
	}
	for i, e := range s.w.Log() {
		if e.Seq != i+1 {
			t.Fatalf("entry %d has number %d", i, e.Seq)
		}
	}
	if n := s.w.Calls(CallCreate); n != 2 {
		t.Errorf("%d calls of Create, want 2", n)
	}
	if v := s.w.Violations(); v != nil {
		t.Errorf("violations: %v", v)
	}
}

func TestViolationsAreSeen(t *testing.T) {
	tests := map[string]func(s *stage){
		"two calls for one sandbox at once": func(s *stage) {
			i := s.w.Inject(Fault{Call: CallCreate, How: HoldBefore})
			done := make(chan error)
			go func() { done <- s.create(s.Context()) }()
			<-i.Reached()
			_ = s.d.Stop(s.Context(), s.id)
			i.Release()
			<-done
		},
		"a run that begins in another": func(s *stage) {
			s.check(s.create(s.Context()))
			_ = s.start(2)
		},
		"a run of before": func(s *stage) {
			s.check(s.create(s.Context()))
			s.check(s.d.Stop(s.Context(), s.id))
			s.check(s.start(3))
			s.check(s.d.Stop(s.Context(), s.id))
			_ = s.start(2)
		},
		"a sandbox in a workspace that is not there": func(s *stage) {
			s.check(s.d.DeleteWorkspace(s.Context(), s.ws))
			_ = s.create(s.Context())
		},
		"a workspace deleted under its sandbox": func(s *stage) {
			s.check(s.create(s.Context()))
			_ = s.d.DeleteWorkspace(s.Context(), s.ws)
		},
	}
	for name, do := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, Options{})
			do(s)
			if v := s.w.Violations(); len(v) != 1 {
				t.Errorf("violations %q, want one", v)
			}
		})
	}
}

func TestScriptedEventsReachWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, Options{ManualReady: true})
		var seen []string
		ended := make(chan error, 1)
		go func() {
			ended <- s.d.Watch(t.Context(), func(e driver.Event) error {
				switch {
				case e.Synced:
					seen = append(seen, "synced")
				case e.Status == nil:
					seen = append(seen, "deleted "+e.Deleted.ID)
				default:
					seen = append(seen, fmt.Sprintf("%s %s", e.Status.State, e.Status.Reason))
				}
				return nil
			})
		}()
		synctest.Wait()
		s.check(s.create(t.Context()))
		for _, step := range []func() bool{
			func() bool { return s.w.SetReady("s1") },
			func() bool { return s.w.SetNotReady("s1", "Slow", "it is slow") },
			func() bool { return s.w.SetFailed("s1", "NoImage", "there is no such image") },
			func() bool { return s.w.SetReady("s1") },
			func() bool { return s.w.Announce("s1") },
			func() bool { return s.w.Exit("s1", 1) },
			func() bool { return !s.w.Exit("s1", 1) && !s.w.SetReady("s1") && !s.w.Lose("s1") },
			func() bool { return s.w.AnnounceDeleted("s1") },
			func() bool { return s.w.Vanish("s1") },
			func() bool { return !s.w.Vanish("s1") && !s.w.Announce("s1") },
		} {
			if !step() {
				t.Error("a step of the script had no effect, or should have had none")
			}
		}
		s.w.BreakWatches()
		if err := <-ended; !fault.Is(err, fault.Unavailable) {
			t.Errorf("Watch ended with %v", err)
		}
		want := []string{"synced", "provisioning ", "running ", "ready ", "running Slow", "failed NoImage", "ready ", "ready ", "exited ",
			"deleted s1", "deleted s1"}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestARebootLosesEveryRun(t *testing.T) {
	s := newStage(t, Options{})
	s.check(s.create(t.Context()))
	if n := s.w.LoseAll(); n != 1 || s.state() != driver.Lost {
		t.Errorf("%d runs were lost, and it is %s", n, s.state())
	}
}

func TestWhatIsInTheWay(t *testing.T) {
	addressed := func(s *stage, id, address string) *driver.CreateRequest {
		layers, err := boxLayers(&driver.Request{Identity: s.id})
		s.check(err)
		layers[2].Objects[0].Fields["address"] = address
		who := s.id
		who.ID, who.Name = id, id
		return &driver.CreateRequest{Identity: who, Operation: id, Run: 1, Plan: s.compute(layers, nil), Workspace: s.net}
	}
	t.Run("another's object", func(t *testing.T) {
		s := newStage(t, Options{})
		theirs := driver.RealObject{Kind: KindBox, Name: "box-s1"}
		s.w.Plant(theirs)
		err := s.d.Resolve(t.Context(), &driver.ResolveRequest{Identity: s.id, Plan: s.plan})
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("Resolve: %v, want conflict", err)
		}
		if err := s.create(t.Context()); !fault.Is(err, fault.AlreadyExists) || s.state() != "nothing" {
			t.Errorf("Create: %v, and it is %s", err, s.state())
		}
		s.check(s.delete(t.Context()))
		if !s.w.Planted(theirs) {
			t.Error("another's object was removed")
		}
	})
	t.Run("another's address", func(t *testing.T) {
		s := newStage(t, Options{})
		s.check(s.d.Create(t.Context(), addressed(s, "a", "10.0.0.1")))
		if err := s.d.Create(t.Context(), addressed(s, "b", "10.0.0.1")); !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("Create: %v, want already_exists", err)
		}
		s.check(s.d.Create(t.Context(), addressed(s, "b", "10.0.0.2")))
	})
	t.Run("no room", func(t *testing.T) {
		s := newStage(t, Options{Capacity: 1})
		s.check(s.d.Create(t.Context(), addressed(s, "a", "10.0.0.1")))
		if err := s.create(t.Context()); !fault.Is(err, fault.ResourceExhausted) {
			t.Errorf("Create: %v, want resource_exhausted", err)
		}
	})
}

func TestHookStandsOnBothSidesOfTheEffect(t *testing.T) {
	refuse := errors.New("no")
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after: %v", after), func(t *testing.T) {
			s := newStage(t, Options{Hook: func(_ context.Context, m Moment) error {
				if m.Call == CallCreate && m.After == after {
					return refuse
				}
				return nil
			}})
			err := s.create(t.Context())
			if made := s.state() != "nothing"; !errors.Is(err, refuse) || made != after {
				t.Errorf("Create: %v, and it is %s", err, s.state())
			}
		})
	}
}

func TestTimeComesFromTheClock(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newStage(t, Options{Now: func() time.Time { return at }})
	s.check(s.create(t.Context()))
	if got := s.w.Sandbox("s1").Since; !got.Equal(at) {
		t.Errorf("since %v, want %v", got, at)
	}
}

func TestPlansAndSecretsReachTheWorld(t *testing.T) {
	s := newStage(t, Options{}, "sleep")
	s.check(s.create(t.Context()))
	if diff := cmp.Diff(s.plan.Objects(), s.w.Plan("s1")); diff != "" {
		t.Errorf("plan (-given +kept):\n%s", diff)
	}
	if diff := cmp.Diff(s.net.Objects(), s.w.WorkspacePlan("w1")); diff != "" {
		t.Errorf("workspace's plan (-given +kept):\n%s", diff)
	}
	if s.w.Token("s1") != "t" {
		t.Error("the token did not arrive")
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	w := NewWorld(Options{DiscardLog: true})
	d, ctx := w.Open(), b.Context()
	ws := sandbox.Workspace{ID: "w1", Driver: "fake", Name: "tenant"}
	id := sandbox.Identity{ID: "s1", Driver: "fake", Workspace: "tenant", WorkspaceID: "w1", Name: "one"}
	schema, err := Schema()
	if err != nil {
		b.Fatal(err)
	}
	layers, err := boxLayers(&driver.Request{Identity: id})
	if err != nil {
		b.Fatal(err)
	}
	p, err := schema.Compute(layers)
	if err != nil {
		b.Fatal(err)
	}
	if err := d.EnsureWorkspace(ctx, &driver.WorkspaceRequest{Workspace: ws}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := d.Create(ctx, &driver.CreateRequest{Identity: id, Operation: "op", Run: 1, Plan: p}); err != nil {
			b.Fatal(err)
		}
		if err := d.Delete(ctx, &driver.DeleteRequest{Identity: id, Operation: "op"}); err != nil {
			b.Fatal(err)
		}
	}
}

package phase

import "testing"

// The table of the contract, §2, told from the other side: what a phase takes, some phase releases.
func TestEveryLifetimeThatIsTakenIsReleased(t *testing.T) {
	if len(All()) != len(rules) || len(All()) != 14 {
		t.Fatalf("All has %d phases, the table %d; want 14", len(All()), len(rules))
	}
	for _, p := range All() {
		if !p.Known() {
			t.Errorf("%s is not in the table", p)
		}
		if p.Pure() && p.Lifetime() != None {
			t.Errorf("%s is pure and has the lifetime %s", p, p.Lifetime())
		}
		if l := p.Takes(); l != None && len(Releasers(l)) == 0 {
			t.Errorf("%s takes %s, which nothing releases", p, l)
		}
		if p.Releases() != None && (p.Setup() || p.OnError() != Retried) {
			t.Errorf("%s releases, so it has to be a teardown phase that is retried", p)
		}
	}
}

func TestMayHoldNeedsEveryReleasingPhase(t *testing.T) {
	for _, c := range []struct {
		set  Set
		l    Lifetime
		want bool
	}{
		{Set{BeforeCreate, AfterDelete, OnCreateFailed}, Sandbox, true},
		{Set{BeforeCreate, AfterDelete}, Sandbox, false},
		{Set{BeforeCreate, OnCreateFailed}, Sandbox, false},
		{Set{BeforeStart, AfterStop}, Run, true},
		{Set{BeforeStart}, Run, false},
		{Set{EnsureWorkspace, DeleteWorkspace}, Workspace, true},
		{Set(All()), None, false},
	} {
		if got := c.set.MayHold(c.l); got != c.want {
			t.Errorf("%v may hold %q = %v, want %v", c.set, c.l, got, c.want)
		}
	}
}

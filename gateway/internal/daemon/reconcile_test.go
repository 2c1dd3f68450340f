package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/examples/ipam/lease"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

const (
	liveLeases = 1000
	planted    = 100 // on each side
)

// pair is an engine over a driver that makes nothing, with the real ipam as a process and its real store.
type pair struct {
	t       *testing.T
	engine  *engine.Engine
	gen     atomic.Pointer[engine.Generation]
	bind    *pipeline.Bind
	schema  *plan.Schema
	leases  *lease.Store
	pool    *lease.Pool
	catalog fixed
}

// fixed is a catalog of one generation.
type fixed struct{ p *pair }

func (f fixed) Current() *engine.Generation { return f.p.gen.Load() }

func (f fixed) Generation(context.Context, string) (*engine.Generation, error) {
	return f.p.gen.Load(), nil
}

func newPair(t *testing.T) *pair {
	t.Helper()
	programs, err := examples()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "sgr") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	sup, err := supervisor.New(supervisor.Config{Dir: dir + "/run", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sup.Close() })
	ipam, err := sup.Launch(t.Context(), supervisor.Spec{Name: "ipam", Command: programs + "/ipam", Unpinned: true, Write: []string{dir + "/leases"}})
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, pool: &lease.Pool{Name: "sandboxes", CIDR: netip.MustParsePrefix("10.80.0.0/16"), SubnetBits: 20}}
	world := drivertest.NewWorld(drivertest.Options{DiscardLog: true}).Open()
	about, err := world.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p.schema, err = plan.NewSchema(about.Kinds, about.Points, nil); err != nil {
		t.Fatal(err)
	}
	p.bind = &pipeline.Bind{Extension: "ipam", ID: "fake/ipam", Mode: pipeline.Enforce, Program: ipam,
		Grant:   plan.Grant{Mutate: []plan.Pattern{"Net.subnet", "Box.address", "Box.environment"}},
		Default: pipeline.PhasePolicy{Timeout: 30 * time.Second, FailurePolicy: pipeline.FailClosed, Attempts: 3}}
	manifest := ipam.Manifest()
	contract, wrong := pipeline.Negotiate(&manifest, p.bind, "fake", about.Features, p.schema)
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	config := fmt.Sprintf(`{"store":%q,"pool":{"sandboxes":{"cidr":"10.80.0.0/16","subnet_prefix":20}}}`, dir+"/leases")
	if err := ipam.Configure(t.Context(), json.RawMessage(config), []extension.Contract{*contract}); err != nil {
		t.Fatal(err)
	}
	if p.leases, err = lease.Open(t.Context(), dir+"/leases"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.leases.Close() })
	p.gen.Store(&engine.Generation{ID: "g1", Drivers: map[string]*engine.Driver{"fake": {Name: "fake", Driver: world, Description: about, Schema: p.schema,
		Chain:        pipeline.New([]*pipeline.Bind{p.bind}, p.schema, nil),
		ChainTimeout: 2 * time.Minute, DriverTimeout: time.Minute, ReadyTimeout: time.Minute, ReleaseTimeout: time.Minute, ReconcileInterval: 300 * time.Millisecond}}})
	p.engine, err = engine.Open(t.Context(), engine.Config{Journal: journal.NewMemory(), Catalog: fixed{p}, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: newID, Jitter: jitter, MaxOperations: 64})
	if err != nil {
		t.Fatal(err)
	}
	p.engine.Start()
	t.Cleanup(func() { _ = p.engine.Close() })
	return p
}

func (p *pair) create(workspace, name string) (sandbox.Identity, error) {
	h, id, err := p.engine.CreateSandbox(engine.CreateRequest{Driver: "fake", Workspace: workspace, Name: name, Spec: sandbox.Spec{Image: "alpine", Command: []string{"sleep"}}})
	if err == nil {
		_, err = h.Wait(p.t.Context())
	}
	return id, err
}

// many creates n sandboxes, 64 at once.
func (p *pair) many(n int) []sandbox.Identity {
	p.t.Helper()
	ids := make([]sandbox.Identity, n)
	var workers sync.WaitGroup
	for w := range 64 {
		workers.Go(func() {
			for i := w; i < n; i += 64 {
				var err error
				if ids[i], err = p.create("live", fmt.Sprintf("sb-%d", i)); err != nil {
					p.t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	return ids
}

// keepCreating creates sandboxes in another workspace until the function that it returns is called, which says how many.
func (p *pair) keepCreating() func() int {
	stop, made := make(chan struct{}), 0
	var worker sync.WaitGroup
	worker.Go(func() {
		for ; ; made++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := p.create("busy", fmt.Sprintf("busy-%d", made)); err != nil {
				p.t.Errorf("a create that went on meanwhile: %v", err)
				return
			}
		}
	})
	return func() int { close(stop); worker.Wait(); return made }
}

// plant makes ipam hold what nobody has, and forget what sandboxes have. It returns how the differences are reported.
func (p *pair) plant(victims []sandbox.Identity) map[string]bool {
	p.t.Helper()
	want := map[string]bool{}
	for i := range planted {
		owner := lease.Owner{Driver: "fake", WorkspaceID: fmt.Sprintf("gone-%d", i), Workspace: "gone"}
		if i%10 == 0 {
			h, err := p.leases.Subnet(p.t.Context(), &lease.Pool{Name: "sandboxes", CIDR: p.pool.CIDR, SubnetBits: 28}, owner, netip.Prefix{})
			if err != nil {
				p.t.Fatal(err)
			}
			want["orphan ip-subnet "+h.ID()] = true
			continue
		}
		owner.Sandbox = fmt.Sprintf("planted-%d", i)
		h, err := p.leases.Address(p.t.Context(), p.pool, owner, true)
		if err != nil {
			p.t.Fatal(err)
		}
		want["orphan ip-lease "+h.ID()] = true
	}
	for _, v := range victims {
		freed, err := p.leases.Release(p.t.Context(), lease.Owner{Driver: "fake", Sandbox: v.ID})
		if err != nil || len(freed) != 1 {
			p.t.Fatalf("%v %v", freed, err)
		}
		want["lost ip-lease "+freed[0].ID()] = true
	}
	return want
}

// reported returns what the newest reports say, one set for each that found something.
func (p *pair) reported() []map[string]bool {
	p.t.Helper()
	ops, err := p.engine.Operations(p.t.Context(), "fake/ipam")
	if err != nil {
		p.t.Fatal(err)
	}
	var out []map[string]bool
	for _, op := range ops {
		set := map[string]bool{}
		for _, line := range op.Report {
			what, _, _ := strings.Cut(line, " of ")
			set[strings.ReplaceAll(what, ":", "")] = true
		}
		out = append(out, set)
	}
	return out
}

// holds returns ipam's leases of the given sandboxes and of nobody, by sandbox.
func (p *pair) holds(of map[string]bool) map[string]string {
	p.t.Helper()
	all, err := p.leases.Holds(p.t.Context(), "fake")
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]string{}
	for _, h := range all {
		if of[h.Sandbox] || h.Workspace == "gone" {
			out[h.Sandbox+h.WorkspaceID] = h.ID()
		}
	}
	return out
}

// calls returns the number of the last call about each sandbox.
func (p *pair) calls(of map[string]bool) map[string]uint64 {
	out := map[string]uint64{}
	for _, h := range p.engine.Holdings() {
		if of[h.Subject] {
			out[h.Subject] = h.Number
		}
	}
	return out
}

func (p *pair) until(what string, ok func() bool) {
	p.t.Helper()
	limit, look := time.NewTimer(time.Minute), time.NewTicker(50*time.Millisecond)
	defer limit.Stop()
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-limit.C:
			p.t.Fatalf("it does not come to this: %s; reports: %d, the last %v", what, len(p.reported()), p.reported()[:1])
		}
	}
}

// A hundred orphans on each side among a thousand leases, while creates go on: exactly those are reported, and mended
// where the bind is authoritative. Nothing else is touched.
func TestReconcileFindsAndMendsExactlyWhatWasPlanted(t *testing.T) {
	p := newPair(t)
	ids := p.many(liveLeases + planted)
	if t.Failed() {
		t.FailNow()
	}
	everyone, untouched := map[string]bool{}, map[string]bool{}
	for i, id := range ids {
		everyone[id.ID] = true
		if i >= planted {
			untouched[id.ID] = true
		}
	}
	before, callsBefore := p.holds(everyone), p.calls(untouched)
	if len(before) != len(ids) {
		t.Fatalf("%d leases, want %d", len(before), len(ids))
	}
	want := p.plant(ids[:planted])
	afterPlanting := p.holds(everyone)
	created := p.keepCreating()
	n := len(p.reported())
	p.until("three passes report", func() bool { return len(p.reported()) >= n+3 })
	for _, got := range p.reported()[:2] { // the first may have seen half of what was being planted
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("what is reported (-planted +reported):\n%s", diff)
		}
	}
	if diff := cmp.Diff(afterPlanting, p.holds(everyone)); diff != "" {
		t.Errorf("advisory, and something was changed (-before +after):\n%s", diff)
	}

	authoritative := *p.bind
	authoritative.Authoritative = true
	mending := *p.gen.Load().Drivers["fake"]
	mending.Chain = pipeline.New([]*pipeline.Bind{&authoritative}, p.schema, nil)
	p.gen.Store(&engine.Generation{ID: "g2", Drivers: map[string]*engine.Driver{"fake": &mending}})
	p.engine.Reconfigured()
	p.until("all is mended", func() bool { return cmp.Equal(before, p.holds(everyone)) })
	if n := created(); n == 0 {
		t.Error("no create went on meanwhile")
	}
	if diff := cmp.Diff(callsBefore, p.calls(untouched)); diff != "" {
		t.Errorf("sandboxes that had no difference were called about (-before +after):\n%s", diff)
	}
	p.agree()
}

// agree fails unless the ledger and ipam hold the same.
func (p *pair) agree() {
	p.t.Helper()
	var ledger, held []string
	for _, h := range p.engine.Holdings() {
		for _, entries := range h.Entries {
			for _, en := range entries {
				ledger = append(ledger, h.Subject+" "+en.ID)
			}
		}
	}
	all, err := p.leases.Holds(p.t.Context(), "fake")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, h := range all {
		subject := h.Sandbox
		if subject == "" {
			subject = h.WorkspaceID
		}
		held = append(held, subject+" "+h.ID())
	}
	slices.Sort(ledger)
	slices.Sort(held)
	if diff := cmp.Diff(ledger, held); diff != "" {
		p.t.Errorf("the ledger and ipam differ (-ledger +ipam):\n%s", diff)
	}
}

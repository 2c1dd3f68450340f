package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/fault"
)

// The store against a model that counts through the addresses of small pools one by one: what is given out is the
// lowest that is free, nothing is held twice, and closing, killing, tearing and compacting change nothing.
func TestStoreBehavesLikeTheModel(t *testing.T) {
	for _, p := range []*Pool{
		{Name: "v4", CIDR: netip.MustParsePrefix("10.1.2.0/26"), SubnetBits: 29},
		{Name: "v4-reserved", CIDR: netip.MustParsePrefix("10.1.2.0/26"), SubnetBits: 30, Reserved: []netip.Prefix{
			netip.MustParsePrefix("10.1.2.9/32"), netip.MustParsePrefix("10.1.2.8/30"), netip.MustParsePrefix("10.1.2.20/31")}},
		{Name: "v6", CIDR: netip.MustParsePrefix("fd00::ff00/122"), SubnetBits: 125},
	} {
		t.Run(p.Name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				m := &model{rapid: rt, pool: p, dir: t.TempDir(), holds: map[string]Hold{}}
				m.open()
				defer func() { m.store.Close() }()
				rt.Repeat(map[string]func(*rapid.T){
					"subnet":  m.subnet,
					"address": m.address,
					"release": m.release,
					"repair":  m.repair,
					"reopen":  m.reopen,
					"compact": m.compact,
					"":        m.check,
				})
			})
		})
	}
}

type model struct {
	rapid *rapid.T
	pool  *Pool
	dir   string
	store *Store
	holds map[string]Hold // by owner
}

func (m *model) open() {
	d := realDisk()
	d.sync = func(*os.File) error { return nil } // the machine stays up
	s, err := open(context.Background(), m.dir, d)
	if err != nil {
		m.rapid.Fatal(err)
	}
	m.store = s
}

func workspaceOwner(n int) Owner {
	return Owner{Driver: "native", WorkspaceID: fmt.Sprintf("w%d", n), Workspace: fmt.Sprintf("team-%d", n)}
}

func sandboxOwner(w, n int) Owner {
	o := workspaceOwner(w)
	o.Sandbox, o.Name = fmt.Sprintf("s%d", n), fmt.Sprintf("box-%d", n)
	return o
}

// A sandbox stays in its workspace.
func drawSandbox(t *rapid.T) Owner {
	n := rapid.IntRange(0, 40).Draw(t, "sandbox")
	return sandboxOwner(n%4, n)
}

func (m *model) subnet(t *rapid.T) {
	owner := workspaceOwner(rapid.IntRange(0, 9).Draw(t, "workspace"))
	got, err := m.store.Subnet(context.Background(), m.pool, owner, netip.Prefix{})
	want, ok := m.holds[owner.String()]
	for i := m.pool.CIDR.Masked().Addr(); !ok && m.pool.CIDR.Contains(i); i = i.Next() {
		block := netip.PrefixFrom(i, m.pool.SubnetBits)
		if block == block.Masked() && m.free(block, nil) {
			want, ok = Hold{Kind: Subnet, Prefix: block, Pool: m.pool.Name, Owner: owner}, true
		}
	}
	m.judge(t, owner, got, err, want, ok)
}

func (m *model) address(t *rapid.T) {
	owner := drawSandbox(t)
	fromPool := rapid.Bool().Draw(t, "from the pool")
	got, err := m.store.Address(context.Background(), m.pool, owner, fromPool)
	want, ok := m.holds[owner.String()]
	workspace := owner
	workspace.Sandbox, workspace.Name = "", ""
	subnet, has := m.holds[workspace.String()]
	if !ok && !fromPool && !has {
		if !fault.Is(err, fault.FailedPrecondition) {
			t.Fatalf("an address without a subnet: %v, %v", got, err)
		}
		return
	}
	network, own := m.pool.CIDR, (*Hold)(nil)
	if !fromPool && has {
		network, own = subnet.Prefix, &subnet
	}
	lo, hi := network.Addr().Next(), last(network)
	for i := network.Addr(); !ok && network.Contains(i); i = i.Next() {
		if i == network.Addr() || i == lo || i == hi && i.Is4() || !m.free(netip.PrefixFrom(i, i.BitLen()), own) {
			continue
		}
		want, ok = Hold{Kind: Address, Prefix: netip.PrefixFrom(i, network.Bits()), Pool: m.pool.Name, Owner: owner}, true
	}
	m.judge(t, owner, got, err, want, ok)
}

// free reports whether no hold but own has anything of p.
func (m *model) free(p netip.Prefix, own *Hold) bool {
	for _, r := range m.pool.Reserved {
		if r.Overlaps(p) {
			return false
		}
	}
	for _, h := range m.holds {
		if own != nil && h == *own {
			continue
		}
		taken := h.Prefix
		if h.Kind == Address {
			taken = netip.PrefixFrom(h.Prefix.Addr(), h.Prefix.Addr().BitLen())
		}
		if taken.Overlaps(p) {
			return false
		}
	}
	return true
}

func (m *model) judge(t *rapid.T, owner Owner, got Hold, err error, want Hold, ok bool) {
	var full *FullError
	switch {
	case !ok && !errors.As(err, &full):
		t.Fatalf("nothing is free; got %v, %v", got, err)
	case ok && err != nil:
		t.Fatalf("%v is free for %s: %v", want.Prefix, owner, err)
	case ok && got != want:
		t.Fatalf("got %+v, want %+v", got, want)
	case ok:
		m.holds[owner.String()] = want
	}
}

func (m *model) release(t *rapid.T) {
	owner := drawSandbox(t)
	if rapid.Bool().Draw(t, "workspace") {
		owner = workspaceOwner(rapid.IntRange(0, 9).Draw(t, "number"))
	}
	freed, err := m.store.Release(context.Background(), owner)
	if err != nil {
		t.Fatal(err)
	}
	if _, had := m.holds[owner.String()]; had != (len(freed) == 1) {
		t.Fatalf("%s had something: %v; freed %v", owner, had, freed)
	}
	delete(m.holds, owner.String())
}

// repair moves an owner to another address: what it had is an orphan, what it gets was lost.
func (m *model) repair(t *rapid.T) {
	owner := drawSandbox(t)
	was, had := m.holds[owner.String()]
	var orphans []Hold
	if had {
		orphans = []Hold{was}
		delete(m.holds, owner.String())
	}
	in := spanOf(m.pool.CIDR)
	a := in.lo
	for range rapid.IntRange(0, 63).Draw(t, "address") {
		a = a.Next()
	}
	workspace := owner
	workspace.Sandbox, workspace.Name = "", ""
	network := m.pool.CIDR
	subnet, has := m.holds[workspace.String()]
	own := (*Hold)(nil)
	if has && subnet.Prefix.Contains(a) {
		network, own = subnet.Prefix, &subnet
	}
	pool := *m.pool
	m.pool.Reserved = nil // what is in use is in use
	ok := m.free(netip.PrefixFrom(a, a.BitLen()), own)
	*m.pool = pool
	lost, err := ParseID(Address, a.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.store.Repair(context.Background(), []*Pool{m.pool}, owner, orphans, []Hold{lost})
	switch {
	case !ok && !fault.Is(err, fault.Conflict):
		t.Fatalf("%s is not free; got %v, %v", a, got, err)
	case !ok && had:
		m.holds[owner.String()] = was // all or nothing
	case ok:
		want := Hold{Kind: Address, Prefix: netip.PrefixFrom(a, network.Bits()), Pool: m.pool.Name, Owner: owner}
		if diff := cmp.Diff([]Hold{want}, got, cmp.Comparer(equalPrefix)); diff != "" || err != nil {
			t.Fatalf("repaired (-want +got): %v\n%s", err, diff)
		}
		m.holds[owner.String()] = want
	}
}

// reopen leaves behind what a writer that is killed may leave: a line that has no end.
func (m *model) reopen(t *rapid.T) {
	held, err := m.store.Holds(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	m.store.Close()
	read, err := Read(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(held, read, cmp.Comparer(equalPrefix)); diff != "" {
		t.Fatalf("the file says something else (-store +file):\n%s", diff)
	}
	f, err := os.OpenFile(filepath.Join(m.dir, logName), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := Hold{Kind: Address, Prefix: netip.MustParsePrefix("192.0.2.1/24"), Owner: sandboxOwner(99, 99)}
	line, err := record{Seq: m.store.journal.seq + 1, Op: opTake, Hold: &h}.encode()
	if err != nil {
		t.Fatal(err)
	}
	f.Write(line[:rapid.IntRange(0, len(line)-1).Draw(t, "torn")])
	f.Close()
	m.open()
}

func (m *model) compact(*rapid.T) { m.store.journal.compact = 0 }

func (m *model) check(t *rapid.T) {
	got, err := m.store.Holds(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(m.holds) {
		t.Fatalf("%d holds, want %d", len(got), len(m.holds))
	}
	for _, h := range got {
		if h != m.holds[h.Owner.String()] {
			t.Fatalf("holds %+v, want %+v", h, m.holds[h.Owner.String()])
		}
	}
}

func equalPrefix(a, b netip.Prefix) bool { return a == b }

// What one address costs in a large pool must not depend on the size of the pool.
func BenchmarkAddressInAHugePool(b *testing.B) {
	book := newBook()
	p := &Pool{Name: "huge", CIDR: netip.MustParsePrefix("fd00::/16"), SubnetBits: 64}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 10_000 {
		a, err := book.freeAddress(p, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := book.take(Hold{Kind: Address, Prefix: a, Owner: sandboxOwner(0, i)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		o := sandboxOwner(0, r.IntN(10_000))
		for _, h := range book.of(o.key(), Address) {
			if err := book.free(h); err != nil {
				b.Fatal(err)
			}
		}
		a, err := book.freeAddress(p, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := book.take(Hold{Kind: Address, Prefix: a, Owner: o}); err != nil {
			b.Fatal(err)
		}
		book.changes = book.changes[:0]
	}
}

package lease

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sandgate/sandgate/shared/fault"
)

// book is what is held, in memory. It is not safe for concurrent use. Changes are kept until they are committed, so
// that they can be written down, or be taken back when writing fails.
type book struct {
	holds     map[resource]Hold
	owners    map[key][]resource // in the order in which they were taken
	subnets   spans
	addresses spans
	changes   []change
}

// resource identifies a hold: no two are ever held at once.
type resource struct {
	kind Kind
	net  netip.Prefix // of an address a single address
}

func (h Hold) resource() resource {
	if h.Kind == Address {
		return resource{Address, netip.PrefixFrom(h.Prefix.Addr(), h.Prefix.Addr().BitLen())}
	}
	return resource{h.Kind, h.Prefix}
}

type change struct {
	op   op
	hold Hold
}

type op string

const (
	opBegin op = "begin"
	opTake  op = "take"
	opFree  op = "free"
)

func newBook() *book { return &book{holds: map[resource]Hold{}, owners: map[key][]resource{}} }

// take enters a hold. It is an error when anything of it is held already: an address twice, a subnet that overlaps
// another, a subnet with a foreign address in it, an address in a foreign subnet. What could not be read back from
// the log is never entered.
func (b *book) take(h Hold) error {
	if err := h.check(); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	if err := b.obstacle(h); err != nil {
		return err
	}
	b.enter(h)
	b.changes = append(b.changes, change{opTake, h})
	return nil
}

// free takes a hold out. What is not held, or not by that owner, is an error.
func (b *book) free(h Hold) error {
	if was, ok := b.holds[h.resource()]; !ok || was.key() != h.key() {
		return fmt.Errorf("%s %s is not held by %s", h.Kind, h.ID(), h.Owner)
	}
	h = b.holds[h.resource()]
	b.leave(h)
	b.changes = append(b.changes, change{opFree, h})
	return nil
}

// rollback takes back the changes made since there were n of them.
func (b *book) rollback(n int) {
	for _, c := range slices.Backward(b.changes[n:]) {
		if c.op == opTake {
			b.leave(c.hold)
		} else {
			b.enter(c.hold)
		}
	}
	b.changes = b.changes[:n]
}

// of returns what an owner holds, oldest first.
func (b *book) of(k key, kind Kind) []Hold {
	var out []Hold
	for _, r := range b.owners[k] {
		if r.kind == kind {
			out = append(out, b.holds[r])
		}
	}
	return out
}

func (b *book) enter(h Hold) {
	b.holds[h.resource()] = h
	b.owners[h.key()] = append(b.owners[h.key()], h.resource())
	b.set(h.Kind).add(h.span())
}

func (b *book) leave(h Hold) {
	r := h.resource()
	delete(b.holds, r)
	if left := slices.DeleteFunc(b.owners[h.key()], func(x resource) bool { return x == r }); len(left) > 0 {
		b.owners[h.key()] = left
	} else {
		delete(b.owners, h.key())
	}
	b.set(h.Kind).remove(h.span())
}

func (b *book) set(kind Kind) *spans {
	if kind == Address {
		return &b.addresses
	}
	return &b.subnets
}

// obstacle says what keeps h from being taken, or nil.
func (b *book) obstacle(h Hold) error {
	if _, ok := b.set(h.Kind).overlap(h.span()); ok {
		return b.taken(h, func(other Hold) bool { return other.Kind == h.Kind })
	}
	if h.Kind == Subnet {
		if _, ok := b.addresses.overlap(h.span()); ok {
			return b.taken(h, func(other Hold) bool { return other.Kind == Address && other.ofWorkspace() != h.key() })
		}
		return nil
	}
	if slices.ContainsFunc(b.of(h.ofWorkspace(), Subnet), func(own Hold) bool { return overlaps(own, h) }) {
		return nil
	}
	if _, ok := b.subnets.overlap(h.span()); ok {
		return b.taken(h, func(other Hold) bool { return other.Kind == Subnet })
	}
	return nil
}

// taken names who is in the way, if anybody is. It looks through everything, which only the rare case does.
func (b *book) taken(h Hold, inTheWay func(Hold) bool) error {
	for _, other := range b.holds {
		if overlaps(other, h) && inTheWay(other) {
			return fault.New(fault.Conflict, "%s %s cannot be held by %s: %s is held by %s",
				h.Kind, h.ID(), h.Owner, other.ID(), other.Owner)
		}
	}
	return nil
}

func overlaps(a, b Hold) bool {
	x, y := a.span(), b.span()
	return x.lo.Compare(y.hi) <= 0 && y.lo.Compare(x.hi) <= 0
}

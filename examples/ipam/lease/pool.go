package lease

import (
	"fmt"
	"math/big"
	"net/netip"
)

// Pool is a range from which subnets and addresses are given out.
type Pool struct {
	Name       string
	CIDR       netip.Prefix   // masked
	SubnetBits int            // the prefix length of a workspace's subnet
	Reserved   []netip.Prefix // never given out
}

// FullError says that nothing is free. It is a decision about the request, not a failure of the store.
type FullError struct {
	Pool    string
	Message string // which, and how full
}

func (e *FullError) Error() string { return e.Message }

// usable returns the addresses of a network that a sandbox may have: not the network's own, not the first one,
// which is the gateway's, and in IPv4 not the last, which is the broadcast address.
func usable(p netip.Prefix) (span, bool) {
	x := spanOf(p)
	x.lo = x.lo.Next().Next()
	if p.Addr().Is4() {
		x.hi = x.hi.Prev()
	}
	return x, x.lo.IsValid() && x.hi.IsValid() && x.lo.Compare(x.hi) <= 0
}

// reserved returns the pool's reserved ranges as a set. They may overlap each other.
func (p *Pool) reserved() spans {
	var s spans
	for _, r := range p.Reserved {
		x := spanOf(r)
		for {
			in, ok := s.overlap(x)
			if !ok {
				break
			}
			s.remove(in)
			if in.lo.Less(x.lo) {
				x.lo = in.lo
			}
			if x.hi.Less(in.hi) {
				x.hi = in.hi
			}
		}
		s.add(x)
	}
	return s
}

// freeSubnet returns the lowest subnet of the pool of which nobody holds anything.
func (b *book) freeSubnet(p *Pool) (netip.Prefix, error) {
	if got, ok := lowest(spanOf(p.CIDR), p.SubnetBits, b.subnets, b.addresses, p.reserved()); ok {
		return got, nil
	}
	held := b.count(Subnet, p.CIDR)
	total := new(big.Int).Lsh(big.NewInt(1), uint(p.SubnetBits-p.CIDR.Bits()))
	return netip.Prefix{}, &FullError{Pool: p.Name, Message: fmt.Sprintf(
		"pool %q (%s) is full: %s", p.Name, p.CIDR, ratio(held, total, fmt.Sprintf("subnets of /%d", p.SubnetBits)))}
}

// freeAddress returns the lowest address for a sandbox in a workspace's subnet or, when that is nil, in the pool
// itself, where the subnets that workspaces hold are left alone.
func (b *book) freeAddress(p *Pool, subnet *Hold) (netip.Prefix, error) {
	network, taken := p.CIDR, []spans{b.addresses, p.reserved(), b.subnets}
	where := fmt.Sprintf("pool %q (%s)", p.Name, p.CIDR)
	if subnet != nil {
		// What is reserved in the pool now was perhaps not yet when the subnet was given out.
		network, taken = subnet.Prefix, taken[:2]
		where = fmt.Sprintf("subnet %s of pool %q", subnet.Prefix, subnet.Pool)
	}
	total := new(big.Int)
	if in, ok := usable(network); ok {
		if got, ok := lowest(in, network.Addr().BitLen(), taken...); ok {
			return netip.PrefixFrom(got.Addr(), network.Bits()), nil
		}
		total = size(in)
	}
	return netip.Prefix{}, &FullError{Pool: p.Name, Message: fmt.Sprintf(
		"%s is full: %s", where, ratio(b.count(Address, network), total, "addresses"))}
}

// count returns how many holds of the kind lie within a network.
func (b *book) count(kind Kind, within netip.Prefix) int64 {
	n := int64(0)
	for id, h := range b.holds {
		if id.kind == kind && within.Contains(h.Prefix.Addr()) {
			n++
		}
	}
	return n
}

func size(x span) *big.Int {
	lo, hi := new(big.Int).SetBytes(x.lo.AsSlice()), new(big.Int).SetBytes(x.hi.AsSlice())
	return hi.Sub(hi, lo).Add(hi, big.NewInt(1))
}

// ratio says how much of a network is held, and what became of the rest.
func ratio(held int64, total *big.Int, what string) string {
	s := fmt.Sprintf("%d of %s %s are held", held, total, what)
	if total.Cmp(big.NewInt(held)) > 0 {
		s += ", the others are reserved or in other use"
	}
	return s
}

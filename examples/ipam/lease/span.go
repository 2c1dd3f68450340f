package lease

import (
	"net/netip"
	"slices"
	"sort"
)

// span is a closed range of addresses of one family.
type span struct{ lo, hi netip.Addr }

// spanOf returns the addresses of a prefix, from the first to the last.
func spanOf(p netip.Prefix) span { return span{p.Masked().Addr(), last(p)} }

// spans is a set of addresses: sorted ranges that neither overlap nor touch. Neighbours melt together, so a densely
// used network of any size is a handful of ranges, and nothing here ever counts through addresses one by one.
type spans []span

// from returns the index of the first range that ends at or after a.
func (s spans) from(a netip.Addr) int {
	return sort.Search(len(s), func(i int) bool { return s[i].hi.Compare(a) >= 0 })
}

// overlap returns the first range that has an address in common with x.
func (s spans) overlap(x span) (span, bool) {
	if i := s.from(x.lo); i < len(s) && s[i].lo.Compare(x.hi) <= 0 {
		return s[i], true
	}
	return span{}, false
}

// add puts x in, which must not overlap what is there.
func (s *spans) add(x span) {
	i := s.from(x.lo)
	j := i
	if i > 0 && (*s)[i-1].hi.Next() == x.lo {
		i--
		x.lo = (*s)[i].lo
	}
	if j < len(*s) && x.hi.Next() == (*s)[j].lo {
		x.hi = (*s)[j].hi
		j++
	}
	*s = slices.Replace(*s, i, j, x)
}

// remove takes x out, all of which must be there.
func (s *spans) remove(x span) {
	i := s.from(x.lo)
	was := (*s)[i]
	var left []span
	if was.lo.Compare(x.lo) < 0 {
		left = append(left, span{was.lo, x.lo.Prev()})
	}
	if x.hi.Compare(was.hi) < 0 {
		left = append(left, span{x.hi.Next(), was.hi})
	}
	*s = slices.Replace(*s, i, i+1, left...)
}

// lowest returns the first block of the given prefix length that lies within x and touches none of the sets.
func lowest(x span, bits int, taken ...spans) (netip.Prefix, bool) {
	at := alignUp(x.lo, bits)
search:
	for at.IsValid() {
		block := netip.PrefixFrom(at, bits)
		whole := spanOf(block)
		if whole.hi.Compare(x.hi) > 0 || whole.lo.BitLen() != x.hi.BitLen() {
			break
		}
		for _, set := range taken {
			if in, ok := set.overlap(whole); ok {
				at = alignUp(in.hi.Next(), bits)
				continue search
			}
		}
		return block, true
	}
	return netip.Prefix{}, false
}

// alignUp returns the first address at or after a at which a block of the prefix length begins. It is not valid when
// the address family ends before that.
func alignUp(a netip.Addr, bits int) netip.Addr {
	p := netip.PrefixFrom(a, bits)
	if !a.IsValid() || p.Masked().Addr() == a {
		return a
	}
	return last(p).Next()
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := range raw {
		switch host := (i+1)*8 - p.Bits(); {
		case host >= 8:
			raw[i] = 0xff
		case host > 0:
			raw[i] |= 1<<host - 1
		}
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

package lease

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A set of ranges against a plain set of addresses.
func TestSpansAreASet(t *testing.T) {
	for _, base := range []string{"10.0.0.0", "255.255.255.0", "fd00::"} {
		t.Run(base, func(t *testing.T) {
			var at [256]netip.Addr
			for i, a := 0, netip.MustParseAddr(base); i < len(at); i, a = i+1, a.Next() {
				at[i] = a
			}
			rapid.Check(t, func(t *rapid.T) {
				var set spans
				var model [256]bool
				for range rapid.IntRange(1, 60).Draw(t, "steps") {
					lo := rapid.IntRange(0, 255).Draw(t, "lo")
					hi := min(255, lo+rapid.IntRange(0, 16).Draw(t, "len"))
					var some, all = false, true
					for i := lo; i <= hi; i++ {
						some, all = some || model[i], all && model[i]
					}
					x := span{at[lo], at[hi]}
					if _, got := set.overlap(x); got != some {
						t.Fatalf("overlap(%v) in %v = %v, want %v", x, set, got, some)
					}
					if some && !all {
						continue
					}
					for i := lo; i <= hi; i++ {
						model[i] = !all
					}
					if all {
						set.remove(x)
					} else {
						set.add(x)
					}
					if diff := cmp.Diff(model, expand(set, at)); diff != "" {
						t.Fatalf("after %v (-want +got):\n%s", x, diff)
					}
				}
			})
		})
	}
}

// expand counts through a set; it also fails when ranges overlap, touch or are out of order.
func expand(s spans, at [256]netip.Addr) (out [256]bool) {
	for i, x := range s {
		if i > 0 && s[i-1].hi.Next().Compare(x.lo) >= 0 {
			panic("ranges touch or are out of order")
		}
		for n, a := range at {
			out[n] = out[n] || x.lo.Compare(a) <= 0 && a.Compare(x.hi) <= 0
		}
	}
	return out
}

func TestLast(t *testing.T) {
	for in, want := range map[string]string{
		"10.80.3.0/24": "10.80.3.255", "10.80.3.7/32": "10.80.3.7", "0.0.0.0/0": "255.255.255.255",
		"10.80.0.0/13": "10.87.255.255", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := last(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("last(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestLowest(t *testing.T) {
	for name, c := range map[string]struct {
		lo, hi string
		bits   int
		taken  []string
		want   string
	}{
		"nothing taken":                        {"10.0.0.0", "10.0.255.255", 24, nil, "10.0.0.0/24"},
		"one address spoils its block":         {"10.0.0.0", "10.0.255.255", 24, []string{"10.0.0.77/32"}, "10.0.1.0/24"},
		"a gap that is too small is passed":    {"10.0.0.0", "10.0.255.255", 24, []string{"10.0.0.0/25", "10.0.1.0/24"}, "10.0.2.0/24"},
		"a gap between is found":               {"10.0.0.0", "10.0.255.255", 24, []string{"10.0.0.0/24", "10.0.2.0/23"}, "10.0.1.0/24"},
		"full":                                 {"10.0.0.0", "10.0.0.255", 24, []string{"10.0.0.0/24"}, ""},
		"a start between blocks is rounded up": {"10.0.0.2", "10.0.1.255", 25, nil, "10.0.0.128/25"},
		"the end of IPv4":                      {"255.255.255.0", "255.255.255.255", 25, []string{"255.255.255.0/24"}, ""},
		"never into IPv6":                      {"255.255.255.254", "255.255.255.255", 32, []string{"255.255.255.254/31"}, ""},
		"a huge network":                       {"fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 64, []string{"fd00::/16", "fd01::1/128"}, "fd01:0:0:1::/64"},
		"the end of IPv6":                      {"ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 127, []string{"ffff::/16"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var set spans
			for _, p := range c.taken {
				set.add(spanOf(netip.MustParsePrefix(p)))
			}
			got, ok := lowest(span{netip.MustParseAddr(c.lo), netip.MustParseAddr(c.hi)}, c.bits, set)
			if ok != (c.want != "") || ok && got.String() != c.want {
				t.Errorf("got %v, %v; want %q", got, ok, c.want)
			}
		})
	}
}

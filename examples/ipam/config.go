package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/examples/ipam/lease"
	"github.com/sandgate/sandgate/shared/fault"
)

// config is the extension's block of the configuration.
type config struct {
	Store string                `json:"store" doc:"the directory that holds the leases; absolute"`
	Pools map[string]poolConfig `json:"pool" config:"block" doc:"a range of addresses"`
}

type poolConfig struct {
	CIDR         string   `json:"cidr" doc:"the range, for example 10.80.0.0/16"`
	SubnetPrefix int      `json:"subnet_prefix" config:"optional" min:"1" max:"126" doc:"the prefix length of a workspace's subnet"`
	Reserved     []string `json:"reserved" config:"optional" doc:"addresses and ranges that are given to nobody"`
	Workspaces   []string `json:"workspaces" config:"optional" doc:"globs of the workspaces that take from it; absent: all"`
}

// The prefix length of a workspace's subnet where the pool does not say.
const (
	subnetPrefix4 = 24
	subnetPrefix6 = 64
)

// pools is what is configured, checked.
type pools struct {
	all   []*lease.Pool // by name
	rules []rule        // closest first
}

// rule says which workspaces take from which pool.
type rule struct {
	glob string
	pool *lease.Pool
}

// of returns the pool of a workspace, or nil.
func (p *pools) of(workspace string) *lease.Pool {
	for _, r := range p.rules {
		if ok, _ := path.Match(r.glob, workspace); ok {
			return r.pool
		}
	}
	return nil
}

// check turns the block into pools, and says everything that is wrong with it.
func (c *config) check() (*pools, []fault.Diagnostic) {
	var wrong diagnostics
	if !filepath.IsAbs(c.Store) {
		wrong.add("store", fmt.Sprintf("%q is not an absolute path", c.Store), "Name the directory that holds the leases.")
	}
	if len(c.Pools) == 0 {
		wrong.add("pool", "no pool is configured", `Add a block such as: pool "sandboxes" { cidr = "10.80.0.0/16" }`)
	}
	out := &pools{}
	for _, name := range slices.Sorted(maps.Keys(c.Pools)) {
		pool := c.Pools[name].check("pool."+name, name, &wrong)
		if pool == nil {
			continue
		}
		for _, other := range out.all {
			if other.CIDR.Overlaps(pool.CIDR) {
				wrong.add("pool."+name+".cidr", fmt.Sprintf("%s overlaps %s of pool %q", pool.CIDR, other.CIDR, other.Name),
					"Every address belongs to one pool.")
			}
		}
		out.all = append(out.all, pool)
		out.add(c.Pools[name].Workspaces, pool, &wrong)
	}
	slices.SortFunc(out.rules, closer)
	return out, wrong
}

// add enters the globs of a pool.
func (p *pools) add(globs []string, pool *lease.Pool, wrong *diagnostics) {
	if len(globs) == 0 {
		globs = []string{"*"}
	}
	for _, glob := range globs {
		at := "pool." + pool.Name + ".workspaces"
		if _, err := path.Match(glob, ""); err != nil {
			wrong.add(at, fmt.Sprintf("%q is not a glob", glob), `Write a name, or "*" for any part of one, for example "team-*".`)
		}
		for _, r := range p.rules {
			if r.glob == glob {
				wrong.add(at, fmt.Sprintf("%q is also a workspace of pool %q", glob, r.pool.Name), "A workspace takes from one pool.")
			}
		}
		p.rules = append(p.rules, rule{glob, pool})
	}
}

func (c poolConfig) check(at, name string, wrong *diagnostics) *lease.Pool {
	cidr, err := netip.ParsePrefix(c.CIDR)
	if err != nil || cidr.Addr().Is4In6() {
		wrong.add(at+".cidr", fmt.Sprintf("%q is not a range of addresses", c.CIDR), `Write it as "10.80.0.0/16" or "fd00:80::/48".`)
		return nil
	}
	if cidr != cidr.Masked() {
		wrong.add(at+".cidr", fmt.Sprintf("%s has bits after its prefix", cidr), fmt.Sprintf("Write %s.", cidr.Masked()))
		return nil
	}
	// A subnet has room for its own address, the gateway, one sandbox and, in IPv4, the broadcast address.
	bits, longest := cmp.Or(c.SubnetPrefix, subnetPrefix6), 126
	if cidr.Addr().Is4() {
		bits, longest = cmp.Or(c.SubnetPrefix, subnetPrefix4), 30
	}
	if bits < cidr.Bits() || bits > longest {
		wrong.add(at+".subnet_prefix", fmt.Sprintf("a subnet of /%d does not fit", bits),
			fmt.Sprintf("In %s it can be from %d to %d.", cidr, cidr.Bits(), longest))
		return nil
	}
	pool := &lease.Pool{Name: name, CIDR: cidr, SubnetBits: bits}
	for _, text := range c.Reserved {
		r, err := parseRange(text)
		if err != nil || !cidr.Overlaps(r) || r.Bits() < cidr.Bits() {
			wrong.add(at+".reserved", fmt.Sprintf("%q is no address or range within %s", text, cidr), "")
			continue
		}
		pool.Reserved = append(pool.Reserved, r)
	}
	return pool
}

// parseRange reads an address or a range.
func parseRange(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

// closer orders globs that fit the same name: names first, then those that say more letters, then by alphabet.
func closer(a, b rule) int {
	return cmp.Or(
		cmp.Compare(min(1, wild(a.glob)), min(1, wild(b.glob))),
		cmp.Compare(len(b.glob)-wild(b.glob), len(a.glob)-wild(a.glob)),
		strings.Compare(a.glob, b.glob))
}

func wild(glob string) int {
	return strings.Count(glob, "*") + strings.Count(glob, "?")
}

type diagnostics []fault.Diagnostic

func (d *diagnostics) add(at, summary, detail string) {
	*d = append(*d, fault.Diagnostic{Path: at, Summary: summary, Detail: detail})
}

package config

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// sockets finds two blocks that name one socket: two listeners would take it from each other, two drivers would count
// the same sandboxes, and a gateway that is its own driver ends nowhere.
func (c *checker) sockets() {
	type use struct {
		what string
		at   hcl.Range
	}
	first := map[string]use{}
	see := func(addr, what string, at hcl.Range) {
		if addr == "" || strings.HasPrefix(addr, "tcp://") {
			return
		}
		path := filepath.Clean(strings.TrimPrefix(addr, "unix://"))
		if o, twice := first[path]; twice {
			c.wrong(at, "Socket named twice", "%s is the socket of %s already, at %s: each needs a path of its own.", path, o.what, o.at)
			return
		}
		first[path] = use{what, at}
	}
	for _, g := range c.all.Gateways {
		see(g.Listen, "the gateway's listen", g.ListenRange)
		see(g.Metrics, "the gateway's metrics", g.MetricsRange)
	}
	for _, d := range c.all.Drivers {
		see(d.Socket, "driver \""+d.Name+"\"", d.SocketRange)
		for _, e := range d.Expose {
			see(e.Socket, "driver \""+d.Name+"\" { expose }", e.SocketRange)
		}
	}
}

// idle warns of what can never come into play.
func (c *checker) idle(out *Config) {
	onRequest := map[string]bool{} // by extension that is bound: whether a bind of it has to be asked for
	for _, d := range out.Drivers {
		for _, b := range d.Binds {
			onRequest[b.Extension] = onRequest[b.Extension] || b.OnRequest
			if b.OnRequest && !slices.ContainsFunc(out.Activations, func(a Activation) bool { return a.Extension == b.Extension }) {
				c.findings.Warn(b.Range, "Nobody may ask for it", "Its activation is on_request, and no activation block allows it: write activation \""+b.Extension+"\" { … }, or leave activation out for every sandbox.")
			}
		}
	}
	for _, x := range out.Extensions {
		if _, bound := onRequest[x.Name]; !bound {
			c.findings.Warn(x.Range, "Extension is bound nowhere", "It is started, and no driver calls it: a composed driver (base = …) needs bind \""+x.Name+"\" { … }.")
		}
	}
	for _, a := range out.Activations {
		if asked, bound := onRequest[a.Extension]; bound && !asked {
			c.findings.Warn(a.Range, "Rule without effect", "Every bind of extension \""+a.Extension+"\" is active for each sandbox: a rule counts where a bind has activation = \"on_request\".")
		}
		if a.Driver != "" && !slices.ContainsFunc(out.Drivers, func(d Driver) bool { ok, _ := filepath.Match(a.Driver, d.Name); return ok }) {
			c.findings.Warn(a.Range, "Rule matches no driver", "There is no driver \""+a.Driver+"\"."+meant(a.Driver, names(out.Drivers)))
		}
	}
}

func names(drivers []Driver) []string {
	var out []string
	for _, d := range drivers {
		out = append(out, d.Name)
	}
	return out
}

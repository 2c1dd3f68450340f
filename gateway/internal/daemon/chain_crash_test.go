package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// links are two gateways, one before the door of the other, each of which is killed in turn: near is composed over a
// remote driver, which is far's, which is composed over native.
type links struct {
	near, far *ruin
	kills     int
}

const farConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
driver "native" {
  config {
    stop_timeout = "2s"
  }
}
driver "NAME" {
  base = "native"
  expose {
    socket = "DIR/doors/far.sock"
  }
}
`

const nearConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "witness" {
  command = "BIN/gateway"
  args    = ["crash-witness", "DIR"]
  sandbox = "none"
}
driver "far" {
  socket = "unix://FAR/doors/far.sock"
}
driver "NAME" {
  base               = "far"
  reconcile_interval = "2s"
  bind "witness" {
    grant { mutate = ["DriverSandbox.labels"] }
  }
}
`

func newLinks(t *testing.T) *links {
	t.Helper()
	c := &links{near: newRuin(t), far: newRuin(t)}
	for r, text := range map[*ruin]string{c.near: nearConfig, c.far: farConfig} {
		text = strings.NewReplacer("DIR", r.dir, "BIN", r.bin, "NAME", r.name, "FAR", c.far.dir).Replace(text)
		if err := os.WriteFile(filepath.Join(r.dir, "site.hcl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.far.boot()
	c.near.boot()
	return c
}

// Any link of a chain is killed before, during and after each of its calls: what was asked for is done or undone, on
// both sides alike, and nothing is held for what is not there.
func TestKillingAnyLink(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"near", "far"} {
		for _, when := range []string{"before", "during", "after"} {
			t.Run(link+" "+when+" each call", func(t *testing.T) {
				t.Parallel()
				c := newLinks(t)
				began := time.Now()
				for n, killed := 1, true; killed; n++ {
					killed = c.live(link, when, n)
				}
				c.near.quit()
				c.far.quit()
				t.Logf("%d kills in %v", c.kills, time.Since(began).Round(time.Second))
			})
		}
	}
}

// live leads one sandbox through its life, with a kill of a link at its n-th call in each operation.
func (c *links) live(link, when string, n int) (any bool) {
	c.near.sandbox++
	for _, op := range life {
		about := c.near.id()
		if op.do == "delete-workspace" {
			about = c.near.name
		}
		victim := c.near
		if link == "far" {
			victim = c.far
		}
		victim.must("arm", "call", when, fmt.Sprint(n))
		killed := c.under(victim, op.do, about)
		if killed {
			c.kills++
		}
		any = any || killed
		where := fmt.Sprintf("%s (%s killed %s call %d: %t)", op.do, link, when, n, killed)
		c.alike(about, where, op.do, op.done, op.undone)
	}
	return any
}

// under has near do something while a link may be killed, which is brought back.
func (c *links) under(victim *ruin, do, about string) (killed bool) {
	c.near.t.Helper()
	if victim == c.near {
		a, alive := c.near.tell(c.near.words(do, about)...)
		if alive && a.Error != "" {
			c.near.t.Fatalf("%s: %s\n%s", do, a.Error, c.near.logs())
		}
		for _, next := range []string{"settle", "disarm"} {
			if alive {
				_, alive = c.near.tell(next)
			}
		}
		if !alive {
			c.near.boot()
			c.near.must("settle")
		}
		return !alive
	}
	over, in := make(chan bool), c.far.in // of the process as it is now: that after it has nothing armed
	go func() {
		_, alive := c.far.answer() // to the disarm, or none
		if !alive {
			c.far.boot()
		}
		over <- !alive
	}()
	a, alive := c.near.tell(c.near.words(do, about)...)
	if !alive {
		c.near.t.Fatalf("near is gone\n%s", c.near.logs())
	}
	if a.Error != "" {
		c.near.t.Logf("%s: %s", do, a.Error) // undone
	}
	c.near.must("settle")
	_, _ = fmt.Fprintln(in, "disarm") // lost if it was killed
	killed = <-over
	c.far.must("settle")
	c.near.must("settle")
	return killed
}

// alike checks that both sides say the same of a sandbox, and does again what was undone.
func (c *links) alike(about, where, do, done, undone string) {
	t := c.near.t
	t.Helper()
	if do == "delete-workspace" {
		c.nothingRuns(where)
		c.near.must(do, about)
		c.near.must("settle")
		c.nothingHeld(where, "")
		return
	}
	absent := []string{"deleted", "absent"}
	near, far := c.near.must("state", about).State, c.far.must("state", about).State
	if near != far && !(slices.Contains(absent, near) && slices.Contains(absent, far)) {
		t.Fatalf("after %s the sandbox is %s here and %s there\n%s\n%s", where, near, far, c.near.logs(), c.far.logs())
	}
	switch {
	case near == done, done == "deleted" && near == "absent":
	case near == undone, do == "create" && slices.Contains(absent, near):
		if do == "create" {
			c.nothingHeld(where, "sandbox@")
			c.near.sandbox++
			about = c.near.id()
		}
		c.near.must(c.near.words(do, about)...)
		c.near.must("settle")
	default:
		t.Fatalf("after %s the sandbox is %s\n%s", where, near, c.near.logs())
	}
}

// quit ends a gateway in order.
func (r *ruin) quit() {
	r.t.Helper()
	_ = r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		r.t.Fatalf("the gateway ended with %v\n%s", err, r.err.String())
	}
	r.cmd = nil
}

// nothingRuns checks that far's driver has no process any more.
func (c *links) nothingRuns(where string) {
	c.near.t.Helper()
	waitFor(c.near.t, "end of the processes after "+where, func() bool {
		cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		return !slices.ContainsFunc(cmdlines, func(path string) bool {
			raw, _ := os.ReadFile(path)
			return strings.Contains(string(raw), heldSwitch+"\x00"+c.far.dir)
		})
	})
}

// nothingHeld checks that the extension holds nothing for what is of that kind.
func (c *links) nothingHeld(where, kind string) {
	c.near.t.Helper()
	left, err := filepath.Glob(filepath.Join(c.near.dir, "witness/held", kind+"*"))
	if err != nil || len(left) > 0 {
		c.near.t.Fatalf("after %s the extension holds %v (%v)\n%s", where, left, err, c.near.logs())
	}
}

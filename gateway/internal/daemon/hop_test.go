package daemon

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

var hopFigures = flag.Bool("hop-figures", false, "measure what each gateway in a chain of drivers from outside costs")

// Each gateway between a caller and the driver that runs the sandbox adds to create, get and watch. All three doors are
// asked in turn, so that they see the same machine, and every event is of one sandbox, seen through all three.
func TestWhatAHopCosts(t *testing.T) {
	rounds, warm := 3, 1
	if *hopFigures {
		rounds, warm = 60, 5
	}
	var sites []*site // the first has the driver
	var doors []*openshelltest.Gateway
	below := ""
	for range 3 {
		s := newSite(t)
		below = s.chained(below)
		s.start()
		t.Cleanup(s.end)
		sites, doors = append(sites, s), append(doors, s.openshell("acme", openshelltest.Table{}))
	}
	figures := map[string][][]time.Duration{}
	note := func(what string, hop int, d time.Duration) {
		if figures[what] == nil {
			figures[what] = make([][]time.Duration, len(doors))
		}
		figures[what][hop] = append(figures[what][hop], d)
	}
	ended := watchDoors(t, sites[0], doors)
	for round := range warm + rounds {
		if round == warm {
			clear(figures)
		}
		for hop, door := range doors {
			id := fmt.Sprintf("box-%d-%d", round, hop)
			began := time.Now()
			if err := door.Create(t.Context(), gated(id), "token"); err != nil {
				t.Fatal(err)
			}
			note("create", hop, time.Since(began))
			if hop == len(doors)-1 { // the one sandbox that every door has
				for h, at := range ended(id) {
					note("watch", h, at)
				}
				for h, d := range doors {
					note("get", h, timedGet(t, d, id))
				}
			}
			if _, err := door.Client().DeleteSandbox(t.Context(), &computev1.DeleteSandboxRequest{SandboxId: id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !*hopFigures {
		return // what a machine that does something else measures says nothing: make bench-hops
	}
	for _, what := range []string{"create", "get", "watch"} {
		before := time.Duration(0)
		for hop, all := range figures[what] {
			slices.Sort(all)
			half, most := all[len(all)/2], all[len(all)*9/10]
			t.Logf("%-6s through %d gateways: half within %8v, 90 %% within %8v; this one adds %8v", what, hop+1,
				half.Round(time.Microsecond), most.Round(time.Microsecond), (half - before).Round(time.Microsecond))
			before = half
		}
	}
}

// chained configures a gateway that serves native, or another gateway's door, and returns its own.
func (s *site) chained(below string) string {
	base, more := "native", "driver \"native\" {}\n"
	if below != "" {
		base, more = "below", fmt.Sprintf("driver \"below\" {\n  socket = \"unix://%s\"\n}\n", below)
	}
	door := filepath.Join(s.dir, "acme.d", "driver.sock")
	s.write("", "")
	config := fmt.Sprintf("gateway {\n  data_dir = \"%[1]s/data\"\n  listen = \"unix://%[1]s/gw.sock\"\n}\n%[2]sdriver \"acme\" {\n  base = %[3]q\n  expose {\n    socket = %[4]q\n  }\n}\n",
		s.dir, more, base, door)
	if err := os.WriteFile(filepath.Join(s.dir, "site.hcl"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return door
}

// gated is a sandbox that ends when its gate is opened.
func gated(id string) *computev1.DriverSandbox {
	m := wanted(id, id)
	m.Spec.Command = []string{"/bin/sh", "-c", "mkfifo gate; : <gate"}
	return m
}

// openGate returns when the sandbox that waits at its gate may end.
func (s *site) openGate(id string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "data", "drivers", "native", "sandboxes", id, "work", "gate")
	s.until("it waits at its gate", func() bool {
		gate, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0) // none where nobody reads
		return err == nil && gate.Close() == nil
	})
}

func timedGet(t *testing.T, g *openshelltest.Gateway, id string) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := g.Client().GetSandbox(t.Context(), &computev1.GetSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// sighting is an event as one door told it.
type sighting struct {
	door   int
	id     string
	reason string
	at     time.Time
}

// watchDoors follows every door. What it returns lets a sandbox end once all doors have it as ready, and says how long
// after that each door told of its end.
func watchDoors(t *testing.T, base *site, doors []*openshelltest.Gateway) func(id string) []time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan sighting, 1024)
	var over sync.WaitGroup
	t.Cleanup(func() { cancel(); over.Wait() })
	for i, door := range doors {
		stream, err := door.Client().WatchSandboxes(ctx, &computev1.WatchSandboxesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		over.Go(func() {
			for {
				e, err := stream.Recv()
				if err != nil {
					return
				}
				for _, c := range e.GetSandbox().GetSandbox().GetStatus().GetConditions() {
					if c.GetType() == "Ready" {
						seen <- sighting{i, e.GetSandbox().GetSandbox().GetId(), c.GetReason(), time.Now()}
					}
				}
			}
		})
	}
	everywhere := func(id, reason string) []time.Time {
		at, limit := make([]time.Time, len(doors)), time.After(time.Minute)
		for slices.ContainsFunc(at, time.Time.IsZero) {
			select {
			case s := <-seen:
				if s.id == id && s.reason == reason {
					at[s.door] = s.at
				}
			case <-limit:
				t.Fatalf("not every door says %s of %s: %v", reason, id, at)
			}
		}
		return at
	}
	return func(id string) []time.Duration {
		everywhere(id, "BackendReady")
		base.openGate(id)
		began := time.Now() // a moment late, by the same for each
		took := make([]time.Duration, len(doors))
		for i, at := range everywhere(id, "ContainerExited") {
			took[i] = at.Sub(began)
		}
		return took
	}
}

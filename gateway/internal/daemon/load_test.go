package daemon

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/sandbox"
)

var loadFigures = flag.Bool("load-figures", false, "find how many creates a second there may be while the configuration and programs change")

// Ten reloads with another configuration and ten with another program, under load: no create fails, and no operation is
// served by two processes. On native the load grows until the 99th percentile reaches a second.
func TestLoadWhileEverythingChanges(t *testing.T) {
	if !*loadFigures {
		return // a figure of a machine that does something else says nothing: make bench-reload
	}
	t.Run("native", func(t *testing.T) {
		best := 0
		for _, rate := range []int{10, 15, 20, 30, 40, 60, 80} {
			p99 := underLoad(t, rate, nil)
			if t.Failed() || p99 >= time.Second {
				break
			}
			best = rate
		}
		t.Logf("native: %d creates a second with a 99th percentile below 1 s; wanted at least 10", best)
		if best < 10 {
			t.Error("MISSED")
		}
	})
	t.Run("nothing", func(t *testing.T) {
		underLoad(t, 200, func(driver.Driver) driver.Driver {
			return drivertest.NewWorld(drivertest.Options{DiscardLog: true}).Open()
		})
	})
}

// underLoad begins that many creates a second while everything changes, and returns the 99th percentile of how long they
// took. Each sandbox is deleted when it was made.
func underLoad(t *testing.T, rate int, instead func(driver.Driver) driver.Driver) time.Duration {
	t.Helper()
	s := newSite(t)
	block := s.keeperBlock(`tag = "start"`)
	binds := fmt.Sprintf(tunedBind, "30s")
	if instead != nil {
		binds = "bind \"keeper\" {\n}\n"
	}
	s.write(block, binds)
	s.startWith(func(o *Options) {
		o.between.driver = instead
		o.Logger = slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	raw, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	over, ended := make(chan struct{}), make(chan struct{})
	var took []time.Duration
	go func() { defer close(ended); took = s.paced(rate, over) }()
	began := time.Now()
	for n := range 10 {
		s.write(strings.Replace(block, "start", fmt.Sprint("tag", n), 1), binds)
		s.mustReload()
		program := filepath.Join(s.dir, fmt.Sprint("keeper-", n))
		if err := os.WriteFile(program, append(slices.Clone(raw), byte(n)), 0o755); err != nil { // what follows an ELF file's end is not read
			t.Fatal(err)
		}
		s.write(strings.Replace(block, fmt.Sprintf("%q", self(t)), fmt.Sprintf("%q", program), 1), binds)
		s.mustReload()
	}
	changing := time.Since(began)
	close(over)
	<-ended
	s.upToDate()
	s.end()
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("%d a second: %d creates in %v of 20 changes, none failed: %t; half within %v, 99%% within %v, the slowest %v",
		rate, len(took), changing.Round(time.Millisecond), !t.Failed(), p50.Round(time.Millisecond), p99.Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	if wanted := int(float64(rate) * changing.Seconds() * 0.9); len(took) < wanted {
		t.Errorf("only %d creates were begun, of %d", len(took), wanted)
	}
	return p99
}

func (s *site) mustReload() {
	s.t.Helper()
	if _, err := s.d.Reload(s.t.Context(), "test"); err != nil {
		s.t.Fatal(err)
	}
}

// paced begins creates at a rate, whether the ones before have ended or not, and returns how long each took.
func (s *site) paced(rate int, over <-chan struct{}) (took []time.Duration) {
	var mu sync.Mutex
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	begun, first := 0, time.Now()
	one := func(n int) {
		began := time.Now()
		h, id, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Name: fmt.Sprint("sb-", n), Spec: sandbox.Spec{Command: []string{"/bin/sleep", "600"}}})
		if err == nil {
			_, err = h.Wait(context.WithoutCancel(s.t.Context()))
		}
		if err != nil {
			s.t.Errorf("a create failed: %v", err)
			return
		}
		mu.Lock()
		took = append(took, time.Since(began))
		mu.Unlock()
		if h, err = s.d.engine.DeleteSandbox(id.ID, sandbox.Origin{}); err == nil {
			_, err = h.Wait(context.WithoutCancel(s.t.Context()))
		}
		if err != nil {
			s.t.Errorf("a delete failed: %v", err)
		}
	}
	for {
		select {
		case <-over:
			all.Wait()
			return took
		case <-tick.C: // it drops beats on a loaded machine: they are made good
			for ; begun < int(time.Since(first).Seconds()*float64(rate)); begun++ {
				n := begun
				all.Go(func() { one(n) })
			}
		}
	}
}

package bench

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/supervisor"
)

// start makes a supervisor with n programs.
func start(t *testing.T, n int, env ...string) []*supervisor.Handle {
	t.Helper()
	p, err := newPrograms(filepath.Join(shortDir, t.Name()[len("Test"):][:6]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := p.launch(t.Context(), n, env...); err != nil {
		t.Fatal(err)
	}
	return p.handles
}

// open makes a gateway over a journal in memory.
func open(t *testing.T, exts []*supervisor.Handle) *gateway {
	t.Helper()
	g, err := newGateway(t.Context(), memory, exts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// best returns the quickest of a few attempts: a machine that has other things to do may be slow, never too quick.
func best(t *testing.T, attempts int, enough time.Duration, fn func() error) time.Duration {
	t.Helper()
	quickest := time.Hour
	for range attempts {
		began := time.Now()
		if err := fn(); err != nil {
			t.Fatal(err)
		}
		if quickest = min(quickest, time.Since(began)); quickest <= enough {
			break
		}
	}
	return quickest
}

func TestCommitsPerCreate(t *testing.T) {
	exts := start(t, 4)
	for _, n := range []int{0, 1, 4} {
		commits, steps, err := commitsPerCreate(t.Context(), open(t, exts[:n]))
		if err != nil {
			t.Fatal(err)
		}
		if want := 3*n + 1; steps != want {
			t.Errorf("a chain of %d: %d steps with effects, not %d", n, steps, want)
		}
		if commits > steps+2 {
			t.Errorf("a chain of %d: %d commits for %d steps with effects", n, commits, steps)
		}
	}
}

// Sixteen validators that wait 200 ms are asked at once: one after the other they would take more than three seconds.
func TestValidatorsAreAskedAtOnce(t *testing.T) {
	g := open(t, start(t, 16, "NOOP_PHASES", "validate_request", "NOOP_WAIT", "200ms"))
	const enough = 800 * time.Millisecond
	took := best(t, 5, enough, func() error {
		_, err := g.create(t.Context())
		return err
	})
	if took > enough {
		t.Errorf("a create with 16 validators that wait 200 ms took %v", took)
	}
}

// Sixteen programs that need a second each before they serve start within few seconds.
func TestProgramsStartSideBySide(t *testing.T) {
	const enough = 8 * time.Second
	began := time.Now()
	start(t, 16, "NOOP_START", "1s")
	if took := time.Since(began); took > enough {
		t.Errorf("16 programs that need 1 s each took %v", took)
	}
}

// Creates wait side by side: sixteen with extensions that wait 50 ms in each of five calls take little longer than one.
func TestCreatesWaitSideBySide(t *testing.T) {
	g := open(t, start(t, 1, "NOOP_WAIT", "50ms"))
	const at, enough = 16, 2 * time.Second // one after the other: 4 s at least
	took := best(t, 5, enough, func() error {
		_, _, err := creates(context.Background(), g, at, at, 0)
		return err
	})
	if took > enough {
		t.Errorf("%d creates whose calls wait for 250 ms took %v", at, took)
	}
}

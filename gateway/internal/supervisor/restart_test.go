package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandgate/sandgate/gateway/internal/supervisor/rogue"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// TestRestart: a restart cuts nothing off, keeps nobody from being served, and forgives.
func TestRestart(t *testing.T) {
	r := newRig(t)
	drained := filepath.Join(t.TempDir(), "drained")
	spec := r.probe("noop", rogue.Drained+"="+drained)
	spec.Restart, spec.Write = Restart{Budget: 1, Window: time.Hour}, []string{filepath.Dir(drained)}
	h := r.up(spec)
	before := h.Status().PID
	flying := make(chan error, 1)
	go func() {
		_, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "linger:300ms"))
		flying <- err
	}()
	r.inFlight(h, 1)
	restarted := make(chan error, 1)
	go func() { restarted <- h.Restart(r.ctx()) }()
	r.awaitState(Starting, 2)
	var all sync.WaitGroup
	for range 8 { // these wait for the new process
		all.Go(func() {
			if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s2", "")); err != nil {
				t.Errorf("a call during the restart: %v", err)
			}
		})
	}
	if err := errors.Join(<-flying, <-restarted); err != nil {
		t.Fatalf("the call in flight, or the restart: %v", err)
	}
	all.Wait()
	st := h.Status()
	if st.PID == before || st.Restarts != 1 || st.State != Ready || st.LastError != "" {
		t.Errorf("afterwards: %+v", st)
	}
	if ends := r.exits(); len(ends) != 1 || !ends[0].Requested || len(ends[0].InFlight) > 8 {
		t.Errorf("ends: %+v", ends)
	}
	if _, err := os.Stat(drained); err != nil {
		t.Errorf("it was not told to end: %v", err)
	}
}

// TestRestartOfOneThatFailed: it is what clears a spent crash budget.
func TestRestartOfOneThatFailed(t *testing.T) {
	r := newRig(t)
	spec := r.probe("noop")
	spec.Restart = Restart{Budget: 1, Window: time.Hour}
	h := r.up(spec)
	for range 2 {
		if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3")); !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
	}
	r.awaitState(Failed, 1)
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "")); err == nil || !strings.Contains(err.Error(), "crashed more than 1 times") {
		t.Fatalf("a call of one that failed: %v", err)
	}
	if err := h.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "")); err != nil {
		t.Fatal(err)
	}
	// One more crash is within the budget again.
	_, _ = h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3"))
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "")); err != nil {
		t.Errorf("the budget was not given back: %v", err)
	}
}

// TestRestartInTheEnd: what is stopped is not restarted, and a restart that waits does not hold up the end.
func TestRestartInTheEnd(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("noop"))
	go func() { _, _ = h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "deaf")) }()
	r.inFlight(h, 1)
	restarted := make(chan error, 1)
	go func() { restarted <- h.Restart(r.ctx()) }()
	r.awaitState(Starting, 2)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-restarted; !fault.Is(err, fault.Unavailable) {
		t.Errorf("the restart: %v", err)
	}
	if err := h.Restart(r.ctx()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a restart of one that is stopped: %v", err)
	}
}

// inFlight waits until so many calls are in flight.
func (r *rig) inFlight(h *Handle, n int) {
	r.t.Helper()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for limit := time.After(20 * time.Second); len(h.Status().InFlight) != n || h.Status().State != Ready; {
		select {
		case <-look.C:
		case <-limit:
			r.t.Fatalf("calls in flight: %+v", h.Status().InFlight)
		}
	}
}

// TestLogs: what an extension prints can be read with its level, over the ends of its processes, and be followed.
func TestLogs(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) }) // whatever the gateway's log takes
	h := r.up(r.probe("badlog"))
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	lines, ended := make(chan Line, 100), make(chan error, 1)
	go func() {
		ended <- r.Logs(ctx, "probe", true, func(batch []Line) error {
			for _, l := range batch {
				lines <- l
			}
			return nil
		})
	}()
	find := func(message string) Line {
		for limit := time.After(20 * time.Second); ; {
			select {
			case l := <-lines:
				if strings.Contains(l.Message, message) {
					return l
				}
			case <-limit:
				t.Fatalf("there is no line %q", message)
			}
		}
	}
	first := h.Status().PID
	l := find("pool is nearly full")
	if l.Level != slog.LevelWarn || l.Stream != "stderr" || l.PID != first || l.Time.IsZero() || strings.Join(l.Attributes, " ") != "module=pool left=3" {
		t.Errorf("the line: %+v", l)
	}
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "print:[error] no address is left")); err != nil {
		t.Fatal(err)
	}
	if l := find("no address is left"); l.Level != slog.LevelError || l.Stream != "stdout" || l.PID != first {
		t.Errorf("the line: %+v", l)
	}
	_, _ = h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3"))
	if l := find("pool is nearly full"); l.PID == first || l.PID == 0 {
		t.Errorf("the next process's line: %+v", l)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := r.Logs(r.ctx(), "other", false, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("logs of nobody: %v", err)
	}
}

// TestBook: what is kept is bounded, and who reads too slowly is told.
func TestBook(t *testing.T) {
	s := &Supervisor{cfg: Config{Now: time.Now}, books: map[string]*book{}}
	b := s.book("x")
	for range 3 * bookLines {
		b.add(Line{Message: strings.Repeat("z", 100)})
	}
	if b.bytes > bookBytes || len(b.lines) > bookLines {
		t.Errorf("%d lines, %d bytes are kept", len(b.lines), b.bytes)
	}
	n := 0
	if err := s.Logs(t.Context(), "x", false, func(batch []Line) error { n += len(batch); return nil }); err != nil || n != len(b.lines) {
		t.Errorf("%d lines are read, %v", n, err)
	}
	var late []Line
	full := errors.New("enough")
	err := s.Logs(t.Context(), "x", true, func(batch []Line) error {
		if late = batch; len(batch) < 2 || strings.Contains(batch[0].Message, "lost") {
			return full
		}
		for range bookLines + 5 + len(b.lines) - bookLines { // while they are being read
			b.add(Line{Message: strings.Repeat("z", 100)})
		}
		return nil
	})
	if !errors.Is(err, full) || late[0].Message != "5 lines came faster than they were read, and are lost" {
		t.Errorf("a slow reader: %v, %+v", err, late[0])
	}
	b.add(Line{Message: shorten(strings.Repeat("ö", bookBytes))})
	if last := b.lines[len(b.lines)-1]; len(last.Message) > bookLine+3 {
		t.Errorf("a line of %d bytes is kept", len(last.Message))
	}
}

// TestRestartAfterTheFileWasReplaced: an upgrade puts a new file in the program's place before the configuration says
// so. What crashes meanwhile goes on as what it was; without a copy it is refused.
func TestRestartAfterTheFileWasReplaced(t *testing.T) {
	for _, kept := range []bool{true, false} {
		r := newRig(t)
		spec := r.probe("noop")
		path := filepath.Join(filepath.Dir(r.dir), "program")
		raw, err := os.ReadFile(spec.Command)
		if err == nil {
			err = os.WriteFile(path, raw, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		spec.Command = path
		if kept {
			if spec.Kept, err = r.Keep(spec); err != nil {
				t.Fatal(err)
			}
		}
		h := r.up(spec)
		if err := errors.Join(os.WriteFile(path+".new", []byte("#!/bin/sh\n"), 0o755), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		_, _ = h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3"))
		_, err = h.Call(r.ctx(), call(phase.BeforeCreate, "s1", ""))
		if kept != (err == nil) {
			t.Errorf("with a copy %t, a call after the crash: %v", kept, err)
		}
		if kept != strings.Contains(r.logged(), "own copy of that goes on") {
			t.Errorf("with a copy %t, the log says:\n%s", kept, r.logged())
		}
	}
}

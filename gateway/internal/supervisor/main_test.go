package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/supervisor/rogue"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(rogue.Mode); mode != "" {
		rogue.Main(mode)
		return
	}
	code := m.Run()
	if left := leftovers(); left != "" {
		fmt.Fprintln(os.Stderr, left)
		code = 1
	}
	os.Exit(code) // the test binary's own end; a testing.M has no other way to say that it failed
}

// leftovers reports goroutines and child processes that the tests have left behind.
func leftovers() string {
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		var left []string
		for _, s := range stacks {
			if !strings.Contains(s, "testing.(*M)") && !strings.Contains(s, "supervisor.leftovers") && !strings.Contains(s, "os/signal.") {
				left = append(left, s)
			}
		}
		_, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if len(left) == 0 && err == syscall.ECHILD {
			return ""
		}
		if time.Now().After(deadline) {
			return fmt.Sprintf("left behind: children: %v (ECHILD is none); goroutines:\n%s", err, strings.Join(left, "\n\n"))
		}
	}
}

// rig is a supervisor under test.
type rig struct {
	*Supervisor
	t   *testing.T
	dir string

	mu     sync.Mutex
	events []Event
	signal chan struct{} // closed and replaced at each event
	log    strings.Builder
}

// newRig makes a supervisor in a directory of its own, whose path is short enough for sockets.
func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sg")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // an extension of another user's has to come through
		t.Fatal(err)
	}
	r := &rig{t: t, dir: filepath.Join(dir, "p"), signal: make(chan struct{})}
	cfg := Config{
		Dir:     r.dir,
		Store:   filepath.Join(dir, "programs"),
		Version: "test",
		Logger:  slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Observe: r.observe,
		Jitter:  func() float64 { return 0 },
		Timing:  Timing{BackoffFirst: 2 * time.Millisecond, Start: 20 * time.Second},
	}
	for _, f := range change {
		f(&cfg)
	}
	if r.Supervisor, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left, err := filepath.Glob(filepath.Join(r.dir, launchPrefix+"*")); err != nil || len(left) > 0 {
			t.Errorf("left in the directory: %v %v", left, err)
		}
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Log(r.logged())
		}
	})
	return r
}

// Write takes the log.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *rig) observe(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	close(r.signal)
	r.signal = make(chan struct{})
}

// await returns the first event, since the beginning, that ok accepts.
func (r *rig) await(what string, ok func(Event) bool) Event {
	r.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		events, signal := r.events, r.signal
		r.mu.Unlock()
		for _, e := range events {
			if ok(e) {
				return e
			}
		}
		select {
		case <-signal:
		case <-limit:
			r.t.Fatalf("%s did not happen; events: %+v", what, events)
		}
	}
}

// awaitState waits for the n-th time that the state is entered.
func (r *rig) awaitState(to State, n int) Event {
	r.t.Helper()
	seen := 0
	var last Event
	return r.await(fmt.Sprintf("state %s, time %d", to, n), func(e Event) bool {
		if last.Time == e.Time && last.To == e.To {
			return false
		}
		if e.From != e.To && e.To == to {
			seen++
		}
		if seen == n {
			seen = 0
			return true
		}
		return false
	})
}

// exits returns the ends of processes so far.
func (r *rig) exits() []*Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Exit
	for _, e := range r.events {
		if e.Exit != nil {
			out = append(out, e.Exit)
		}
	}
	return out
}

// probe is the spec of the test binary in a mode.
func (r *rig) probe(mode string, env ...string) Spec {
	r.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(exe, 0o755); err != nil { // whatever the umask was
		r.t.Fatal(err)
	}
	spec := Spec{Name: "probe", Command: exe, Unpinned: true, Env: map[string]string{rogue.Mode: mode}}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		spec.Env[name] = value
	}
	return spec
}

// up launches and configures an extension.
func (r *rig) up(spec Spec) *Handle {
	r.t.Helper()
	h, err := r.Launch(r.ctx(), spec)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := h.Configure(r.ctx(), nil, nil); err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// call is a call of a sandbox; the key tells a probe what to do: see probe.act.
func call(p phase.Phase, subject, key string) *extension.Call {
	return &extension.Call{Phase: p, Key: key, Bind: "d/probe", Sandbox: &sandbox.Identity{ID: subject}, Number: 1}
}

// pidGone waits for the end of a process that need not be our child.
func pidGone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatalf("open process %d: %v", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if err != nil || n == 0 {
		t.Errorf("process %d is still there (%v)", pid, err)
	}
}

package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/supervisor/rogue"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// What programs do wrong, and what became of hosts that took go-plugin's handling of processes as it is. The numbers
// in the names are those of the table of failures in DESIGN.md.

// TestStartFails has the programs that never come up. Each launch fails in time with an error that says what the
// program did, and leaves nothing (newRig checks the directory, TestMain the processes and goroutines).
func TestStartFails(t *testing.T) {
	for name, c := range map[string]struct {
		mode  string
		limit time.Duration // of the launch; 0: none of its own
		code  fault.Code
		want  string // a regular expression
	}{
		"2 exits":                 {mode: "exit:3", code: fault.Unavailable, want: `exited before it was ready .*exit status 3.*cannot open the pool`},
		"6 prints something else": {mode: "garbage", code: fault.Unavailable, want: `exit status 2`},
		"8 is silent":             {mode: "silent", limit: 300 * time.Millisecond, code: fault.DeadlineExceeded, want: `did not start in time`},
		"3 is frozen":             {mode: "stopped", limit: 300 * time.Millisecond, code: fault.DeadlineExceeded, want: `did not start in time`},
		"does not describe":       {mode: "mute", limit: 500 * time.Millisecond, code: fault.DeadlineExceeded, want: `did not describe itself in time`},
		"without TLS":             {mode: "plaintext", code: fault.Unauthenticated, want: `did not prove with its certificate`},
		"another certificate":     {mode: "impostor", code: fault.Unauthenticated, want: `did not prove with its certificate`},
		"in the background":       {mode: "background:orphan", code: fault.Unauthenticated, want: `process \d+ listens on its socket, which is neither the process that was started`},
		"another socket":          {mode: "elsewhere", code: fault.Unavailable, want: `instead of a Unix socket in the directory`},
		"another protocol":        {mode: "version", code: fault.Unavailable, want: `version`},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ctx := r.ctx()
			if c.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.limit)
				defer cancel()
			}
			begun := time.Now()
			_, err := r.Launch(ctx, r.probe(c.mode))
			if fault.CodeOf(err) != c.code || !regexp.MustCompile(c.want).MatchString(err.Error()) {
				t.Errorf("launch: %v: %v, want %v: %s", fault.CodeOf(err), err, c.code, c.want)
			}
			if took := time.Since(begun); took > c.limit+5*time.Second {
				t.Errorf("it took %v", took)
			}
			if n := len(r.Handles()); n != 0 {
				t.Errorf("%d handles are left", n)
			}
		})
	}
}

// TestKillDuringStart (8): whoever gives a start up does not wait for its timeout.
func TestKillDuringStart(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(r.ctx())
	go func() {
		defer cancel()
		r.await("start", func(e Event) bool { return e.To == Starting })
	}()
	begun := time.Now()
	_, err := r.Launch(ctx, r.probe("silent"))
	if !fault.Is(err, fault.Canceled) {
		t.Errorf("launch: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestBannerBeforeHandshake (6): what a program prints before its handshake is a line of the log, however long.
func TestBannerBeforeHandshake(t *testing.T) {
	r := newRig(t)
	r.up(r.probe("banner"))
	if !strings.Contains(r.logged(), `msg="Probe 1.0, starting up"`) {
		t.Error("the banner is not in the log")
	}
}

// TestBadLogLines (1): lines that look like a logger's and are not crash nobody; good ones keep their level.
func TestBadLogLines(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("badlog"))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`level=WARN msg="pool is nearly full" extension=probe module=pool left=3`, `@message`} {
		if !strings.Contains(r.logged(), want) {
			t.Errorf("the log has no %s", want)
		}
	}
}

// TestGrandchildHoldsPipes (2): an end is seen at once although another process holds the pipes; one in the group
// is ended too.
func TestGrandchildHoldsPipes(t *testing.T) {
	for _, where := range []string{"here", "away"} {
		t.Run(where, func(t *testing.T) {
			r := newRig(t)
			h := r.up(r.probe("grandchild:" + where))
			begun := time.Now()
			_, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3"))
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("call: %v", err)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("the end was seen after %v", took)
			}
			exit := r.await("exit", func(e Event) bool { return e.Exit != nil }).Exit
			m := regexp.MustCompile(`grandchild (\d+)`).FindStringSubmatch(strings.Join(exit.Stderr, "\n"))
			if m == nil {
				t.Fatalf("stderr: %q", exit.Stderr)
			}
			pid, _ := strconv.Atoi(m[1])
			if where == "away" { // it has left the group, and without a control group nothing reaches it
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			pidGone(t, pid)
		})
	}
}

// TestFrozen (3): a process that stands still costs a call its deadline, and is ended within the time for it.
func TestFrozen(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timing.Stop = 100 * time.Millisecond })
	h := r.up(r.probe("noop"))
	ctx, cancel := context.WithTimeout(r.ctx(), 300*time.Millisecond)
	defer cancel()
	if _, err := h.Call(ctx, call(phase.BeforeCreate, "s1", "freeze")); !fault.Is(err, fault.DeadlineExceeded) {
		t.Errorf("call: %v", err)
	}
	begun := time.Now()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	exits := r.exits()
	if len(exits) != 1 || exits[0].Signal != "killed" || !exits[0].Requested {
		t.Errorf("exits: %+v", exits)
	}
}

// TestFrozenIsReplaced: health calls that go unanswered end a process, and another takes its place.
func TestFrozenIsReplaced(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Timing.Stop, c.Timing.Health, c.Timing.HealthAnswer = 50*time.Millisecond, 20*time.Millisecond, 200*time.Millisecond
	})
	h := r.up(r.probe("noop"))
	if err := syscall.Kill(h.Status().PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	caller := make(chan error, 1)
	go func() {
		_, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s0", ""))
		caller <- err
	}()
	e := r.await("exit", func(e Event) bool { return e.Exit != nil })
	if !strings.Contains(e.Reason, "3 health calls") {
		t.Errorf("reason %q", e.Reason)
	}
	if err := <-caller; err == nil || !strings.Contains(err.Error(), "3 health calls") {
		t.Errorf("the call in flight does not say that the gateway has ended it, and why: %v", err)
	}
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "")); err != nil {
		t.Errorf("call of the next process: %v", err)
	}
}

// TestLongLines (4): whatever is printed to the real standard output is drained.
func TestLongLines(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("noop"))
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "longline")); err != nil {
		t.Fatal(err)
	}
}

// TestFlood: a process that prints without end is not held up, and the log gets a part and the count of the rest.
func TestFlood(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("noop"))
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "flood")); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(r.logged(), "of a flood")
	if lines < lineBurst/2 || lines > 10*lineBurst {
		t.Errorf("%d lines of 50000 are in the log", lines)
	}
	if !strings.Contains(r.logged(), "dropped lines") {
		t.Error("the log does not say that lines were dropped")
	}
	if last := r.exits()[0].Stderr; len(last) != keptLines || last[keptLines-1] != "line 49999 of a flood" {
		t.Errorf("last lines: %d, %q", len(last), last[len(last)-1])
	}
}

// TestEnvironment (5): the process has the operator's variables and those of the launch, and nothing of ours.
func TestEnvironment(t *testing.T) {
	t.Setenv("FOO", "of the gateway")
	t.Setenv("GATEWAY_SECRET", "of the gateway")
	r := newRig(t)
	h := r.up(r.probe("noop", "FOO=of the block"))
	answer, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "env"))
	if err != nil {
		t.Fatal(err)
	}
	got := answer.Diagnostics[0].Summary
	if !strings.Contains(got, "FOO=of the block") || strings.Contains(got, "of the gateway") {
		t.Errorf("environment:\n%s", got)
	}
	for line := range strings.Lines(got) {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "FOO", rogue.Mode, "SANDGATE_EXTENSION", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "PLUGIN_UNIX_SOCKET_DIR":
		default:
			t.Errorf("it also has %s", line)
		}
	}
	if strings.Contains(got, "PRIVATE KEY") {
		t.Error("its key is in its environment")
	}
}

// TestCallFailsAlone: an extension that answers with an error, too much, or too late fails its own call only.
func TestCallFailsAlone(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("noop"))
	for key, want := range map[string]fault.Code{"fail": fault.ResourceExhausted, "huge": fault.ResourceExhausted, "hang": fault.DeadlineExceeded} {
		ctx, cancel := context.WithTimeout(r.ctx(), 2*time.Second)
		_, err := h.Call(ctx, call(phase.BeforeCreate, key, key))
		cancel()
		if fault.CodeOf(err) != want {
			t.Errorf("%s: %v", key, err)
		}
	}
	ctx, cancel := context.WithCancel(r.ctx())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := h.Call(ctx, call(phase.BeforeCreate, "cancelled", "hang")); !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "")); err != nil {
		t.Errorf("the call after them: %v", err)
	}
	if n := h.Status().Restarts; n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// TestPrints: what a Go extension prints after the handshake travels over go-plugin's streams, and is logged too.
func TestPrints(t *testing.T) {
	r := newRig(t)
	h := r.up(r.probe("noop"))
	if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "print:hello from a handler")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(r.logged(), "hello from a handler"); {
		if time.Now().After(deadline) {
			t.Fatal("it is not in the log")
		}
	}
}

// TestLaunchAgain (9, 10, 11, 12): twenty crashes one after another leave nothing and are all seen.
func TestLaunchAgain(t *testing.T) {
	r := newRig(t)
	spec := r.probe("noop")
	spec.Restart = Restart{Budget: 50, Window: time.Hour}
	h := r.up(spec)
	pids := map[int]bool{}
	for i := range 20 {
		pids[h.Status().PID] = true
		if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "exit:3")); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("call %d: %v", i, err)
		}
		h.Reset() // the pause stays short
		if _, err := h.Call(r.ctx(), call(phase.OnCreateFailed, "s1", "")); err != nil {
			t.Fatalf("call after crash %d: %v", i, err)
		}
	}
	if len(pids) != 20 || h.Status().Restarts != 20 {
		t.Errorf("%d processes, %d restarts", len(pids), h.Status().Restarts)
	}
	dirs, err := filepath.Glob(filepath.Join(r.dir, launchPrefix+"*"))
	if err != nil || len(dirs) != 1 {
		t.Errorf("directories: %v %v", dirs, err)
	}
}

// TestSickness: what an extension says of its health is its state, and it serves on.
func TestSickness(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timing.Health = 10 * time.Millisecond })
	h := r.up(r.probe("noop"))
	set := func(reason string) {
		if _, err := h.Call(r.ctx(), call(phase.BeforeCreate, "s1", "sick:"+reason)); err != nil {
			t.Fatal(err)
		}
	}
	set("pool is unreachable")
	if e := r.awaitState(Degraded, 1); e.Reason != "pool is unreachable" {
		t.Errorf("reason %q", e.Reason)
	}
	set("")
	r.awaitState(Ready, 2)
	set(strings.Repeat("ill ", 64<<10)) // what people see of it is short
	if e := r.awaitState(Degraded, 2); len(e.Reason) > bookLine+len("…") {
		t.Errorf("a reason of %d bytes", len(e.Reason))
	}
}

// TestLastWords: what is in the pipe when a process has ended is read, however late its reader comes; a grandchild that
// keeps the pipe open is not waited for.
func TestLastWords(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	if _, err := w.WriteString("panic: no more\n\ngoroutine 1\n"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = eachLine(&toTheEnd{File: r}, func(line string) { lines = append(lines, line) })
	if want := []string{"panic: no more", "", "goroutine 1"}; !slices.Equal(lines, want) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v; want %q, and the deadline", lines, err, want)
	}
}

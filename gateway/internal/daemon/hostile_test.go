package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/gateway/internal/supervisor/rogue"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// menace is one way to misbehave.
type menace struct {
	name string
	mode string // of a program that a reload brings in
	do   string // or what the program that runs does in a before_create
	want string // what the reload or the create fails with, a regular expression; "": it succeeds
	away bool   // only a control group finds what it leaves, which an ordinary user's gateway may have none of
	exit string // how the process ends, a regular expression; "": it goes on
}

// What programs have done to hosts, and what became of it. The numbers in brackets are those of the supervisor's own
// tests, which look closer.
var menaces = []menace{
	{name: "exits before its handshake", mode: "exit:3", want: `exited before it was ready .*exit status 3.*cannot open the pool`},
	{name: "prints a usage text and ends", mode: "garbage", want: `exit status 2`},
	{name: "prints a banner before its handshake", mode: "banner"},
	{name: "never says a word", mode: "silent", want: `did not start in time`},
	{name: "is frozen at its start", mode: "stopped", want: `did not start in time`},
	{name: "never describes itself", mode: "mute", want: `did not describe itself in time`},
	{name: "never takes its configuration", mode: "undecided", want: `did not take its configuration within 4s; last stderr: .*asking the pool's server`},
	{name: "is frozen by its configuration", mode: "undecided-frozen", want: `did not take its configuration within 4s`},
	{name: "serves without TLS", mode: "plaintext", want: `did not prove with its certificate`},
	{name: "serves with another certificate", mode: "impostor", want: `did not prove with its certificate`},
	{name: "listens elsewhere", mode: "elsewhere", want: `instead of a Unix socket in the directory`},
	{name: "speaks another protocol", mode: "version", want: `version`},
	{name: "serves from the background", mode: "background:orphan", away: true, want: `listens on its socket, which is neither`},
	{name: "prints log lines that are none", mode: "badlog"},
	{name: "has a child that holds its output", mode: "grandchild"},
	{name: "has a child that leaves its group", mode: "grandchild:away", away: true},
	{name: "exits in a call", do: "exit:7", want: `exit status 7.*pool file is corrupt`, exit: `exit status 7.*in_flight=.*before_create`},
	{name: "panics in a call", do: "panic", want: `exit status 2`, exit: `exit status 2.*in_flight=.*before_create.*pool table is nil`},
	{name: "freezes in a call", do: "freeze", want: `no answer within 2s|did not answer`, exit: `signal: killed`},
	{name: "hangs until it is cancelled", do: "hang", want: `no answer within 2s|did not answer`},
	{name: "hangs for ever", do: "deaf", want: `no answer within 2s|did not answer`, exit: `it was still busy with before_create`},
	{name: "answers after its deadline", do: "linger:2500ms", want: `no answer within 2s|did not answer`},
	{name: "answers with 8 MiB", do: "huge", want: `larger than max`},
	{name: "answers with an entry of no kind", do: "no-kind", want: `entr`},
	{name: "answers with a state of 1 MiB", do: "big-state", want: `state`},
	{name: "contributes what there is not", do: "foreign", want: `Nothing`},
	{name: "answers with escape sequences", do: "escape", want: `no`},
	{name: "floods its log", do: "flood"},
	{name: "prints lines of 70 KiB", do: "longline"},
}

// hostile is a site with a healthy extension, and one that is not.
type hostile struct {
	*site
	log     *lockedBuffer
	ahead   atomic.Int64 // of the gateway's clock, nanoseconds
	made    atomic.Int64
	slowest atomic.Int64 // nanoseconds
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

func (l *lockedBuffer) lines(contain ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, line := range strings.Split(l.b.String(), "\n") {
		for _, c := range contain {
			if !strings.Contains(line, c) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

func (h *hostile) config(mode string) {
	h.write(h.keeperBlock("")+fmt.Sprintf("extension \"probe\" {\n  command = %q\n  env = { %s = %q }\n  restart {\n    budget = 1000\n    window = \"1s\"\n  }\n}\n",
		self(h.t), rogue.Mode, mode)+"driver \"wild\" {\n  base = \"native\"\n  bind \"probe\" {\n    timeout = \"2s\"\n    phase \"before_create\" {\n      attempts = 1\n    }\n  }\n}\n", keeperBind)
}

// TestHostileExtensions lets an extension do everything that programs have done to their hosts, while sandboxes are made
// with another one. It is not run beside others: it counts what is left.
func TestHostileExtensions(t *testing.T) {
	h := &hostile{site: newSite(t), log: &lockedBuffer{}}
	stale := filepath.Join(mustRuntimeDir(t, h.dir+"/data"), "x-of-one-that-was-killed")
	if err := os.MkdirAll(stale, 0o700); err != nil { // its sockets
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // what loses its parent becomes ours, and is counted
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	goroutines, others := runtime.NumGoroutine(), children(t)
	h.config("noop")
	h.startWith(func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
		o.between.timing = supervisor.Timing{Start: 4 * time.Second, Configure: 4 * time.Second, Stop: 2 * time.Second, Health: 200 * time.Millisecond, HealthAnswer: 2 * time.Second, BackoffFirst: 5 * time.Millisecond}
		o.between.now = func() time.Time { return time.Now().Round(0).Add(time.Duration(h.ahead.Load())) }
	})
	stop := h.keepMaking()
	before := heap()
	for _, m := range menaces {
		if m.away && os.Geteuid() != 0 {
			t.Logf("left out, since this is an ordinary user: one that %s", m.name)
			continue
		}
		h.face(m)
	}
	h.jump(time.Hour)
	h.jump(-2 * time.Hour)
	stop()
	after := heap()
	t.Logf("meanwhile %d sandboxes were made with the healthy extension, the slowest in %v", h.made.Load(), time.Duration(h.slowest.Load()).Round(time.Millisecond))
	t.Logf("the heap had %d KiB before and has %d KiB after", before>>10, after>>10)
	if after > before+16<<20 {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	h.end()
	h.nothingLeft(stale, goroutines, others)
}

// keepMaking makes sandboxes with the healthy extension, one after another, until it is told to stop.
func (h *hostile) keepMaking() (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-over:
				return
			default:
			}
			began := time.Now()
			id, err := h.create(fmt.Sprint("healthy-", h.made.Load()), sandbox.Spec{})
			if err != nil {
				h.t.Errorf("a create with the healthy extension failed: %v", err)
				return
			}
			h.slowest.Store(max(h.slowest.Load(), int64(time.Since(began))))
			h.made.Add(1)
			h.remove(id.ID)
		}
	}()
	return func() { close(over); <-ended }
}

// face brings a menace in, and sees to it that it is dealt with, and forgotten.
func (h *hostile) face(m menace) {
	h.t.Run(m.name, func(t *testing.T) {
		exits, made, began := len(h.exits()), h.made.Load(), time.Now()
		err := h.provoke(m)
		took := time.Since(began)
		if m.want == "" && err != nil || m.want != "" && (err == nil || !regexp.MustCompile(m.want).MatchString(flat(err))) {
			t.Errorf("it came to %v, want %q", err, m.want)
		}
		if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("escape sequences reach people: %q", err)
		}
		if took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		h.recovered(t, m, exits)
		h.until("a healthy sandbox was made meanwhile", func() bool { return h.made.Load() > made })
		t.Logf("after %v: %s", took.Round(time.Millisecond), clip(flat(err), 160))
	})
}

func (h *hostile) provoke(m menace) error {
	if m.mode != "" {
		h.config(m.mode)
		_, err := h.d.Reload(h.t.Context(), "test")
		return err
	}
	hd, id, err := h.d.engine.CreateSandbox(engine.CreateRequest{Driver: "wild", Name: "prey",
		Spec: sandbox.Spec{Command: []string{"/bin/sleep", "600"}, Labels: map[string]string{rogue.Do: m.do}}})
	if err == nil {
		_, err = hd.Wait(h.t.Context())
	}
	if err == nil {
		h.remove(id.ID)
	}
	return err
}

// recovered waits until the extension is as it was, and checks that an end of its process was told of once.
func (h *hostile) recovered(t *testing.T, m menace, before int) {
	t.Helper()
	if m.exit != "" {
		h.until("the end of its process is told", func() bool { return len(h.exits()) > before })
	}
	if m.mode != "" { // back to one that is well
		h.config("noop")
		if _, err := h.d.Reload(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
	}
	h.until("the extension is ready", func() bool {
		return h.d.catalog.current().extensions["probe"].handle.Status().State == supervisor.Ready
	})
	told := h.exits()[before:]
	switch {
	case m.exit == "" && len(told) > 0:
		t.Errorf("ends of its process: %s", told)
	case m.exit != "" && (len(told) != 1 || !regexp.MustCompile(m.exit).MatchString(told[0])):
		t.Errorf("ends of its process: %s, want one: %s", told, m.exit)
	case m.exit != "":
		for _, field := range []string{"how=", "oom=", "pid=", "uptime=", "digest=sha256:", "in_flight=", "stderr="} {
			if !strings.Contains(told[0], field) {
				t.Errorf("the event has no %s: %s", field, told[0])
			}
		}
	}
}

func (h *hostile) exits() []string {
	return h.log.lines("the extension's process ended", "extension=probe")
}

// jump sets the gateway's clock, as a time service does after a long time without.
func (h *hostile) jump(by time.Duration) {
	h.t.Run(fmt.Sprintf("the clock jumps %v", by), func(t *testing.T) {
		exits, made := len(h.exits()), h.made.Load()
		pid := h.pid()
		h.ahead.Add(int64(by))
		h.until("three more sandboxes were made", func() bool { return h.made.Load() > made+3 })
		if h.pid() != pid || len(h.exits()) != exits {
			t.Error("an extension was ended for it")
		}
	})
}

func flat(err error) string { return strings.Join(strings.Fields(fmt.Sprint(err)), " ") }

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// nothingLeft checks that the gateway has ended whole.
func (h *hostile) nothingLeft(stale string, goroutines int, others []int) {
	h.t.Helper()
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(stale), "*")); err != nil || len(left) > 0 {
		h.t.Errorf("sockets are left: %v %v", left, err)
	}
	if _, err := os.Stat(stale); err == nil {
		h.t.Error("stale sockets are left")
	}
	defer func() {
		if h.t.Failed() {
			out, _ := exec.Command("ps", "-o", "pid,ppid,args", "--ppid", fmt.Sprint(os.Getpid())).CombinedOutput()
			h.t.Logf("%s", out)
		}
	}()
	waitFor(h.t, "end of all processes", func() bool {
		left := slices.DeleteFunc(children(h.t), func(pid int) bool { return slices.Contains(others, pid) })
		for _, pid := range left { // those that became ours have nobody else who waits for them
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
		}
		return len(left) == 0
	})
	waitFor(h.t, "end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// children are the processes whose parent this one is: an engine that other tests run on may be one.
func children(t *testing.T) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Fatalf("the kernel does not say which children a process has: %v", err)
	}
	for _, list := range lists {
		raw, _ := os.ReadFile(list) // a thread may have ended meanwhile; its children went to another
		for _, word := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

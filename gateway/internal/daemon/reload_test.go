package daemon

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"

	"golang.org/x/sys/unix"
)

const tunedBind = "bind \"keeper\" {\n  timeout = %q\n  grant { mutate = [\"Process.labels\"] }\n}\n"

func (s *site) reload(tag, timeout string) []string {
	s.t.Helper()
	s.write(s.keeperBlock(fmt.Sprintf("tag = %q", tag)), fmt.Sprintf(tunedBind, timeout))
	r, err := s.d.Reload(s.t.Context(), "test")
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetChanges()
}

func (s *site) pid() int { return s.d.catalog.current().extensions["keeper"].handle.Status().PID }

func contains(t *testing.T, lines []string, want ...string) {
	t.Helper()
	text := strings.Join(lines, "\n") + "\n"
	for _, w := range want {
		if !strings.Contains(text, w+"\n") {
			t.Errorf("%q is not among\n%s", w, text)
		}
	}
}

func TestAReloadSaysWhatItDid(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "one"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	first := s.pid()
	contains(t, s.reload("one", "30s"), "extension keeper: unchanged", "bind acme/keeper: unchanged", "driver acme: unchanged")
	contains(t, s.reload("one", "20s"), "extension keeper: unchanged", "bind acme/keeper: reconfigured in place")
	if now := s.pid(); now != first {
		t.Errorf("nothing about the process has changed, and it is %d, no longer %d", now, first)
	}
	contains(t, s.reload("two", "20s"), "extension keeper: restarted; the process before ends with the operations that it serves", "bind acme/keeper: unchanged")
	if s.pid() == first {
		t.Error("the process with the configuration before goes on")
	}
	s.until("the process before has ended", func() bool { return unix.Kill(first, 0) == unix.ESRCH })
}

func TestAnOperationEndsWithTheProcessThatItBeganWith(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "one"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	first := s.pid()
	gate := filepath.Join(s.dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	h, id, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Name: "one", Spec: sandbox.Spec{Command: []string{"/bin/sleep", "600"}, Labels: map[string]string{"gate": gate}}})
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.OpenFile(gate, os.O_WRONLY, 0) // it is in before_create
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	s.reload("two", "30s")
	if _, err := h.Wait(t.Context()); err != nil {
		t.Errorf("the create that was in flight: %v", err)
	}
	s.remove(id.ID)
	s.until("the process before has ended", func() bool { return unix.Kill(first, 0) == unix.ESRCH })
	s.oneProcessEach()
}

// oneProcessEach fails where an operation's calls were answered by several processes.
func (s *site) oneProcessEach() {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "dump"))
	if err != nil {
		s.t.Fatal(err)
	}
	by := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var line struct {
			Key string
			PID int
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			s.t.Fatal(err)
		}
		op, _, _ := strings.Cut(line.Key, "/")
		if by[op] != 0 && by[op] != line.PID {
			s.t.Errorf("operation %s was served by the processes %d and %d", op, by[op], line.PID)
		}
		by[op] = line.PID
	}
	if len(by) == 0 {
		s.t.Error("nothing was served")
	}
}

// busy creates and deletes sandboxes until the returned function is called; a create that fails fails the test.
func (s *site) busy(workers int) (stop func()) {
	over := make(chan struct{})
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				id, err := s.create(fmt.Sprintf("sb-%d-%d", w, n), sandbox.Spec{})
				if err != nil {
					s.t.Errorf("a create failed: %v", err)
					return
				}
				s.remove(id.ID)
			}
		})
	}
	return func() { close(over); group.Wait() }
}

// upToDate waits until one process of the extension is left: that of the configuration in force.
func (s *site) upToDate() {
	s.t.Helper()
	s.oneProcessEach()
	s.until("the processes before have ended", func() bool {
		s.d.mu.Lock()
		defer s.d.mu.Unlock()
		return len(s.d.running) == 1
	})
}

func TestNoCreateFailsDuringReloads(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "start"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	stop := s.busy(3)
	for n := range 10 {
		s.reload(fmt.Sprint("tag", n), "30s")
	}
	stop()
	s.upToDate()
}

func TestNoCreateFailsWhileTheProgramIsUpgraded(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	block := s.keeperBlock("")
	s.write(block, fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	raw, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := s.busy(3)
	digests := map[string]bool{}
	for n := range 3 {
		program := filepath.Join(s.dir, fmt.Sprint("keeper-", n))
		if err := os.WriteFile(program, append(raw, byte(n)), 0o755); err != nil { // what follows an ELF file's end is not read
			t.Fatal(err)
		}
		s.write(strings.Replace(block, fmt.Sprintf("%q", self(t)), fmt.Sprintf("%q", program), 1), fmt.Sprintf(tunedBind, "30s"))
		if _, err := s.d.Reload(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		digests[s.d.catalog.current().extensions["keeper"].handle.Status().Digest] = true
	}
	stop()
	s.upToDate()
	if len(digests) != 3 {
		t.Errorf("%d programs were run", len(digests))
	}
}

// TestADriverIsOpenWhileAConfigurationHasIt: a driver that was opened for a reload that is refused, or that was taken out,
// is closed, and may come with other settings.
func TestADriverIsOpenWhileAConfigurationHasIt(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "one"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	const second = "driver \"second\" {\n  type = \"native\"\n  config { stop_timeout = %q }\n}\n"
	for _, step := range []struct{ what, add, refused string }{
		{"a bind that is refused", fmt.Sprintf(second, "3s") + "driver \"over\" {\n  base = \"second\"\n  bind \"keeper\" {\n    grant { mutate = [\"Nope.x\"] }\n  }\n}\n", "Nope.x"},
		{"another setting", fmt.Sprintf(second, "4s"), ""},
		{"a setting of what is open", fmt.Sprintf(second, "5s"), "restart the gateway"},
		{"it is taken out", "", ""},
		{"it comes again", fmt.Sprintf(second, "5s"), ""},
	} {
		s.write(s.keeperBlock(`tag = "one"`)+step.add, fmt.Sprintf(tunedBind, "30s"))
		_, err := s.d.Reload(t.Context(), "test")
		if (step.refused == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), step.refused) {
			t.Errorf("%s: %v", step.what, err)
		}
		s.d.mu.Lock()
		open := len(s.d.open)
		s.d.mu.Unlock()
		if want := 1 + strings.Count(step.add, "type ="); err == nil && open != want {
			t.Errorf("%s: %d drivers are open, want %d", step.what, open, want)
		}
	}
}

// TestAReloadOfTheSameIsWatched: whoever looks at the extensions meanwhile, as a scrape of the metrics does, sees them.
func TestAReloadOfTheSameIsWatched(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "one"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	pid, over := s.pid(), make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if n := len(s.d.Extensions()); n != 1 {
				t.Errorf("%d extensions during a reload", n)
				return
			}
		}
	})
	for range 10 {
		if _, err := s.d.Reload(t.Context(), "test"); err != nil {
			t.Error(err)
		}
	}
	close(over)
	watcher.Wait()
	if now := s.pid(); now != pid {
		t.Errorf("nothing has changed, and the process is %d, no longer %d", now, pid)
	}
}

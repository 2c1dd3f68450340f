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

func TestNoCreateFailsDuringReloads(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(`tag = "start"`), fmt.Sprintf(tunedBind, "30s"))
	s.start()
	defer s.end()
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for w := range 3 {
		workers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id, err := s.create(fmt.Sprintf("sb-%d-%d", w, n), sandbox.Spec{})
				if err != nil {
					t.Errorf("a create failed: %v", err)
					return
				}
				s.remove(id.ID)
			}
		})
	}
	for n := range 10 {
		s.reload(fmt.Sprint("tag", n), "30s")
	}
	close(stop)
	workers.Wait()
	s.oneProcessEach()
	s.until("the processes before have ended", func() bool {
		s.d.mu.Lock()
		defer s.d.mu.Unlock()
		return len(s.d.running) == 1
	})
}

// What a reload cannot change is refused, not ignored.
func TestAReloadOfWhatIsFixedIsRefused(t *testing.T) {
	s := newSite(t)
	s.write("", "")
	s.start()
	defer s.end()
	raw, err := os.ReadFile(filepath.Join(s.dir, "site.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	for setting, changed := range map[string]string{
		"data_dir":       strings.Replace(string(raw), s.dir+"/data", s.dir+"/other", 1),
		"listen":         strings.Replace(string(raw), "/gw.sock", "/other.sock", 1),
		"max_operations": strings.Replace(string(raw), "gateway {", "gateway {\n  max_operations = 7", 1),
		"metrics":        strings.Replace(string(raw), "gateway {", "gateway {\n  metrics = \"unix://"+s.dir+"/m.sock\"", 1),
		"store":          string(raw) + "store \"postgres\" {\n  url = \"postgres:///x\"\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, "site.hcl"), []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.d.Reload(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), setting) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

package lease

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

const crashEnv = "LEASE_CRASH_DIR"

// TestMain also is the program that TestKilledProcesses kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		churn(dir, os.Getenv("LEASE_CRASH_NAME"))
		return
	}
	m.Run()
}

// crashWorkers is how many owners each killed process works for at once.
const crashWorkers = 6

// churn takes and releases addresses until it is killed, and says on stdout what it is about to do and what was
// answered. A line is one write, so it is whole.
func churn(dir, name string) {
	s, err := Open(context.Background(), dir)
	if err != nil {
		fmt.Println("fail", err)
		return
	}
	s.journal.compact = 40 // so that files are replaced under fire, too
	var wg sync.WaitGroup
	for w := range crashWorkers {
		wg.Go(func() {
			for i := 0; ; i++ {
				owner := sandboxOwner(0, 0)
				owner.Sandbox = fmt.Sprintf("%s-%d-%d", name, w, i)
				fmt.Println("take?", owner.Sandbox)
				got, err := s.Address(context.Background(), &sandboxes, owner, true)
				if err != nil {
					fmt.Println("fail", err)
					return
				}
				fmt.Println("took", owner.Sandbox, got.ID())
				if i%3 == 0 {
					continue // stays held
				}
				fmt.Println("free?", owner.Sandbox)
				if _, err := s.Release(context.Background(), owner); err != nil {
					fmt.Println("fail", err)
					return
				}
				fmt.Println("freed", owner.Sandbox)
			}
		})
	}
	wg.Wait()
}

// Real processes, two at a time on one store, killed with SIGKILL in the middle of their work, again and again. After
// each kill the log reads, and says of every owner what was answered last; only of what had been asked and not
// answered it may say either.
func TestKilledProcesses(t *testing.T) {
	dir := t.TempDir()
	known := map[string]string{} // sandbox id to address, of all that is held for sure
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		var wg sync.WaitGroup
		said := make([]map[string][]string, 2)
		for i := range said {
			wg.Go(func() { said[i] = runAndKill(t, dir, fmt.Sprintf("r%d-p%d", round, i), 30+rand.IntN(200)) })
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		held := heldNow(t, dir)
		for _, each := range said {
			for id, words := range each {
				address, has := held[id]
				switch words[0] {
				case "took", "free?":
					if known[id] = words[1]; words[0] == "free?" && !has {
						delete(known, id)
					}
				case "take?":
					if has {
						known[id] = address
					}
				case "freed":
				}
			}
		}
		for id, address := range known {
			if held[id] != address {
				t.Errorf("round %d: %s was told %s, the log says %q", round, id, address, held[id])
			}
			delete(held, id)
		}
		if len(held) > 0 {
			t.Errorf("round %d: held by nobody who asked, or after it was released: %v", round, held)
		}
	}
	t.Logf("%d processes killed, %d addresses held in the end", 2*rounds, len(known))
}

func heldNow(t *testing.T, dir string) map[string]string {
	t.Helper()
	s := mustOpen(t, dir)
	holds, err := s.Holds(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out, addresses := map[string]string{}, map[string]string{}
	for _, h := range holds {
		if other, twice := addresses[h.ID()]; twice {
			t.Errorf("%s is held by %s and %s", h.ID(), other, h.Sandbox)
		}
		addresses[h.ID()], out[h.Sandbox] = h.Sandbox, h.ID()
	}
	return out
}

// runAndKill runs churn, kills it after so many lines, and returns the last word about each owner, with its address.
func runAndKill(t *testing.T, dir, name string, lines int) map[string][]string {
	exe, err := os.Executable()
	if err != nil {
		t.Error(err)
		return nil
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashEnv+"="+dir, "LEASE_CRASH_NAME="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	last, addresses := map[string][]string{}, map[string]string{}
	in := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
		line, err := in.ReadString('\n')
		if err != nil { // what is not a whole line was not said
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		words := strings.Fields(line)
		if words[0] == "fail" {
			t.Errorf("%s: %s", name, line)
			continue
		}
		if words[0] == "took" {
			addresses[words[1]] = words[2]
		}
		last[words[1]] = []string{words[0], addresses[words[1]]}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%s ended by itself: %v", name, err)
	}
	return last
}

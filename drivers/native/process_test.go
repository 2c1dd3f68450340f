package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper is a process of the test's own; its script waits for the end of its input, which is the test's.
func sleeper(t *testing.T, script string) (proc, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	_, failed := cmd.StdinPipe()
	out, err := cmd.StdoutPipe()
	if err = errors.Join(failed, err); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return procOf(cmd.Process.Pid), cmd
}

// A pid that was given again is another process, and none of ours.
func TestAPIDThatWasGivenAgainIsNotTaken(t *testing.T) {
	p, _ := sleeper(t, "echo up; exec cat")
	other := proc{PID: p.PID, Start: p.Start + 1}
	if h, err := other.hold(); h != nil || err != nil {
		t.Errorf("held as the other one: %v, %v", h, err)
	}
	if err := other.finish(t.Context(), 0); err != nil {
		t.Errorf("finish: %v", err)
	}
	h, err := p.hold()
	if h == nil || err != nil {
		t.Fatalf("the process that it was is gone: %v", err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
}

func TestFinishTakesTheGraceAndThenKills(t *testing.T) {
	for script, c := range map[string]struct {
		grace time.Duration
		want  unix.Signal
	}{"echo up; exec cat": {time.Minute, unix.SIGTERM}, "trap '' TERM; echo up; exec cat": {50 * time.Millisecond, unix.SIGKILL}} {
		p, cmd := sleeper(t, script)
		if err := p.finish(t.Context(), c.grace); err != nil {
			t.Error(err)
		}
		var ended *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ended) || !strings.Contains(ended.Error(), c.want.String()) {
			t.Errorf("%s: ended with %v, want %v", script, err, c.want)
		}
	}
	p, _ := sleeper(t, "trap '' TERM; echo up; exec cat")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.finish(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("finish under a context that ended: %v", err)
	}
}

func TestTheKeyedLock(t *testing.T) {
	var k keyed
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one waits beyond its context: %v", err)
	}
	if _, ok := k.try("a"); ok {
		t.Error("it was taken twice")
	}
	other, ok := k.try("b")
	if !ok {
		t.Fatal("another key is not free")
	}
	other()
	unlock()
	if again, ok := k.try("a"); !ok {
		t.Error("it was not given up")
	} else {
		again()
	}
	if len(k.locks) > 0 {
		t.Errorf("locks that nobody uses stay: %d", len(k.locks))
	}
}

// A log has an end, and who follows it misses nothing of what was written while it read.
func TestALogIsBounded(t *testing.T) {
	dir := t.TempDir()
	const limit = 10_000
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		keepLog(dir, in, limit)
	}()
	r := &logReader{dir: dir}
	defer func() { r.close() }()
	var got, want bytes.Buffer
	for i := range 5_000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if _, err := io.WriteString(out, line); err != nil {
			t.Fatal(err)
		}
		if i%500 == 0 {
			if err := r.copy(&got); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := r.copy(&got); err != nil {
		t.Fatal(err)
	}
	if got.String() != want.String() {
		t.Errorf("who followed has %d bytes of %d", got.Len(), want.Len())
	}
	for _, name := range []string{logFile, oldLog} {
		info, err := os.Stat(dir + "/" + name)
		if err != nil || info.Size() > limit {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	var late bytes.Buffer
	whole := &logReader{dir: dir}
	if err := whole.copy(&late); err != nil || !strings.HasSuffix(want.String(), late.String()) || late.Len() <= limit {
		t.Errorf("who comes late has %d bytes, %v", late.Len(), err)
	}
	whole.close()
}

func TestASandboxThatWritesWithoutEndHasItsShareOfTheDisk(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), sh("head -c 50000000 /dev/zero | tr '\\0' x; echo the end")).create()
	b.until("exited")
	if got := b.logs(false); len(got) > 2*maxLog || !strings.HasSuffix(got, "xthe end\n") {
		t.Errorf("the log has %d bytes", len(got))
	}
}

package host

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper is a process of the test's own; its script waits for the end of its input, which is the test's.
func sleeper(t *testing.T, script string) (Process, *exec.Cmd) {
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
	return ProcessOf(cmd.Process.Pid), cmd
}

// A pid that was given again is another process, and none of ours.
func TestAPIDThatWasGivenAgainIsNotTaken(t *testing.T) {
	p, _ := sleeper(t, "echo up; exec cat")
	other := Process{PID: p.PID, Start: p.Start + 1}
	if h, err := other.Hold(); h != nil || err != nil {
		t.Errorf("held as the other one: %v, %v", h, err)
	}
	if err := other.Finish(t.Context(), 0); err != nil {
		t.Errorf("finish: %v", err)
	}
	h, err := p.Hold()
	if h == nil || err != nil {
		t.Fatalf("the process that it was is gone: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestFinishTakesTheGraceAndThenKills(t *testing.T) {
	for script, c := range map[string]struct {
		grace time.Duration
		want  unix.Signal
	}{"echo up; exec cat": {time.Minute, unix.SIGTERM}, "trap '' TERM; echo up; exec cat": {50 * time.Millisecond, unix.SIGKILL}} {
		p, cmd := sleeper(t, script)
		if err := p.Finish(t.Context(), c.grace); err != nil {
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
	if err := p.Finish(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("finish under a context that ended: %v", err)
	}
}

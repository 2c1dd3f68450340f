package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo terminal and returns both its ends.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	return master, slave
}

// On a terminal the phase in hand is a live line that is wiped; elsewhere every phase is a plain line.
func TestWaitShowsProgress(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	create := func(name string) []string {
		return []string{"sandbox", "create", "--driver", "acme", "--name", name, "--wait", "--", "sleep", "600"}
	}
	master, slave := terminal(t)
	cmd := s.program(create("live")...)
	cmd.Stdout, cmd.Stderr = io.Discard, slave
	seen := make(chan string)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, master) // it ends with EIO when nobody has the other end open
		seen <- b.String()
	}()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	live := <-seen
	_, plain, code := s.run(create("plain")...)
	if code != 0 {
		t.Fatal(plain)
	}
	for _, phase := range []string{"before_create", "driver.create"} {
		if !strings.Contains(live, phase) || !strings.Contains(plain, phase) {
			t.Errorf("%s is not shown:\n%q\n%q", phase, live, plain)
		}
	}
	if !strings.Contains(live, "\r\x1b[K") || !strings.Contains(live, " …") {
		t.Errorf("no live line on a terminal: %q", live)
	}
	if strings.ContainsAny(plain, "\r\x1b") {
		t.Errorf("control characters where there is no terminal: %q", plain)
	}
	s.ok("sandbox", "delete", "live", "--wait")
	s.ok("sandbox", "delete", "plain", "--wait")
}

// Who interrupts a command that waits is told that the operation goes on, and how to look at it.
func TestAnInterruptedWaitSaysThatItGoesOn(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	s.ok("workspace", "ensure", "default", "--driver", "acme")
	var ipam struct{ PID int }
	if err := json.Unmarshal([]byte(s.ok("extension", "inspect", "ipam", "-o", "json")), &ipam); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(ipam.PID, unix.SIGSTOP); err != nil { // so that the create does not end before the command
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	var errs syncBuffer
	ended := make(chan int, 1)
	go func() {
		args := []string{"sandbox", "create", "--driver", "acme", "--name", "one", "--wait", "--", "sleep", "600"}
		ended <- Run(ctx, Env{Args: args, Stdout: io.Discard, Stderr: &errs, Getenv: s.getenv})
	}()
	s.until("the command follows the create", func() bool { return strings.Contains(errs.String(), "prepare_plan") })
	s.until("the create waits for ipam", func() bool { return strings.Contains(s.ok("operation", "list"), "before_create of ipam, for ") })
	interrupt()
	code := <-ended
	if err := unix.Kill(ipam.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code != exitFailure || !strings.Contains(errs.String(), "the operation goes on: see sandgate operation show 0") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	s.until("the create goes on", func() bool { return strings.Contains(s.ok("sandbox", "list"), "ready") })
	s.ok("sandbox", "delete", "one", "--wait")
}

// SIGTERM lets what is in flight end, refuses what is new, and the gateway exits with 0.
func TestSIGTERMDrains(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	gateway := s.startProcess(nil)
	s.ok("workspace", "ensure", "default", "--driver", "acme")
	ipam := s.pidOf("ipam")
	if err := unix.Kill(ipam, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	created := make(chan error, 1)
	go func() {
		_, errs, code := s.run("sandbox", "create", "--driver", "acme", "--name", "one", "--wait", "--", "sleep", "600")
		if code != 0 && !strings.Contains(errs, "driver.create") {
			created <- errors.New(errs)
			return
		}
		created <- nil
	}()
	s.until("the create is with ipam", func() bool {
		return strings.Contains(s.ok("operation", "list", "-o", "json"), `"before_create"`)
	})
	if err := gateway.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.until("new operations are refused", func() bool { // on a driver without ipam, which would not answer
		_, errs, code := s.run("workspace", "ensure", "other", "--driver", "native")
		return code == exitUnavailable && strings.Contains(errs, "stopping")
	})
	if err := unix.Kill(ipam, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err != nil {
		t.Errorf("the create in flight: %v", err)
	}
	if err := gateway.Wait(); err != nil {
		t.Errorf("the gateway ended with %v", err)
	}
	if err := unix.Kill(ipam, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("ipam is still there: %v", err)
	}
	s.start()
	if out := s.ok("sandbox", "get", "one"); !strings.Contains(out, "ready") {
		t.Errorf("the sandbox that was made while the gateway drained:\n%s", out)
	}
	if out := s.ok("sandbox", "history", "one"); strings.Count(out, "before_create") != 1 || !regexp.MustCompile(`create of one, .*: done`).MatchString(out) {
		t.Errorf("its create did not end before the gateway did:\n%s", out)
	}
	s.ok("sandbox", "delete", "one", "--wait")
}

func (s *site) pidOf(extension string) int {
	s.t.Helper()
	var pid int
	for _, line := range strings.Split(s.ok("extension", "inspect", extension), "\n") {
		if _, err := fmt.Sscanf(line, "PID: %d", &pid); err == nil {
			return pid
		}
	}
	s.t.Fatalf("extension %s has no process", extension)
	return 0
}

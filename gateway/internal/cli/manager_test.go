package cli

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The gateway as a service: it says when it serves, that it reloads and since when, that it goes on, and that it ends.
func TestServiceManager(t *testing.T) {
	s := newSite(t)
	s.write(s.talks(""))
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	hear := func() string {
		buf := make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(buf)
		if err != nil {
			t.Fatalf("the manager hears no more: %v", err)
		}
		return string(buf[:n])
	}
	next := func() string {
		for {
			if m := hear(); m != "WATCHDOG=1" {
				return m
			}
		}
	}
	cmd := s.program("gateway", "--dev", "--config", s.config())
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+l.LocalAddr().String(), "WATCHDOG_USEC=200000")
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if m := next(); !strings.HasPrefix(m, "READY=1\n") {
		t.Fatalf("first it hears %q", m)
	}
	s.ok("sandbox", "list") // it serves since it said so

	s.reloads(cmd, next, "serving configuration")
	s.write("driver \"native\" {\n  colour = \"red\"\n}\n")
	s.reloads(cmd, next, "the last reload was refused")

	for range 2 {
		if m := hear(); m != "WATCHDOG=1" {
			t.Errorf("while nothing happens it hears %q", m)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if m := next(); !strings.HasPrefix(m, "STOPPING=1\n") {
		t.Errorf("at the end it hears %q", m)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// reloads sends SIGHUP and listens as systemd does with Type=notify-reload: what counts is a RELOADING=1 that is not
// older than the signal, then READY=1.
func (s *site) reloads(cmd *exec.Cmd, next func() string, status string) {
	s.t.Helper()
	var sent unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &sent); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
	first, usec, _ := strings.Cut(next(), "\nMONOTONIC_USEC=")
	if n, err := strconv.ParseInt(usec, 10, 64); first != "RELOADING=1" || err != nil || n < sent.Nano()/1000 {
		s.t.Errorf("after SIGHUP it hears %q since %q, and the signal was sent at %d", first, usec, sent.Nano()/1000)
	}
	if m := next(); !strings.HasPrefix(m, "READY=1\n") || !strings.Contains(m, status) {
		s.t.Errorf("after the reload it hears %q", m)
	}
}

// The unit is one that systemd accepts, and names commands that this program has.
func TestUnit(t *testing.T) {
	raw, err := os.ReadFile("../../../scripts/sandgate.service")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, want := range []string{"KillMode=process", "Type=notify-reload", "WatchdogSec=", "Restart=on-failure", "OOMPolicy=continue",
		fmt.Sprintf("RestartPreventExitStatus=%d", exitConfig), "ExecStart=/usr/bin/sandgate gateway --config /etc/sandgate"} {
		if !strings.Contains(text, want+"\n") && !strings.Contains(text, "\n"+want) {
			t.Errorf("the unit lacks %s", want)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("there is no systemd-analyze here: the unit was read, and not verified")
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text = strings.ReplaceAll(text, "/usr/bin/sandgate", exe) // a program that is there
	about, err := exec.CommandContext(t.Context(), analyze, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var version int
	if _, err := fmt.Sscanf(string(about), "systemd %d", &version); err != nil {
		t.Fatalf("%q: %v", about, err)
	}
	for line, since := range map[string]int{"Type=notify-reload\n": 253, "DelegateSubgroup=gateway\n": 254} {
		if version < since {
			text = strings.ReplaceAll(text, line, "") // an older one says that it leaves the line out
		}
	}
	unit := filepath.Join(t.TempDir(), "sandgate.service")
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", unit).CombinedOutput()
	if said := strings.TrimSpace(string(out)); err != nil || strings.Contains(said, "sandgate.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, said)
	}
}

package daemon

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manager plays the service manager's side of NOTIFY_SOCKET.
func (s *site) manager() *net.UnixConn {
	s.t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	return l
}

// heard returns the next message, or "" where none comes in time.
func heard(t *testing.T, l *net.UnixConn, within time.Duration) string {
	t.Helper()
	buf := make([]byte, 4096)
	if err := l.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	n, err := l.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// The manager hears that the gateway goes on twice within each interval, and nothing while the engine hangs.
func TestWatchdog(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write("", "")
	l := s.manager()
	const interval = 400 * time.Millisecond
	hang := make(chan chan struct{}, 1) // has what the engine waits for
	s.startWith(func(o *Options) {
		o.Manager = Manager{Socket: l.LocalAddr().String(), Watchdog: interval}
		o.between.alive = func(alive func()) func() {
			return func() {
				select {
				case gate := <-hang:
					<-gate
				default:
				}
				alive()
			}
		}
	})
	if m := heard(t, l, 10*time.Second); !strings.HasPrefix(m, "READY=1\nSTATUS=serving configuration ") {
		t.Fatalf("first it hears %q", m)
	}
	for range 3 {
		if m := heard(t, l, 10*interval); m != "WATCHDOG=1" {
			t.Fatalf("it hears %q", m)
		}
	}
	gate := make(chan struct{})
	hang <- gate
	for n := 0; heard(t, l, 3*interval) != ""; n++ {
		if n > 3 { // some was on its way
			t.Fatal("the engine hangs, and it hears on that all is well")
		}
	}
	close(gate)
	if m := heard(t, l, 10*time.Second); m != "WATCHDOG=1" {
		t.Errorf("after it hung it hears %q", m)
	}
	s.end()
	last := ""
	for m := heard(t, l, interval); m != ""; m = heard(t, l, interval) {
		if m != "WATCHDOG=1" {
			last = m
		}
	}
	if !strings.HasPrefix(last, "STOPPING=1\n") {
		t.Errorf("in the end it hears %q", last)
	}
}

func TestManagerOf(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want Manager
	}{
		"nobody":          {},
		"a manager":       {map[string]string{"NOTIFY_SOCKET": "@x"}, Manager{Socket: "@x"}},
		"with a watchdog": {map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": strconv.Itoa(7)}, Manager{"/n", 3 * time.Second}},
		"another's":       {map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, Manager{Socket: "/n"}},
		"nonsense":        {map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, Manager{Socket: "/n"}},
	} {
		if got := ManagerOf(func(k string) string { return c.env[k] }, 7); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

// ports are the machine's serial ports. One that it does not have is nil, and swallows what is written to it.
type ports struct {
	events, log, control *os.File
}

// openPorts finds the ports. The driver has given them before the machine was turned on; the kernel may need a moment.
func openPorts() *ports {
	found := map[string]*os.File{}
	appear(func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, at := range names {
			raw, err := os.ReadFile(at)
			name := strings.TrimSpace(string(raw))
			if err != nil || found[name] != nil {
				continue
			}
			// Not through the runtime's poller: a write returns only when the host has it.
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(at)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				found[name] = os.NewFile(uintptr(fd), name)
			}
		}
		return found[guest.EventPort] != nil && found[guest.LogPort] != nil && found[guest.ControlPort] != nil
	})
	for _, name := range []string{guest.EventPort, guest.LogPort, guest.ControlPort} {
		if found[name] == nil {
			console("there is no port %s", name)
		}
	}
	return &ports{found[guest.EventPort], found[guest.LogPort], found[guest.ControlPort]}
}

// patience is how long a host may take to show a device, or to read what a machine has to say at its end.
const patience = 30 * time.Second

// appear waits until something is there, and reports whether it is.
func appear(there func() bool) bool {
	for end := time.Now().Add(patience); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// say writes an event.
func (m *machine) say(e guest.Event) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err == nil {
		e.Uptime = up.Nano() / int64(time.Millisecond)
	}
	e.Run = m.run
	console("%s %s %s", e.Type, e.Reason, e.Message)
	if m.events == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = m.events.Write(guest.Line(e)) // there is nobody else to tell
	}()
	select {
	case <-done:
	case <-time.After(patience):
	}
}

// orders reads what the driver wants. While nobody is at the other end, a port is at its end.
func (p *ports) orders(stop func(guest.Stop)) {
	if p.control == nil {
		return
	}
	var lines guest.Lines
	piece := make([]byte, 4096)
	for {
		n, err := p.control.Read(piece)
		lines.Add(piece[:n], func(line []byte) {
			o, err := guest.ParseOrder(line)
			if err != nil {
				console("an order: %v", err)
				return
			}
			stop(*o.Stop)
		})
		if n == 0 || err != nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// output is a pipe for what is run, and who copies from it to the log.
type output struct {
	in   *os.File
	done sync.WaitGroup
}

// output makes it. A program may open its own standard output anew, so that belongs to its user.
func (m *machine) output(who *user) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if err := w.Chown(who.uid, who.gid); err != nil {
		return nil, err
	}
	o := &output{in: w}
	o.done.Go(func() {
		to := io.Discard
		if m.log != nil {
			to = m.log
		}
		_, _ = io.Copy(to, r)
	})
	return o, nil
}

// close waits until what was written has reached the host. Whoever could write has ended.
func (o *output) close() {
	_ = o.in.Close()
	done := make(chan struct{})
	go func() { o.done.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
	}
}

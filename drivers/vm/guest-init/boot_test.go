package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/drivers/vm/vmtest"
)

// bench is what machines of these tests are booted from.
type bench struct {
	*testing.T
	dir, kernel, initramfs, root, disk string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	vmtest.Need(t)
	b := &bench{T: t, dir: t.TempDir()}
	s, err := image.Open(filepath.Join(b.dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if b.kernel, err = s.Kernel(t.Context(), vmtest.Kernel); err != nil {
		t.Fatal(err)
	}
	if b.initramfs, err = s.Initramfs(t.Context(), vmtest.Init(t, b.dir), vmtest.Modules); err != nil {
		t.Fatal(err)
	}
	root, err := s.Root(t.Context(), vmtest.Image(t, b.dir))
	if err != nil {
		t.Fatal(err)
	}
	b.root, b.disk = root.Path, filepath.Join(b.dir, "disk")
	if err := image.Disk(t.Context(), b.disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	return b
}

// machine is one that was turned on.
type turnedOn struct {
	*bench
	dir  string
	qemu *exec.Cmd
	done chan error
}

// boot turns a machine on, without KVM, whatever this host has.
func (b *bench) boot(c *guest.Config) *turnedOn {
	b.Helper()
	m := &turnedOn{bench: b, dir: b.TempDir(), done: make(chan error, 1)}
	initrd, err := os.ReadFile(b.initramfs)
	if err != nil {
		b.Fatal(err)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	own := bytes.NewBuffer(initrd)
	if err := image.WriteCPIO(own, []image.File{{Name: guest.ConfigPath[1:], Mode: 0o600, Contents: raw}}); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(m.dir+"/initrd", own.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	args := strings.Fields(fmt.Sprintf(`-M microvm -accel tcg -m 128 -smp 1 -nodefaults -no-user-config -display none -no-reboot
		-kernel %[1]s -initrd %[2]s/initrd -serial file:%[2]s/console -device virtio-serial-device
		-chardev file,id=events,path=%[2]s/events -device virtserialport,chardev=events,name=sandgate.events
		-chardev file,id=log,path=%[2]s/log -device virtserialport,chardev=log,name=sandgate.log
		-chardev socket,id=control,path=%[2]s/control,server=on,wait=off -device virtserialport,chardev=control,name=sandgate.control
		-drive id=d0,file=%[3]s,format=raw,if=none,readonly=on -drive id=d1,file=%[4]s,format=raw,if=none
		-netdev user,id=n0,restrict=on -device virtio-net-device,netdev=n0,mac=52:54:00:00:00:01`, b.kernel, m.dir, b.root, b.disk))
	for _, disk := range []string{"d0", "d1"} {
		args = append(args, "-device", "virtio-blk-device,drive="+disk)
	}
	args = append(args, "-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 tsc_early_khz=%d", khz(b.T)))
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	var said bytes.Buffer
	m.qemu.Stderr = &said
	if err := m.qemu.Start(); err != nil {
		b.Fatal(err)
	}
	go func() {
		err := m.qemu.Wait()
		if said.Len() > 0 {
			err = fmt.Errorf("%w: %s", err, said.String())
		}
		m.done <- err
	}()
	b.Cleanup(func() { _ = m.qemu.Process.Kill() })
	return m
}

// khz is the speed of this host's clock. A machine that has to find it out itself may hang on a busy host.
func khz(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "cpu MHz"); ok {
			var mhz float64
			if _, err := fmt.Sscan(strings.Trim(value, "\t: \n"), &mhz); err == nil {
				return int(mhz * 1000)
			}
		}
	}
	t.Fatal("/proc/cpuinfo does not say how fast the clock is")
	return 0
}

func (m *turnedOn) read(name string) string {
	raw, _ := os.ReadFile(filepath.Join(m.dir, name)) // not there yet
	return string(raw)
}

// events returns what the machine has said of itself.
func (m *turnedOn) events() (all []guest.Event) {
	m.Helper()
	var l guest.Lines
	l.Add([]byte(m.read("events")), func(line []byte) {
		e, err := guest.ParseEvent(line)
		if err != nil {
			m.Fatal(err)
		}
		all = append(all, e)
	})
	return all
}

// until waits for what the log has to have.
func (m *turnedOn) until(text string) {
	m.Helper()
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(m.read("log"), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.Fatalf("the log has no %q\n%s\n%s\n%s", text, m.read("log"), m.read("events"), m.read("console"))
		}
	}
}

// ended waits until the machine is off, and returns its last event.
func (m *turnedOn) ended() guest.Event {
	m.Helper()
	select {
	case err := <-m.done:
		if err != nil {
			m.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		m.Fatalf("the machine is still on\n%s\n%s", m.read("events"), m.read("console"))
	}
	all := m.events()
	if len(all) == 0 {
		m.Fatalf("the machine has said nothing\n%s", m.read("console"))
	}
	m.Logf("%+v", all)
	return all[len(all)-1]
}

func (m *turnedOn) stop(grace time.Duration) {
	m.Helper()
	c, err := net.Dial("unix", m.dir+"/control")
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write(guest.Line(guest.Order{Stop: &guest.Stop{Grace: grace.Milliseconds()}})); err != nil {
		m.Fatal(err)
	}
}

func script(lines ...string) []byte {
	return []byte("#!/bin/sh\n" + strings.Join(lines, "\n") + "\n")
}

// A machine runs its drop-ins in order, then its command, with everything that its configuration says; what it writes
// is there at the next start, and it ends with the command's code.
func TestAMachineLives(t *testing.T) {
	b := newBench(t)
	c := &guest.Config{Run: 7, Hostname: "box-1", User: "worker", Directory: "/work", PIDs: 64, Token: []byte("t0ken"),
		Environment: map[string]string{"GREETING": "good morning"},
		Network:     &guest.Network{MAC: "52:54:00:00:00:01", Addresses: []string{"10.80.1.2/24"}, Gateway: "10.80.1.1", Nameservers: []string{"10.80.1.1"}},
		DropIns: []guest.DropIn{
			{Name: "50-b", Contents: script("echo drop-in b, $(cat /run/order), $GREETING")},
			{Name: "10-a", Contents: script("echo after a > /run/order", "(sleep 1; echo orphan of a) &", "id -u")}},
		Command: []string{"sh", "-c", `id -u; id -g; pwd; hostname; echo "$GREETING from $HOME"; cat $SANDGATE_TOKEN_FILE; echo
			cat /etc/resolv.conf; ip addr; ip route; cat /proc/self/cgroup; ls -ln $SANDGATE_TOKEN_FILE; ls /sandgate /config.json; echo noted > note
			date; mount; sleep 2; echo to-stderr >/dev/stderr; exit 42`}}
	m := b.boot(c)
	last := m.ended()
	if last.Type != guest.Exit || last.Code != 42 || last.Run != 7 {
		t.Errorf("it ended with %+v", last)
	}
	log := m.read("log")
	for _, want := range []string{"0\ndrop-in b, after a, good morning\n1000\n1000\n/work\nbox-1\ngood morning from /work\nt0ken\n", "nameserver 10.80.1.1\n",
		"inet 10.80.1.2/24", "default via 10.80.1.1", "0::/sandbox\n", "-r-------- ", "orphan of a\n", "to-stderr\n", "overlay on / type overlay"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q", want)
		}
	}
	var types []guest.Happening
	for _, e := range m.events() {
		types = append(types, e.Type)
	}
	if fmt.Sprint(types) != "[init ready exit]" {
		t.Errorf("events: %v", types)
	}
	if t.Failed() {
		t.Logf("%s\n%s", log, m.read("console"))
	}

	c = &guest.Config{Run: 8, Hostname: "box-1", Directory: "/work",
		Command: []string{"sh", "-c", "trap 'echo told to stop; exit 3' TERM; cat note; while :; do sleep 0.1; done"}}
	m = b.boot(c)
	m.until("noted")
	m.stop(time.Minute)
	if last := m.ended(); last.Type != guest.Exit || last.Code != 3 || last.Run != 8 || !strings.Contains(m.read("log"), "told to stop") {
		t.Errorf("a second run ended with %+v\n%s", last, m.read("log"))
	}
}

// A drop-in that fails fails the boot, before the command, and says why. So does what cannot be executed.
func TestWhatCannotBegin(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name, reason, message string
		config                guest.Config
	}{
		{"a drop-in fails", guest.DropInFailed, "drop-in 20-bad: it ended with 7", guest.Config{Command: []string{"/bin/echo", "the command ran"},
			DropIns: []guest.DropIn{{Name: "20-bad", Contents: script("exit 7")}, {Name: "30-next", Contents: script("echo the next ran")}}}},
		{"no such command", guest.CommandFailed, `the command "/bin/nothing" cannot be executed: no such file`, guest.Config{Command: []string{"/bin/nothing"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.T = t
			c.config.Hostname = "box"
			m := b.boot(&c.config)
			last := m.ended()
			if last.Type != guest.Failed || last.Reason != c.reason || !strings.Contains(last.Message, c.message) || strings.Contains(m.read("log"), "ran") {
				t.Errorf("it ended with %+v\n%s", last, m.read("log"))
			}
		})
	}
}

// A command that does not heed SIGTERM is killed after its grace, and so is a drop-in.
func TestStopDoesNotWaitForEver(t *testing.T) {
	b := newBench(t)
	deaf := "trap '' TERM; echo running; while :; do sleep 1; done"
	for name, config := range map[string]guest.Config{
		"command": {Command: []string{"sh", "-c", deaf}},
		"drop-in": {Command: []string{"true"}, DropIns: []guest.DropIn{{Name: "deaf", Contents: script(deaf)}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := *b
			b.T = t
			config.Hostname = "box"
			m := b.boot(&config)
			m.until("running")
			m.stop(300 * time.Millisecond)
			want := 137
			if name == "drop-in" {
				want = 143
			}
			if last := m.ended(); last.Type != guest.Exit || last.Code != want {
				t.Errorf("it ended with %+v", last)
			}
		})
	}
}

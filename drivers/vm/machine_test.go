package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
)

// A life as an extension shapes it: drop-ins run in the order of their names, the command has its variables and its
// token, and the address in the guest is the one that was leased. No secret is in a file of the host.
func TestTheGuestIsAsThePlanSays(t *testing.T) {
	for _, network := range []string{NetworkUser, NetworkTAP} {
		if network == NetworkTAP && os.Geteuid() != 0 {
			continue // an ordinary user makes no TAPs
		}
		t.Run(network, func(t *testing.T) {
			k := newKit(t, func(c *Config) { c.Network = network })
			w := k.workspace("10.203.18.0/24")
			script := `trap 'exit 7' TERM; echo "$SECRET $GIVEN $(cat $SANDGATE_TOKEN_FILE) $(hostname)"; ip -4 -o addr show dev eth0; cat /work/order; while :; do sleep 1; done`
			b := k.plan(w, sh(script), withMain("guest_ip", "10.203.18.7/24", "environment", fields("GIVEN", "by-an-extension")),
				dropIn("50-b.sh", "#!/bin/sh\necho b >>/work/order\n"), dropIn("10-a.sh", "#!/bin/sh\nmkdir -p /work; echo a >/work/order\n")).create()
			st := b.until(driver.Ready)
			if len(st.Addresses) != 1 || st.Addresses[0] != "10.203.18.7" {
				t.Errorf("addresses: %v", st.Addresses)
			}
			other := k.plan(w, sh("true"), withMain("guest_ip", "10.203.18.7/24"))
			if err := k.d.Create(t.Context(), other.CreateRequest); err == nil || !strings.Contains(err.Error(), "another sandbox's") {
				t.Errorf("a second one with the address: %v", err)
			}
			b.says("a\nb\n")
			if err := k.d.Stop(t.Context(), b.Identity); err != nil {
				t.Fatal(err)
			}
			if st := b.until(driver.Stopped); st.ExitCode == nil || *st.ExitCode != 7 || len(st.Addresses) > 0 {
				t.Errorf("stopped as %+v", st)
			}
			for _, want := range []string{"s3cret by-an-extension t0ken box\n", "inet 10.203.18.7/24", "a\nb\n"} {
				if got := b.logs(); !strings.Contains(got, want) {
					t.Errorf("it has written %q, want %q in it", got, want)
				}
			}
			files, err := filepath.Glob(filepath.Join(k.d.dir(b.Identity.ID), "*"))
			if err != nil || len(files) == 0 {
				t.Fatal(err)
			}
			for _, f := range files {
				name := filepath.Base(f)
				raw, err := os.ReadFile(f)
				if name == diskFile || name == "log" || err != nil { // what the guest itself wrote, and sockets
					continue
				}
				for _, secret := range []string{"s3cret", "t0ken"} {
					if bytes.Contains(raw, []byte(secret)) {
						t.Errorf("%s holds the secret %s", name, secret)
					}
				}
			}
		})
	}
}

// However a machine ends, that is an exit, with what is known of it.
func TestHowAMachineEnds(t *testing.T) {
	k := newKit(t)
	for _, c := range []struct {
		name, script string
		more         []string // drop-ins
		do           func(b *box)
		reason, says string
		code         int // -1: not known
	}{
		{name: "its kernel panics", script: "sleep 1; echo c >/proc/sysrq-trigger; sleep 60", reason: "GuestPanicked", says: "Kernel panic", code: -1},
		{name: "QEMU is killed", script: "sleep 600", do: func(b *box) {
			b.until(driver.Ready)
			if err := b.qemu().Finish(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}, reason: "MachineKilled", says: "QEMU ended", code: 137},
		{name: "a drop-in fails", script: "true", more: []string{"#!/bin/sh\necho it is broken\nexit 3\n"}, reason: "DropInFailed", says: "10-a.sh", code: -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := k.plan(nil, sh(c.script))
			for i, text := range c.more {
				layers, err := k.d.Layers(t.Context(), &driver.Request{Identity: b.Identity})
				b.Plan = k.compute(layers, err, dropIn(fmt.Sprintf("%d0-a.sh", i+1), text), withMain("command", list(sh(c.script)...)))
			}
			b.create()
			if c.do != nil {
				c.do(b)
			}
			st := b.until(driver.Exited)
			code := -1
			if st.ExitCode != nil {
				code = *st.ExitCode
			}
			if st.Reason != c.reason || !strings.Contains(st.Message, c.says) || code != c.code {
				t.Errorf("it ended as %s (%s), code %d; want %s, %d", st.Reason, st.Message, code, c.reason, c.code)
			}
		})
	}
}

// What the console of an earlier run shows is not how the next one ended.
func TestAPanicIsOfItsRun(t *testing.T) {
	b := newKit(t).plan(nil, sh("[ -e /once ] && exec sleep 600; touch /once; sync; echo c >/proc/sysrq-trigger; sleep 60")).create()
	if st := b.until(driver.Exited); st.Reason != "GuestPanicked" {
		t.Fatalf("the first run ended as %s (%s)", st.Reason, st.Message)
	}
	if err := b.d.Start(t.Context(), &driver.StartRequest{Identity: b.Identity, Operation: b.Operation, Run: 2, Plan: b.Plan}); err != nil {
		t.Fatal(err)
	}
	b.until(driver.Ready)
	if err := b.qemu().Finish(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if st := b.until(driver.Exited); st.Reason != "MachineKilled" {
		t.Errorf("the second run, whose QEMU was killed, ended as %s (%s)", st.Reason, st.Message)
	}
}

// A machine that writes without end has its share of the disk, and who comes late still reads its last words.
func TestALogIsBounded(t *testing.T) {
	k := newKit(t)
	b := k.plan(nil, sh(`i=0; while [ $i -lt 26 ]; do head -c 1000000 /dev/zero | tr '\0' x; echo; i=$((i+1)); done; echo the end`)).create()
	b.until(driver.Exited)
	if got := b.logs(); !strings.HasSuffix(got, "the end\n") {
		t.Errorf("the log has %d bytes and ends with %q", len(got), got[max(0, len(got)-20):])
	}
	for _, name := range []string{"log", "log.1"} { // it has grown on while it was begun anew
		if info, err := os.Stat(b.d.file(b.Identity.ID, name)); err != nil || info.Size() > 2*maxLog {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// Where KVM cannot run a machine, one is emulated, and a configuration that insists says why it cannot be.
func TestKVMIsTriedBeforeItIsUsed(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Accel = AccelAuto })
	k.d.trialTime = 3 * time.Second // this host may have a KVM in which nothing happens
	accel, err := k.d.accelerator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("machines run on %s here", accel)
	if accel == AccelKVM {
		return
	}
	k.d.cfg.Accel, k.d.decided = AccelKVM, ""
	if _, err := k.d.accelerator(t.Context()); err == nil || !strings.Contains(err.Error(), "KVM does not work") {
		t.Errorf("it says %v", err)
	}
	entries, err := os.ReadDir(k.d.sandboxes())
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

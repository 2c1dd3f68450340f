package vm

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// marked is a process that bears marks as a QEMU does, and waits for the end of its input, which is the test's.
func marked(t *testing.T, marks string) *host.Held {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read x", "-name", marks)
	_, failed := cmd.StdinPipe()
	if err := errors.Join(failed, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	h, err := host.ProcessOf(cmd.Process.Pid).Hold()
	if h == nil || err != nil {
		t.Fatalf("it has ended: %v", err)
	}
	t.Cleanup(func() { _ = errors.Join(cmd.Process.Kill(), h.Close()) })
	return h
}

// An id is a driver's own: what another driver of the host has under it is left alone, by Stop and by Delete.
func TestAnotherDriversMachineIsLeftAlone(t *testing.T) {
	k, other := newKit(t), newKit(t)
	id := sandbox.Identity{ID: "job-1", Driver: "vm"}
	theirs, ours := marked(t, other.d.marks(id.ID, "op")), marked(t, k.d.marks(id.ID, "op"))
	if err := errors.Join(k.d.Stop(t.Context(), id), k.d.Delete(t.Context(), &driver.DeleteRequest{Identity: id, Operation: "op"})); err != nil {
		t.Fatal(err)
	}
	if !ours.Ended() {
		t.Error("a machine whose directory is gone was not ended")
	}
	if theirs.Ended() {
		t.Error("the machine of another driver was ended")
	}
}

// A trial of KVM that a gateway did not live to end is ended by the next one.
func TestATrialDoesNotOutliveItsGateway(t *testing.T) {
	k := newKit(t)
	name := trialPrefix + "123"
	if err := os.Mkdir(k.d.dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	trial := marked(t, k.d.marks(name, trialOperation))
	if _, err := Open(k.d.cfg); err != nil {
		t.Fatal(err)
	}
	if !trial.Ended() {
		t.Error("it goes on")
	}
	if _, err := os.Stat(k.d.dir(name)); err == nil {
		t.Error("its directory is there")
	}
}

package main

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/sandbox"
)

func TestConformance(t *testing.T) {
	place := func(tb testing.TB) func() (driver.Driver, error) {
		dir := filepath.Join(tb.TempDir(), "data")
		return func() (driver.Driver, error) { return open(dir, &settings{StopTimeout: "300ms"}) }
	}
	drivertest.Lifecycle(t, drivertest.Factory{Place: place, Commands: drivertest.Shell()})
}

// A program that died between the start of a command and its note finds the command again, and makes no second one.
func TestWhatWasBegunAndNotNotedIsFound(t *testing.T) {
	p, err := open(t.TempDir(), &settings{StopTimeout: "300ms"})
	if err != nil {
		t.Fatal(err)
	}
	n := &note{Identity: sandbox.Identity{ID: "one"}, Operation: "op", Run: 1}
	if err := errors.Join(p.write(n), p.begin(n, command{Command: []string{"/bin/sleep", "600"}})); err != nil {
		t.Fatal(err)
	}
	first := n.PID
	n.PID = 0
	if err := p.write(n); err != nil {
		t.Fatal(err)
	}
	if err := p.begin(n, command{Command: []string{"/bin/sleep", "600"}}); err != nil || n.PID != first {
		t.Errorf("it is process %d, and %d was begun: %v", n.PID, first, err)
	}
	n.PID = 0
	if err := errors.Join(p.write(n), p.Delete(t.Context(), &driver.DeleteRequest{Identity: n.Identity, Operation: "op"})); err != nil {
		t.Fatal(err)
	}
	if born(first) != "" {
		t.Error("the process outlives its sandbox")
	}
}

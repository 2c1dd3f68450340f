package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// workloadChecks are about what runs in a sandbox.
func workloadChecks() []check {
	var checks []check
	for _, code := range []int{0, 1, 42} {
		checks = append(checks, check{name: fmt.Sprintf("Exit code %d is reported", code), run: func(r *rig) { exitCode(r, code) }})
	}
	logs := []string{"logs"}
	return append(checks,
		check{name: "What has exited is not run again by itself", run: exitedStays},
		check{name: "An exit is told to who watches", run: exitWatched},
		check{name: "An exit is found by a driver opened again", run: exitKept},
		check{name: "An exit while no driver was open is found", when: func(f *Factory) bool { return f.Commands.ExitLater != nil }, run: exitUnwatched},
		check{name: "What has exited is started again", run: exitedStarts},
		check{name: "Delete leaves nothing of what has exited", run: exitedDeleted},
		check{name: "A command gets its arguments as they were written", needs: logs, run: arguments},
		check{name: "Logs are kept over the end and over a restart", needs: logs, run: logsKept},
		check{name: "Logs followed end with the sandbox", needs: logs, run: logsFollowed},
		check{name: "Logs followed end with their context", needs: logs, run: logsCancelled},
		check{name: "Logs of nothing are NotFound", needs: logs, run: logsOfNothing},
		check{name: "The request's environment reaches the command", needs: logs, run: environmentAsked},
		check{name: "A contributed environment reaches the command", needs: []string{"logs", "environment"}, run: environmentContributed},
		check{name: "The work directory is kept over Stop and Start", needs: logs, run: workKept},
		check{name: "The work directory goes with the sandbox", needs: logs, run: workGone},
	)
}

func exitCode(r *rig, code int) {
	s := r.sandbox(r.workspace("tenant"), "exits", r.f.Commands.Exit(code))
	s.create()
	s.exited(1, code)
}

// exited waits for the end of a run and checks how it ended.
func (s *subject) exited(run, code int) *driver.Status {
	s.rig.Helper()
	st := s.rig.await(s.id, s.id.Name+" to exit", func(st *driver.Status) bool { return st.State == driver.Exited && st.Run == run })
	if st == nil {
		s.rig.Fatalf("run %d of %s did not end: it is %s", run, s.id.Name, s.get().State)
	}
	for _, look := range []*driver.Status{st, s.get()} {
		if look.ExitCode == nil || *look.ExitCode != code {
			s.rig.Errorf("exit code is %s, want %d", number(look.ExitCode), code)
		}
	}
	return st
}

func number(n *int) string {
	if n == nil {
		return "not known"
	}
	return fmt.Sprint(*n)
}

func exitedStays(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "counts", r.f.Commands.Count)
	s.create()
	before := s.exited(1, 0)
	if err := r.d.Create(r.Context(), s.creation()); err != nil {
		r.Fatalf("Create again: %v", err)
	}
	s.stop()
	if diff := cmp.Diff(before, s.get(), settled()); diff != "" {
		r.Errorf("the sandbox was changed (-before +after):\n%s", diff)
	}
}

func exitWatched(r *rig) {
	w := r.workspace("tenant")
	v := r.watch()
	v.snapshot()
	s := r.sandbox(w, "exits", r.f.Commands.Exit(3))
	s.create()
	v.becomes(s, driver.Exited)
}

func exitKept(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "exits", r.f.Commands.Exit(7))
	s.create()
	s.exited(1, 7)
	r.restart()
	s.exited(1, 7)
}

func exitUnwatched(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "exits", r.f.Commands.ExitLater(9))
	s.create()
	r.restart()
	s.exited(1, 9)
}

func exitedStarts(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "exits", r.f.Commands.Exit(5))
	s.create()
	s.exited(1, 5)
	s.start(2)
	s.exited(2, 5)
}

func exitedDeleted(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "exits", r.f.Commands.Exit(0))
	s.create()
	s.exited(1, 0)
	s.delete()
	nothingMade(r, s)
}

// logs returns what the sandbox has written.
func (s *subject) logs() string {
	s.rig.Helper()
	var out bytes.Buffer
	if err := s.rig.logger().Logs(s.rig.Context(), s.id, false, &out); err != nil {
		s.rig.Fatalf("Logs of %s: %v", s.id.Name, err)
	}
	return out.String()
}

// writes runs the command to its end and checks what it has written.
func (s *subject) writes(want string) {
	s.rig.Helper()
	s.create()
	s.exited(1, 0)
	if diff := cmp.Diff(want, s.logs()); diff != "" {
		s.rig.Errorf("what %s has written (-want +got):\n%s", s.id.Name, diff)
	}
}

func arguments(r *rig) {
	text := `two  words, "quotes", $HOME, 'single' \n and ünïcode`
	r.sandbox(r.workspace("tenant"), "echoes", r.f.Commands.Echo(text)).writes(text + "\n")
}

func logsKept(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "echoes", r.f.Commands.Echo("once"))
	s.writes("once\n")
	r.restart()
	if got := s.logs(); got != "once\n" {
		r.Errorf("after the driver was opened again the logs are %q", got)
	}
	s.start(2)
	s.exited(2, 0)
	if got := s.logs(); !strings.HasSuffix(got, "once\n") {
		r.Errorf("after the second run the logs are %q", got)
	}
}

func logsFollowed(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "sleeper", r.f.Commands.Sleep)
	s.ready()
	ctx, cancel := context.WithTimeout(r.Context(), r.f.Patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.logger().Logs(ctx, s.id, true, &bytes.Buffer{}) }()
	s.stop()
	if err := <-ended; err != nil {
		r.Errorf("Logs ended with %v", err)
	}
}

func logsCancelled(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "sleeper", r.f.Commands.Sleep)
	s.ready()
	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.logger().Logs(ctx, s.id, true, &bytes.Buffer{}) }()
	cancel()
	if err := <-ended; err == nil {
		r.Error("Logs ended without an error, though its context was cancelled")
	}
}

func logsOfNothing(r *rig) {
	s := r.sleeper()
	err := r.logger().Logs(r.Context(), s.id, false, &bytes.Buffer{})
	r.wantCode("Logs", err, fault.NotFound)
}

func environmentAsked(r *rig) {
	r.sandbox(r.workspace("tenant"), "prints", r.f.Commands.Printenv(secretName)).writes(secretValue + "\n")
}

func environmentContributed(r *rig) {
	given := setting{"environment", map[string]any{"CONFORMANCE_GIVEN": "by an extension"}}
	r.sandbox(r.workspace("tenant"), "prints", r.f.Commands.Printenv("CONFORMANCE_GIVEN"), given).writes("by an extension\n")
}

func workKept(r *rig) {
	s := r.sandbox(r.workspace("tenant"), "counts", r.f.Commands.Count)
	s.writes("1\n")
	for run := 2; run <= 3; run++ {
		s.start(run)
		s.exited(run, 0)
		if got, want := s.logs(), fmt.Sprintf("%d\n", run); !strings.HasSuffix(got, want) {
			r.Errorf("run %d has written %q, want it to end with %q", run, got, want)
		}
	}
}

func workGone(r *rig) {
	w := r.workspace("tenant")
	s := r.sandbox(w, "counts", r.f.Commands.Count)
	s.writes("1\n")
	s.delete()
	r.sandbox(w, "counts", r.f.Commands.Count).writes("1\n")
}

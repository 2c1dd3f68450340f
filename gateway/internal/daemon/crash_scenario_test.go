package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// called is one call that a gateway made.
type called struct {
	phase, extension, key string
	number                int
	cause                 string
}

// calls returns what was called since the last time, of the phases of sandboxes.
func (r *ruin) calls(about string) []called {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join(r.dir, "calls"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []called
	for _, line := range strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n") {
		f := strings.Split(line, " ")
		n, err := strconv.Atoi(f[4])
		if err != nil {
			r.t.Fatalf("%q: %v", line, err)
		}
		if f[0] == about {
			out = append(out, called{phase: f[1], extension: f[2], key: f[3], number: n, cause: f[5]})
		}
	}
	return out
}

func of(list []called, extension string, phases ...string) (out []called) {
	for _, c := range list {
		for _, p := range phases {
			if c.phase == p && c.extension == extension {
				out = append(out, c)
			}
		}
	}
	return out
}

// readyRuin makes a site with a sandbox that runs.
func readyRuin(t *testing.T) *ruin {
	t.Helper()
	r := newRuin(t)
	r.boot()
	r.must("settle")
	r.sandbox++
	r.must("create", r.name, r.id())
	r.must("settle")
	r.check("the create")
	return r
}

// leave ends a scenario: everything is deleted, and nothing is left.
func (r *ruin) leave() {
	r.t.Helper()
	if a := r.must("state", r.id()); a.State != "deleted" && a.State != "absent" {
		r.must("delete", r.id())
	}
	r.must("delete-workspace", r.name)
	r.must("settle")
	r.check("the end of the scenario")
	r.end()
}

// pause lets the witness wait in a phase, until resume.
func (r *ruin) pause(phase, how string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "witness/pause"), []byte(phase+" "+how), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ruin) resume() {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, "witness/pause")); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ruin) paused() {
	r.until("the witness waits", func() bool { return exists(filepath.Join(r.dir, "witness/paused")) })
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (r *ruin) until(what string, ok func() bool) {
	r.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-limit.C:
			r.t.Fatalf("it does not come to this: %s\n%s", what, r.logs())
		}
	}
}

// becomes waits for a state of the sandbox, and returns its exit code.
func (r *ruin) becomes(state string) int {
	r.t.Helper()
	var a said
	r.until("the sandbox is "+state, func() bool {
		a = r.must("state", r.id())
		return a.State == state
	})
	r.must("settle")
	return a.Count
}

// The gateway dies between before_start's answer and its commit.
func TestRealScenario01(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.boot()
	r.must("settle")
	r.sandbox++
	r.must("arm", "call", "after", "1", "before_start of witness")
	if _, alive := r.tell("create", r.name, r.id()); alive {
		t.Fatal("the gateway was not killed")
	}
	r.boot()
	r.becomes("ready")
	r.check("the restart")
	all := r.calls(r.id())
	started := of(all, "witness", "before_start")
	if len(started) != 2 || started[0].key != started[1].key || started[1].number != started[0].number+1 {
		t.Errorf("before_start: %+v; want the same key and the next number", started)
	}
	for _, x := range []string{"ipam", "witness"} {
		if n := len(of(all, x, "before_create")); n != 1 {
			t.Errorf("before_create of %s was called %d times", x, n)
		}
	}
	if n := len(of(all, "witness", "prepare_plan", "validate_request")); n != 2 {
		t.Errorf("%d pure calls, want each once", n)
	}
	r.leave()
}

// before_create runs past its deadline and allocates later: the release is served after it.
func TestRealScenario03(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.timeout = "300ms"
	r.configure()
	r.boot()
	r.must("settle")
	r.sandbox++
	r.pause("before_create", "late")
	if a, alive := r.tell("create", r.name, r.id()); !alive || a.Error == "" {
		t.Fatalf("alive %t, %q", alive, a.Error)
	}
	r.resume()
	r.becomes("deleted")
	all := r.calls(r.id())
	began, undone := of(all, "witness", "before_create"), of(all, "witness", "on_create_failed")
	if len(began) == 0 || len(undone) == 0 || undone[0].number <= began[len(began)-1].number {
		t.Errorf("before_create %+v, on_create_failed %+v; want higher numbers", began, undone)
	}
	r.check("the late before_create")
	r.leave()
}

// A delete while before_create is running.
func TestRealScenario07(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.boot()
	r.must("settle")
	r.sandbox++
	r.pause("before_create", "until")
	r.must("begin", r.name, r.id(), "the-name")
	r.paused()
	r.must("delete", r.id())
	r.resume()
	r.becomes("deleted")
	all := r.calls(r.id())
	if len(of(all, "witness", "on_create_failed")) != 1 || len(of(all, "witness", "after_delete", "before_start")) != 0 {
		t.Errorf("calls: %+v", all)
	}
	r.check("the delete")
	r.sandbox++
	r.must("create", r.name, r.id(), "the-name") // it is free
	r.becomes("ready")
	r.leave()
}

// The process exits while before_stop runs.
func TestRealScenario13(t *testing.T) {
	t.Parallel()
	r := readyRuin(t)
	r.pause("before_stop", "exit")
	r.must("stop", r.id())
	r.resume()
	r.becomes("stopped")
	all := r.calls(r.id())
	for _, x := range of(all, "witness", "after_stop") {
		if x.cause != "stopped" {
			t.Errorf("after_stop with the cause %s", x.cause)
		}
	}
	if n := len(of(all, "witness", "after_stop")); n != 1 {
		t.Errorf("after_stop was called %d times", n)
	}
	r.check("the stop")
	r.leave()
}

// The process exited while the gateway was down.
func TestRealScenario14(t *testing.T) {
	t.Parallel()
	r := readyRuin(t)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, alive := r.answer(); alive {
		t.Fatal("the gateway lives")
	}
	killCommand(r.dir, r.id())
	r.until("the exit is known", func() bool { return exists(filepath.Join(r.dir, "data/drivers/native/sandboxes", r.id(), "exit.json")) })
	r.boot()
	if code := r.becomes("exited"); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	released := of(r.calls(r.id()), "witness", "after_stop")
	if len(released) != 1 || released[0].cause != "process_exited" {
		t.Errorf("after_stop: %+v", released)
	}
	if n := len(of(r.calls(r.id()), "witness", "before_start")); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	r.leave()
}

// Someone else removes the compute.
func TestRealScenario16(t *testing.T) {
	t.Parallel()
	r := readyRuin(t)
	if err := os.RemoveAll(filepath.Join(r.dir, "data/drivers/native/sandboxes", r.id())); err != nil {
		t.Fatal(err)
	}
	r.becomes("deleted")
	all := r.calls(r.id())
	if released := of(all, "witness", "after_stop"); len(released) != 1 || released[0].cause != "deleted" {
		t.Errorf("after_stop: %+v", released)
	}
	if len(of(all, "witness", "after_delete")) != 1 || len(of(all, "witness", "before_stop", "before_delete")) != 0 {
		t.Errorf("calls: %+v", all)
	}
	r.check("the removal")
	r.leave()
}

// The caller of a create goes away.
func TestRealScenario32(t *testing.T) {
	t.Parallel()
	r := newRuin(t)
	r.boot()
	r.must("settle")
	r.sandbox++
	conn, err := grpc.NewClient("unix://"+r.dir+"/gw.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.pause("before_create", "until")
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := gatewayv1.NewGatewayClient(conn).CreateSandbox(ctx, &gatewayv1.CreateSandboxRequest{Driver: r.name, Workspace: crashWorkspace, Name: r.id(), Id: r.id(),
			Spec: &gatewayv1.SandboxSpec{Command: []string{"/bin/sh", "-c", lives, r.dir + "/" + r.id()}}})
		gone <- err
	}()
	r.paused()
	cancel()
	<-gone
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	r.resume()
	r.becomes("ready")
	r.check("the create")
	r.leave()
}

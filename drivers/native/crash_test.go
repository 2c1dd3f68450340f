package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// gatewaySwitch makes the test binary a gateway that makes one call and may be killed at any time.
const gatewaySwitch = "native-gateway"

// deed is what such a gateway does.
type deed struct {
	Config    struct{ Dir, Shim string }
	Call      string
	Identity  sandbox.Identity
	Operation string
	Layers    []plan.Layer
	Space     []plan.Layer
}

func gatewayMain(args []string) int {
	var w deed
	if err := json.Unmarshal([]byte(args[0]), &w); err != nil {
		return 2
	}
	d, err := Open(Config{Dir: w.Config.Dir, Shim: []string{w.Config.Shim, shimSwitch}, StopTimeout: 300 * time.Millisecond})
	if err == nil {
		err = w.do(d)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (w *deed) do(d *Driver) error {
	schema, err := plan.NewSchema(d.about.Kinds, d.about.Points, nil)
	if err != nil {
		return err
	}
	p, err := schema.Compute(w.Layers)
	if err != nil {
		return err
	}
	space, err := schema.Compute(w.Space)
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch w.Call {
	case "create":
		return d.Create(ctx, &driver.CreateRequest{Identity: w.Identity, Operation: w.Operation, Run: 1, Plan: p, Workspace: space})
	case "start":
		return d.Start(ctx, &driver.StartRequest{Identity: w.Identity, Operation: w.Operation, Run: 2, Plan: p, Workspace: space})
	case "stop":
		return d.Stop(ctx, w.Identity)
	}
	return d.Delete(ctx, &driver.DeleteRequest{Identity: w.Identity, Operation: w.Operation})
}

// killedAfter lets a gateway make the call and kills it after the time, or lets it end.
func (b *box) killedAfter(call string, after time.Duration) {
	b.Helper()
	w := deed{Call: call, Identity: b.Identity, Operation: b.Operation, Layers: b.Plan.Layers(), Space: b.Workspace.Layers()}
	w.Config.Dir, w.Config.Shim = b.d.cfg.Dir, testShim(b)[0]
	raw, err := json.Marshal(w)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, testShim(b)[0], gatewaySwitch, string(raw))
	out, err := cmd.Output()
	if err != nil && ctx.Err() == nil {
		b.Fatalf("the gateway's %s: %v %s", call, err, out)
	}
}

// A gateway is killed at every moment of a call, and another one finishes what it had begun or undoes it.
func TestAGatewayThatIsKilledLeavesNothingInTheWay(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w, network := k.workspace(""), []plan.Object(nil)
	if k.d.host.network {
		w, network = k.workspace("10.203.19.0/24"), []plan.Object{at("10.203.19.2")}
	}
	for _, call := range []string{"create", "start", "stop", "delete"} {
		t.Run(call, func(t *testing.T) {
			const moments = 10
			var whole time.Duration // what the call takes a gateway that lives
			for i := range moments {
				k := &kit{TB: t, d: k.d, dir: k.dir}
				b := k.plan(w, sh("exec sleep 600"), network...)
				if call != "create" {
					b.create()
				}
				if call == "start" {
					if err := k.d.Stop(t.Context(), b.Identity); err != nil {
						t.Fatal(err)
					}
				}
				if i == 0 {
					begin := time.Now()
					b.killedAfter(call, time.Minute)
					whole = time.Since(begin)
				} else {
					b.killedAfter(call, whole*time.Duration(i)/moments)
				}
				b.goesOn(call)
			}
		})
	}
}

// goesOn checks that a gateway that comes after one that was killed in a call can make it again, and undo it.
func (b *box) goesOn(call string) {
	b.Helper()
	d, err := Open(b.d.cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.kit = &kit{TB: b.TB, d: d, dir: b.dir}
	if st, err := d.Get(b.Context(), b.Identity); err == nil && st.Operation != b.Operation || err != nil && !fault.Is(err, fault.NotFound) {
		b.Fatalf("Get: %+v, %v", st, err)
	}
	again := deed{Call: call, Identity: b.Identity, Operation: b.Operation, Layers: b.Plan.Layers(), Space: b.Workspace.Layers()}
	if err := again.do(d); err != nil {
		b.Fatalf("%s again: %v", call, err)
	}
	switch call {
	case "create", "start":
		b.until(driver.Ready)
	case "stop":
		if st := b.get(); st.State != driver.Stopped {
			b.Errorf("it is %s after Stop", st.State)
		}
		if left := b.left("none"); len(left) > 0 {
			b.Errorf("left after Stop: %v", left)
		}
	}
	b.delete()
	b.nothingLeft("none")
}

func TestAShimThatIsKilledTakesItsSandboxAlong(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w, network := k.workspace(""), []plan.Object(nil)
	if k.d.host.network {
		w, network = k.workspace("10.203.20.0/24"), []plan.Object{at("10.203.20.2")}
	}
	holding, program := k.inside("hold")
	for i := range 4 {
		more := []plan.Object{program}
		if i == 0 {
			more = append(more, network...) // not each time: to remove a link takes longer than to end
		}
		b := k.plan(w, holding, more...).create()
		b.says("up")
		ns := b.pidNamespace()
		kill(t, b.shim().PID)
		st := b.until(driver.Exited)
		if left := b.left(ns); len(left) > 0 {
			t.Errorf("it has ended, and there is still %v", left)
		}
		if st.Reason != "ShimKilled" || *st.ExitCode != 137 {
			t.Errorf("it is %+v", st)
		}
		start := driver.StartRequest(*b.CreateRequest)
		start.Run = 2
		if err := k.d.Start(t.Context(), &start); err != nil {
			t.Fatal(err)
		}
		b.until(driver.Ready)
		kill(t, b.shim().PID)
		b.delete()
		b.nothingLeft(ns)
	}
}

func TestNothingIsLeftOfASandbox(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w := k.workspace("")
	for name, c := range map[string]struct {
		script string
		code   int // of a command that ends by itself
	}{
		"that ignores SIGTERM":                {script: `trap '' TERM; echo up; for i in $(seq 600); do sleep 1; done`, code: -1},
		"whose children left its group":       {script: `(setsid sh -c 'trap "" TERM; echo up; sleep 600' &); exec sleep 600`, code: -1},
		"whose children outlive the command":  {script: `(setsid sh -c 'trap "" TERM; exec sleep 600' &); echo up; exit 3`, code: 3},
		"that closes its files to everybody":  {script: `mkdir -p d/e; : >d/e/f; chmod 0 d/e d; echo up; exec sleep 600`, code: -1},
		"that stops its processes":            {script: `echo up; sleep 600 & kill -STOP $!; kill -STOP $$`, code: -1},
		"that makes processes until the wall": {script: `echo up; f() { f | f & }; f; exec sleep 600`, code: -1},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kit{TB: t, d: k.d, dir: k.dir}
			b := k.plan(w, sh(c.script), k.few()...).create()
			ns := "none"
			if c.code >= 0 {
				if st := b.until(driver.Exited); *st.ExitCode != c.code {
					t.Errorf("it ended with %d, want %d", *st.ExitCode, c.code)
				}
				if left := b.left(ns); len(left) > 0 {
					t.Errorf("it has ended, and there is still %v", left)
				}
			} else {
				b.says("up")
				ns = b.pidNamespace()
				if err := k.d.Stop(t.Context(), b.Identity); err != nil {
					t.Fatal(err)
				}
				if left := b.left(ns); len(left) > 0 {
					t.Errorf("it was stopped, and there is still %v", left)
				}
				if st := b.get(); st.State != driver.Stopped || st.ExitCode == nil {
					t.Errorf("it is %+v: its shim was to end it, and to note how", st)
				}
			}
			b.delete()
			b.nothingLeft(ns)
		})
	}
}

// few limits processes where the host can.
func (k *kit) few() []plan.Object {
	if !k.d.host.cgroups {
		return nil
	}
	return []plan.Object{withMain(map[string]any{"limits": map[string]any{"pids": int64(50)}})}
}

func TestAStartThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), []string{"/no/such/command"})
	for range 2 {
		if err := k.d.Create(t.Context(), b.CreateRequest); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "/no/such/command") {
			t.Errorf("Create: %v", err)
		}
		if st := b.get(); st.State != driver.Provisioning {
			t.Errorf("it is %+v", st)
		}
		if err := k.d.end(t.Context(), &meta{Identity: b.Identity}, 0); err != nil { // the shim, which has answered
			t.Fatal(err)
		}
		if left := b.left("none"); len(left) > 0 {
			t.Errorf("there is still %v", left)
		}
	}
	b.delete()
	b.nothingLeft("none")
}

func TestASandboxEndsWithItsDirectory(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), sh("exec sleep 600")).create()
	ns := b.pidNamespace()
	shim, err := b.shim().Hold()
	if err != nil || shim == nil {
		t.Fatal(shim, err)
	}
	defer func() { _ = shim.Close() }()
	for os.RemoveAll(k.d.dir(b.Identity.ID)) != nil {
		if t.Context().Err() != nil {
			t.Fatal("the directory cannot be removed")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := shim.Wait(ctx); err != nil {
		t.Error("the shim goes on:", err)
	}
	b.nothingLeft(ns)
}

// What an interrupted gateway has left half made or half removed goes when the driver is opened.
func TestOpenSweeps(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	for _, name := range []string{makingPrefix + "a", gonePrefix + "b"} {
		if err := os.MkdirAll(filepath.Join(k.d.sandboxes(), name, workDir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(k.d.cfg); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(k.d.sandboxes())
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestOpenSaysWhatAHostDoesNotGive(t *testing.T) {
	_, err := Open(Config{Dir: t.TempDir(), Shim: []string{"/bin/false"}})
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "user.max_user_namespaces") {
		t.Errorf("Open: %v", err)
	}
}

// The lock of a shim that was killed is free before its sandbox has ended. Here the sandbox takes its time: another
// process stands for its first one.
func TestASandboxIsAliveUntilItsLastProcessHasEnded(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), sh("exec sleep 600"))
	cmd := exec.Command("/bin/cat")
	_, failed := cmd.StdinPipe() // it waits for the end of its input, which is the test's
	if err := errors.Join(failed, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	first := host.ProcessOf(cmd.Process.Pid)
	boot, err := host.BootID()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.d.make(&meta{Identity: b.Identity, Operation: b.Operation, Run: 1, BootID: boot}); err != nil {
		t.Fatal(err)
	}
	lock, err := host.TakeLock(k.d.file(b.Identity.ID, lockFile)) // given up at once
	for _, err := range []error{err, lock.Close(), host.NoteJSON(k.d.file(b.Identity.ID, shimFile), begun{Run: 1, Init: first}),
		host.NoteJSON(k.d.file(b.Identity.ID, readyFile), begun{Run: 1, Process: first})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var states []driver.State
	err = k.d.Watch(t.Context(), func(e driver.Event) error {
		if e.Synced {
			kill(t, cmd.Process.Pid)
		}
		if e.Status == nil {
			return nil
		}
		if states = append(states, e.Status.State); e.Status.State == driver.Exited {
			return io.EOF
		}
		return nil
	})
	if !errors.Is(err, io.EOF) || !slices.Equal(states, []driver.State{driver.Ready, driver.Exited}) {
		t.Errorf("it is shown as %v, %v; want ready, and exited once the process has ended", states, err)
	}
}

// A shim is killed while it starts its sandbox, before anybody has noted the first process of that: the call fails, and
// may be made again or undone. Neither returns while that process lives.
func TestAShimThatIsKilledWhileItStarts(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w, network := k.workspace(""), []plan.Object(nil)
	if k.d.host.network {
		w, network = k.workspace("10.203.26.0/24"), []plan.Object{at("10.203.26.2")}
	}
	moments := map[string]func(begun, *box) bool{
		"it has noted itself": func(begun, *box) bool { return true },
		"it has forked": func(s begun, b *box) bool {
			forked, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.PID))
			return slices.ContainsFunc(forked, func(path string) bool {
				raw, err := os.ReadFile(path)
				return err == nil && len(raw) > 0
			})
		},
		"the first process is executed": func(_ begun, b *box) bool {
			inits, err := b.d.marked("init", b.Identity.ID, b.Operation)
			return err == nil && len(inits) > 0
		},
	}
	for moment, reached := range moments {
		for _, next := range []string{"create", "delete", "delete", "create"} {
			b := k.plan(w, sh("exec sleep 600"), network...)
			b.shimKilledWhen(reached)
			if next == "create" {
				b.create()
				// A shim that came to the end of its work first has started the sandbox.
				if st := b.get(); st.State != driver.Ready && st.Reason != "ShimKilled" {
					t.Errorf("killed when %s and created again, it is %+v", moment, st)
				}
			}
			b.delete()
			b.nothingLeft("none")
		}
	}
}

// shimKilledWhen creates a sandbox and kills its shim when the moment has come, or after the call where that is sooner.
func (b *box) shimKilledWhen(reached func(begun, *box) bool) {
	b.Helper()
	made := make(chan error, 1)
	go func() { made <- b.d.Create(b.Context(), b.CreateRequest) }()
	for over := false; !over; {
		var s begun
		_ = host.ReadJSON(b.d.file(b.Identity.ID, shimFile), &s) // until it is there
		select {
		case err := <-made:
			made <- err
			over = true
		default:
			over = s.PID != 0 && reached(s, b)
		}
		if over {
			if err := s.Finish(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	<-made
}

// Somebody removes a sandbox's directory, one file after the other: at no moment is it taken for one that has ended while
// its shim goes on.
func TestASandboxWhoseDirectoryIsBeingRemoved(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w := k.workspace("")
	for _, c := range []struct {
		removed []string
		state   driver.State // none: there is no sandbox any more
	}{{[]string{lockFile}, driver.Ready}, {[]string{lockFile, shimFile}, ""}} {
		b := k.plan(w, sh("exec sleep 600")).create()
		told := b.watcher()
		shim, err := b.shim().Hold()
		if err != nil || shim == nil {
			t.Fatal(shim, err)
		}
		// Frozen, so that it does not end first.
		if err := shim.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for _, name := range c.removed {
			if err := os.Remove(k.d.file(b.Identity.ID, name)); err != nil {
				t.Fatal(err)
			}
		}
		if st, err := k.d.Get(t.Context(), b.Identity); c.state == "" && !fault.Is(err, fault.NotFound) || c.state != "" && (err != nil || st.State != c.state) {
			t.Errorf("without %v it is %+v, %v; want %q", c.removed, st, err, c.state)
		}
		if list, err := k.d.List(t.Context()); err != nil || len(list) != len(c.state)/len(driver.Ready) {
			t.Errorf("without %v the list has %v, %v", c.removed, list, err)
		}
		// It is told to be gone when no call sees it any more, or whoever asks then would take it for one that is there.
		if e := told(); e.Deleted != (sandbox.Identity{}) {
			t.Errorf("without %v it is told to be deleted", c.removed)
		}
		if err := errors.Join(shim.Signal(unix.SIGCONT), shim.Close()); err != nil {
			t.Fatal(err)
		}
		b.delete()
		b.nothingLeft("none")
		if e := told(); e.Deleted != b.Identity {
			t.Errorf("without %v, then deleted, %+v is told", c.removed, e)
		}
	}
}

// watcher returns what tells of a sandbox as Watch does, one look at a time.
func (b *box) watcher() (look func() driver.Event) {
	b.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Close(fd) })
	var last driver.Event
	w := &watcher{ctx: b.Context(), d: b.d, fd: fd, dirs: map[int32]string{}, seen: map[string]*driver.Status{},
		fn: func(e driver.Event) error { last = e; return nil }}
	look = func() driver.Event {
		b.Helper()
		if err := w.look(b.Identity.ID); err != nil {
			b.Fatal(err)
		}
		return last
	}
	if e := look(); e.Status == nil || e.Status.State != driver.Ready {
		b.Fatalf("it is told as %+v, want ready", e)
	}
	return look
}

package native

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// kit is a driver on a directory that the host's sandboxes would see if it were not hidden.
type kit struct {
	testing.TB
	d   *Driver
	dir string
}

func newKit(t testing.TB, change ...func(*Config)) *kit {
	t.Helper()
	dir := testDir(t)
	k := &kit{TB: t, dir: dir}
	cfg := Config{Dir: filepath.Join(dir, "data"), Shim: testShim(t), StopTimeout: 300 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if k.d, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	return k
}

// asRoot is for what an ordinary user is not given. In CI the tests run as root.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user is not given this")
	}
}

func (k *kit) compute(layers []plan.Layer, err error, more ...plan.Object) *plan.Plan {
	k.Helper()
	var schema *plan.Schema
	if err == nil {
		schema, err = plan.NewSchema(k.d.about.Kinds, k.d.about.Points, nil)
	}
	if err != nil {
		k.Fatal(err)
	}
	p, err := schema.Compute(append(layers, plan.Layer{Owner: "test", Objects: more}))
	if err != nil {
		k.Fatal(err)
	}
	return p
}

func newID() string { return runName + "-" + uuid.NewString() }

// tenant is a workspace with its plan.
type tenant struct {
	sandbox.Workspace
	plan *plan.Plan
}

func (k *kit) workspace(subnet string) *tenant {
	k.Helper()
	w := &tenant{Workspace: sandbox.Workspace{ID: newID(), Driver: "native", Name: "tenant"}}
	var more []plan.Object
	if subnet != "" {
		more = append(more, plan.Object{Kind: kindNetwork, Name: workspace, Fields: map[string]any{"subnet": subnet}})
	}
	layers, err := k.d.WorkspaceLayers(k.Context(), w.Workspace)
	w.plan = k.compute(layers, err, more...)
	if err := k.d.EnsureWorkspace(k.Context(), &driver.WorkspaceRequest{Workspace: w.Workspace, Plan: w.plan}); err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() {
		if err := k.d.DeleteWorkspace(context.Background(), w.Workspace); err != nil {
			k.Error(err)
		}
	})
	return w
}

// box is one sandbox of a test.
type box struct {
	*kit
	*driver.CreateRequest
}

func withMain(fields map[string]any) plan.Object {
	return plan.Object{Kind: kindProcess, Name: mainProcess, Fields: fields}
}

func at(address string) plan.Object {
	return withMain(map[string]any{"network": map[string]any{"address": address}})
}

// plan plans a sandbox; nothing is made.
func (k *kit) plan(w *tenant, command []string, more ...plan.Object) *box {
	k.Helper()
	id := sandbox.Identity{ID: newID(), Driver: "native", Workspace: w.Name, WorkspaceID: w.ID, Name: "box"}
	layers, err := k.d.Layers(k.Context(), &driver.Request{Identity: id, Spec: sandbox.Spec{Command: command}})
	b := &box{kit: k, CreateRequest: &driver.CreateRequest{Identity: id, Operation: uuid.NewString(), Run: 1,
		Plan: k.compute(layers, err, more...), Workspace: w.plan}}
	k.Cleanup(func() {
		if err := k.d.Delete(context.Background(), b.deletion()); err != nil {
			k.Error(err)
		}
	})
	return b
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// inside is a command of this very program within the sandbox, and the Mount that brings it there.
func (k *kit) inside(args ...string) ([]string, plan.Object) {
	return append([]string{"/probe/program", insideSwitch}, args...), plan.Object{Kind: kindMount, Name: "probe",
		Fields: map[string]any{"type": "bind", "source": testShim(k)[0], "target": "/probe/program", "read_only": true}}
}

func (b *box) create() *box {
	b.Helper()
	if err := b.d.Create(b.Context(), b.CreateRequest); err != nil {
		b.Fatalf("Create: %v", err)
	}
	return b
}

func (b *box) resolution() *driver.ResolveRequest {
	return &driver.ResolveRequest{Identity: b.Identity, Plan: b.Plan, Workspace: b.Workspace}
}

func (b *box) deletion() *driver.DeleteRequest {
	return &driver.DeleteRequest{Identity: b.Identity, Operation: b.Operation}
}

func (b *box) delete() {
	b.Helper()
	if err := b.d.Delete(b.Context(), b.deletion()); err != nil {
		b.Fatalf("Delete: %v", err)
	}
}

func (b *box) get() *driver.Status {
	b.Helper()
	st, err := b.d.Get(b.Context(), b.Identity)
	if err != nil {
		b.Fatalf("Get: %v", err)
	}
	return st
}

// until watches until the sandbox is in the state.
func (b *box) until(state driver.State) *driver.Status {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	var found *driver.Status
	_ = b.d.Watch(ctx, func(e driver.Event) error {
		if e.Status == nil || e.Status.Identity != b.Identity || e.Status.State != state {
			return nil
		}
		found = e.Status
		return fmt.Errorf("seen")
	})
	if found == nil {
		b.Fatalf("it is %+v, want %s; it has written %q", b.get(), state, b.logs(false))
	}
	return found
}

func (b *box) logs(follow bool) string {
	b.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	if err := b.d.Logs(ctx, b.Identity, follow, &out); err != nil {
		b.Fatalf("Logs: %v", err)
	}
	return out.String()
}

// says waits until the log contains a text.
func (b *box) says(text string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	w := &finder{text: text, found: cancel}
	_ = b.d.Logs(ctx, b.Identity, true, w)
	if !strings.Contains(w.all.String(), text) {
		b.Fatalf("it has written %q, want it to contain %q", w.all.String(), text)
	}
}

type finder struct {
	all   bytes.Buffer
	text  string
	found func()
}

func (f *finder) Write(b []byte) (int, error) {
	f.all.Write(b)
	if strings.Contains(f.all.String(), f.text) {
		f.found()
	}
	return len(b), nil
}

func (b *box) shim() begun {
	b.Helper()
	var s begun
	if err := host.ReadJSON(b.d.file(b.Identity.ID, shimFile), &s); err != nil {
		b.Fatal(err)
	}
	return s
}

// pidNamespace names the pid namespace of the sandbox, to look for its processes after they should be gone. It stays
// open, since another one could have its name once it is gone.
func (b *box) pidNamespace() string {
	b.Helper()
	path := fmt.Sprintf("/proc/%d/ns/pid", b.shim().Init.PID)
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	ns, err := os.Readlink(path)
	if err != nil {
		b.Fatal(err)
	}
	return ns
}

// left returns what the host has of a sandbox's run, outside of the driver's directory.
func (b *box) left(pidNamespace string) []string {
	b.Helper()
	var out []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range procs {
		if stat, err := os.ReadFile(p + "/stat"); err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue // it has ended, and whoever inherited it has not asked how
		}
		if ns, err := os.Readlink(p + "/ns/pid"); err == nil && ns == pidNamespace {
			out = append(out, "process "+filepath.Base(p)+" in its namespace")
		}
		if raw, err := os.ReadFile(p + "/cmdline"); err == nil && bytes.Contains(raw, []byte(b.Identity.ID)) {
			out = append(out, "process "+strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	_ = filepath.WalkDir(groupsRoot, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(e.Name(), b.Identity.ID) {
			out = append(out, path)
		}
		return nil
	})
	if link, err := netlink.LinkByName(linkName(b.Identity.ID)); err == nil {
		out = append(out, "link "+link.Attrs().Name)
	}
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if strings.Contains(line, b.Identity.ID) {
			out = append(out, "mount "+line)
		}
	}
	return out
}

// nothingLeft checks that a deleted sandbox has left nothing.
func (b *box) nothingLeft(pidNamespace string) {
	b.Helper()
	if _, err := b.d.Get(b.Context(), b.Identity); !fault.Is(err, fault.NotFound) {
		b.Errorf("Get: %v, want NotFound", err)
	}
	left := b.left(pidNamespace)
	entries, err := os.ReadDir(b.d.sandboxes())
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), b.Identity.ID) {
			left = append(left, e.Name())
		}
	}
	if len(left) > 0 {
		b.Errorf("left after Delete:\n%s", strings.Join(left, "\n"))
	}
}

// answer runs a command of this program within a sandbox and reads its answer.
func answer[T any](k *kit, w *tenant, args []string, more ...plan.Object) T {
	k.Helper()
	command, program := k.inside(args...)
	b := k.plan(w, command, append(slices.Clip(more), program)...).create()
	b.until(driver.Exited)
	var v T
	raw := b.logs(false)
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		k.Fatalf("%v: %s", err, raw)
	}
	return v
}

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

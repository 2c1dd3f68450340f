package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// kit is a driver on a directory of a test's.
type kit struct {
	testing.TB
	d *Driver
}

func newKit(t testing.TB, change ...func(*Config)) *kit {
	t.Helper()
	cfg := config(t, t.TempDir())
	for _, c := range change {
		c(&cfg)
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &kit{TB: t, d: d}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func list(s ...string) []any {
	out := make([]any, len(s))
	for i, v := range s {
		out[i] = v
	}
	return out
}

// fields are those of an object, by name and value.
func fields(pairs ...any) map[string]any {
	out := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i].(string)] = pairs[i+1]
	}
	return out
}

func dropIn(name, contents string) plan.Object {
	return plan.Object{Kind: kindDropin, Name: name, Fields: fields("contents", contents)}
}

func withMain(pairs ...any) plan.Object {
	return plan.Object{Kind: kindLaunch, Name: mainLaunch, Fields: fields(pairs...)}
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
	p, err := schema.Compute(append(layers, plan.Layer{Owner: "test", Objects: more, Override: []plan.Pattern{kindLaunch}}))
	if err != nil {
		k.Fatal(err)
	}
	return p
}

// workspace ensures a workspace with a subnet.
func (k *kit) workspace(subnet string) *driver.WorkspaceRequest {
	k.Helper()
	w := sandbox.Workspace{ID: uuid.NewString(), Driver: "vm", Name: "tenant"}
	layers, err := k.d.WorkspaceLayers(k.Context(), w)
	r := &driver.WorkspaceRequest{Workspace: w, Plan: k.compute(layers, err, plan.Object{Kind: kindNetwork, Name: workspace, Fields: fields("subnet", subnet)})}
	if err := k.d.EnsureWorkspace(k.Context(), r); err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() {
		if err := k.d.DeleteWorkspace(context.Background(), w); err != nil {
			k.Error(err)
		}
	})
	return r
}

// box is one sandbox of a test.
type box struct {
	*kit
	*driver.CreateRequest
}

// plan plans a sandbox; nothing is made.
func (k *kit) plan(w *driver.WorkspaceRequest, command []string, more ...plan.Object) *box {
	k.Helper()
	id := sandbox.Identity{ID: uuid.NewString(), Driver: "vm", Workspace: "tenant", WorkspaceID: uuid.NewString(), Name: "box"}
	b := &box{kit: k, CreateRequest: &driver.CreateRequest{Operation: uuid.NewString(), Run: 1, Token: []byte("t0ken")}}
	if w != nil {
		id.WorkspaceID, b.Workspace = w.Workspace.ID, w.Plan
	}
	b.Identity = id
	layers, err := k.d.Layers(k.Context(), &driver.Request{Identity: id, Spec: sandbox.Spec{Command: command, Environment: map[string]string{"SECRET": "s3cret"}}})
	b.Plan = k.compute(layers, err, more...)
	k.Cleanup(func() {
		if err := k.d.Delete(context.Background(), b.deletion()); err != nil {
			k.Error(err)
		}
		if left := b.left(); len(left) > 0 {
			k.Errorf("left after Delete: %s", strings.Join(left, ", "))
		}
	})
	return b
}

func (b *box) deletion() *driver.DeleteRequest {
	return &driver.DeleteRequest{Identity: b.Identity, Operation: b.Operation}
}

// left is what the host has of a sandbox that was deleted.
func (b *box) left() []string {
	b.Helper()
	var out []string
	if _, err := b.d.Get(context.Background(), b.Identity); !fault.Is(err, fault.NotFound) {
		out = append(out, "the sandbox itself")
	}
	found, err := b.d.processes(b.Identity.ID, "")
	if err != nil || len(found) > 0 {
		out = append(out, "a QEMU")
	}
	if _, err := netlink.LinkByName(b.d.tapName(b.Identity.ID)); err == nil {
		out = append(out, "its TAP")
	}
	files, err := filepath.Glob(filepath.Join(b.d.sandboxes(), "*"+b.Identity.ID+"*"))
	if err != nil {
		b.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(b.d.sandboxes(), ".*"+b.Identity.ID+"*"))
	if err != nil {
		b.Fatal(err)
	}
	return append(out, append(files, hidden...)...)
}

func (b *box) create() *box {
	b.Helper()
	if err := b.d.Create(b.Context(), b.CreateRequest); err != nil {
		b.Fatalf("Create: %v", err)
	}
	return b
}

// until watches until the sandbox is in the state.
func (b *box) until(state driver.State) *driver.Status {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	var found *driver.Status
	err := b.d.Watch(ctx, func(e driver.Event) error {
		if e.Status == nil || e.Status.Identity != b.Identity || e.Status.State != state {
			return nil
		}
		found = e.Status
		return errors.New("seen")
	})
	if found == nil {
		console, _ := os.ReadFile(b.d.file(b.Identity.ID, consoleFile))
		st, _ := b.d.Get(b.Context(), b.Identity)
		b.Fatalf("it is %+v, want %s (%v); its console: %s", st, state, err, console)
	}
	return found
}

func (b *box) logs() string {
	b.Helper()
	var out bytes.Buffer
	if err := b.d.Logs(b.Context(), b.Identity, false, &out); err != nil {
		b.Fatalf("Logs: %v", err)
	}
	return out.String()
}

// says waits until the log has a text in it.
func (b *box) says(text string) {
	b.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(5 * time.Minute)
	for !strings.Contains(b.logs(), text) {
		select {
		case <-tick.C:
		case <-late:
			b.Fatalf("it has written %q, want %q in it", b.logs(), text)
		}
	}
}

// qemu is the machine's process.
func (b *box) qemu() host.Process {
	b.Helper()
	var n begun
	if err := host.ReadJSON(b.d.file(b.Identity.ID, machineFile), &n); err != nil {
		b.Fatal(err)
	}
	return n.Process
}

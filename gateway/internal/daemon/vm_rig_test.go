package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// boots is what all machines of these tests boot from. TestMain removes it.
var boots struct {
	once             sync.Once
	dir, init, image string
}

// chained is a site whose driver is composed of a base and recorders, or other extensions.
type chained struct {
	*site
	base    string
	members []string // as member makes them
	extra   string   // of the vm driver's config block
	rules   string   // activation blocks
	limit   time.Duration
}

// newChained makes a site over "native", "vm", or "none": that is the vm driver with a kernel and a first process that
// are files and no more, for what boots nothing.
func newChained(t *testing.T, base string, members ...string) *chained {
	t.Helper()
	c := &chained{site: newSite(t), base: base, members: members, limit: 2 * time.Minute}
	if base == "vm" {
		c.limit = 5 * time.Minute
		t.Cleanup(func() { // of a test that failed half way
			for _, pid := range c.qemus() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		})
	}
	if base != "native" {
		vmtest.Need(t)
		boots.once.Do(func() {
			var err error
			if boots.dir, err = os.MkdirTemp("", "boots"); err != nil {
				t.Fatal(err)
			}
			boots.init, boots.image = vmtest.Init(t, boots.dir), vmtest.Image(t, boots.dir)
		})
	}
	return c
}

// member is a recorder of a chain, with what it contributes, each "what=value". What begins with "bind:" goes into its bind.
func member(name string, settings ...string) string {
	return strings.Join(append([]string{name}, settings...), "\x00")
}

// once is the part of a bind that has a phase tried once.
func once(p phase.Phase) string {
	return fmt.Sprintf("bind:phase %q {\n      attempts = 1\n    }", p)
}

// within is the part of a bind that has a phase tried once and for so long.
func within(p phase.Phase, timeout string) string {
	return fmt.Sprintf("bind:phase %q {\n      attempts = 1\n      timeout  = %q\n    }", p, timeout)
}

func (c *chained) configure() {
	c.t.Helper()
	var extensions, binds strings.Builder
	for _, m := range c.members {
		parts := strings.Split(m, "\x00")
		args := []string{fmt.Sprintf("%q, %q, %q", recorderSwitch, c.dir, parts[0])}
		bind := ""
		for _, p := range parts[1:] {
			if text, ok := strings.CutPrefix(p, "bind:"); ok {
				bind += "    " + text + "\n"
				continue
			}
			args = append(args, fmt.Sprintf("%q", p))
		}
		fmt.Fprintf(&extensions, "extension %q {\n  command = %q\n  args    = [%s]\n  paths {\n    write = [%q]\n  }\n}\n", parts[0], self(c.t), strings.Join(args, ", "), c.dir)
		if !strings.Contains(bind, "grant") {
			mutate := `"Process.environment", "Process.labels"`
			if c.base != "native" {
				mutate = `"GuestInitDropin", "LaunchPlan.environment", "LaunchPlan.labels", "LaunchPlan.kernel_profile", "LaunchPlan.kernel_image", "LaunchPlan.backend", "LaunchPlan.required_backends", "LaunchPlan.required_backend_features"`
			}
			bind += "    grant { mutate = [" + mutate + "] }\n"
		}
		fmt.Fprintf(&binds, "  bind %q {\n%s  }\n", parts[0], bind)
	}
	c.text(extensions.String(), binds.String())
}

// text writes the configuration.
func (c *chained) text(extensions, binds string) {
	c.t.Helper()
	base := c.base
	text := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen   = \"unix://%s/gw.sock\"\n}\n", c.dir+"/data", c.dir) + extensions
	if c.base == "native" {
		text += "driver \"native\" {\n  config {\n    stop_timeout = \"2s\"\n  }\n}\n"
	} else {
		base = "vm"
		text += c.vmBlock()
	}
	text += fmt.Sprintf("driver \"acme\" {\n  base = %q\n  reconcile_interval = \"2s\"\n%s}\n", base, binds) + c.rules
	if err := os.WriteFile(filepath.Join(c.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chained) vmBlock() string {
	return fmt.Sprintf("driver \"vm\" {\n  config {\n    kernel = %q\n    modules = %q\n    init = %q\n    default_image = \"busybox\"\n    memory_mib = 128\n    disk_mib = 64\n    accel = \"tcg\"\n    stop_timeout = \"5s\"\n%s    kernel_profile \"tuned\" {\n      path = %q\n      modules = %q\n    }\n    root \"busybox\" {\n      path = %q\n    }\n  }\n}\n",
		vmtest.Kernel, vmtest.Modules, boots.init, c.extra, vmtest.Kernel, vmtest.Modules, boots.image)
}

// up starts the gateway as it is configured.
func (c *chained) up() *chained {
	c.t.Helper()
	c.configure()
	c.start()
	return c
}

// do says what a recorder does in a phase from now on; "" for nothing but noting.
func (c *chained) do(name string, p phase.Phase, what string) {
	c.t.Helper()
	path := action(c.dir, name, p)
	if what == "" {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			c.t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path+".new", []byte(what), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
}

// idle is a command that runs until it is stopped.
var idle = []string{"/bin/sh", "-c", "echo up; while :; do sleep 1; done"}

func (c *chained) ask(name string, spec sandbox.Spec) engine.CreateRequest {
	if len(spec.Command) == 0 {
		spec.Command = idle
	}
	return engine.CreateRequest{Driver: "acme", Name: name, Spec: spec}
}

// make creates a sandbox and returns its id, and the error with which that ended.
func (c *chained) make(name string, spec sandbox.Spec) (string, error) {
	c.t.Helper()
	h, id, err := c.d.engine.CreateSandbox(c.ask(name, spec))
	if err != nil {
		return "", err
	}
	_, err = h.Wait(c.t.Context())
	return id.ID, err
}

// ready creates a sandbox that becomes ready.
func (c *chained) ready(name string, spec sandbox.Spec) string {
	c.t.Helper()
	id, err := c.make(name, spec)
	if err != nil {
		c.t.Fatal(err)
	}
	c.comes(id, sandbox.Ready)
	c.rest(id)
	return id
}

// comes waits until a sandbox is in a state.
func (c *chained) comes(id string, want ...sandbox.State) engine.Sandbox {
	c.t.Helper()
	var sb engine.Sandbox
	c.wait(fmt.Sprintf("%s is %v", id, want), func() bool {
		var known bool
		sb, known = c.d.engine.Lookup(id)
		return known && slices.Contains(want, sb.State)
	})
	return sb
}

// rest waits until nothing is done for a sandbox any more.
func (c *chained) rest(id string) {
	c.t.Helper()
	c.wait("nothing is unfinished", func() bool {
		sb, _ := c.d.engine.Lookup(id)
		return c.d.engine.Unfinished(id) == "" && (!sb.Run.Active || sb.Run.Ready || sb.State != sandbox.Ready)
	})
}

func (c *chained) wait(what string, ok func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), c.limit)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-ctx.Done():
			var all []string
			for _, sb := range c.d.engine.Sandboxes(true) {
				all = append(all, fmt.Sprintf("%s is %s %s", sb.ID, sb.State, sb.Reason))
			}
			c.t.Fatalf("it does not come to this: %s\n%s\n%s", what, strings.Join(all, "\n"), strings.Join(calls(recorded(c.t, c.dir)), "\n"))
		}
	}
}

type deed func(id string, origin sandbox.Origin) (*engine.Handle, error)

// finish asks for something and waits for its end.
func (c *chained) finish(id string, do deed) error {
	c.t.Helper()
	h, err := do(id, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(c.t.Context())
	}
	return err
}

func (c *chained) stopIt(id string) error { c.t.Helper(); return c.finish(id, c.d.engine.StopSandbox) }
func (c *chained) startIt(id string) error {
	c.t.Helper()
	return c.finish(id, func(id string, o sandbox.Origin) (*engine.Handle, error) { return c.d.engine.StartSandbox(id, nil, o) })
}

func (c *chained) deleteIt(id string) {
	c.t.Helper()
	if err := c.finish(id, c.d.engine.DeleteSandbox); err != nil {
		c.t.Fatal(err)
	}
	c.comes(id, sandbox.Deleted)
}

// forget empties the record of calls.
func (c *chained) forget() {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.dir, "calls")); err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
}

// called checks which calls there were, in order.
func (c *chained) called(of []phase.Phase, want ...string) {
	c.t.Helper()
	if diff := cmp.Diff(want, calls(recorded(c.t, c.dir), of...)); diff != "" {
		c.t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// preview is what `sandbox plan` shows.
func (c *chained) preview(spec sandbox.Spec) (*plan.Plan, error) {
	c.t.Helper()
	p, err := c.d.engine.Preview(c.t.Context(), c.ask("shown", spec))
	if err != nil {
		return nil, err
	}
	return p.Plan, nil
}

// nothing checks that no sandbox is left in the driver's eyes, and that nobody holds anything.
func (c *chained) nothing() {
	c.t.Helper()
	if held := c.d.engine.Holdings(); len(held) > 0 {
		c.t.Errorf("held: %+v", held)
	}
	dirs, _ := filepath.Glob(filepath.Join(c.dir, "data/*/*/sandboxes/*"))
	if len(dirs) > 0 {
		c.t.Errorf("left: %v", dirs)
	}
}

// faulty puts something before the driver's calls.
type faulty struct {
	driver.Driver
	call func(what string) error
}

func (f faulty) Unwrap() driver.Driver { return f.Driver }

func (f faulty) Create(ctx context.Context, r *driver.CreateRequest) error {
	if err := f.call("create"); err != nil {
		return err
	}
	return f.Driver.Create(ctx, r)
}

func (f faulty) Start(ctx context.Context, r *driver.StartRequest) error {
	if err := f.call("start"); err != nil {
		return err
	}
	return f.Driver.Start(ctx, r)
}

func (f faulty) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	if err := f.call("delete"); err != nil {
		return err
	}
	return f.Driver.Delete(ctx, r)
}

package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/test/kubetest"
)

// doorBase is what the checks of the compute door need to know of a base driver.
type doorBase struct {
	engine  enginetest.Kind                   // that it needs; "" for none
	setting string                            // of its configuration: where the engine's socket goes
	block   string                            // of its configuration
	kind    string                            // whose labels and image the extension may set
	grant   []string                          // what it may set instead, where those are called otherwise
	image   string                            // of a sandbox
	runs    []string                          // a command that runs until it is stopped
	exits   []string                          // a command that ends by itself with the code 3 after a moment; nil: none
	missing []string                          // a command with which the driver refuses the create itself; nil: none
	far     func(t *testing.T) (block string) // starts what is behind the driver's block; nil: nothing is
	slow    bool                              // a sandbox takes long: of what both generations do alike, the second does it
}

// doorBases has a line for every built-in driver. Whoever adds one adds it here, and gets every check.
var doorBases = map[string]doorBase{
	"native": {kind: "Process", runs: []string{"/bin/sleep", "600"}, exits: []string{"/bin/sh", "-c", "sleep 0.3; exit 3"}, missing: []string{"/no/such/program"}},
	"docker": {kind: "Container", engine: enginetest.Docker, setting: "host", image: enginetest.Image, runs: untilTerm,
		exits: []string{"sh", "-c", "sleep 0.3; exit 3"}},
	// Drivers from outside: one behind a socket, which is another gateway's native, and a program.
	"remote": {kind: "DriverSandbox", runs: []string{"/bin/sleep", "600"}, exits: []string{"/bin/sh", "-c", "sleep 0.3; exit 3"}, missing: []string{"/no/such/program"}, far: farGateway},
	"program": {kind: "Process", runs: []string{"/bin/sleep", "600"}, exits: []string{"/bin/sh", "-c", "sleep 0.3; exit 3"}, missing: []string{"/no/such/program"},
		far: func(t *testing.T) string { return fmt.Sprintf("  command = %q\n", driverProgram(t, t.TempDir())) }},
	"vm": {kind: "LaunchPlan", slow: true, image: "busybox", runs: untilTerm, exits: []string{"sh", "-c", "sleep 0.3; exit 3"},
		far: func(t *testing.T) string { return vmtest.Settings(t, `stop_timeout = "2s"`) }},
	"kubernetes": {slow: true, grant: []string{"PodTemplate.template.metadata.labels", "PodTemplate.template.spec.containers.agent.image"},
		image: "registry.example/sandbox:1", runs: []string{"sleep", "600"}, far: func(t *testing.T) string {
			c := kubetest.Use(t, kubetest.Beta)
			ns := c.Namespace(t, nil)
			return fmt.Sprintf("config {\n  kubeconfig = %q\n  namespace = %q\n  gateway_id = %q\n  default_image = %q\n}\n", c.Admin, ns, ns, "registry.example/sandbox:1")
		}},
	"podman": {kind: "Container", engine: enginetest.Podman, setting: "socket", image: enginetest.Image, runs: untilTerm,
		exits: []string{"sh", "-c", "sleep 0.3; exit 3"}},
}

// untilTerm ends at SIGTERM, which a first process ignores by itself.
var untilTerm = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"}

// on is the base with the engine that it needs, which this starts.
func (b doorBase) on(t *testing.T) doorBase {
	if b.engine != "" {
		b.block = fmt.Sprintf("config {\n  %s = %q\n  stop_timeout = \"1s\"\n  image_policy = \"never\"\n  default_image = %q\n}\n",
			b.setting, "unix://"+enginetest.Use(t, b.engine).Socket, b.image)
	}
	if b.far != nil {
		b.block = b.far(t)
	}
	return b
}

// farGateway is a gateway of its own, before whose door another one stands.
func farGateway(t *testing.T) string {
	far := newSite(t)
	text := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen = \"unix://%s/gw.sock\"\n}\ndriver \"native\" {\n  expose {\n    socket = %q\n  }\n}\n", far.dir+"/data", far.dir, far.socket())
	if err := os.WriteFile(filepath.Join(far.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	far.start()
	t.Cleanup(far.end)
	return fmt.Sprintf("  socket = \"unix://%s\"\n", far.socket())
}

// doorCheck is one thing that an OpenShell gateway relies on. The rule says where it comes from: the number of the
// passage in the project's notes on that gateway, and its subject.
type doorCheck struct {
	rule, name string
	only       openshelltest.Generation // 0: both
	run        func(p *probe)
}

// atLeast is how many checks each generation gets, so that a table that shrinks is noticed.
const atLeast = 90

// TestTheDoorServesAnOpenShellGateway drives the compute door as gateways of both generations do, over every built-in
// driver with an extension in its chain.
func TestTheDoorServesAnOpenShellGateway(t *testing.T) {
	checks := slices.Concat(startChecks, validateChecks, createChecks, undoneChecks, readChecks, runChecks, ambiguityChecks, deleteChecks, watchChecks,
		workspaceChecks, recoveryChecks, restartChecks)
	for _, name := range append(drivers.Names(), "remote", "program") {
		base, ok := doorBases[name]
		if !ok {
			t.Errorf("driver %q has no line in doorBases", name)
			continue
		}
		t.Run(name, func(t *testing.T) { doorChecks(t, name, base, checks) })
	}
}

// doorChecks makes the checks over one base, as a gateway of each generation.
func doorChecks(t *testing.T, name string, base doorBase, checks []doorCheck) {
	for _, gen := range []openshelltest.Generation{openshelltest.First, openshelltest.Second} {
		t.Run(fmt.Sprintf("G%d", gen), func(t *testing.T) {
			t.Parallel()
			r := newDoorRig(t, name, base.on(t), gen)
			n := 0
			for _, c := range checks {
				if c.only != 0 && c.only != gen || base.slow && gen == openshelltest.First && c.only != gen {
					continue
				}
				n++
				t.Run(c.rule+": "+c.name, func(t *testing.T) { c.run(&probe{T: t, doorRig: r}) })
			}
			if n < atLeast && !(base.slow && gen == openshelltest.First) {
				t.Errorf("%d checks, want %d at least", n, atLeast)
			}
		})
	}
}

// doorRig is a site whose drivers are exposed, and an OpenShell gateway before it.
type doorRig struct {
	*site
	driver string
	base   doorBase
	gen    openshelltest.Generation
	g      *openshelltest.Gateway // of the composed driver
}

// The doors: the base alone, the composed driver, one that waits for releases shortly, and one that is another user's.
const (
	doorAcme   = "acme"
	doorHasty  = "hasty"
	doorOthers = "others"
	nobody     = 65534
)

func newDoorRig(t *testing.T, name string, base doorBase, gen openshelltest.Generation) *doorRig {
	r := &doorRig{site: newSite(t), driver: name, base: base, gen: gen}
	r.configure("")
	type opened struct {
		g   *openshelltest.Gateway
		err error
	}
	early := make(chan opened, 1)
	go func() { // it is there before the socket is
		g, err := openshelltest.Open(t.Context(), r.openShell(doorAcme))
		early <- opened{g, err}
	}()
	r.site.start()
	t.Cleanup(func() { r.end() })
	o := <-early
	if o.err != nil {
		t.Fatal(o.err)
	}
	r.g = o.g
	r.g.Run(t.Context())
	t.Cleanup(func() { _ = r.g.Close() })
	return r
}

func (r *doorRig) openShell(door string) openshelltest.Options {
	return openshelltest.Options{Socket: r.door(door), Generation: r.gen, Sweep: 200 * time.Millisecond, Reopen: 50 * time.Millisecond, Prune: time.Hour}
}

// door is the socket of a driver.
func (r *doorRig) door(name string) string { return filepath.Join(r.dir, "doors-"+name, "driver.sock") }

// configure writes the configuration; more stands in the expose block of the composed driver.
func (r *doorRig) configure(more string) {
	expose := func(name, more string) string {
		return fmt.Sprintf("expose {\n  socket = %q\n%s\n}\n", r.door(name), more)
	}
	grant := r.base.grant
	if grant == nil {
		grant = []string{r.base.kind + ".labels", r.base.kind + ".image"}
	}
	bind := fmt.Sprintf("bind \"keeper\" {\n  timeout = \"60s\"\n  phase \"before_create\" {\n    attempts = 1\n    timeout = \"60s\"\n  }\n  grant { mutate = [%q, %q] }\n}\n", grant[0], grant[1])
	composed := func(name, more, about string) string {
		return fmt.Sprintf("driver %q {\n  base = %q\n%s%s%s}\n", name, r.driver, about, bind, expose(name, more))
	}
	text := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen = \"unix://%s/gw.sock\"\n}\n", r.dir+"/data", r.dir) + r.keeperBlock("") +
		fmt.Sprintf("driver %q {\n%s%s}\n", r.driver, r.base.block, expose(r.driver, "")) + composed(doorAcme, more, "") +
		composed(doorHasty, "", "  release_timeout = \"1s\"\n")
	if os.Geteuid() == 0 { // only root can let others in
		text += composed(doorOthers, fmt.Sprintf("  allowed_uids = [%d]", nobody), "")
	}
	if err := os.WriteFile(filepath.Join(r.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// probe is one check at work.
type probe struct {
	*testing.T
	*doorRig
}

// want fails the check where something is not so.
func (p *probe) want(ok bool, format string, args ...any) {
	p.Helper()
	if !ok {
		p.Errorf(format, args...)
	}
}

// code fails the check where an error has another code.
func (p *probe) code(err error, want codes.Code) {
	p.Helper()
	got := status.Code(err)
	if s := openshelltest.CodeOf(err); s != codes.Unknown {
		got = s
	}
	p.want(got == want, "%v, want %v (%v)", got, want, err)
}

// must ends the check where something goes wrong.
func (p *probe) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// asked is a sandbox that a user asks for.
func (p *probe) asked() *computev1.DriverSandbox {
	id := uuid.NewString()
	return &computev1.DriverSandbox{Id: id, Name: "sb-" + id[:8], Workspace: "default", Spec: &computev1.DriverSandboxSpec{
		Command: p.base.runs, Tty: true, Template: &computev1.DriverSandboxTemplate{Image: p.base.image}}}
}

// labelled is one whose extension is told something by labels.
func (p *probe) labelled(labels map[string]string) *computev1.DriverSandbox {
	m := p.asked()
	m.Spec.Template.Labels = labels
	return m
}

// seen waits until a user sees a phase.
func (p *probe) seen(g *openshelltest.Gateway, id string, want openshelltest.Phase) openshelltest.Row {
	p.Helper()
	return p.seenAs(g, id, fmt.Sprintf("it is %s", want), func(r openshelltest.Row) bool { return r.Phase == want })
}

func (p *probe) seenAs(g *openshelltest.Gateway, id, what string, ok func(openshelltest.Row) bool) openshelltest.Row {
	p.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		changed := g.Store().Changed()
		if row := g.Store().Get(id); ok(row) {
			return row
		}
		select {
		case <-changed:
		case <-limit.C:
			row := g.Store().Get(id)
			p.Fatalf("it does not come to this: %s; it is %s (%s) after %v", what, row.Phase, row.Reason, row.Seen)
		}
	}
}

// up waits for a sandbox whose backend is ready, and connects its supervisor.
func (p *probe) up(g *openshelltest.Gateway, id string) {
	p.Helper()
	p.seenAs(g, id, "its backend is ready", func(r openshelltest.Row) bool {
		return r.Phase == openshelltest.Ready || slices.ContainsFunc(r.Conditions, func(c *computev1.DriverCondition) bool {
			return c.GetType() == "Ready" && c.GetStatus() == "True"
		}) && r.Phase != openshelltest.Stopped && r.Phase != openshelltest.Stopping
	})
	g.Store().Connect(id, true)
	p.seen(g, id, openshelltest.Ready)
}

// running makes a sandbox that is ready, and deletes it at the end of the check.
func (p *probe) running() *computev1.DriverSandbox {
	p.Helper()
	m := p.asked()
	p.must(p.g.Create(p.Context(), m, "hush"))
	p.Cleanup(func() { p.drop(p.g, m.GetId()) })
	p.up(p.g, m.GetId())
	return m
}

// drop deletes a sandbox, however the check has left it, and waits for its end.
func (p *probe) drop(g *openshelltest.Gateway, id string) {
	_, err := g.Client().DeleteSandbox(context.Background(), &computev1.DeleteSandboxRequest{SandboxId: id})
	if err != nil {
		p.Errorf("delete at the end: %v", err)
	}
	if g.Store().Get(id).Phase != openshelltest.Gone {
		p.seen(g, id, openshelltest.Gone)
	}
}

// get asks the door for a sandbox.
func (p *probe) get(id string) (*computev1.DriverSandbox, error) {
	r, err := p.g.Client().GetSandbox(p.Context(), &computev1.GetSandboxRequest{SandboxId: id})
	return r.GetSandbox(), err
}

// listed reports whether the door lists a sandbox.
func (p *probe) listed(id string) bool {
	p.Helper()
	r, err := p.g.Client().ListSandboxes(p.Context(), &computev1.ListSandboxesRequest{})
	p.must(err)
	return slices.ContainsFunc(r.GetSandboxes(), func(m *computev1.DriverSandbox) bool { return m.GetId() == id })
}

// backend is the phase that the door's own answer comes to.
func (p *probe) backend(id string) openshelltest.Phase {
	p.Helper()
	m, err := p.get(id)
	if status.Code(err) == codes.NotFound {
		return openshelltest.Gone
	}
	p.must(err)
	phase, _ := openshelltest.Derive(p.gen, m.GetStatus())
	return phase
}

// holds reports whether the extension holds something of a sandbox.
func (p *probe) holds(id string) bool {
	_, err := os.Stat(filepath.Join(p.dir, "held-"+id))
	return err == nil
}

// stick makes the extension unable to release what it holds of a sandbox, until the returned function is called.
func (p *probe) stick(id string) (free func()) {
	p.Helper()
	path := filepath.Join(p.dir, "held-"+id)
	p.must(os.Remove(path))
	p.must(os.MkdirAll(filepath.Join(path, "in-the-way"), 0o700))
	return func() { p.must(os.RemoveAll(path)) }
}

// gate makes something that a create waits for in its extension, until the returned function is called.
func (p *probe) gate() (name string, open func()) {
	p.Helper()
	name = "gate-" + uuid.NewString()
	path := filepath.Join(p.dir, name)
	p.must(unix.Mkfifo(path, 0o600))
	return name, func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		p.must(err)
		p.Cleanup(func() { _ = f.Close() })
	}
}

// replica is another gateway of the same generation, before the door of a driver.
func (p *probe) replica(door string, change func(*openshelltest.Options)) *openshelltest.Gateway {
	p.Helper()
	o := p.openShell(door)
	if change != nil {
		change(&o)
	}
	g, err := openshelltest.Open(p.Context(), o)
	p.must(err)
	p.Cleanup(func() { _ = g.Close() })
	return g
}

// dial is a bare client under some authority.
func (p *probe) dial(door, authority string) computev1.ComputeDriverClient {
	p.Helper()
	conn, err := grpc.NewClient("unix://"+p.door(door), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(authority))
	p.must(err)
	p.Cleanup(func() { _ = conn.Close() })
	return computev1.NewComputeDriverClient(conn)
}

// since returns the calls that a gateway made after some.
func since(g *openshelltest.Gateway, n int) []string { return g.Calls()[n:] }

// count counts a method among calls.
func count(calls []string, method string) (n int) {
	for _, c := range calls {
		if c == method {
			n++
		}
	}
	return n
}

func message(err error) string { return strings.ToLower(fmt.Sprint(err)) }

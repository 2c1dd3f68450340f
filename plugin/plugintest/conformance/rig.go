package conformance

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// driverName is the driver that the kit plays.
const driverName = "verify"

// rig is a run: the gateway's side of the contract, played.
type rig struct {
	p        Program
	run      string // makes ids unique among runs
	patience time.Duration

	proc       *process
	remote     *wire.Extension
	configured bool // the process is
	accepted   bool // one was
	barren     bool // none has started yet, and one was to

	manifest *extension.Manifest
	schema   extension.ConfigSchema
	contract extension.Contract

	count     int
	subjects  []*subject
	workspace *subject // of the sandboxes that need none of their own
	lived     *life
	printed   strings.Builder     // all that processes printed that have ended
	said      strings.Builder     // all that was answered
	keys      []string            // private keys that were handed over
	problems  map[string][]string // by rule: what answers showed in passing
}

func newRig(p Program) (*rig, error) {
	files := append([]string{p.Command}, p.Files...)
	if p.Interpreter != "" {
		files = append(files, p.Interpreter)
	}
	for _, name := range files {
		if _, err := os.Stat(name); err != nil {
			return nil, fault.New(fault.NotFound, "look for what is to be run: %w", err)
		}
	}
	p.Workspace = cmp.Or(p.Workspace, sandbox.DefaultWorkspace)
	return &rig{p: p, run: strings.ToLower(rand.Text()[:8]), patience: cmp.Or(p.Patience, 5*time.Second), problems: map[string][]string{}}, nil
}

// started returns a process that has proved itself and said what it is.
func (r *rig) started(ctx context.Context) (*process, error) {
	switch {
	case r.proc != nil && !r.proc.ended(0):
		return r.proc, nil
	case r.barren:
		return nil, notApplicable("it does not start: see above")
	}
	x, err := r.start(ctx)
	r.barren = err != nil && r.manifest == nil
	return x, err
}

func (r *rig) start(ctx context.Context) (*process, error) {
	r.drop()
	x, err := start(r.p, launch{})
	if err != nil {
		return nil, err
	}
	r.proc, r.configured = x, false
	r.keys = append(r.keys, x.launch.Key)
	// What starts first has to be read from disk, and a machine may be busy.
	line, err := x.handshake(4 * r.patience)
	if err != nil {
		return nil, err
	}
	socket, err := parseHandshake(line, x.dir)
	if err != nil {
		return nil, err
	}
	if err := x.connect(ctx, socket, r.patience); err != nil {
		return nil, err
	}
	r.remote = wire.NewExtension(x.conn)
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	m, err := r.remote.Describe(ctx)
	if err != nil {
		return nil, x.why(fmt.Errorf("Describe: %w", err))
	}
	if r.manifest == nil {
		r.manifest = m
		if len(m.ConfigSchema) > 0 {
			_ = json.Unmarshal(m.ConfigSchema, &r.schema) // rule "manifest" says if it is none
		}
		r.contract = r.grantAll()
	}
	return x, nil
}

// up returns a process that is configured.
func (r *rig) up(ctx context.Context) (*process, error) {
	x, err := r.started(ctx)
	if err != nil || r.configured {
		return x, err
	}
	d, err := r.configure(ctx, r.p.Config, r.contract)
	if err != nil {
		return nil, fmt.Errorf("Configure: %w", err)
	}
	if len(d) > 0 && !r.accepted { // rule "config-accepted" says that it is broken
		return nil, notApplicable("it refuses the configuration that it was given: see config-accepted")
	}
	if len(d) > 0 {
		return nil, fmt.Errorf("it refuses the configuration that it had accepted: %s", told(d))
	}
	r.configured, r.accepted = true, true
	return x, nil
}

func (r *rig) configure(ctx context.Context, config json.RawMessage, c extension.Contract) ([]fault.Diagnostic, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	d, err := r.remote.Configure(ctx, config, []extension.Contract{c}, "verify")
	for _, x := range d {
		fmt.Fprintln(&r.said, x.Path, x.Summary, x.Detail)
	}
	if err != nil {
		fmt.Fprintln(&r.said, err)
	}
	return d, r.why(err)
}

func (r *rig) why(err error) error {
	if err == nil || r.proc == nil {
		return err
	}
	return r.proc.why(err)
}

// drop ends the process as SIGKILL does, and keeps what it printed.
func (r *rig) drop() {
	if r.proc == nil {
		return
	}
	_ = r.proc.close()
	r.printed.WriteString(r.proc.out.String())
	r.printed.WriteString(r.proc.err.String())
	r.proc, r.remote, r.configured = nil, nil, false
}

// settle gives the next rule a process of its own, once what was held is released.
func (r *rig) settle(ctx context.Context) {
	if r.proc != nil && r.configured && !r.proc.ended(0) {
		ctx, cancel := context.WithTimeout(ctx, r.patience)
		defer cancel()
		_ = r.releaseAll(ctx)
	}
	r.drop()
}

// close releases what is held, and leaves nothing.
func (r *rig) close(ctx context.Context) error {
	if r.manifest != nil && len(r.subjects) > 0 {
		ctx, cancel := context.WithTimeout(ctx, r.patience)
		defer cancel()
		if _, err := r.up(ctx); err == nil {
			_ = r.releaseAll(ctx) // what is broken in it, rules have said
		}
	}
	r.drop()
	return nil
}

// grantAll is the contract of a driver that has everything.
func (r *rig) grantAll() extension.Contract {
	c := extension.Contract{Bind: driverName + "/" + r.manifest.Name, Driver: driverName, Phases: r.manifest.Phases, Features: r.p.Features}
	if c.Features == nil {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(r.manifest.Requires), r.manifest.Uses...)))) {
			c.Features = append(c.Features, featureOf(name))
		}
	}
	for _, f := range c.Features {
		if f.Point != "" {
			c.Points = append(c.Points, plan.Point{Pattern: f.Point, Phases: phase.All(), Overridable: true, Feature: f.Name, Object: f.Object})
		}
	}
	for _, name := range r.manifest.Points {
		if !strings.HasPrefix(name, "feature:") {
			c.Points = append(c.Points, plan.Point{Pattern: plan.Pattern(name), Phases: phase.All(), Overridable: true})
		}
	}
	return c
}

// featureOf invents a feature, with a point like the native driver's.
func featureOf(name string) extension.Feature {
	switch name {
	case "restart", "logs":
		return extension.Feature{Name: name}
	case "network", "network.subnet":
		return extension.Feature{Name: name, Point: plan.Pattern("Network" + strings.TrimPrefix(name, "network")), Object: "workspace"}
	case "volume":
		return extension.Feature{Name: name, Point: "Mount"}
	}
	return extension.Feature{Name: name, Point: plan.Pattern("Process." + name), Object: "main"}
}

// subject is a sandbox or a workspace of the run, with what the gateway's ledger would have of it.
type subject struct {
	sandbox   *sandbox.Identity
	workspace sandbox.Workspace
	of        *subject // a sandbox's workspace
	number    uint64
	state     *extension.State
	held      map[phase.Lifetime][]extension.Entry
	begun     phase.Set // setup phases that were asked for
}

func (s *subject) id() string {
	if s.sandbox != nil {
		return s.sandbox.ID
	}
	return s.workspace.ID
}

func (r *rig) newID(what string) string {
	r.count++
	return fmt.Sprintf("%s-%s-%d", what, r.run, r.count)
}

// newWorkspace returns a workspace that nobody has been told of.
func (r *rig) newWorkspace() *subject {
	s := &subject{workspace: sandbox.Workspace{ID: r.newID("workspace"), Driver: driverName, Name: r.p.Workspace}, held: map[phase.Lifetime][]extension.Entry{}}
	r.subjects = append(r.subjects, s)
	return s
}

// newSandbox returns a sandbox that nobody has been told of, in a workspace that is ensured.
func (r *rig) newSandbox(ctx context.Context) (*subject, error) {
	if r.workspace == nil {
		w := r.newWorkspace()
		if r.has(phase.EnsureWorkspace) {
			if _, err := r.do(ctx, w, phase.EnsureWorkspace); err != nil {
				return nil, err
			}
		}
		r.workspace = w
	}
	w := r.workspace.workspace
	s := &subject{workspace: w, of: r.workspace, held: map[phase.Lifetime][]extension.Entry{}}
	id := r.newID("sandbox")
	s.sandbox = &sandbox.Identity{ID: id, Driver: driverName, Workspace: w.Name, WorkspaceID: w.ID, Name: "name-of-" + id}
	r.subjects = append(r.subjects, s)
	return s, nil
}

func (r *rig) has(p phase.Phase) bool { return phase.Set(r.manifest.Phases).Has(p) }

// setups are the phases that may take, in the order in which a life meets them.
var setups = []phase.Phase{phase.EnsureWorkspace, phase.BeforeCreate, phase.BeforeStart, phase.AfterCreate, phase.AfterReady}

// takers returns those that the program declares and may hold something in.
func (r *rig) takers() []phase.Phase {
	return slices.DeleteFunc(slices.Clone(setups), func(p phase.Phase) bool {
		return !r.has(p) || !phase.Set(r.manifest.Phases).MayHold(p.Takes())
	})
}

// fresh returns a new subject that has come to the phase, and not further.
func (r *rig) fresh(ctx context.Context, to phase.Phase) (*subject, error) {
	if to.OfWorkspace() {
		return r.newWorkspace(), nil
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range setups[1:] {
		if p == to {
			break
		}
		if r.has(p) && slices.Index(setups, p) < slices.Index(setups, to) {
			if _, err := r.do(ctx, s, p); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

var causes = map[phase.Phase]phase.Cause{phase.BeforeStart: phase.CauseCreate, phase.AfterReady: phase.CauseCreate,
	phase.AfterStop: phase.CauseDeleted, phase.OnCreateFailed: phase.CauseLaunchFailed}

// next makes the next call of a subject.
func (r *rig) next(s *subject, p phase.Phase) *extension.Call {
	s.number++
	kind := phase.OpCreate
	switch {
	case p == phase.Reconcile:
		kind = phase.OpRepair
	case p == phase.EnsureWorkspace:
		kind = phase.OpWorkspaceEnsure
	case p == phase.DeleteWorkspace:
		kind = phase.OpWorkspaceDelete
	case !p.Setup() && p != phase.OnCreateFailed:
		kind = phase.OpDelete
	}
	c := &extension.Call{Phase: p, Bind: r.contract.Bind, Operation: string(kind) + "-" + s.id(), Kind: kind, Attempt: 1, Number: s.number,
		Key: string(kind) + "-" + s.id() + "/" + string(p) + "/" + r.manifest.Name, Cause: causes[p], Sandbox: s.sandbox, Workspace: s.workspace,
		Labels: r.p.Labels, Image: r.p.Image, State: s.state, Held: s.held[p.Lifetime()],
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	if s.of != nil {
		c.WorkspaceState = s.of.state
	}
	if p.Lifetime() == phase.Run {
		c.Run = 1
	}
	if p == phase.AfterReady {
		c.Addresses = []string{fmt.Sprintf("192.0.2.%d/24", s.number%250+1)} // RFC 5737
	}
	if p.Setup() {
		s.begun = append(s.begun, p)
	}
	return c
}

// errDenied is a decision against one of the kit's requests.
func denied(p phase.Phase, a *extension.Answer) error {
	return notApplicable("it denies the kit's request in %s: %s. Give it one that it accepts: workspace, labels, image", p, told(a.Diagnostics))
}

// do makes the next call of a subject, which has to be answered and not denied, and enters the answer into the ledger.
func (r *rig) do(ctx context.Context, s *subject, p phase.Phase) (*extension.Answer, error) {
	return r.take(ctx, s, r.next(s, p))
}

func (r *rig) take(ctx context.Context, s *subject, c *extension.Call) (*extension.Answer, error) {
	a, err := r.send(ctx, c)
	if err != nil {
		return nil, err
	}
	if a.Denied {
		return nil, denied(c.Phase, a)
	}
	r.enter(s, c, a)
	return a, nil
}

// enter puts an answer into the ledger.
func (r *rig) enter(s *subject, c *extension.Call, a *extension.Answer) {
	if a.State != nil {
		s.state = a.State
	}
	if l := cmp.Or(c.Lifetime, c.Phase.Lifetime()); l != phase.None {
		s.held[l] = a.Entries
	}
}

// send makes one call, within patience, and looks at what every answer has to keep to.
func (r *rig) send(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	a, err := r.remote.Call(ctx, c)
	if err != nil {
		fmt.Fprintln(&r.said, err)
		if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, r.why(fmt.Errorf("%s was not answered within %s: %w", c.Phase, r.patience, err))
		}
		return nil, r.why(fmt.Errorf("%s: %w", c.Phase, err))
	}
	r.look(c, a)
	return a, nil
}

// release calls what releases, for the lifetimes of which something was begun.
func (r *rig) release(ctx context.Context, s *subject) error {
	var failed error
	for _, p := range []phase.Phase{phase.AfterStop, phase.AfterDelete, phase.DeleteWorkspace} {
		if !r.has(p) || !slices.ContainsFunc(s.begun, func(b phase.Phase) bool { return b.Takes() == p.Releases() }) {
			continue
		}
		if _, err := r.do(ctx, s, p); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil {
		r.subjects = slices.DeleteFunc(r.subjects, func(x *subject) bool { return x == s })
		s.begun = nil
	}
	return failed
}

// releaseAll releases every sandbox, and then every workspace.
func (r *rig) releaseAll(ctx context.Context) error {
	var failed error
	for _, sandboxes := range []bool{true, false} {
		for _, s := range slices.Clone(r.subjects) {
			if (s.sandbox != nil) == sandboxes && s != r.workspace {
				failed = errors.Join(failed, r.release(ctx, s))
			}
		}
	}
	if w := r.workspace; w != nil && failed == nil {
		r.workspace = nil
		failed = r.release(ctx, w)
	}
	return failed
}

// undoer is the phase that undoes what a phase has taken.
func undoer(p phase.Phase) phase.Phase {
	switch p {
	case phase.EnsureWorkspace:
		return phase.DeleteWorkspace
	case phase.BeforeStart, phase.AfterReady:
		return phase.AfterStop
	}
	return phase.OnCreateFailed
}

func told(list []fault.Diagnostic) string {
	var out []string
	for _, d := range list {
		out = append(out, strings.TrimSpace(strings.Join([]string{d.Path, d.Summary, d.Detail}, " ")))
	}
	return strings.Join(out, "; ")
}

func texts(list []extension.Entry) string {
	var out []string
	for _, e := range list {
		out = append(out, e.Kind+" "+e.ID)
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

// sameEntries compares what is held, not how it is put into words or in which order.
func sameEntries(a, b []extension.Entry) bool { return texts(a) == texts(b) }

// common returns what stands in both.
func common(a, b []extension.Entry) []extension.Entry {
	return slices.DeleteFunc(slices.Clone(a), func(e extension.Entry) bool {
		return !slices.ContainsFunc(b, func(o extension.Entry) bool { return o.Kind == e.Kind && o.ID == e.ID })
	})
}

// everything is what a subject holds, of every lifetime.
func (s *subject) everything() []extension.Entry {
	var out []extension.Entry
	for _, l := range slices.Sorted(maps.Keys(s.held)) {
		out = append(out, s.held[l]...)
	}
	return out
}

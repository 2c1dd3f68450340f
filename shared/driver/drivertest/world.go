package drivertest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Options say what kind of world it is. The zero value is a world in which everything works at once.
type Options struct {
	Type     string           // the driver's type; "" for "fake"
	Instance string           // the driver's instance; "" for "world"
	Now      func() time.Time // nil for time.Now
	Without  []string         // features that the driver is to lack
	Capacity int              // how many sandboxes there may be; 0 for any number
	// ManualReady leaves a sandbox that runs at Running until SetReady. Otherwise it is ready at once.
	ManualReady bool
	// Hook is called at every call, before its effect and after it, with no lock held. An error before the effect
	// takes its place, one after it is answered instead of success. Nil: none.
	Hook func(ctx context.Context, m Moment) error
	// Observe is called with every entry of the log, in order and under the world's lock: it must not call the world.
	Observe func(Entry)
	// DiscardLog keeps no log, for benchmarks.
	DiscardLog bool
}

// Moment is a call before or after its effect.
type Moment struct {
	Call      Call
	ID        string // of the sandbox, or of the workspace in calls that are about one
	Operation string
	Run       int
	After     bool
}

// Verb says what an entry of the log is about.
type Verb string

// The verbs: the two ends of a call, and what came of it or of the script.
const (
	Called           Verb = "called"
	Answered         Verb = "answered"
	Made             Verb = "made"    // an object
	Removed          Verb = "removed" // an object
	Began            Verb = "began"   // a run
	Ended            Verb = "ended"   // a run, by Stop or Delete
	ReadyNow         Verb = "ready"
	NotReady         Verb = "not ready"
	ExitedNow        Verb = "exited"
	LostNow          Verb = "lost"
	Vanished         Verb = "vanished" // someone else removed the sandbox
	WorkspaceMade    Verb = "workspace made"
	WorkspaceChanged Verb = "workspace changed"
	WorkspaceRemoved Verb = "workspace removed"
)

// Entry is one line of the log.
type Entry struct {
	Seq       int // from 1
	Verb      Verb
	Call      Call   // of Called and Answered
	ID        string // of the sandbox, or of the workspace
	Operation string
	Run       int
	Object    string     // real name, of Made and Removed
	Code      fault.Code // of Answered
}

// World is compute in memory. It is safe for concurrent use.
type World struct {
	options Options
	about   *driver.Description

	mu         sync.Mutex
	boxes      map[key]*boxState
	nets       map[string]*netState // by workspace id
	foreign    map[driver.RealObject]bool
	faults     []*Injected
	watchers   map[*watcher]struct{}
	log        []Entry
	seq        int
	violations []string
}

// key identifies a sandbox: one id may exist under several drivers' names.
type key struct{ driver, id string }

type boxState struct {
	status  driver.Status
	objects []plan.Object // of the plan of its last run
	made    []string      // refs of the objects that exist
	token   string
	output  []byte
	runs    int           // a file in its work directory: how often it was run
	changed chan struct{} // closed and replaced when the output grows or the run ends
}

type netState struct {
	workspace sandbox.Workspace
	objects   []plan.Object
}

// NewWorld makes an empty world.
func NewWorld(o Options) *World {
	o.Type = cmp.Or(o.Type, "fake")
	o.Instance = cmp.Or(o.Instance, "world")
	if o.Now == nil {
		o.Now = time.Now
	}
	return &World{
		options:  o,
		about:    describe(o),
		boxes:    map[key]*boxState{},
		nets:     map[string]*netState{},
		foreign:  map[driver.RealObject]bool{},
		watchers: map[*watcher]struct{}{},
	}
}

// Open returns a driver over the world, as a gateway that has just started would.
func (w *World) Open() *Fake {
	return &Fake{world: w, closed: make(chan struct{}), busy: map[string]Call{}}
}

// Log returns what happened so far.
func (w *World) Log() []Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

// Calls returns how often a method was called; "" counts all of them.
func (w *World) Calls(c Call) int {
	n := 0
	for _, e := range w.Log() {
		if e.Verb == Called && (c == "" || c == e.Call) {
			n++
		}
	}
	return n
}

// Violations returns what gateways did that the driver contract or the engine's promises forbid: two mutating calls
// for one sandbox at once, a run that begins before the one before has ended, a sandbox in a workspace that was
// never ensured, a workspace that is deleted under its sandboxes.
func (w *World) Violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.violations)
}

// Sandboxes returns what there is, of every driver's name, sorted by driver and id.
func (w *World) Sandboxes() []*driver.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snapshot()
}

// Sandbox returns the sandbox of that id under whichever driver's name, or nil.
func (w *World) Sandbox(id string) *driver.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := w.find(id); b != nil {
		return b.clone()
	}
	return nil
}

// Plan returns the objects from which the sandbox's last run was begun, or nil.
func (w *World) Plan(id string) []plan.Object {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := w.find(id); b != nil {
		return slices.Clone(b.objects)
	}
	return nil
}

// Token returns the secret that the sandbox was given.
func (w *World) Token(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := w.find(id); b != nil {
		return b.token
	}
	return ""
}

// Workspaces returns the workspaces that have objects, sorted by id.
func (w *World) Workspaces() []sandbox.Workspace {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []sandbox.Workspace
	for _, id := range slices.Sorted(maps.Keys(w.nets)) {
		out = append(out, w.nets[id].workspace)
	}
	return out
}

// WorkspacePlan returns the objects of a workspace as they were ensured last, or nil.
func (w *World) WorkspacePlan(id string) []plan.Object {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nets[id]; n != nil {
		return slices.Clone(n.objects)
	}
	return nil
}

// Leftovers names everything that exists in the world and was not planted, sorted. Nil: it is as it was made.
func (w *World) Leftovers() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, b := range w.boxes {
		for _, o := range b.status.Objects {
			out = append(out, o.Kind+"/"+o.Name)
		}
		if len(b.status.Objects) == 0 {
			out = append(out, "record/"+b.status.Identity.ID)
		}
	}
	for id, n := range w.nets {
		for _, o := range n.objects {
			out = append(out, o.Kind+"/"+realName(id, o))
		}
	}
	slices.Sort(out)
	return out
}

// find returns a sandbox by its id alone. The lock is held.
func (w *World) find(id string) *boxState {
	for _, k := range slices.SortedFunc(maps.Keys(w.boxes), compareKeys) {
		if k.id == id {
			return w.boxes[k]
		}
	}
	return nil
}

// snapshot returns a copy of every status in order. The lock is held.
func (w *World) snapshot() []*driver.Status {
	out := make([]*driver.Status, 0, len(w.boxes))
	for _, k := range slices.SortedFunc(maps.Keys(w.boxes), compareKeys) {
		out = append(out, w.boxes[k].clone())
	}
	return out
}

// note writes an entry to the log. The lock is held.
func (w *World) note(e Entry) {
	w.seq++
	e.Seq = w.seq
	if w.options.Observe != nil {
		w.options.Observe(e)
	}
	if !w.options.DiscardLog {
		w.log = append(w.log, e)
	}
}

// violated remembers a promise that a gateway broke. The lock is held.
func (w *World) violated(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// match returns the fault that strikes the call, or nil. The lock is held.
func (w *World) match(m Moment) *Injected {
	for _, i := range w.faults {
		if i.take(m) {
			return i
		}
	}
	return nil
}

// change sets a sandbox's state, notes it and tells the watchers. The lock is held.
func (w *World) change(b *boxState, state driver.State, verb Verb) {
	b.status.State = state
	b.status.Since = w.options.Now()
	close(b.changed)
	b.changed = make(chan struct{})
	if verb != "" {
		w.note(Entry{Verb: verb, ID: b.status.Identity.ID, Operation: b.status.Operation, Run: b.status.Run})
	}
	w.emit(func() driver.Event { return driver.Event{Status: b.clone()} })
}

func (b *boxState) clone() *driver.Status {
	s := b.status
	s.Addresses = slices.Clone(s.Addresses)
	s.Objects = slices.Clone(s.Objects)
	if s.ExitCode != nil {
		code := *s.ExitCode
		s.ExitCode = &code
	}
	return &s
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.id, b.id))
}

// realName is what an object is called in the world; id is that of its sandbox or workspace.
func realName(id string, o plan.Object) string {
	name := strings.ToLower(o.Kind) + "-" + id
	if o.Name != Main {
		name += "-" + o.Name
	}
	return name
}

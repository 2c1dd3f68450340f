package drivertest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// What the mutating calls do to the world. All of them run under its lock. With partly they stop half way, as a
// driver does that dies.

func (w *World) create(r *driver.CreateRequest, partly bool) error {
	id, objs := r.Identity, objects(r.Plan)
	k := key{id.Driver, id.ID}
	b := w.boxes[k]
	switch {
	case b == nil:
		if w.nets[id.WorkspaceID] == nil {
			w.violated("Create of %s in workspace %s, which was not ensured", id.ID, id.WorkspaceID)
			return fault.New(fault.FailedPrecondition, "workspace %s was not ensured", id.Workspace)
		}
		if err := w.judge(id, objs, objects(r.Workspace), fault.AlreadyExists); err != nil {
			return err
		}
		b = &boxState{status: driver.Status{Identity: id, Operation: r.Operation}, changed: make(chan struct{})}
		w.boxes[k] = b
		w.change(b, driver.Provisioning, "")
	case b.status.Operation != r.Operation:
		return fault.New(fault.AlreadyExists, "sandbox %s exists and was made by another operation", id.ID)
	case b.status.State == driver.Removing:
		return fault.New(fault.FailedPrecondition, "sandbox %s is being removed", id.ID)
	case b.status.State != driver.Provisioning:
		return nil // it took effect when it was called before
	}
	for n, o := range objs {
		w.make(b, o)
		if partly && n == 0 {
			return nil
		}
	}
	b.token = string(r.Token)
	w.begin(b, r.Run, objs)
	return nil
}

func (w *World) start(r *driver.StartRequest, partly bool) error {
	b := w.boxes[key{r.Identity.Driver, r.Identity.ID}]
	if b == nil || b.status.Operation != r.Operation {
		return notFound(r.Identity)
	}
	s := &b.status
	switch {
	case s.State == driver.Removing:
		return fault.New(fault.FailedPrecondition, "sandbox %s is being removed", r.Identity.ID)
	case r.Run == s.Run && (runs(s.State) && s.State != driver.Provisioning || s.State == driver.Exited):
		return nil // it took effect when it was called before
	case r.Run < s.Run, r.Run > s.Run && runs(s.State) && s.State != driver.Provisioning:
		w.violated("Start of %s as run %d while run %d is %s", r.Identity.ID, r.Run, s.Run, s.State)
		return fault.New(fault.FailedPrecondition, "run %d of sandbox %s is %s", s.Run, r.Identity.ID, s.State)
	case r.Run == s.Run && s.State != driver.Provisioning:
		return fault.New(fault.FailedPrecondition, "run %d of sandbox %s has ended", s.Run, r.Identity.ID)
	}
	if partly {
		s.Run = r.Run
		w.change(b, driver.Provisioning, "")
		return nil
	}
	for _, o := range objects(r.Plan) {
		w.make(b, o)
	}
	b.token = string(r.Token)
	w.begin(b, r.Run, objects(r.Plan))
	return nil
}

func (w *World) stop(id sandbox.Identity, partly bool) error {
	b := w.boxes[key{id.Driver, id.ID}]
	if b == nil || partly || !(runs(b.status.State) || b.status.State == driver.Lost) {
		return nil
	}
	b.status.Addresses = nil
	b.status.Reason, b.status.Message = "", ""
	w.change(b, driver.Stopped, Ended)
	return nil
}

func (w *World) remove(r *driver.DeleteRequest, partly bool) error {
	b := w.boxes[key{r.Identity.Driver, r.Identity.ID}]
	if b == nil || b.status.Operation != r.Operation {
		return nil
	}
	s := &b.status
	if s.State != driver.Removing {
		verb := Verb("")
		if runs(s.State) {
			verb = Ended
		}
		s.Addresses = nil
		w.change(b, driver.Removing, verb)
	}
	for len(s.Objects) > 0 {
		if partly && len(s.Objects) == 1 {
			return nil
		}
		last := len(s.Objects) - 1
		w.note(Entry{Verb: Removed, ID: s.Identity.ID, Operation: s.Operation, Object: s.Objects[last].Name})
		s.Objects, b.made = s.Objects[:last], b.made[:last]
	}
	w.forget(b)
	return nil
}

func (w *World) ensure(r *driver.WorkspaceRequest, partly bool) error {
	n, verb := w.nets[r.Workspace.ID], WorkspaceChanged
	if n == nil {
		n, verb = &netState{workspace: r.Workspace}, WorkspaceMade
	}
	for _, o := range objects(r.Plan) {
		if subnet, ok := o.Fields["subnet"].(string); ok {
			if _, err := netip.ParsePrefix(subnet); err != nil {
				return invalid(o.Ref()+".subnet", "is not a subnet in CIDR form")
			}
		}
	}
	w.nets[r.Workspace.ID] = n
	for _, o := range objects(r.Plan) {
		at := slices.IndexFunc(n.objects, func(x plan.Object) bool { return x.Ref() == o.Ref() })
		if at < 0 {
			n.objects = append(n.objects, o)
		} else {
			n.objects[at] = o
		}
		if partly {
			break
		}
	}
	w.note(Entry{Verb: verb, ID: r.Workspace.ID})
	return nil
}

func (w *World) removeWorkspace(ws sandbox.Workspace, partly bool) error {
	n := w.nets[ws.ID]
	if n == nil {
		return nil
	}
	for _, b := range w.boxes {
		if b.status.Identity.WorkspaceID == ws.ID {
			w.violated("DeleteWorkspace of %s while sandbox %s is in it", ws.ID, b.status.Identity.ID)
			return fault.New(fault.FailedPrecondition, "sandbox %s is in workspace %s", b.status.Identity.ID, ws.Name)
		}
	}
	if partly && len(n.objects) > 1 {
		n.objects = n.objects[:1]
		return nil
	}
	if partly {
		return nil
	}
	delete(w.nets, ws.ID)
	w.note(Entry{Verb: WorkspaceRemoved, ID: ws.ID})
	return nil
}

// judge reports whether the objects of a sandbox can be made. An object that is in the way has the code inTheWay.
func (w *World) judge(id sandbox.Identity, objs, workspace []plan.Object, inTheWay fault.Code) error {
	main := fields(objs, KindBox)
	if main == nil {
		return invalid("Box/main", "is not in the plan")
	}
	if _, exists := w.boxes[key{id.Driver, id.ID}]; !exists && w.options.Capacity > 0 && len(w.boxes) >= w.options.Capacity {
		return fault.New(fault.ResourceExhausted, "there is room for %d sandboxes and all of it is taken", w.options.Capacity)
	}
	for _, o := range objs {
		if real := (driver.RealObject{Kind: o.Kind, Name: realName(id.ID, o)}); w.foreign[real] {
			return fault.New(inTheWay, "%s %q exists and is not ours", real.Kind, real.Name)
		}
	}
	return w.judgeAddress(id, main, fields(workspace, KindNet), inTheWay)
}

func (w *World) judgeAddress(id sandbox.Identity, main, net map[string]any, inTheWay fault.Code) error {
	text, _ := main["address"].(string)
	if text == "" {
		return nil
	}
	bare, _, _ := strings.Cut(text, "/") // extensions give the length of the prefix where they know it
	address, err := netip.ParseAddr(bare)
	if err != nil {
		return invalid("Box/main.address", "is not an address")
	}
	if subnet, ok := net["subnet"].(string); ok {
		if p, err := netip.ParsePrefix(subnet); err != nil || !p.Contains(address) {
			return invalid("Box/main.address", fmt.Sprintf("%s is not in the workspace's subnet %s", text, subnet))
		}
	}
	for _, b := range w.boxes {
		other := b.status.Identity
		same := other.ID == id.ID && other.Driver == id.Driver
		if !same && other.WorkspaceID == id.WorkspaceID && fields(b.objects, KindBox)["address"] == text {
			return fault.New(inTheWay, "address %s belongs to sandbox %s", text, other.ID)
		}
	}
	return nil
}

// make adds an object to a sandbox, if it does not exist yet.
func (w *World) make(b *boxState, o plan.Object) {
	if slices.Contains(b.made, o.Ref()) {
		return
	}
	id := b.status.Identity.ID
	b.made = append(b.made, o.Ref())
	b.status.Objects = append(b.status.Objects, driver.RealObject{Kind: o.Kind, Name: realName(id, o)})
	w.note(Entry{Verb: Made, ID: id, Operation: b.status.Operation, Object: realName(id, o)})
}

// begin begins a run and does what its command says. Commands are few: "exit CODE", "echo TEXT…", "printenv NAME" and
// "count", which counts the runs in the work directory, end at once; everything else runs until it is stopped.
func (w *World) begin(b *boxState, run int, objs []plan.Object) {
	b.objects = objs
	b.runs++
	s := &b.status
	s.Run, s.ExitCode, s.Reason, s.Message, s.Addresses = run, nil, "", "", nil
	main := fields(objs, KindBox)
	if a, ok := main["address"].(string); ok {
		s.Addresses = []string{a}
	}
	w.change(b, driver.Running, Began)

	command := append(stringList(main["command"]), "", "")
	switch command[0] {
	case "exit":
		code, _ := strconv.Atoi(command[1])
		w.exit(b, code)
	case "echo":
		w.print(b, strings.TrimSpace(strings.Join(command[1:], " ")))
	case "count":
		w.print(b, strconv.Itoa(b.runs))
	case "printenv":
		env, _ := main["environment"].(map[string]any)
		value, _ := env[command[1]].(string)
		w.print(b, value)
	default:
		if !w.options.ManualReady {
			w.change(b, driver.Ready, ReadyNow)
		}
	}
}

func (w *World) print(b *boxState, line string) {
	b.output = append(b.output, line+"\n"...)
	w.exit(b, 0)
}

// output returns what a sandbox has written, and a channel that is closed when there may be more.
func (w *World) output(id sandbox.Identity) (out []byte, changed <-chan struct{}, running bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.boxes[key{id.Driver, id.ID}]
	if b == nil {
		return nil, nil, false, notFound(id)
	}
	return slices.Clone(b.output), b.changed, runs(b.status.State), nil
}

func notFound(id sandbox.Identity) error {
	return fault.New(fault.NotFound, "there is no sandbox %s", id.ID)
}

// objects returns the objects of a plan, of none where there is no plan.
func objects(p *plan.Plan) []plan.Object {
	if p == nil {
		return nil
	}
	return p.Objects()
}

// fields returns the fields of the object of that kind that means something to the driver, or nil.
func fields(objs []plan.Object, kind string) map[string]any {
	for _, o := range objs {
		if o.Kind == kind && o.Name == Main {
			return o.Fields
		}
	}
	return nil
}

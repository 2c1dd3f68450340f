package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// rawWatch is a stream that is read event by event.
type rawWatch struct {
	stream computev1.ComputeDriver_WatchSandboxesClient
	ids    []string // that were shown, in order
	gone   []string
}

func (p *probe) raw(door string) *rawWatch {
	p.Helper()
	stream, err := p.dial(door, "localhost").WatchSandboxes(p.Context(), &computev1.WatchSandboxesRequest{})
	p.must(err)
	return &rawWatch{stream: stream}
}

func isShown(e *computev1.WatchSandboxesEvent) bool { return e.GetSandbox() != nil }
func isGone(e *computev1.WatchSandboxesEvent) bool  { return e.GetDeleted() != nil }
func isReady(e *computev1.WatchSandboxesEvent) bool {
	phase, _ := openshelltest.Derive(openshelltest.First, e.GetSandbox().GetSandbox().GetStatus())
	return e.GetSandbox() != nil && phase == openshelltest.Ready
}

// until reads until an event of a sandbox is as wanted, and returns the ids that were shown.
func (w *rawWatch) until(p *probe, id string, ok func(*computev1.WatchSandboxesEvent) bool) []string {
	p.Helper()
	for {
		e, err := w.stream.Recv()
		p.must(err)
		about := e.GetSandbox().GetSandbox().GetId() + e.GetDeleted().GetSandboxId() + e.GetPlatformEvent().GetSandboxId()
		if isShown(e) {
			w.ids = append(w.ids, about)
		}
		if isGone(e) {
			w.gone = append(w.gone, about)
		}
		if about == id && ok(e) {
			return w.ids
		}
	}
}

// elsewhere makes a sandbox of the base driver's, through its own door.
func (p *probe) elsewhere() *computev1.DriverSandbox {
	p.Helper()
	c, m := p.dial(p.driver, "localhost"), p.asked()
	_, err := c.CreateSandbox(p.Context(), &computev1.CreateSandboxRequest{Sandbox: m})
	p.must(err)
	p.Cleanup(func() {
		if _, err := c.DeleteSandbox(context.Background(), &computev1.DeleteSandboxRequest{SandboxId: m.GetId()}); err != nil {
			p.Error(err)
		}
	})
	return m
}

var readChecks = []doorCheck{
	{"1.5 GetSandbox", "an id that is unknown is NotFound", 0, func(p *probe) {
		_, err := p.get("nobody-knows-it")
		p.code(err, codes.NotFound)
	}},
	{"1.5 GetSandbox", "another driver's sandbox is NotFound, and is not listed", 0, func(p *probe) {
		m := p.elsewhere()
		_, err := p.get(m.GetId())
		p.code(err, codes.NotFound)
		p.want(!p.listed(m.GetId()), "it is listed")
	}},
	{"1.4 ids", "another driver's sandbox cannot be stopped, started or deleted", 0, func(p *probe) {
		m := p.elsewhere()
		c := p.g.Client()
		_, err := c.StopSandbox(p.Context(), &computev1.StopSandboxRequest{SandboxId: m.GetId()})
		p.code(err, codes.NotFound)
		_, err = c.StartSandbox(p.Context(), &computev1.StartSandboxRequest{SandboxId: m.GetId()})
		p.code(err, codes.NotFound)
		d, err := c.DeleteSandbox(p.Context(), &computev1.DeleteSandboxRequest{SandboxId: m.GetId()})
		p.want(err == nil && !d.GetDeleted(), "%v %v", d, err)
		_, err = p.dial(p.driver, "localhost").GetSandbox(p.Context(), &computev1.GetSandboxRequest{SandboxId: m.GetId()})
		p.code(err, codes.OK)
	}},
	{"1.4 ids", "another driver's id is AlreadyExists for a create, and stays untouched", 0, func(p *probe) {
		m := p.elsewhere()
		_, err := p.g.Client().CreateSandbox(p.Context(), &computev1.CreateSandboxRequest{Sandbox: m})
		p.code(err, codes.AlreadyExists)
		_, err = p.dial(p.driver, "localhost").GetSandbox(p.Context(), &computev1.GetSandboxRequest{SandboxId: m.GetId()})
		p.code(err, codes.OK)
	}},
	{"1.4 ids", "a name that is not the id's is refused, by every call", 0, func(p *probe) {
		m := p.running()
		c, id, name := p.g.Client(), m.GetId(), "another"
		_, get := c.GetSandbox(p.Context(), &computev1.GetSandboxRequest{SandboxId: id, Name: name})
		_, stop := c.StopSandbox(p.Context(), &computev1.StopSandboxRequest{SandboxId: id, Name: name})
		_, start := c.StartSandbox(p.Context(), &computev1.StartSandboxRequest{SandboxId: id, Name: name})
		_, remove := c.DeleteSandbox(p.Context(), &computev1.DeleteSandboxRequest{SandboxId: id, Name: name})
		for _, err := range []error{get, stop, start, remove} {
			p.code(err, codes.InvalidArgument)
		}
		p.want(p.backend(id) == openshelltest.Ready, "it was touched")
	}},
	{"1.5 ListSandboxes", "a sandbox is there once, as Get shows it", 0, func(p *probe) {
		m := p.running()
		r, err := p.g.Client().ListSandboxes(p.Context(), &computev1.ListSandboxesRequest{})
		p.must(err)
		got, err := p.get(m.GetId())
		p.must(err)
		same := 0
		for _, sb := range r.GetSandboxes() {
			if sb.GetId() == m.GetId() && proto.Equal(sb, got) {
				same++
			}
		}
		p.want(same == 1, "%d of %v", same, r.GetSandboxes())
	}},
	{"1.9 time", "a condition has its time in both forms, and they agree", 0, func(p *probe) {
		got, err := p.get(p.running().GetId())
		p.must(err)
		for _, c := range got.GetStatus().GetConditions() {
			old, err := time.Parse(time.RFC3339, c.GetLastTransitionTime())
			p.must(err)
			p.want(c.GetTransitionTime().IsValid() && c.GetTransitionTime().AsTime().Truncate(time.Second).Equal(old), "%v", c)
		}
	}},
	{"6.2 conditions", "there is one Ready, and it says BackendReady", 0, func(p *probe) {
		got, err := p.get(p.running().GetId())
		p.must(err)
		var reasons []string
		for _, c := range got.GetStatus().GetConditions() {
			if c.GetType() == "Ready" {
				reasons = append(reasons, c.GetReason())
			}
		}
		p.want(slices.Equal(reasons, []string{"BackendReady"}), "%v", reasons)
	}},
	{"6.3 sweep", "it lists, and asks again for each that it knows", 0, func(p *probe) {
		m := p.running()
		g := p.replica(doorAcme, func(o *openshelltest.Options) { o.Store = p.g.Store() })
		n := len(g.Calls())
		p.must(g.Sweep(p.Context()))
		calls := since(g, n)
		p.want(calls[0] == "ListSandboxes" && count(calls, "GetSandbox") >= 1, "%v", calls)
		p.want(p.g.Store().Get(m.GetId()).Phase == openshelltest.Ready, "%v", p.g.Store().Get(m.GetId()))
	}},
	{"1.8 store", "a sandbox that the store does not know is left alone", 0, func(p *probe) {
		m := p.running()
		g := p.replica(doorAcme, nil)
		g.Run(p.Context())
		p.must(g.Sweep(p.Context()))
		p.want(g.Store().Get(m.GetId()).Seen == nil && p.backend(m.GetId()) == openshelltest.Ready, "it was touched")
	}},
}

var workspaceChecks = []doorCheck{
	{"1.5 EnsureWorkspace", "it is idempotent", 0, func(p *probe) {
		for range 2 {
			p.code(p.g.EnsureWorkspace(p.Context(), "team-b"), codes.OK)
		}
		p.code(p.g.DeleteWorkspace(p.Context(), "team-b"), codes.OK)
	}},
	{"1.5 DeleteWorkspace", "it is idempotent, also for one that never was", 0, func(p *probe) {
		p.must(p.g.EnsureWorkspace(p.Context(), "team-c"))
		for _, name := range []string{"team-c", "team-c", "never-was"} {
			p.code(p.g.DeleteWorkspace(p.Context(), name), codes.OK)
		}
	}},
	{"1.5 DeleteWorkspace", "one with a sandbox in it is refused with a code that says so, and can be deleted later", 0, func(p *probe) {
		m := p.asked()
		m.Workspace = "team-d"
		p.must(p.g.Create(p.Context(), m, ""))
		p.code(p.g.DeleteWorkspace(p.Context(), "team-d"), codes.FailedPrecondition)
		p.drop(p.g, m.GetId())
		p.code(p.g.DeleteWorkspace(p.Context(), "team-d"), codes.OK)
	}},
	{"1.5 EnsureWorkspace", "a name that is none is refused", 0, func(p *probe) {
		p.code(p.g.EnsureWorkspace(p.Context(), "No Name"), codes.InvalidArgument)
	}},
	{"6.3 replicas", "two may ensure one workspace at once", 0, func(p *probe) {
		answers := make(chan error, 2)
		for range 2 {
			go func() { answers <- p.g.EnsureWorkspace(p.Context(), "team-e") }()
		}
		p.code(<-answers, codes.OK)
		p.code(<-answers, codes.OK)
		p.must(p.g.DeleteWorkspace(p.Context(), "team-e"))
	}},
}

var watchChecks = []doorCheck{
	{"1.8 snapshot", "a new watch shows what there is, each once, before anything else", 0, func(p *probe) {
		one, two := p.running(), p.running()
		w := p.raw(doorAcme)
		w.until(p, two.GetId(), isShown)
		if !slices.Contains(w.ids, one.GetId()) {
			w.until(p, one.GetId(), isShown)
		}
		ids := slices.Clone(w.ids)
		slices.Sort(ids)
		p.want(len(slices.Compact(ids)) == len(w.ids), "%v", w.ids)
	}},
	{"1.8 watch", "two at once see the same", 0, func(p *probe) {
		one, two := p.raw(doorAcme), p.raw(doorAcme)
		m := p.running()
		for _, w := range []*rawWatch{one, two} {
			w.until(p, m.GetId(), isReady)
		}
		p.drop(p.g, m.GetId())
		for _, w := range []*rawWatch{one, two} {
			w.until(p, m.GetId(), isGone)
			p.want(count(w.gone, m.GetId()) == 1, "%v", w.gone)
		}
	}},
	{"1.8 watch", "one that goes away does not disturb the other", 0, func(p *probe) {
		w := p.raw(doorAcme)
		g := p.replica(doorAcme, nil)
		g.Run(p.Context())
		p.must(g.Close())
		m := p.running()
		w.until(p, m.GetId(), isReady)
	}},
	{"1.8 watch", "it ends with an error that is tried again, never in silence", 0, func(p *probe) {
		for _, err := range p.g.StreamEnds() {
			p.want(status.Code(err) == codes.Unavailable, "%v", err)
		}
	}},
	{"1.9 time", "nothing that a gateway could not read was sent", 0, func(p *probe) {
		var text []string
		for _, err := range p.g.Complaints() {
			text = append(text, err.Error())
		}
		p.want(len(text) == 0, "%s", strings.Join(text, "\n"))
	}},
}

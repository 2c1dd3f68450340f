package daemon

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// stopped makes a sandbox that is stopped.
func (p *probe) stopped() *computev1.DriverSandbox {
	p.Helper()
	m := p.running()
	p.must(p.g.Stop(p.Context(), m.GetId()))
	return m
}

// twice makes one call from two replicas at once.
func (p *probe) twice(call func(computev1.ComputeDriverClient) error) {
	p.Helper()
	answers := make(chan error, 2)
	for range 2 {
		c := p.dial(doorAcme, "localhost")
		go func() { answers <- call(c) }()
	}
	p.code(errors.Join(<-answers), codes.OK)
	p.code(errors.Join(<-answers), codes.OK)
}

func (p *probe) stop(c computev1.ComputeDriverClient, id string) error {
	_, err := c.StopSandbox(p.Context(), &computev1.StopSandboxRequest{SandboxId: id})
	return err
}

func (p *probe) begin(c computev1.ComputeDriverClient, id string) error {
	_, err := c.StartSandbox(p.Context(), &computev1.StartSandboxRequest{SandboxId: id})
	return err
}

func (p *probe) remove(c computev1.ComputeDriverClient, id string) (bool, error) {
	r, err := c.DeleteSandbox(p.Context(), &computev1.DeleteSandboxRequest{SandboxId: id})
	return r.GetDeleted(), err
}

var runChecks = []doorCheck{
	{"1.5 StopSandbox", "it answers when the compute has stopped", 0, func(p *probe) {
		m := p.running()
		p.must(p.stop(p.g.Client(), m.GetId()))
		p.want(p.backend(m.GetId()) == openshelltest.Stopped, "%s", p.backend(m.GetId()))
	}},
	{"6.1 phases", "a stop goes from Ready by Stopping to Stopped, and a sweep does not undo it", 0, func(p *probe) {
		m := p.stopped()
		p.must(p.g.Sweep(p.Context()))
		row := p.g.Store().Get(m.GetId())
		p.want(row.Phase == openshelltest.Stopped && row.Has(openshelltest.Stopping) && !row.Has(openshelltest.Error), "%s %v", row.Phase, row.Seen)
	}},
	{"1.5 StopSandbox", "it is idempotent", 0, func(p *probe) {
		m := p.stopped()
		p.code(p.stop(p.g.Client(), m.GetId()), codes.OK)
		p.want(p.backend(m.GetId()) == openshelltest.Stopped, "%s", p.backend(m.GetId()))
	}},
	{"1.5 StopSandbox", "an id that is unknown is NotFound", 0, func(p *probe) { p.code(p.stop(p.g.Client(), "nobody-knows-it"), codes.NotFound) }},
	{"6.3 replicas", "two may stop one sandbox at once", 0, func(p *probe) {
		m := p.running()
		p.twice(func(c computev1.ComputeDriverClient) error { return p.stop(c, m.GetId()) })
		p.want(p.backend(m.GetId()) == openshelltest.Stopped, "%s", p.backend(m.GetId()))
	}},
	{"6.1 phases", "a start goes from Stopped by Starting to Ready", 0, func(p *probe) {
		m := p.stopped()
		n := len(p.g.Store().Get(m.GetId()).Seen)
		p.must(p.g.Start(p.Context(), m.GetId()))
		p.up(p.g, m.GetId())
		for i, want := range []openshelltest.Phase{openshelltest.Starting, openshelltest.Ready} {
			p.want(p.g.Store().Get(m.GetId()).Seen[n+i] == want, "%v", p.g.Store().Get(m.GetId()).Seen)
		}
	}},
	{"1.5 StartSandbox", "it is idempotent, and begins no second run", 0, func(p *probe) {
		m := p.running()
		p.code(p.begin(p.g.Client(), m.GetId()), codes.OK)
		sb, _ := p.d.engine.Lookup(m.GetId())
		p.want(sb.Run.Number == 1, "run %d", sb.Run.Number)
	}},
	{"1.5 StartSandbox", "an id that is unknown is NotFound", 0, func(p *probe) { p.code(p.begin(p.g.Client(), "nobody-knows-it"), codes.NotFound) }},
	{"6.3 replicas", "two may start one sandbox at once, and it runs once", 0, func(p *probe) {
		m := p.stopped()
		p.twice(func(c computev1.ComputeDriverClient) error { return p.begin(c, m.GetId()) })
		sb, _ := p.d.engine.Lookup(m.GetId())
		p.want(sb.Run.Number == 2, "run %d", sb.Run.Number)
	}},
	{"1.9 generation", "a start with the fields of the second generation is served", openshelltest.Second, func(p *probe) {
		m := p.stopped()
		_, err := p.g.Client().StartSandbox(p.Context(), &computev1.StartSandboxRequest{SandboxId: m.GetId(), Name: m.GetName(),
			LaunchAuthentication: []byte("secret"), GenerationId: "g2", ExpectedRuntimeIdentity: "x"})
		p.code(err, codes.OK)
	}},
	{"6.1 phases", "a process that ends by itself is an Error that says with which code", 0, func(p *probe) {
		if p.base.exits == nil {
			return
		}
		m := p.asked()
		m.Spec.Command = p.base.exits
		p.must(p.g.Create(p.Context(), m, ""))
		defer p.drop(p.g, m.GetId())
		row := p.seen(p.g, m.GetId(), openshelltest.Error)
		p.want(row.Reason == "ContainerExited" && strings.Contains(row.Conditions[0].GetMessage(), "3"), "%s: %v", row.Reason, row.Conditions)
	}},
	{"1.6 recovery", "one whose process has ended can be stopped, and is read as stopped", 0, func(p *probe) {
		if p.base.exits == nil {
			return
		}
		m := p.asked()
		m.Spec.Command = p.base.exits
		p.must(p.g.Create(p.Context(), m, ""))
		defer p.drop(p.g, m.GetId())
		p.seen(p.g, m.GetId(), openshelltest.Error)
		p.code(p.stop(p.g.Client(), m.GetId()), codes.OK)
		p.code(p.begin(p.g.Client(), m.GetId()), codes.OK) // an error does not stick on this side
	}},
}

// losing is a replica that shares the rows and loses the first answer of a method.
func (p *probe) losing(method string) *openshelltest.Gateway {
	var lost atomic.Bool
	return p.replica(doorAcme, func(o *openshelltest.Options) {
		o.Store = p.g.Store()
		o.Lose = func(m string) bool { return m == method && lost.CompareAndSwap(false, true) }
	})
}

var ambiguityChecks = []doorCheck{
	{"1.6 recovery", "a stop whose answer is lost is proved by Get", 0, func(p *probe) {
		m := p.running()
		p.code(p.losing("StopSandbox").Stop(p.Context(), m.GetId()), codes.DeadlineExceeded)
		p.want(p.g.Store().Get(m.GetId()).Phase == openshelltest.Stopped, "%v", p.g.Store().Get(m.GetId()))
	}},
	{"1.6 recovery", "a start whose answer is lost can be made again", 0, func(p *probe) {
		m := p.stopped()
		g := p.losing("StartSandbox")
		p.code(g.Start(p.Context(), m.GetId()), codes.DeadlineExceeded)
		p.want(!p.g.Store().Get(m.GetId()).Has(openshelltest.Error), "%v", p.g.Store().Get(m.GetId()).Seen)
		p.must(g.Start(p.Context(), m.GetId()))
		p.up(p.g, m.GetId())
		sb, _ := p.d.engine.Lookup(m.GetId())
		p.want(sb.Run.Number == 2, "run %d", sb.Run.Number)
	}},
	{"1.6 recovery", "a delete whose answer is lost comes to its end", 0, func(p *probe) {
		m := p.running()
		p.code(p.losing("DeleteSandbox").Delete(p.Context(), m.GetId()), codes.Internal)
		p.seen(p.g, m.GetId(), openshelltest.Gone)
		p.want(!p.holds(m.GetId()), "something is held")
	}},
}

var deleteChecks = []doorCheck{
	{"1.5 DeleteSandbox", "it is accepted, the row is Deleting, and goes with Deleted, when nothing is held", 0, func(p *probe) {
		m := p.running()
		w := p.raw(doorAcme)
		p.must(p.g.Delete(p.Context(), m.GetId()))
		w.until(p, m.GetId(), isGone)
		p.want(!p.holds(m.GetId()), "it is Deleted and something is held")
		row := p.seen(p.g, m.GetId(), openshelltest.Gone)
		p.want(row.Has(openshelltest.Deleting), "%v", row.Seen)
	}},
	{"1.5 DeleteSandbox", "the second is a no-op that says so", 0, func(p *probe) {
		m := p.running()
		p.must(p.g.Delete(p.Context(), m.GetId()))
		p.seen(p.g, m.GetId(), openshelltest.Gone)
		deleted, err := p.remove(p.g.Client(), m.GetId())
		p.want(err == nil && !deleted, "%v %v", deleted, err)
	}},
	{"1.5 DeleteSandbox", "an id that is unknown is a no-op", 0, func(p *probe) {
		deleted, err := p.remove(p.g.Client(), "nobody-knows-it")
		p.want(err == nil && !deleted, "%v %v", deleted, err)
	}},
	{"1.5 DeleteSandbox", "an undone create is a no-op", 0, func(p *probe) {
		m := p.refused()
		p.fails(m)
		deleted, err := p.remove(p.g.Client(), m.GetId())
		p.want(err == nil && !deleted, "%v %v", deleted, err)
	}},
	{"1.5 DeleteSandbox", "a stopped one is deleted", 0, func(p *probe) {
		m := p.stopped()
		p.must(p.g.Delete(p.Context(), m.GetId()))
		p.seen(p.g, m.GetId(), openshelltest.Gone)
	}},
	{"6.3 replicas", "two may delete one sandbox at once", 0, func(p *probe) {
		m := p.running()
		p.twice(func(c computev1.ComputeDriverClient) error { _, err := p.remove(c, m.GetId()); return err })
		p.seen(p.g, m.GetId(), openshelltest.Gone)
	}},
	{"6.1 phases", "stop and start of what is being deleted change nothing", 0, func(p *probe) {
		m := p.running()
		free := p.stick(m.GetId())
		p.must(p.g.Delete(p.Context(), m.GetId()))
		p.want(p.stop(p.g.Client(), m.GetId()) != nil && p.begin(p.g.Client(), m.GetId()) != nil, "it was served")
		free()
		p.seen(p.g, m.GetId(), openshelltest.Gone)
	}},
	{"1.8 deleted", "it is told only after the release", 0, func(p *probe) {
		m := p.running()
		free := p.stick(m.GetId())
		p.must(p.g.Delete(p.Context(), m.GetId()))
		p.until("it is released", func() bool { sb, _ := p.d.engine.Lookup(m.GetId()); return sb.Ended != nil })
		p.want(p.backend(m.GetId()) == openshelltest.Deleting && p.listed(m.GetId()), "it is shown as %s", p.backend(m.GetId()))
		deleted, err := p.remove(p.g.Client(), m.GetId())
		p.want(err == nil && deleted, "%v %v", deleted, err)
		p.must(p.g.Sweep(p.Context()))
		p.want(p.g.Store().Get(m.GetId()).Phase == openshelltest.Deleting, "%v", p.g.Store().Get(m.GetId()).Seen)
		free()
		p.seen(p.g, m.GetId(), openshelltest.Gone)
	}},
	{"1.8 deleted", "a release that is stuck blocks it for release_timeout, and no longer", 0, func(p *probe) {
		g := p.replica(doorHasty, func(o *openshelltest.Options) { o.Sweep = time.Hour }) // the watch alone tells it
		g.Run(p.Context())
		m := p.asked()
		p.must(g.Create(p.Context(), m, ""))
		p.up(g, m.GetId())
		free := p.stick(m.GetId())
		p.must(g.Delete(p.Context(), m.GetId()))
		p.seen(g, m.GetId(), openshelltest.Gone)
		p.want(p.holds(m.GetId()), "it was not stuck")
		_, err := g.Client().GetSandbox(p.Context(), &computev1.GetSandboxRequest{SandboxId: m.GetId()})
		p.code(err, codes.NotFound)
		again := p.asked()
		again.Name = m.GetName() // is free
		p.must(g.Create(p.Context(), again, ""))
		p.drop(g, again.GetId())
		free()
		p.until("it is released in the background", func() bool { sb, ok := p.d.engine.Lookup(m.GetId()); return !ok || sb.State == "deleted" })
	}},
	{"1.9 reclaim", "a delete after our own Deleted is no error", openshelltest.Second, func(p *probe) {
		m := p.running()
		p.must(p.g.Delete(p.Context(), m.GetId()))
		p.seen(p.g, m.GetId(), openshelltest.Gone)
		_, err := p.remove(p.g.Client(), m.GetId())
		p.code(err, codes.OK)
		p.want(len(p.g.Complaints()) == 0, "%v", p.g.Complaints())
	}},
}

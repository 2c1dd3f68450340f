package daemon

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// ownGateway is a replica with rows of its own and one sandbox that is ready.
func (p *probe) ownGateway() (*openshelltest.Gateway, *computev1.DriverSandbox) {
	p.Helper()
	g := p.replica(doorAcme, nil)
	g.Run(p.Context())
	m := p.asked()
	p.must(g.Create(p.Context(), m, ""))
	p.up(g, m.GetId())
	p.Cleanup(func() {
		_, err := p.g.Client().DeleteSandbox(context.Background(), &computev1.DeleteSandboxRequest{SandboxId: m.GetId()})
		if err != nil {
			p.Error(err)
		}
	})
	return g, m
}

// next is the gateway that comes after one that has ended, with its rows.
func (p *probe) next(g *openshelltest.Gateway, change func(*openshelltest.Options)) *openshelltest.Gateway {
	p.Helper()
	n := p.replica(doorAcme, func(o *openshelltest.Options) {
		o.Store = g.Store()
		if change != nil {
			change(o)
		}
	})
	n.Run(p.Context())
	return n
}

var recoveryChecks = []doorCheck{
	{"1.7 lifecycle", "sandboxes are stopped and started with their gateway where the driver asks for that, and left alone where not", 0, func(p *probe) {
		g, m := p.ownGateway()
		manages := g.Capabilities().GetGatewayManagesLifecycle()
		p.must(g.Shutdown(p.Context()))
		p.want((p.backend(m.GetId()) == openshelltest.Stopped) == manages, "%s", p.backend(m.GetId()))
		p.want(g.Store().Get(m.GetId()).Phase == openshelltest.Ready, "%s", g.Store().Get(m.GetId()).Phase)
		n := p.next(g, nil)
		p.want((count(n.Calls(), "StartSandbox") == 1) == manages, "%v", n.Calls())
		p.want(p.backend(m.GetId()) != openshelltest.Stopped, "it is not started again")
	}},
	{"1.7 lifecycle", "stop and start that nobody asked for are served before any watch", 0, func(p *probe) {
		g, m := p.ownGateway()
		p.must(g.Close())
		c := p.replica(doorAcme, nil)
		p.code(p.stop(c.Client(), m.GetId()), codes.OK)
		p.code(p.begin(c.Client(), m.GetId()), codes.OK)
	}},
	{"6.3 startup", "a stop that a crash has interrupted is finished", 0, func(p *probe) {
		g, m := p.ownGateway()
		p.must(g.Close())
		p.want(g.Stop(p.Context(), m.GetId()) != nil, "a closed gateway has stopped it") // the row stays Stopping
		p.want(g.Store().Get(m.GetId()).Phase == openshelltest.Stopping, "%s", g.Store().Get(m.GetId()).Phase)
		n := p.next(g, nil)
		p.seen(n, m.GetId(), openshelltest.Stopped)
		p.want(p.backend(m.GetId()) == openshelltest.Stopped, "%s", p.backend(m.GetId()))
	}},
	{"6.3 startup", "a start that a crash has interrupted is finished", 0, func(p *probe) {
		g, m := p.ownGateway()
		p.must(g.Stop(p.Context(), m.GetId()))
		p.must(g.Close())
		g.Store().Interrupt(m.GetId(), openshelltest.Starting)
		n := p.next(g, nil)
		p.up(n, m.GetId())
	}},
	{"1.5 StartSandbox", "a row whose sandbox is gone is an Error at the start, which says so", 0, func(p *probe) {
		store := openshelltest.NewStore()
		id := uuid.NewString()
		store.Add(id, "lost-one", openshelltest.Starting)
		n := p.next(p.replica(doorAcme, func(o *openshelltest.Options) { o.Store = store }), nil)
		row := p.seen(n, id, openshelltest.Error)
		p.want(row.Reason == "BackendResourceMissing", "%s", row.Reason)
	}},
	{"6.3 sweep", "a row whose sandbox is gone is removed, or an Error where it was stopped", 0, func(p *probe) {
		store := openshelltest.NewStore()
		ran, stopped := uuid.NewString(), uuid.NewString()
		store.Add(ran, "ran", openshelltest.Error)
		store.Add(stopped, "stopped", openshelltest.Stopped)
		n := p.next(p.replica(doorAcme, func(o *openshelltest.Options) { o.Store = store }), func(o *openshelltest.Options) { o.Prune = time.Nanosecond })
		p.seen(n, ran, openshelltest.Gone)
		row := p.seen(n, stopped, openshelltest.Error)
		p.want(row.Reason == "ComputeResourceMissing", "%s", row.Reason)
		p.want(len(n.Complaints()) == 0, "%v", n.Complaints())
	}},
}

var restartChecks = []doorCheck{
	{"1.9 admission", "a policy that has changed keeps creates away from the driver", openshelltest.Second, func(p *probe) {
		g := p.g
		p.acknowledges("  allow_driver_config = true", `"allow_driver_config":true`)
		defer p.acknowledges("", `"allow_driver_config":false`)
		n := len(g.Calls())
		p.code(p.retried(func() error { return g.Create(p.Context(), p.asked(), "") }), codes.FailedPrecondition)
		p.want(count(since(g, n), "ValidateSandboxCreate") == 0, "%v", since(g, n))
		_, err := openshelltest.Open(p.Context(), p.openShell(doorAcme))
		p.want(err != nil, "a gateway with the old table starts")
	}},
	{"2.2 reconnect", "a restart heals by itself: the watch comes back, and the rows are as they were", 0, func(p *probe) {
		m := p.running()
		ends := len(p.g.StreamEnds())
		p.end()
		p.site.start()
		p.want(len(p.g.StreamEnds()) > ends, "the watch did not notice")
		p.until("it is ready", func() bool { sb, _ := p.d.engine.Lookup(m.GetId()); return sb.State == "ready" })
		row := p.g.Store().Get(m.GetId())
		p.want(!row.Has(openshelltest.Error) && !row.Has(openshelltest.Gone), "%v", row.Seen)
		other := p.asked()
		p.code(p.retried(func() error { return p.g.Create(p.Context(), other, "") }), codes.OK)
		p.up(p.g, other.GetId())
		p.drop(p.g, other.GetId())
	}},
	{"1.8 snapshot", "what ended while nobody watched is gone after the restart", 0, func(p *probe) {
		g, m := p.ownGateway()
		p.must(g.Close())
		_, err := p.g.Client().DeleteSandbox(p.Context(), &computev1.DeleteSandboxRequest{SandboxId: m.GetId()})
		p.must(err)
		p.until("it is deleted", func() bool { sb, _ := p.d.engine.Lookup(m.GetId()); return sb.State == "deleted" })
		n := p.next(g, func(o *openshelltest.Options) { o.Prune = time.Nanosecond })
		row := p.seenAs(n, m.GetId(), "it is settled", func(r openshelltest.Row) bool {
			return r.Phase == openshelltest.Gone || r.Phase == openshelltest.Error
		})
		p.want(row.Phase == openshelltest.Gone || n.Capabilities().GetGatewayManagesLifecycle(), "%v", row.Seen)
	}},
	{"1.8 watch", "the streams that a restart ended, ended with an error that is tried again", 0, func(p *probe) {
		for _, err := range p.g.StreamEnds() {
			p.code(err, codes.Unavailable)
		}
	}},
}

// acknowledges puts another policy into force, and returns when the gateways' own connections have come to it.
func (p *probe) acknowledges(setting, want string) {
	p.Helper()
	p.configure(setting)
	_, err := p.d.Reload(p.Context(), "test")
	p.must(err)
	p.site.until("the door acknowledges "+want, func() bool {
		c, err := p.caps(nil)
		return err == nil && strings.Contains(c.GetResourceAdmissionPolicy(), want)
	})
}

// retried makes a call again while the door is away.
func (p *probe) retried(call func() error) error {
	p.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		err := call()
		if openshelltest.CodeOf(err) != codes.Unavailable && !unavailable(err) {
			return err
		}
		<-tick.C
	}
	return call()
}

func unavailable(err error) bool { return err != nil && strings.Contains(message(err), "connect") }

package daemon

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// refuses checks that a request is refused by the validation, with that code and those words, as a user sees it.
func refuses(want codes.Code, words string, change func(*computev1.DriverSandbox)) func(*probe) {
	return func(p *probe) {
		g := p.replica(doorAcme, nil)
		g.Capabilities() // of a gateway whose table allows driver_config
		m := p.asked()
		change(m)
		_, err := g.Client().ValidateSandboxCreate(p.Context(), &computev1.ValidateSandboxCreateRequest{Sandbox: m})
		p.code(err, want)
		p.want(strings.Contains(message(err), words), "%q is not in: %v", words, err)
		p.want(m.GetId() == "" || !p.listed(m.GetId()) && !p.holds(m.GetId()), "something was made")
	}
}

func (p *probe) validate(m *computev1.DriverSandbox) error {
	_, err := p.g.Client().ValidateSandboxCreate(p.Context(), &computev1.ValidateSandboxCreateRequest{Sandbox: m})
	return err
}

var validateChecks = []doorCheck{
	{"1.5 ValidateSandboxCreate", "nothing is made or held", 0, func(p *probe) {
		m := p.asked()
		p.must(p.validate(m))
		p.want(!p.listed(m.GetId()) && !p.holds(m.GetId()) && p.backend(m.GetId()) == openshelltest.Gone, "something is there")
	}},
	{"1.5 ValidateSandboxCreate", "it answers the same when it is asked twice", 0, func(p *probe) {
		m := p.labelled(map[string]string{"image": "other"})
		m.Spec.Template.Image = "alpine"
		one, two := p.validate(m), p.validate(m)
		p.want(one != nil && two != nil && status.Convert(one).Message() == status.Convert(two).Message(), "%v, then %v", one, two)
	}},
	{"1.4 request", "no token is needed to validate, and the status in it is not read", 0, func(p *probe) {
		m := p.asked()
		m.Status = &computev1.DriverSandboxStatus{Name: "another", Deleting: true}
		p.code(p.validate(m), codes.OK)
	}},
	{"1.5 ValidateSandboxCreate", "a conflict in the chain keeps its code and names the extension", 0, func(p *probe) {
		m := p.labelled(map[string]string{"image": "other"})
		m.Spec.Template.Image = "alpine" // which the extension may not override
		err := p.g.Create(p.Context(), m, "")
		p.code(err, codes.Aborted)
		p.want(strings.Contains(message(err), "keeper"), "%v", err)
		p.want(p.g.Store().Get(m.GetId()).Seen == nil, "a row was stored")
	}},
	{"1.5 ValidateSandboxCreate", "no id", 0, refuses(codes.InvalidArgument, "id and the name", func(m *computev1.DriverSandbox) { m.Id = "" })},
	{"1.5 ValidateSandboxCreate", "no name", 0, refuses(codes.InvalidArgument, "id and the name", func(m *computev1.DriverSandbox) { m.Name = "" })},
	{"1.5 ValidateSandboxCreate", "a name that is none", 0, refuses(codes.InvalidArgument, "name", func(m *computev1.DriverSandbox) { m.Name = "No Name" })},
	{"1.5 ValidateSandboxCreate", "an id that is none", 0, refuses(codes.InvalidArgument, "id", func(m *computev1.DriverSandbox) { m.Id = "../../etc" })},
	{"1.5 ValidateSandboxCreate", "a workspace that is none", 0, refuses(codes.InvalidArgument, "workspace", func(m *computev1.DriverSandbox) { m.Workspace = "A/B" })},
	{"1.5 ValidateSandboxCreate", "a quantity that is none", 0, refuses(codes.InvalidArgument, "template.resources.cpu_limit", func(m *computev1.DriverSandbox) {
		m.Spec.Template.Resources = &computev1.DriverResourceRequirements{CpuLimit: "lots"}
	})},
	{"1.5 ValidateSandboxCreate", "an extension that no rule allows", 0, refuses(codes.PermissionDenied, "nope", func(m *computev1.DriverSandbox) {
		m.Spec.Template.Labels = map[string]string{"openshell.io/extension.nope": "true"}
	})},
	{"1.5 ValidateSandboxCreate", "driver_config that nobody knows", 0, refuses(codes.InvalidArgument, "surprise", func(m *computev1.DriverSandbox) {
		m.Spec.Template.DriverConfig, _ = structpb.NewStruct(map[string]any{"surprise": true})
	})},
	{"1.5 ValidateSandboxCreate", "a GPU that the driver does not offer", 0, func(p *probe) {
		if p.g.Capabilities().GetResourceCapabilities().GetGpu().GetDefaultSelectionSupported() {
			return // it does
		}
		refuses(codes.FailedPrecondition, "gpu", func(m *computev1.DriverSandbox) {
			m.Spec.ResourceRequirements = &computev1.ResourceRequirements{Gpu: &computev1.GpuResourceRequirements{}}
		})(p)
	}},
}

var createChecks = []doorCheck{
	{"6.2 composition", "a backend that is ready is not enough for the first generation, and is for the second", 0, func(p *probe) {
		m := p.asked()
		p.must(p.g.Create(p.Context(), m, "hush"))
		defer p.drop(p.g, m.GetId())
		if p.gen == openshelltest.Second {
			p.seen(p.g, m.GetId(), openshelltest.Ready)
			return
		}
		row := p.seenAs(p.g, m.GetId(), "the supervisor is missing", func(r openshelltest.Row) bool { return r.Reason == "SupervisorNotConnected" })
		p.want(row.Phase == openshelltest.Provisioning && !row.Has(openshelltest.Error), "%s %v", row.Phase, row.Seen)
	}},
	{"6.1 phases", "a create goes from Provisioning to Ready, and past nothing else", 0, func(p *probe) {
		m := p.running()
		row := p.g.Store().Get(m.GetId())
		p.want(slices.Equal(row.Seen, []openshelltest.Phase{openshelltest.Provisioning, openshelltest.Ready}), "%v", row.Seen)
	}},
	{"6.2 composition", "a session that is lost makes it Provisioning, and one that is back Ready", openshelltest.First, func(p *probe) {
		m := p.running()
		p.g.Store().Connect(m.GetId(), false)
		p.want(p.g.Store().Get(m.GetId()).Phase == openshelltest.Provisioning, "%v", p.g.Store().Get(m.GetId()))
		p.must(p.g.Sweep(p.Context()))
		p.want(p.g.Store().Get(m.GetId()).Phase == openshelltest.Provisioning, "a sweep revived it")
		p.up(p.g, m.GetId())
	}},
	{"6.2 names", "the name is the public one, whatever is asked", 0, func(p *probe) {
		m := p.asked()
		m.Name = "nineteen-characters"
		p.must(p.g.Create(p.Context(), m, ""))
		defer p.drop(p.g, m.GetId())
		got, err := p.get(m.GetId())
		p.must(err)
		p.want(got.GetName() == m.GetName() && got.GetStatus().GetName() == m.GetName(), "%v", got)
		p.want(got.GetWorkspace() == "default" && got.GetNamespace() == "" && got.GetId() == m.GetId(), "%v", got)
		p.want(len(p.g.Complaints()) == 0, "%v", p.g.Complaints())
	}},
	{"1.3 status", "an instance is named, and no secret comes back", 0, func(p *probe) {
		m := p.running()
		got, err := p.get(m.GetId())
		p.must(err)
		p.want(got.GetStatus().GetInstanceId() != "" && got.GetSpec().GetSandboxToken() == "", "%v", got)
	}},
	{"1.5 CreateSandbox", "an id that is there is AlreadyExists, and that sandbox stays as it was", 0, func(p *probe) {
		m := p.running()
		_, err := p.g.Client().CreateSandbox(p.Context(), &computev1.CreateSandboxRequest{Sandbox: m})
		p.code(err, codes.AlreadyExists)
		p.want(p.backend(m.GetId()) == openshelltest.Ready && p.holds(m.GetId()), "it was touched")
	}},
	{"1.5 CreateSandbox", "a name that is taken is AlreadyExists, its row is gone, and nothing of it is there", 0, func(p *probe) {
		m := p.running()
		other := p.asked()
		other.Name = m.GetName()
		g := p.replica(doorAcme, nil) // whose store does not know the first
		p.code(g.Create(p.Context(), other, ""), codes.AlreadyExists)
		p.want(g.Store().Get(other.GetId()).Phase == openshelltest.Gone && !p.listed(other.GetId()) && !p.holds(other.GetId()), "something is there")
	}},
	{"6.5 names", "a name is free in another workspace", 0, func(p *probe) {
		m := p.running()
		other := p.asked()
		other.Name, other.Workspace = m.GetName(), "team-a"
		p.must(p.g.Create(p.Context(), other, ""))
		p.drop(p.g, other.GetId())
	}},
	{"6.2 reasons", "while an extension is at work it is Provisioning, for a passing reason", 0, func(p *probe) {
		gate, open := p.gate()
		m := p.labelled(map[string]string{"gate": gate})
		done := make(chan error, 1)
		go func() { done <- p.g.Create(p.Context(), m, "") }()
		row := p.seenAs(p.g, m.GetId(), "the reason is told", func(r openshelltest.Row) bool { return len(r.Conditions) > 0 })
		p.want(row.Phase == openshelltest.Provisioning, "%s (%s)", row.Phase, row.Reason)
		_, err := p.caps(nil) // which asks nobody
		p.code(err, codes.OK)
		open()
		p.must(<-done)
		p.up(p.g, m.GetId())
		p.drop(p.g, m.GetId())
	}},
	{"1.8 progress", "what is being done is told in the keys that its command line shows, at a time in both forms", 0, func(p *probe) {
		gate, open := p.gate()
		m := p.labelled(map[string]string{"gate": gate})
		done := make(chan error, 1)
		go func() { done <- p.g.Create(p.Context(), m, "") }()
		row := p.seenAs(p.g, m.GetId(), "progress is told", func(r openshelltest.Row) bool { return len(r.Progress) > 0 })
		open()
		p.must(<-done)
		p.drop(p.g, m.GetId())
		for _, e := range row.Progress {
			step := e.GetMetadata()["openshell.progress.active_step"]
			p.want(slices.Contains([]string{"requesting_sandbox", "pulling_image", "starting_sandbox"}, step), "step %q", step)
			p.want(e.GetTimestampMs() > 0 && e.GetEventTime().AsTime().UnixMilli() == e.GetTimestampMs(), "%v", e)
		}
	}},
	{"6.3 replicas", "of two creates of one id at once, one is made and the other is AlreadyExists", 0, func(p *probe) {
		m := p.asked()
		answers := make(chan error, 2)
		for range 2 {
			c := p.dial(doorAcme, "localhost")
			go func() {
				_, err := c.CreateSandbox(p.Context(), &computev1.CreateSandboxRequest{Sandbox: m})
				answers <- err
			}()
		}
		got := []codes.Code{status.Code(<-answers), status.Code(<-answers)}
		slices.Sort(got)
		p.want(slices.Equal(got, []codes.Code{codes.OK, codes.AlreadyExists}), "%v", got)
		p.want(p.listed(m.GetId()), "it is not there")
		p.drop(p.g, m.GetId())
	}},
}

// fails makes a sandbox whose create fails, and returns what its user sees.
func (p *probe) fails(m *computev1.DriverSandbox) error {
	p.Helper()
	err := p.g.Create(p.Context(), m, "")
	p.want(err != nil, "it was made")
	// From here on all is as the answer finds it.
	p.want(!p.holds(m.GetId()), "something is held")
	p.want(!p.listed(m.GetId()), "it is listed")
	p.want(p.backend(m.GetId()) == openshelltest.Gone, "it can be got")
	return err
}

// refused is a sandbox whose extension fails before the driver is asked.
func (p *probe) refused() *computev1.DriverSandbox {
	return p.labelled(map[string]string{"gate": "no-such-gate"})
}

var undoneChecks = []doorCheck{
	{"1.5 CreateSandbox", "one that an extension fails is undone when it is answered, and the words reach the user", 0, func(p *probe) {
		err := p.fails(p.refused())
		p.want(strings.Contains(message(err), "no such file"), "%v", err)
	}},
	{"1.5 CreateSandbox", "one that the driver refuses is undone when it is answered, and the words reach the user", 0, func(p *probe) {
		if p.base.missing == nil {
			return
		}
		m := p.asked()
		m.Spec.Command = p.base.missing
		err := p.fails(m)
		p.code(err, codes.FailedPrecondition)
		p.want(strings.Contains(message(err), strings.ToLower(p.base.missing[0])), "%v", err)
	}},
	{"1.5 CreateSandbox", "no delete is sent after one that failed", 0, func(p *probe) {
		g := p.replica(doorAcme, nil) // which does not watch
		n := len(g.Calls())
		p.want(g.Create(p.Context(), p.refused(), "") != nil, "it was made")
		p.want(count(since(g, n), "DeleteSandbox") == 0, "%v", since(g, n))
	}},
	{"6.1 phases", "a user sees one that failed as Provisioning, and then not at all", 0, func(p *probe) {
		m := p.refused()
		p.fails(m)
		row := p.g.Store().Get(m.GetId())
		for _, phase := range row.Seen {
			p.want(phase == openshelltest.Provisioning || phase == openshelltest.Gone, "%v", row.Seen)
		}
	}},
	{"1.8 snapshot", "an undone create is in no new watch", 0, func(p *probe) {
		m := p.refused()
		p.fails(m)
		other := p.running()
		w := p.raw(doorAcme)
		p.want(slices.Contains(w.until(p, other.GetId(), isShown), other.GetId()), "the snapshot is empty")
		p.want(!slices.Contains(w.ids, m.GetId()), "it is shown")
	}},
	{"6.4 create", "the name of one that failed is free at once", 0, func(p *probe) {
		m := p.refused()
		p.fails(m)
		again := p.asked()
		again.Name = m.GetName()
		p.must(p.g.Create(p.Context(), again, ""))
		p.drop(p.g, again.GetId())
	}},
	{"6.3 detached", "a caller that goes away cancels nothing", 0, func(p *probe) {
		gate, open := p.gate()
		m := p.labelled(map[string]string{"gate": gate})
		ctx, cancel := context.WithCancel(p.Context())
		done := make(chan error, 1)
		go func() {
			_, err := p.g.Client().CreateSandbox(ctx, &computev1.CreateSandboxRequest{Sandbox: m})
			done <- err
		}()
		w := p.raw(doorAcme)
		w.until(p, m.GetId(), isShown)
		cancel()
		p.code(<-done, codes.Canceled)
		open()
		w.until(p, m.GetId(), isReady)
		p.drop(p.g, m.GetId())
	}},
	{"1.5 DeleteSandbox", "a delete ends a create that is in flight, which is undone", 0, func(p *probe) {
		gate, open := p.gate()
		m := p.labelled(map[string]string{"gate": gate})
		done := make(chan error, 1)
		go func() { done <- p.g.Create(p.Context(), m, "") }()
		p.seenAs(p.g, m.GetId(), "it is begun", func(r openshelltest.Row) bool { return len(r.Progress) > 0 })
		p.must(p.g.Delete(p.Context(), m.GetId()))
		open() // or all waits until the extension that waits there is restarted
		p.want(<-done != nil, "the create has succeeded")
		p.seen(p.g, m.GetId(), openshelltest.Gone)
		p.want(!p.holds(m.GetId()) && !p.listed(m.GetId()), "something of it is there")
	}},
}

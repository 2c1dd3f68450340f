package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// stranger is a compute driver of the second generation of somebody else's, which authenticates its sandboxes: none of
// ours does. It runs nothing.
type stranger struct {
	computev1.UnimplementedComputeDriverServer
	mu      sync.Mutex
	boxes   map[string]*computev1.DriverSandbox
	runs    map[string]int
	changed chan struct{}
	starts  []*computev1.StartSandboxRequest
	news    []*computev1.WatchSandboxesEvent // what its platform has said
	dumb    bool                             // it gives no runtime identity at a start
}

func (d *stranger) GetCapabilities(context.Context, *computev1.GetCapabilitiesRequest) (*computev1.GetCapabilitiesResponse, error) {
	return &computev1.GetCapabilitiesResponse{DriverName: "stranger", DriverVersion: "1", SupportsSandboxAuthentication: true,
		DriverReportsRuntimeReadiness: true, Extension: &computev1.PeerMetadata{ProtocolVersion: &computev1.ProtocolVersion{Major: 1},
			ImplementationName: "stranger", ImplementationVersion: "1", SupportedCapabilities: []string{openshelltest.Contract}}}, nil
}

func (d *stranger) ValidateSandboxCreate(context.Context, *computev1.ValidateSandboxCreateRequest) (*computev1.ValidateSandboxCreateResponse, error) {
	return &computev1.ValidateSandboxCreateResponse{}, nil
}

func (d *stranger) identity(id string) string { return fmt.Sprintf("stranger://%s/%d", id, d.runs[id]) }

func (d *stranger) say(id, status, reason string) {
	m := proto.CloneOf(d.boxes[id]) // others read the one that is
	m.Status = &computev1.DriverSandboxStatus{InstanceId: id, Conditions: []*computev1.DriverCondition{{Type: "Ready", Status: status, Reason: reason}}}
	d.boxes[id] = m
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *stranger) CreateSandbox(_ context.Context, r *computev1.CreateSandboxRequest) (*computev1.CreateSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := r.GetSandbox().GetId()
	d.boxes[id], d.runs[id] = r.GetSandbox(), 1
	d.say(id, "True", "Up")
	return &computev1.CreateSandboxResponse{RuntimeIdentity: d.identity(id)}, nil
}

func (d *stranger) StartSandbox(_ context.Context, r *computev1.StartSandboxRequest) (*computev1.StartSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.starts = append(d.starts, r)
	d.runs[r.GetSandboxId()]++
	d.say(r.GetSandboxId(), "True", "Up")
	if d.dumb {
		return &computev1.StartSandboxResponse{}, nil
	}
	return &computev1.StartSandboxResponse{RuntimeIdentity: d.identity(r.GetSandboxId())}, nil
}

func (d *stranger) StopSandbox(_ context.Context, r *computev1.StopSandboxRequest) (*computev1.StopSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.say(r.GetSandboxId(), "False", "ContainerStopped")
	return &computev1.StopSandboxResponse{}, nil
}

func (d *stranger) GetSandbox(_ context.Context, r *computev1.GetSandboxRequest) (*computev1.GetSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boxes[r.GetSandboxId()] == nil {
		return nil, status.Error(codes.NotFound, "nothing")
	}
	return &computev1.GetSandboxResponse{Sandbox: d.boxes[r.GetSandboxId()]}, nil
}

func (d *stranger) ListSandboxes(context.Context, *computev1.ListSandboxesRequest) (*computev1.ListSandboxesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &computev1.ListSandboxesResponse{}
	for _, m := range d.boxes {
		out.Sandboxes = append(out.Sandboxes, m)
	}
	return out, nil
}

func (d *stranger) DeleteSandbox(_ context.Context, r *computev1.DeleteSandboxRequest) (*computev1.DeleteSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.boxes, r.GetSandboxId())
	return &computev1.DeleteSandboxResponse{Deleted: true}, nil
}

// WatchSandboxes says all there is whenever anything was asked of it.
func (d *stranger) WatchSandboxes(_ *computev1.WatchSandboxesRequest, stream computev1.ComputeDriver_WatchSandboxesServer) error {
	d.mu.Lock()
	told := len(d.news)
	d.mu.Unlock()
	for {
		d.mu.Lock()
		changed, all, events := d.changed, slices.Collect(maps.Values(d.boxes)), slices.Clone(d.news[told:])
		told = len(d.news)
		d.mu.Unlock()
		for _, m := range all {
			event := &computev1.WatchSandboxesEvent_Sandbox{Sandbox: &computev1.WatchSandboxesSandboxEvent{Sandbox: m}}
			events = append(events, &computev1.WatchSandboxesEvent{Payload: event})
		}
		for _, event := range events {
			if err := stream.Send(event); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// AuthenticateSandbox takes "id:" and an id for a sandbox's credential.
func (d *stranger) AuthenticateSandbox(_ context.Context, r *computev1.AuthenticateSandboxRequest) (*computev1.AuthenticateSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var id string
	if _, err := fmt.Sscanf(r.GetCredential(), "id:%s", &id); err != nil || d.boxes[id] == nil {
		return nil, status.Error(codes.Unauthenticated, "who is that?")
	}
	return &computev1.AuthenticateSandboxResponse{SandboxId: id, RuntimeIdentity: d.identity(id)}, nil
}

func serveStranger(t *testing.T, socket string) *stranger {
	t.Helper()
	d := &stranger{boxes: map[string]*computev1.DriverSandbox{}, runs: map[string]int{}, changed: make(chan struct{})}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	computev1.RegisterComputeDriverServer(server, d)
	var over sync.WaitGroup
	over.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); over.Wait() })
	return d
}

// newStrangerSite serves a stranger twice, as acme and as other.
func newStrangerSite(t *testing.T) (*site, *stranger) {
	t.Helper()
	s := newSite(t)
	base := serveStranger(t, s.dir+"/base.sock")
	s.write("", "")
	config := fmt.Sprintf("gateway {\n  data_dir = \"%[1]s/data\"\n  listen = \"unix://%[1]s/gw.sock\"\n}\ndriver \"base\" {\n  socket = \"unix://%[1]s/base.sock\"\n}\n", s.dir)
	for _, name := range []string{"acme", "other"} {
		config += fmt.Sprintf("driver %q {\n  base = \"base\"\n  expose {\n    socket = \"%s/%s.d/driver.sock\"\n  }\n}\n", name, s.dir, name)
	}
	if err := os.WriteFile(s.dir+"/site.hcl", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(s.end)
	return s, base
}

// openshell is an OpenShell gateway of the second generation in front of one of the site's doors.
func (s *site) openshell(name string, table openshelltest.Table) *openshelltest.Gateway {
	s.t.Helper()
	g, err := openshelltest.Open(s.t.Context(), openshelltest.Options{Socket: s.dir + "/" + name + ".d/driver.sock", Generation: openshelltest.Second, Table: table})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = g.Close() })
	return g
}

// A base that authenticates its sandboxes is a base that does through a composed driver too: what the second generation
// says at a start reaches it, what it answers reaches the caller, and the secrets stay between the two.
func TestABaseAuthenticatesItsSandboxes(t *testing.T) {
	s, base := newStrangerSite(t)
	acme, other := s.openshell("acme", openshelltest.Table{}), s.openshell("other", openshelltest.Table{})
	if !acme.Capabilities().GetSupportsSandboxAuthentication() {
		t.Fatal("it does not say that it authenticates")
	}
	m := wanted("box-1", "one")
	m.Spec.LaunchAuthentication = []byte("launch-secret")
	if err := acme.Create(t.Context(), m, "token"); err != nil {
		t.Fatal(err)
	}
	if got := acme.Store().Get("box-1").Runtime; got != "stranger://box-1/1" {
		t.Errorf("a create gave the runtime identity %q", got)
	}
	base.mu.Lock()
	got := base.boxes["box-1"].GetSpec().GetLaunchAuthentication()
	base.mu.Unlock()
	if string(got) != "launch-secret" {
		t.Errorf("it reaches the base as %q", got)
	}
	s.until("it is ready", func() bool { sb, _ := s.d.engine.Lookup("box-1"); return sb.Run.Ready })
	start(t, acme, base)
	authenticate(t, acme, other)
	base.mu.Lock()
	base.dumb = true
	base.mu.Unlock()
	if _, err := acme.Client().StopSandbox(t.Context(), &computev1.StopSandboxRequest{SandboxId: "box-1"}); err != nil {
		t.Fatal(err)
	}
	r, err := acme.Client().StartSandbox(t.Context(), &computev1.StartSandboxRequest{SandboxId: "box-1"})
	if err != nil || r.GetRuntimeIdentity() != "" {
		t.Errorf("what the base did not say: %v %v", r, err)
	}
	s.remove("box-1")
	s.nowhere("launch-secret", "start-secret")
}

// start stops and starts it, with all that the second generation says.
func start(t *testing.T, g *openshelltest.Gateway, base *stranger) {
	t.Helper()
	if _, err := g.Client().StopSandbox(t.Context(), &computev1.StopSandboxRequest{SandboxId: "box-1"}); err != nil {
		t.Fatal(err)
	}
	asked := &computev1.StartSandboxRequest{SandboxId: "box-1", Name: "one", LaunchAuthentication: []byte("start-secret"),
		GenerationId: "g2", ExpectedRuntimeIdentity: "stranger://box-1/1"}
	later := protowire.AppendString(protowire.AppendTag(nil, 900, protowire.BytesType), "of a later version")
	asked.ProtoReflect().SetUnknown(later)
	answer, err := g.Client().StartSandbox(t.Context(), asked)
	if err != nil || answer.GetRuntimeIdentity() != "stranger://box-1/2" {
		t.Fatalf("start: %v %v", answer, err)
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	got := base.starts[len(base.starts)-1]
	if string(got.GetLaunchAuthentication()) != "start-secret" || got.GetGenerationId() != "g2" || got.GetExpectedRuntimeIdentity() != "stranger://box-1/1" ||
		!bytes.Equal(got.ProtoReflect().GetUnknown(), later) {
		t.Errorf("it reaches the base as %v", got)
	}
}

func authenticate(t *testing.T, acme, other *openshelltest.Gateway) {
	t.Helper()
	ask := func(g *openshelltest.Gateway, credential string) (*computev1.AuthenticateSandboxResponse, codes.Code) {
		r, err := g.Client().AuthenticateSandbox(t.Context(), &computev1.AuthenticateSandboxRequest{Credential: credential})
		return r, status.Code(err)
	}
	if r, code := ask(acme, "id:box-1"); r.GetSandboxId() != "box-1" || r.GetRuntimeIdentity() != "stranger://box-1/2" {
		t.Errorf("its own sandbox: %v %v", r, code)
	}
	for what, g := range map[string]*openshelltest.Gateway{"id:box-1": other, "id:nobody": acme, "nonsense": acme} {
		if r, code := ask(g, what); code != codes.Unauthenticated {
			t.Errorf("%s: %v %v", what, r, code)
		}
	}
}

// nowhere checks that nothing of it can be read in a file of the gateway's.
func (s *site) nowhere(secrets ...string) {
	s.t.Helper()
	err := filepath.WalkDir(s.dir+"/data", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(raw, []byte(secret)) {
				s.t.Errorf("%s has %q", path, secret)
			}
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

package plugin

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// lease holds one thing per sandbox, and does in before_create what the test says.
type lease struct {
	before func(context.Context, *Request, *Setup) error
}

type leaseConfig struct {
	Size  int             `json:"size" default:"3" min:"1" doc:"how many"`
	Token string          `json:"token" config:"optional,sensitive"`
	Pools map[string]pool `json:"pool" config:"block"`
}

type pool struct {
	CIDR string `json:"cidr"`
}

func (l *lease) Info() Info {
	return Info{Name: "lease", Version: "1.0.0", Uses: []string{"labels"}, Config: &leaseConfig{}}
}

func (l *lease) BeforeCreate(ctx context.Context, r *Request, s *Setup) error {
	return l.before(ctx, r, s)
}

func (l *lease) AfterDelete(context.Context, *Request) error    { return nil }
func (l *lease) OnCreateFailed(context.Context, *Request) error { return nil }

func (l *lease) Configure(_ context.Context, c *Config) error {
	if c.Value.(*leaseConfig).Size == 13 {
		c.Invalid("size", "is unlucky", "")
	}
	return nil
}

func dial(t *testing.T, ext any) *wire.Extension {
	t.Helper()
	srv, err := NewServer(ext)
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	extensionv1.RegisterExtensionServer(g, srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	conn, err := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		wg.Wait()
	})
	return wire.NewExtension(conn)
}

func beforeCreate(id string, number uint64) *extension.Call {
	return &extension.Call{Phase: phase.BeforeCreate, Bind: "d/lease", Number: number, Key: "op/before_create/lease",
		Sandbox: &sandbox.Identity{ID: id}, Workspace: sandbox.Workspace{ID: "w"}}
}

func TestManifestComesFromTheInterfaces(t *testing.T) {
	m, err := dial(t, &lease{}).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []phase.Phase{phase.BeforeCreate, phase.OnCreateFailed, phase.AfterDelete}
	if diff := cmp.Diff(want, m.Phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if !strings.Contains(string(m.ConfigSchema), `"labels":["name"]`) || !strings.Contains(string(m.ConfigSchema), `"sensitive":true`) {
		t.Errorf("schema: %s", m.ConfigSchema)
	}
}

func TestAnAnswerArrivesWhole(t *testing.T) {
	x := dial(t, &lease{before: func(_ context.Context, r *Request, s *Setup) error {
		f, ok := r.Feature("network.address")
		if !ok {
			t.Error("the feature is not negotiated")
		}
		if err := s.Set(f, "10.0.0.2/24"); err != nil {
			return err
		}
		s.Hold("lease", "10.0.0.2", "for "+r.SubjectID())
		return s.SetState(2, map[string]string{"a": "b"})
	}})
	contract := extension.Contract{Bind: "d/lease", Driver: "d", Features: []extension.Feature{{Name: "network.address", Point: "Process.network.address", Object: "main"}}}
	if d, err := x.Configure(t.Context(), []byte(`{"size":3}`), []extension.Contract{contract}, "test"); err != nil || len(d) > 0 {
		t.Fatal(d, err)
	}
	a, err := x.Call(t.Context(), beforeCreate("sb", 1))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Entry{{Kind: "lease", ID: "10.0.0.2", Text: "for sb"}}, a.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if a.State.SchemaVersion != 2 || string(a.State.Payload) != `{"a":"b"}` {
		t.Errorf("state: %+v", a.State)
	}
	want := map[string]any{"network": map[string]any{"address": "10.0.0.2/24"}}
	if len(a.Contribute) != 1 || a.Contribute[0].Ref() != "Process/main" || !cmp.Equal(want, a.Contribute[0].Fields) {
		t.Errorf("contribution: %+v", a.Contribute)
	}
}

// The types are made like those of k8s.io/api, which write out what nobody filled in.
func TestAContributionSaysOnlyWhatWasFilledIn(t *testing.T) {
	type Meta struct {
		Labels  map[string]string `json:"labels,omitempty"`
		Created *string           `json:"creationTimestamp"`
	}
	type item struct {
		Meta    `json:"metadata,omitempty"`
		Empty   *Meta `json:"selector,omitempty"`
		Ordinal Meta  `json:"ordinal,omitempty"`
	}
	type object struct {
		Meta   `json:",inline"`
		Status Meta               `json:"status,omitempty"`
		Spec   struct{ A []item } `json:"spec"`
		Items  []item             `json:"items"`
		Free   map[string]Meta    `json:"free"`
	}
	x := dial(t, &lease{before: func(_ context.Context, _ *Request, s *Setup) error {
		return s.Contribute("Box", "main", &object{Meta: Meta{Labels: map[string]string{"a": "b"}}, Items: []item{{}, {Empty: &Meta{}}}, Free: map[string]Meta{"kept": {}}})
	}})
	a, err := x.Call(t.Context(), beforeCreate("sb", 1))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"labels": map[string]any{"a": "b"}, "free": map[string]any{"kept": map[string]any{}},
		"items": []any{map[string]any{}, map[string]any{"selector": map[string]any{}}}}
	if diff := cmp.Diff(want, a.Contribute[0].Fields); diff != "" {
		t.Errorf("contribution (-want +got):\n%s", diff)
	}
}

func TestAnOvertakenCallIsRefused(t *testing.T) {
	served := 0
	x := dial(t, &lease{before: func(context.Context, *Request, *Setup) error { served++; return nil }})
	if _, err := x.Call(t.Context(), beforeCreate("sb", 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Call(t.Context(), beforeCreate("sb", 4)); !fault.Is(err, fault.Conflict) {
		t.Errorf("an older call: %v", err)
	}
	if _, err := x.Call(t.Context(), beforeCreate("other", 1)); err != nil {
		t.Errorf("another sandbox's call: %v", err)
	}
	if served != 2 {
		t.Errorf("%d calls were served, want 2", served)
	}
}

func TestOneCallOfASubjectAtATime(t *testing.T) {
	entered, leave := make(chan uint64), make(chan struct{})
	x := dial(t, &lease{before: func(_ context.Context, r *Request, _ *Setup) error {
		entered <- r.Number()
		<-leave // it does not care that it was cancelled
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = x.Call(ctx, beforeCreate("sb", 1)) })
	<-entered
	cancel()
	wg.Go(func() {
		release := beforeCreate("sb", 2)
		release.Phase = phase.OnCreateFailed
		if _, err := x.Call(t.Context(), release); err != nil {
			t.Errorf("the release: %v", err)
		}
	})
	leave <- struct{}{} // the release is served only after this
	wg.Wait()
}

func TestAPanicFailsItsCallOnly(t *testing.T) {
	panics := true
	x := dial(t, &lease{before: func(context.Context, *Request, *Setup) error {
		if panics {
			panic("oh")
		}
		return nil
	}})
	if _, err := x.Call(t.Context(), beforeCreate("sb", 1)); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "before_create") {
		t.Errorf("the panic: %v", err)
	}
	panics = false
	if _, err := x.Call(t.Context(), beforeCreate("sb", 2)); err != nil {
		t.Errorf("after it: %v", err)
	}
	undeclared := beforeCreate("sb", 3)
	undeclared.Phase = phase.AfterStop
	if _, err := x.Call(t.Context(), undeclared); !fault.Is(err, fault.Unimplemented) {
		t.Errorf("a phase that is not declared: %v", err)
	}
}

func TestConfigureSaysWhatIsWrong(t *testing.T) {
	x := dial(t, &lease{})
	d, err := x.Configure(t.Context(), []byte(`{"size":13}`), nil, "test")
	if err != nil || len(d) != 1 || d[0].Path != "size" {
		t.Errorf("%v %v", d, err)
	}
	if _, err := x.Configure(t.Context(), []byte(`{"sise":1}`), nil, "test"); !fault.Is(err, fault.Invalid) {
		t.Errorf("an unknown setting: %v", err)
	}
}

// Package plugintest is what the author of an extension tests with.
//
// New serves an extension in the test itself, over the real gRPC and an in-memory pipe: for unit tests.
//
// Verify runs a program, in whatever language it is written, against every rule of the contract, and reports which
// it keeps. `sandgate extension verify` is the same from the command line.
package plugintest

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// Pipe is an extension that is served in the test. Its calls are those of a gateway, and their errors are faults.
type Pipe struct {
	*wire.Extension

	t    testing.TB
	name string

	mu     sync.Mutex
	number uint64
}

// New serves ext until the test ends. It is not configured yet.
func New(t testing.TB, ext any) *Pipe {
	t.Helper()
	srv, err := plugin.NewServer(ext)
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(grpc.MaxRecvMsgSize(wire.MaxRequest), grpc.MaxSendMsgSize(extension.MaxAnswer))
	extensionv1.RegisterExtensionServer(g, srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	conn, err := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(wire.MaxRequest)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		wg.Wait()
	})
	p := &Pipe{Extension: wire.NewExtension(conn), t: t}
	m, err := p.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.name = m.Name
	return p
}

// Use configures the extension as a gateway would that found nothing wrong, and returns what the extension found
// wrong. Config is a value that becomes JSON, or nil; features are those that the driver has.
func (p *Pipe) Use(config any, features ...plugin.Feature) []fault.Diagnostic {
	p.t.Helper()
	var raw json.RawMessage
	if config != nil {
		var err error
		if raw, err = json.Marshal(config); err != nil {
			p.t.Fatal(err)
		}
	}
	d, err := p.Configure(p.t.Context(), raw, []extension.Contract{{Bind: p.bind(), Driver: driverName, Phases: phase.All(), Features: features}}, "test")
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// driverName is the driver of every call that this package makes.
const driverName = "verify"

func (p *Pipe) bind() string { return driverName + "/" + p.name }

// Of returns a call of a phase for the sandbox, or for a phase of a workspace the workspace, with that id. Its number
// is higher than that of every call before. Change it as the test needs.
func (p *Pipe) Of(ph phase.Phase, id string) *extension.Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	c := &extension.Call{Phase: ph, Bind: p.bind(), Operation: "op-" + id, Attempt: 1, Number: p.number, Key: "op-" + id + "/" + string(ph),
		Workspace: sandbox.Workspace{ID: "workspace-" + id, Driver: driverName, Name: sandbox.DefaultWorkspace}}
	if ph.OfWorkspace() {
		c.Workspace.ID = id
		return c
	}
	c.Sandbox = &sandbox.Identity{ID: id, Driver: driverName, Workspace: c.Workspace.Name, WorkspaceID: c.Workspace.ID, Name: "name-of-" + id}
	if ph == phase.AfterReady {
		c.Addresses = []string{"192.0.2.7"}
	}
	return c
}

// Do makes a call that has to be answered.
func (p *Pipe) Do(c *extension.Call) *extension.Answer {
	p.t.Helper()
	a, err := p.Call(p.t.Context(), c)
	if err != nil {
		p.t.Fatalf("%s: %v", c.Phase, err)
	}
	return a
}

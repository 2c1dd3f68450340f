package conformance

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/extension"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// serveFaulty is the main of the test binary as the extension slots with a fault. It does not use plugin.Serve, so that
// it can go wrong in every way in which a program in another language might.
func serveFaulty(name string) {
	x := &slots{fault: name, gave: map[string]bool{}}
	srv, err := plugin.NewServer(x)
	if err != nil {
		panic(err)
	}
	if os.Getenv(wire.CookieKey) != wire.CookieValue {
		if name != "serves-by-hand" {
			fmt.Fprintln(os.Stderr, "slots is an extension")
			return
		}
		fmt.Println("1|1|unix|/tmp/slots.sock|grpc|")
		select {}
	}
	launchFile := os.NewFile(wire.LaunchFD, "launch")
	launch := readLaunch(name, launchFile)
	if name == "banner" {
		fmt.Println("slots 1.0.0, a fine program")
	}
	if name == "any-version" {
		version := os.Getenv("PLUGIN_PROTOCOL_VERSIONS")
		if version != "1" {
			fmt.Printf("1|%s|unix|%s/s|grpc|\n", version[len(version)-2:], os.Getenv("PLUGIN_UNIX_SOCKET_DIR"))
			select {}
		}
	}
	if name == "ignores-sigterm" {
		signal.Ignore(syscall.SIGTERM)
	}
	if name != "outlives-its-host" {
		go func() {
			_, _ = io.Copy(io.Discard, launchFile)
			unix.Exit(0)
		}()
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  wire.Handshake(),
		VersionedPlugins: wire.Plugins(&faulty{ExtensionServer: srv, x: x, name: name}),
		TLSProvider:      func() (*tls.Config, error) { return faultyTLS(name, launch) },
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			if name != "small-messages" {
				opts = append(opts, grpc.MaxRecvMsgSize(wire.MaxRequest), grpc.MaxSendMsgSize(extension.MaxAnswer))
			}
			return grpc.NewServer(opts...)
		},
		Logger: hclog.NewNullLogger(),
	})
}

func readLaunch(name string, f *os.File) *wire.Launch {
	if name == "one-read" {
		buf := make([]byte, 64<<10)
		n, _ := f.Read(buf)
		l := &wire.Launch{}
		if err := json.Unmarshal(buf[:n], l); err != nil {
			fmt.Fprintln(os.Stderr, "the launch is no JSON:", err)
			unix.Exit(1)
		}
		return l
	}
	l, err := wire.ReadLaunch(f)
	if err != nil {
		panic(err)
	}
	if name == "logs-its-key" {
		fmt.Fprintln(os.Stderr, l.Key)
	}
	return l
}

func faultyTLS(name string, l *wire.Launch) (*tls.Config, error) {
	if name == "own-certificate" {
		other, _, err := wire.NewLaunch()
		if err != nil {
			return nil, err
		}
		other.Host = l.Host
		return other.ServerTLS()
	}
	c, err := l.ServerTLS()
	if err == nil && name == "serves-anybody" {
		c.ClientAuth, c.VerifyConnection = tls.NoClientCert, nil
	}
	return c, err
}

// faulty stands before the honest server, and goes wrong on the wire.
type faulty struct {
	extensionv1.ExtensionServer
	x      *slots
	name   string
	number atomic.Uint64
}

func (f *faulty) Describe(ctx context.Context, r *extensionv1.DescribeRequest) (*extensionv1.DescribeResponse, error) {
	d, err := f.ExtensionServer.Describe(ctx, r)
	if err != nil {
		return nil, err
	}
	switch m := d.Manifest; f.name {
	case "declares-too-much":
		m.Phases = append(m.Phases, "before_delete")
	case "unknown-phase":
		m.Phases = append(m.Phases, "after_lunch")
	case "no-release":
		m.Phases = remove(m.Phases, "on_create_failed")
	}
	return d, nil
}

func remove(list []string, name string) []string {
	var out []string
	for _, x := range list {
		if x != name {
			out = append(out, x)
		}
	}
	return out
}

func (f *faulty) OnCreateFailed(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	if f.name == "no-release" {
		return nil, status.Error(codes.Unimplemented, "no")
	}
	if f.name == "release-overtakes" {
		r.Step.Number, r.Subject.Sandbox.Name = f.number.Add(1), "" // past the turn: another subject's
		id := r.Subject.Sandbox.Id
		f.x.mu.Lock()
		defer f.x.mu.Unlock()
		delete(f.x.book, "sandbox "+id)
		return &extensionv1.HoldResponse{}, f.x.write()
	}
	return f.ExtensionServer.OnCreateFailed(ctx, r)
}

func (f *faulty) BeforeDelete(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.QuiesceResponse, error) {
	if f.name == "serves-undeclared" {
		return &extensionv1.QuiesceResponse{}, nil
	}
	return f.ExtensionServer.BeforeDelete(ctx, r)
}

func (f *faulty) PreparePlan(ctx context.Context, r *extensionv1.PureRequest) (*extensionv1.PreparePlanResponse, error) {
	if f.name == "plans-hold" {
		_, _ = f.ExtensionServer.BeforeCreate(ctx, &extensionv1.PhaseRequest{Step: phaseStep(r.GetStep(), "before_create"), Subject: r.GetSubject()})
	}
	return f.ExtensionServer.PreparePlan(ctx, r)
}

func phaseStep(s *extensionv1.Step, phase string) *extensionv1.Step {
	return &extensionv1.Step{Phase: phase, Bind: s.GetBind(), Number: s.GetNumber()}
}

func (f *faulty) BeforeCreate(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	switch f.name {
	case "any-number":
		r.Step.Number = f.number.Add(1)
	case "no-turns":
		return f.racy(r)
	case "release-overtakes":
		<-time.After(120 * time.Millisecond) // it does not look whether it was cancelled
		s, err := f.x.give(r)
		return &extensionv1.SetupResponse{Entries: []*extensionv1.Entry{{Kind: "sandbox-slot", Id: fmt.Sprint(s)}}}, err
	case "stuck":
		<-time.After(10 * time.Millisecond)
		if ctx.Err() != nil {
			f.x.mu.Lock() // for ever, and everybody else with it
		}
	case "strict":
		if len(r.ProtoReflect().GetUnknown()) > 0 {
			return nil, status.Error(codes.InvalidArgument, "there are fields that I do not know")
		}
	case "trusting":
		if r.GetSubject() == nil {
			unix.Exit(4)
		}
	}
	return f.ExtensionServer.BeforeCreate(ctx, r)
}

// racy looks for a slot of the subject, and takes one, with others in between.
func (f *faulty) racy(r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	id := "sandbox " + r.GetSubject().GetSandbox().GetId()
	f.x.mu.Lock()
	s, ok := f.x.book[id]
	f.x.mu.Unlock()
	n := s.Number
	if !ok {
		<-time.After(5 * time.Millisecond)
		var err error
		if n, err = f.x.give(r); err != nil {
			return nil, err
		}
	}
	return &extensionv1.SetupResponse{Entries: []*extensionv1.Entry{{Kind: "sandbox-slot", Id: fmt.Sprint(n)}}}, nil
}

// give gives the subject another slot, whatever it has.
func (x *slots) give(r *extensionv1.PhaseRequest) (int, error) {
	c, err := wire.PhaseFromProto(r)
	if err != nil || c.Sandbox == nil {
		return 0, status.Error(codes.InvalidArgument, "whose?")
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.free("sandbox")
	x.book["sandbox "+c.Sandbox.ID] = slot{Lifetime: "sandbox", Number: n, Bind: c.Bind, Sandbox: c.Sandbox, Workspace: c.Workspace}
	return n, x.write()
}

func (f *faulty) Reconcile(stream grpc.BidiStreamingServer[extensionv1.ReconcileRequest, extensionv1.ReconcileResponse]) error {
	if f.name != "one-page" {
		return f.ExtensionServer.Reconcile(stream)
	}
	page, err := stream.Recv()
	if err != nil {
		return err
	}
	held, err := f.x.Holdings(stream.Context(), page.GetBind())
	if err != nil {
		return err
	}
	m := &extensionv1.ReconcileResponse{} // and no page is the last
	for _, h := range held {
		m.Items = append(m.Items, wire.ItemToProto(extension.Item{Sandbox: h.Sandbox, Workspace: h.Workspace, Lifetime: h.Lifetime, Entries: h.Entries}))
	}
	return stream.Send(m)
}

// Package openshelltest is a client that behaves as an OpenShell gateway does towards its compute driver, in the first
// and in the second generation of the contract: what it asks at its start and in which order, what it checks of the
// answers, how it reads status codes, what it does after an answer that says nothing certain, and which phase its users
// see of a sandbox at each moment. It keeps rows as that gateway's store does, and they outlive it.
//
// It is for tests of the compute door. It starts nothing of OpenShell's and shares no code with it.
package openshelltest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Generation is one of the contract's.
type Generation int

// The generations.
const (
	First  Generation = 1
	Second Generation = 2
)

// The times of the real gateway. Tests shorten the later ones.
const (
	connectEvery = 250 * time.Millisecond
	connectFor   = 30 * time.Second
	sweepEvery   = 60 * time.Second
	reopenAfter  = 2 * time.Second
	pruneAfter   = 300 * time.Second
)

// Options say how a gateway is configured.
type Options struct {
	Socket     string
	Generation Generation
	Table      Table  // what the second generation reads of its table of the driver
	Store      *Store // nil: an empty one
	Port       int    // of its primary listener; 0: no listener requirement is checked against it

	Connect, Sweep, Reopen, Prune time.Duration // 0: as the real one

	Lose func(method string) bool // asked after each call that was answered: true loses the answer
}

// Gateway is one replica, connected and negotiated.
type Gateway struct {
	opts   Options
	store  *Store
	conn   *grpc.ClientConn
	client computev1.ComputeDriverClient
	caps   *computev1.GetCapabilitiesResponse
	needs  []*computev1.GatewayListenerRequirement
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	calls []string
	ends  []error // of the watch's streams
	bad   []error // what it could make nothing of
}

// Open connects to the driver, trying again until it is there, and negotiates. Nothing is asked of any sandbox yet.
func Open(ctx context.Context, o Options) (*Gateway, error) {
	o.Connect, o.Sweep = cmp.Or(o.Connect, connectFor), cmp.Or(o.Sweep, sweepEvery)
	o.Reopen, o.Prune = cmp.Or(o.Reopen, reopenAfter), cmp.Or(o.Prune, pruneAfter)
	if o.Store == nil {
		o.Store = NewStore()
	}
	g := &Gateway{opts: o, store: o.Store}
	if err := appears(ctx, o.Socket, o.Connect); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+o.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("[::]:50051"),
		grpc.WithUnaryInterceptor(g.unary), grpc.WithStreamInterceptor(g.streamed))
	if err != nil {
		return nil, err
	}
	g.conn, g.client = conn, computev1.NewComputeDriverClient(conn)
	if err := g.negotiate(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return g, nil
}

// trace is what every call of the real gateway carries too.
const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func rpc(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

func (g *Gateway) called(ctx context.Context, method string) context.Context {
	g.mu.Lock()
	g.calls = append(g.calls, rpc(method))
	g.mu.Unlock()
	return metadata.AppendToOutgoingContext(ctx, "traceparent", trace)
}

func (g *Gateway) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(g.called(ctx, method), method, req, reply, cc, opts...)
	if err == nil && g.opts.Lose != nil && g.opts.Lose(rpc(method)) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	return err
}

func (g *Gateway) streamed(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return stream(g.called(ctx, method), desc, cc, method, opts...)
}

// Calls returns the methods that were called, in order.
func (g *Gateway) Calls() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.calls)
}

// StreamEnds returns how each stream of the watch ended.
func (g *Gateway) StreamEnds() []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.ends)
}

// Complaints returns what of the driver's answers the gateway could make nothing of.
func (g *Gateway) Complaints() []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.bad)
}

func (g *Gateway) complain(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bad = append(g.bad, fmt.Errorf(format, args...))
}

// Store returns the gateway's rows.
func (g *Gateway) Store() *Store { return g.store }

// Capabilities returns what was negotiated.
func (g *Gateway) Capabilities() *computev1.GetCapabilitiesResponse { return g.caps }

// Client is the bare client, for calls that the gateway would not make.
func (g *Gateway) Client() computev1.ComputeDriverClient { return g.client }

// Run goes on with the start: what was in flight is finished, what should run is started where the driver asks for
// that, and then the watch and the sweep run until Close.
func (g *Gateway) Run(ctx context.Context) {
	ctx, g.cancel = context.WithCancel(ctx)
	g.recover(ctx)
	g.wg.Go(func() { g.watch(ctx) })
	g.wg.Go(func() {
		tick := time.NewTicker(g.opts.Sweep)
		defer tick.Stop()
		for {
			if err := g.Sweep(ctx); err != nil && ctx.Err() == nil && !passing(err) {
				g.complain("sweep: %w", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

func passing(err error) bool { return status.Code(err) == codes.Unavailable }

// Close ends the gateway as a crash would: nothing is said to the driver.
func (g *Gateway) Close() error {
	if g.cancel != nil {
		g.cancel()
	}
	err := g.conn.Close()
	g.wg.Wait()
	return err
}

// Shutdown ends it in order: where the driver asks for that, every sandbox that should run is stopped, and its row
// keeps its phase.
func (g *Gateway) Shutdown(ctx context.Context) error {
	var errs []error
	if g.caps.GetGatewayManagesLifecycle() {
		for _, r := range g.store.Rows() {
			if shouldRun(r.Phase) {
				_, err := g.client.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: r.ID, Name: r.Name})
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errors.Join(errs...), g.Close())
}

func shouldRun(p Phase) bool {
	return slices.Contains([]Phase{Unspecified, Provisioning, Ready, Starting, Unknown}, p)
}

// recover is the first thing that a gateway does to its sandboxes.
func (g *Gateway) recover(ctx context.Context) {
	for _, r := range g.store.Rows() {
		switch {
		case r.Phase == Stopping:
			if _, err := g.client.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: r.ID, Name: r.Name}); err == nil {
				g.store.set(r.ID, Stopped, "")
			}
		case r.Phase == Starting, g.caps.GetGatewayManagesLifecycle() && shouldRun(r.Phase):
			_, err := g.client.StartSandbox(ctx, &computev1.StartSandboxRequest{SandboxId: r.ID, Name: r.Name})
			switch status.Code(err) {
			case codes.OK:
			case codes.NotFound:
				g.store.set(r.ID, Error, "BackendResourceMissing")
			default:
				g.store.set(r.ID, Error, "StartFailed")
			}
		}
	}
}

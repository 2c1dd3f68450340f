package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// times are the durations of one thing, measured again and again.
type times []time.Duration

// at returns the p-th percentile.
func (t times) at(p int) time.Duration {
	if len(t) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(t))
	return s[min(len(s)-1, len(s)*p/100)]
}

// bare is an extension process that was started with go-plugin alone: nothing of the supervisor, pipeline or engine
// stands between the caller and its gRPC server, and it has the same authentication.
type bare struct {
	client *goplugin.Client
	conn   grpc.ClientConnInterface
	launch [2]*os.File
}

func newBare() (_ *bare, err error) {
	launch, tls, err := wire.NewLaunch()
	if err != nil {
		return nil, err
	}
	b := &bare{}
	if b.launch[0], b.launch[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	if err := launch.Write(b.launch[1]); err != nil {
		return nil, err
	}
	cmd := exec.Command(noopProgram)
	cmd.Env = []string{"NOOP_NAME=bare", "GOMAXPROCS=" + strconv.Itoa(runtime.GOMAXPROCS(0))}
	cmd.ExtraFiles = []*os.File{b.launch[0]}
	b.client = goplugin.NewClient(&goplugin.ClientConfig{HandshakeConfig: wire.Handshake(), VersionedPlugins: wire.Plugins(nil), Cmd: cmd,
		TLSConfig: tls, AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, SkipHostEnv: true, Logger: hclog.NewNullLogger()})
	client, err := b.client.Client()
	if err != nil {
		b.close()
		return nil, err
	}
	b.conn, err = wire.Dispense(client)
	return b, err
}

func (b *bare) close() {
	b.client.Kill()
	_, _ = b.launch[0].Close(), b.launch[1].Close()
}

// ping returns a call of that many bytes: of Health, which does nothing, with a field that nobody knows.
func (b *bare) ping(bytes int) func(context.Context) error {
	req := &extensionv1.HealthRequest{}
	raw := protowire.AppendTag(nil, 1000, protowire.BytesType)
	req.ProtoReflect().SetUnknown(protowire.AppendBytes(raw, make([]byte, max(0, bytes-5))))
	return func(ctx context.Context) error {
		return b.conn.Invoke(ctx, extensionv1.Extension_Health_FullMethodName, req, &extensionv1.HealthResponse{})
	}
}

// captured keeps the message that the pipeline makes, for its size.
type captured struct {
	pipeline.Extension
	last *extension.Call
}

func (c *captured) Call(ctx context.Context, call *extension.Call) (*extension.Answer, error) {
	c.last = call
	return &extension.Answer{}, nil
}

// phaseCall is one phase of a create, as the engine asks the pipeline for it.
func phaseCall(ctx context.Context, g *gateway, name string) (call func(context.Context) error, bytes int, err error) {
	id := sandbox.Identity{ID: "called-00000001", Driver: "idle", Workspace: "default", WorkspaceID: "id-0000000002", Name: "box-1"}
	spec := &sandbox.Spec{Image: "registry.example/agents/base:1.4.2", Labels: map[string]string{"team": "research", "tier": "standard", "cost-center": "4711"}}
	layers, err := g.driver.Layers(ctx, &driver.Request{Identity: id, Spec: *spec})
	if err != nil {
		return nil, 0, err
	}
	p, err := g.schema.Compute(layers)
	if err != nil {
		return nil, 0, err
	}
	number := uint64(0)
	request := func() *pipeline.Request {
		number++
		return &pipeline.Request{Phase: phase.BeforeStart, Step: pipeline.Step{Operation: "id-0000000003", Kind: phase.OpCreate, Attempt: 1,
			Number: number, Key: "id-0000000003/before_start/" + name, Cause: phase.CauseCreate}, Plan: p,
			Subject: &pipeline.Subject{Sandbox: &id, Workspace: sandbox.Workspace{ID: id.WorkspaceID, Driver: "idle", Name: "default"}, Spec: spec, Run: 1, Active: []string{name}}}
	}
	c := &captured{}
	b := *g.chain.Bind(name)
	b.Program = c
	pipeline.New([]*pipeline.Bind{&b}, g.schema, nil).Call(ctx, name, request())
	m, err := wire.PhaseToProto(c.last)
	if err != nil {
		return nil, 0, err
	}
	return func(ctx context.Context) error { return g.chain.Call(ctx, name, request()).Err }, proto.Size(m), nil
}

// inTurn measures two things turn about, so that both see the same machine.
func inTurn(ctx context.Context, n int, fn ...func(context.Context) error) ([]times, error) {
	out := make([]times, len(fn))
	for i := range n + n/10 {
		for j, f := range fn {
			began := time.Now()
			if err := f(ctx); err != nil {
				return nil, err
			}
			if i >= n/10 { // the first ones warm up
				out[j] = append(out[j], time.Since(began))
			}
		}
	}
	return out, nil
}

// creates makes sandboxes, so many at once, for about as long as limit and at least least of them.
func creates(ctx context.Context, g *gateway, at, least int, limit time.Duration) (_ times, perSecond float64, err error) {
	var mu sync.Mutex
	var all times
	var wg sync.WaitGroup
	began := time.Now()
	for range at {
		wg.Go(func() {
			for {
				mu.Lock()
				over := err != nil || len(all) >= least && time.Since(began) > limit
				mu.Unlock()
				if over {
					return
				}
				start := time.Now()
				_, e := g.create(ctx)
				mu.Lock()
				all = append(all, time.Since(start))
				if e != nil {
					err = e
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all, float64(len(all)) / time.Since(began).Seconds(), err
}

// commitsPerCreate makes one sandbox and returns its commits and its steps with effects.
func commitsPerCreate(ctx context.Context, g *gateway) (commits, steps int, err error) {
	before := g.journal.commits.Load()
	op, err := g.create(ctx)
	if err != nil {
		return 0, 0, err
	}
	commits = int(g.journal.commits.Load() - before)
	list, err := g.Steps(ctx, op)
	for _, s := range list {
		if s.Phase == "" || !s.Phase.Pure() {
			steps++
		}
	}
	return commits, steps, err
}

// heap returns what the garbage collector leaves.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// memoryOf returns what a process has in memory, and its share of it where pages are shared, in bytes.
func memoryOf(h *supervisor.Handle) (resident, share uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", h.Status().PID))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseUint(f[1], 10, 64) // the lines below have a number
		switch f[0] {
		case "Rss:":
			resident = kb << 10
		case "Pss:":
			share = kb << 10
		}
	}
	return resident, share, nil
}

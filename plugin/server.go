package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// NewServer returns the gRPC server of an extension, for Serve and for tests.
func NewServer(ext any) (extensionv1.ExtensionServer, error) {
	x, ok := ext.(Extension)
	if !ok {
		return nil, fault.New(fault.Invalid, "%T is no extension: it has no Info method", ext)
	}
	handlers := handlersOf(ext)
	if len(handlers) == 0 {
		return nil, fault.New(fault.Invalid, "%T implements no phase", ext)
	}
	return newServer(ext, x.Info(), handlers)
}

func newServer(ext any, info Info, handlers map[phase.Phase]handler) (*server, error) {
	s := &server{ext: ext, handlers: handlers, subjects: map[string]*subject{}, contracts: map[string]*extension.Contract{}}
	if info.Name == "" || info.Version == "" {
		return nil, fault.New(fault.Invalid, "%T: Info needs a name and a version", ext)
	}
	s.manifest = manifestOf(info)
	for _, p := range phase.All() {
		if s.handlers[p] != nil {
			s.manifest.Phases = append(s.manifest.Phases, p)
		}
	}
	if info.Config != nil {
		schema, err := Schema(info.Config)
		if err != nil {
			return nil, err
		}
		if s.manifest.ConfigSchema, err = json.Marshal(schema); err != nil {
			return nil, fmt.Errorf("config schema: %w", err)
		}
		s.config = reflect.TypeOf(info.Config).Elem()
	}
	return s, nil
}

// handler serves one phase.
type handler func(context.Context, *Request, *extension.Answer) error

// handlersOf is the table of phases: which interface serves it, and how it is answered.
func handlersOf(ext any) map[phase.Phase]handler {
	h := map[phase.Phase]handler{}
	if x, ok := ext.(Validator); ok {
		h[phase.ValidateRequest] = func(ctx context.Context, r *Request, a *extension.Answer) error {
			return x.ValidateRequest(ctx, r, &Verdict{a})
		}
	}
	if x, ok := ext.(Planner); ok {
		h[phase.PreparePlan] = func(ctx context.Context, r *Request, a *extension.Answer) error {
			return x.PreparePlan(ctx, r, &Plan{Verdict{a}, contribution{a}})
		}
	}
	setup := func(p phase.Phase, fn func(context.Context, *Request, *Setup) error) {
		h[p] = func(ctx context.Context, r *Request, a *extension.Answer) error {
			return fn(ctx, r, &Setup{Verdict{a}, contribution{a}, holding{a}})
		}
	}
	hold := func(p phase.Phase, fn func(context.Context, *Request, *Hold) error) {
		h[p] = func(ctx context.Context, r *Request, a *extension.Answer) error { return fn(ctx, r, &Hold{holding{a}}) }
	}
	plain := func(p phase.Phase, fn func(context.Context, *Request) error) {
		h[p] = func(ctx context.Context, r *Request, _ *extension.Answer) error { return fn(ctx, r) }
	}
	if x, ok := ext.(BeforeCreator); ok {
		setup(phase.BeforeCreate, x.BeforeCreate)
	}
	if x, ok := ext.(BeforeStarter); ok {
		setup(phase.BeforeStart, x.BeforeStart)
	}
	if x, ok := ext.(WorkspaceEnsurer); ok {
		setup(phase.EnsureWorkspace, x.EnsureWorkspace)
	}
	if x, ok := ext.(AfterCreator); ok {
		hold(phase.AfterCreate, x.AfterCreate)
	}
	if x, ok := ext.(AfterReadier); ok {
		hold(phase.AfterReady, x.AfterReady)
	}
	if x, ok := ext.(Reconciler); ok {
		hold(phase.Reconcile, x.Repair)
	}
	if x, ok := ext.(BeforeStopper); ok {
		plain(phase.BeforeStop, x.BeforeStop)
	}
	if x, ok := ext.(BeforeDeleter); ok {
		plain(phase.BeforeDelete, x.BeforeDelete)
	}
	if x, ok := ext.(AfterStopper); ok {
		plain(phase.AfterStop, x.AfterStop)
	}
	if x, ok := ext.(AfterDeleter); ok {
		plain(phase.AfterDelete, x.AfterDelete)
	}
	if x, ok := ext.(CreateFailedHandler); ok {
		plain(phase.OnCreateFailed, x.OnCreateFailed)
	}
	if x, ok := ext.(WorkspaceDeleter); ok {
		plain(phase.DeleteWorkspace, x.DeleteWorkspace)
	}
	return h
}

// traceContext puts the gateway's span into the context of a method (W3C Trace Context), so that spans of the author's
// are its children.
var traceContext propagation.TraceContext

// server speaks the extension contract for a value of the author's.
type server struct {
	extensionv1.UnimplementedExtensionServer
	ext      any
	manifest extension.Manifest
	config   reflect.Type
	handlers map[phase.Phase]handler

	mu        sync.Mutex
	contracts map[string]*extension.Contract // by bind
	subjects  map[string]*subject
}

// subject is one sandbox or workspace that is being served: one call at a time, and none that was overtaken.
type subject struct {
	turn    chan struct{} // capacity 1
	highest uint64        // number that was answered
	users   int           // calls that are served or wait; at 0 a subject that was released is forgotten
	gone    bool
}

// Describe implements the service.
func (s *server) Describe(context.Context, *extensionv1.DescribeRequest) (*extensionv1.DescribeResponse, error) {
	return &extensionv1.DescribeResponse{Manifest: wire.ManifestToProto(&s.manifest)}, nil
}

// Configure implements the service. A failure leaves what was there before.
func (s *server) Configure(ctx context.Context, r *extensionv1.ConfigureRequest) (*extensionv1.ConfigureResponse, error) {
	c := &Config{Raw: r.GetConfig()}
	for _, p := range r.GetContracts() {
		c.contracts = append(c.contracts, *wire.ContractFromProto(p))
	}
	if s.config != nil {
		c.Value = reflect.New(s.config).Interface()
		if len(c.Raw) > 0 {
			dec := json.NewDecoder(bytes.NewReader(c.Raw))
			dec.DisallowUnknownFields()
			if err := dec.Decode(c.Value); err != nil {
				return nil, fault.ToStatus(fault.New(fault.Invalid, "configuration: %w", err))
			}
		}
	}
	err := s.guard("configure", func() error {
		if x, ok := s.ext.(Configurer); ok {
			return x.Configure(ctx, c)
		}
		return nil
	})
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	if len(c.diagnostics) == 0 {
		s.mu.Lock()
		clear(s.contracts)
		for i := range c.contracts {
			s.contracts[c.contracts[i].Bind] = &c.contracts[i]
		}
		s.mu.Unlock()
	}
	return &extensionv1.ConfigureResponse{Diagnostics: wire.DiagnosticsToProto(c.diagnostics)}, nil
}

// guard turns a panic of the author's code into an error; the process lives on.
func (s *server) guard(what string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			Logger().Error("the extension panicked", "in", what, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s %s panicked in %s: %v", s.manifest.Name, s.manifest.Version, what, p)
		}
	}()
	return fn()
}

// serve answers one call of a phase.
func (s *server) serve(ctx context.Context, c *extension.Call, err error) (*extension.Answer, error) {
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	ctx = traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": c.TraceParent})
	h := s.handlers[c.Phase]
	if h == nil {
		return nil, fault.ToStatus(fault.New(fault.Unimplemented, "%s does not serve %s", s.manifest.Name, c.Phase))
	}
	if err := identified(c); err != nil {
		return nil, fault.ToStatus(err)
	}
	s.mu.Lock()
	contract := s.contracts[c.Bind]
	s.mu.Unlock()
	if contract == nil {
		contract = &extension.Contract{Bind: c.Bind}
	}
	r := &Request{call: c, contract: contract}
	if c.Phase.Pure() {
		a := &extension.Answer{}
		err := s.guard(string(c.Phase), func() error { return h(ctx, r, a) })
		return a, fault.ToStatus(err)
	}
	return s.inTurn(ctx, h, r)
}

// identified refuses a call with effects that does not say for whom: what it took could not be found again.
func identified(c *extension.Call) error {
	of := c.Sandbox == nil && (c.Phase.OfWorkspace() || c.Phase == phase.Reconcile)
	if c.Phase.Pure() || of && c.Workspace.ID != "" || c.Sandbox != nil && c.Sandbox.ID != "" && !c.Phase.OfWorkspace() {
		return nil
	}
	return fault.New(fault.Invalid, "the call of %s does not name its sandbox or workspace by an id", c.Phase)
}

// inTurn serves a call when those before it, of the same subject, have ended.
func (s *server) inTurn(ctx context.Context, h handler, r *Request) (*extension.Answer, error) {
	sub := s.enter(r.SubjectID())
	defer s.leave(r.SubjectID(), sub)
	select {
	case sub.turn <- struct{}{}:
		defer func() { <-sub.turn }()
	case <-ctx.Done():
		return nil, fault.ToStatus(context.Cause(ctx))
	}
	if n := r.call.Number; n < sub.highest {
		return nil, fault.ToStatus(fault.New(fault.Conflict, "call %d was overtaken by %d", n, sub.highest))
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.ToStatus(err)
	}
	a := &extension.Answer{}
	err := s.guard(string(r.call.Phase), func() error { return h(ctx, r, a) })
	sub.highest = r.call.Number
	if err != nil {
		return nil, fault.ToStatus(err)
	}
	switch r.call.Phase {
	case phase.AfterDelete, phase.OnCreateFailed, phase.DeleteWorkspace:
		sub.gone = true
	case phase.AfterStop: // the last word on a sandbox, where nothing else is to be released
		sub.gone = s.handlers[phase.AfterDelete] == nil && s.handlers[phase.OnCreateFailed] == nil
	default:
		sub.gone = false
	}
	return a, nil
}

func (s *server) enter(id string) *subject {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subjects[id]
	if sub == nil {
		sub = &subject{turn: make(chan struct{}, 1)}
		s.subjects[id] = sub
	}
	sub.users++
	return sub
}

// lateCalls is how long the number of a subject that was released is remembered, to refuse calls that arrive late.
const lateCalls = 10 * time.Minute

func (s *server) leave(id string, sub *subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub.users--; sub.users > 0 || !sub.gone {
		return
	}
	time.AfterFunc(lateCalls, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sub.users == 0 && sub.gone && s.subjects[id] == sub {
			delete(s.subjects, id)
		}
	})
}

func (s *server) pure(ctx context.Context, r *extensionv1.PureRequest) (*extension.Answer, error) {
	c, err := wire.PureFromProto(r)
	return s.serve(ctx, c, err)
}

func (s *server) phase(ctx context.Context, r *extensionv1.PhaseRequest) (*extension.Answer, error) {
	c, err := wire.PhaseFromProto(r)
	return s.serve(ctx, c, err)
}

// ValidateRequest implements the service, as do the methods below.
func (s *server) ValidateRequest(ctx context.Context, r *extensionv1.PureRequest) (*extensionv1.ValidateResponse, error) {
	a, err := s.pure(ctx, r)
	if err != nil {
		return nil, err
	}
	return wire.ValidateToProto(a), nil
}

func (s *server) PreparePlan(ctx context.Context, r *extensionv1.PureRequest) (*extensionv1.PreparePlanResponse, error) {
	a, err := s.pure(ctx, r)
	if err != nil {
		return nil, err
	}
	m, err := wire.PreparePlanToProto(a)
	return m, fault.ToStatus(err)
}

func (s *server) setup(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	a, err := s.phase(ctx, r)
	if err != nil {
		return nil, err
	}
	m, err := wire.SetupToProto(a)
	return m, fault.ToStatus(err)
}

func (s *server) hold(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	a, err := s.phase(ctx, r)
	if err != nil {
		return nil, err
	}
	return wire.HoldToProto(a), nil
}

func (s *server) quiesce(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.QuiesceResponse, error) {
	a, err := s.phase(ctx, r)
	if err != nil {
		return nil, err
	}
	return wire.QuiesceToProto(a), nil
}

func (s *server) BeforeCreate(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	return s.setup(ctx, r)
}

func (s *server) BeforeStart(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	return s.setup(ctx, r)
}

func (s *server) EnsureWorkspace(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	return s.setup(ctx, r)
}

func (s *server) AfterCreate(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) AfterReady(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) AfterStop(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) AfterDelete(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) OnCreateFailed(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) DeleteWorkspace(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return s.hold(ctx, r)
}

func (s *server) BeforeStop(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.QuiesceResponse, error) {
	return s.quiesce(ctx, r)
}

func (s *server) BeforeDelete(ctx context.Context, r *extensionv1.PhaseRequest) (*extensionv1.QuiesceResponse, error) {
	return s.quiesce(ctx, r)
}

func (s *server) Repair(ctx context.Context, r *extensionv1.RepairRequest) (*extensionv1.HoldResponse, error) {
	c := wire.RepairFromProto(r)
	c.Phase = phase.Reconcile
	a, err := s.serve(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	return wire.HoldToProto(a), nil
}

// Reconcile implements the service: it reads what the gateway knows, then says what is held, in pages.
func (s *server) Reconcile(stream grpc.BidiStreamingServer[extensionv1.ReconcileRequest, extensionv1.ReconcileResponse]) error {
	x, ok := s.ext.(Reconciler)
	if !ok {
		return fault.ToStatus(fault.New(fault.Unimplemented, "%s does not reconcile", s.manifest.Name))
	}
	bind := ""
	for last := false; !last; {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		bind, last = page.GetBind(), page.GetLast()
	}
	var held []Holding
	err := s.guard(string(phase.Reconcile), func() (err error) {
		held, err = x.Holdings(stream.Context(), bind)
		return err
	})
	if err != nil {
		return fault.ToStatus(err)
	}
	for page := range slices.Chunk(held, extension.MaxReconcilePage) {
		m := &extensionv1.ReconcileResponse{}
		for _, h := range page {
			m.Items = append(m.Items, wire.ItemToProto(extension.Item{Sandbox: h.Sandbox, Workspace: h.Workspace, Number: h.Number,
				Lifetime: h.Lifetime, Entries: h.Entries}))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return stream.Send(&extensionv1.ReconcileResponse{Last: true})
}

// Health implements the service.
func (s *server) Health(ctx context.Context, _ *extensionv1.HealthRequest) (*extensionv1.HealthResponse, error) {
	x, ok := s.ext.(HealthChecker)
	if !ok {
		return &extensionv1.HealthResponse{Ready: true}, nil
	}
	if err := s.guard("health", func() error { return x.Health(ctx) }); err != nil {
		return &extensionv1.HealthResponse{Reason: err.Error()}, nil
	}
	return &extensionv1.HealthResponse{Ready: true}, nil
}

// Drain implements the service.
func (s *server) Drain(ctx context.Context, r *extensionv1.DrainRequest) (*extensionv1.DrainResponse, error) {
	x, ok := s.ext.(Drainer)
	if !ok {
		return &extensionv1.DrainResponse{}, nil
	}
	if d := r.GetDeadlineMs(); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(d)*time.Millisecond)
		defer cancel()
	}
	return &extensionv1.DrainResponse{}, fault.ToStatus(s.guard("drain", func() error { return x.Drain(ctx) }))
}

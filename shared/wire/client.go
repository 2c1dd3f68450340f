package wire

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

// maxReconcile bounds how many items an extension may report in one pass.
const maxReconcile = 1 << 20

// Extension is an extension at the other end of a connection. Its errors are faults.
type Extension struct{ client extensionv1.ExtensionClient }

// NewExtension speaks the extension contract over a connection.
func NewExtension(conn grpc.ClientConnInterface) *Extension {
	return &Extension{client: extensionv1.NewExtensionClient(conn)}
}

// limit refuses an answer that is larger than the contract allows.
func limit() grpc.CallOption { return grpc.MaxCallRecvMsgSize(extension.MaxAnswer) }

// Describe asks for the manifest.
func (x *Extension) Describe(ctx context.Context) (*extension.Manifest, error) {
	r, err := x.client.Describe(ctx, &extensionv1.DescribeRequest{}, limit())
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	return ManifestFromProto(r.GetManifest()), nil
}

// Configure hands over the configuration and the contracts. Diagnostics say what is wrong with the configuration.
func (x *Extension) Configure(ctx context.Context, config json.RawMessage, contracts []extension.Contract, version string) ([]fault.Diagnostic, error) {
	req := &extensionv1.ConfigureRequest{Config: config, GatewayVersion: version}
	for i := range contracts {
		req.Contracts = append(req.Contracts, ContractToProto(&contracts[i]))
	}
	r, err := x.client.Configure(ctx, req, limit())
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	return DiagnosticsFromProto(r.GetDiagnostics()), nil
}

// Call makes one attempt at a phase.
func (x *Extension) Call(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	a, err := x.call(ctx, c)
	return a, fault.FromStatus(err)
}

func (x *Extension) call(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	if c.Phase.Pure() {
		return x.pure(ctx, c)
	}
	if c.Phase == phase.Reconcile {
		r, err := x.client.Repair(ctx, RepairToProto(c), limit())
		return holdFromProto(r), err
	}
	req, err := PhaseToProto(c)
	if err != nil {
		return nil, err
	}
	switch c.Phase {
	case phase.BeforeCreate, phase.BeforeStart, phase.EnsureWorkspace:
		return x.setup(ctx, c.Phase, req)
	case phase.BeforeStop, phase.BeforeDelete:
		return x.quiesce(ctx, c.Phase, req)
	}
	return x.hold(ctx, c.Phase, req)
}

func (x *Extension) pure(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	req, err := PureToProto(c)
	if err != nil {
		return nil, err
	}
	if c.Phase == phase.ValidateRequest {
		r, err := x.client.ValidateRequest(ctx, req, limit())
		return validateFromProto(r), err
	}
	r, err := x.client.PreparePlan(ctx, req, limit())
	if err != nil {
		return nil, err
	}
	return preparePlanFromProto(r)
}

func (x *Extension) setup(ctx context.Context, p phase.Phase, req *extensionv1.PhaseRequest) (*extension.Answer, error) {
	call := x.client.BeforeCreate
	switch p {
	case phase.BeforeStart:
		call = x.client.BeforeStart
	case phase.EnsureWorkspace:
		call = x.client.EnsureWorkspace
	}
	r, err := call(ctx, req, limit())
	if err != nil {
		return nil, err
	}
	return setupFromProto(r)
}

func (x *Extension) quiesce(ctx context.Context, p phase.Phase, req *extensionv1.PhaseRequest) (*extension.Answer, error) {
	call := x.client.BeforeStop
	if p == phase.BeforeDelete {
		call = x.client.BeforeDelete
	}
	r, err := call(ctx, req, limit())
	return quiesceFromProto(r), err
}

func (x *Extension) hold(ctx context.Context, p phase.Phase, req *extensionv1.PhaseRequest) (*extension.Answer, error) {
	call := map[phase.Phase]func(context.Context, *extensionv1.PhaseRequest, ...grpc.CallOption) (*extensionv1.HoldResponse, error){
		phase.AfterCreate: x.client.AfterCreate, phase.AfterReady: x.client.AfterReady, phase.AfterStop: x.client.AfterStop,
		phase.AfterDelete: x.client.AfterDelete, phase.OnCreateFailed: x.client.OnCreateFailed, phase.DeleteWorkspace: x.client.DeleteWorkspace,
	}[p]
	if call == nil {
		return nil, fault.New(fault.Internal, "%q is no phase", p)
	}
	r, err := call(ctx, req, limit())
	return holdFromProto(r), err
}

// Reconcile sends what the gateway knows in pages and gathers what the extension says that it holds.
func (x *Extension) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := x.client.Reconcile(ctx, limit())
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	sent := make(chan error, 1)
	go func() { sent <- sendItems(stream, bind, operation, known) }()
	held, err := receiveItems(stream)
	cancel()
	if serr := <-sent; err == nil && serr != nil && !errors.Is(serr, io.EOF) {
		err = serr
	}
	return held, fault.FromStatus(err)
}

func sendItems(stream extensionv1.Extension_ReconcileClient, bind, operation string, known iter.Seq[extension.Item]) error {
	page := &extensionv1.ReconcileRequest{Bind: bind, Operation: operation}
	for item := range known {
		page.Items = append(page.Items, ItemToProto(item))
		if len(page.Items) < extension.MaxReconcilePage {
			continue
		}
		if err := stream.Send(page); err != nil {
			return err
		}
		page = &extensionv1.ReconcileRequest{Bind: bind, Operation: operation}
	}
	page.Last = true
	if err := stream.Send(page); err != nil {
		return err
	}
	return stream.CloseSend()
}

func receiveItems(stream extensionv1.Extension_ReconcileClient) ([]extension.Item, error) {
	var out []extension.Item
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Internal, "the extension ended its report before the last page")
		}
		if err != nil {
			return nil, err
		}
		for _, item := range page.GetItems() {
			out = append(out, ItemFromProto(item))
		}
		switch {
		case len(out) > maxReconcile:
			return nil, fault.New(fault.Internal, "the extension reports more than %d items", maxReconcile)
		case page.GetLast():
			return out, nil
		}
	}
}

// Health asks whether the extension can serve.
func (x *Extension) Health(ctx context.Context) (ready bool, reason string, err error) {
	r, err := x.client.Health(ctx, &extensionv1.HealthRequest{}, limit())
	return r.GetReady(), r.GetReason(), fault.FromStatus(err)
}

// Drain asks the extension to finish what it serves.
func (x *Extension) Drain(ctx context.Context, wait time.Duration) error {
	_, err := x.client.Drain(ctx, &extensionv1.DrainRequest{DeadlineMs: wait.Milliseconds()}, limit())
	return fault.FromStatus(err)
}

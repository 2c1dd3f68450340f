package supervisor

import (
	"context"
	"encoding/json"
	"iter"
	"time"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

type tempRemote struct{ c extensionv1.ExtensionClient }

func newRemote(conn grpc.ClientConnInterface) remote {
	return &tempRemote{extensionv1.NewExtensionClient(conn)}
}

func (r *tempRemote) Describe(ctx context.Context) (*extension.Manifest, error) {
	a, err := r.c.Describe(ctx, &extensionv1.DescribeRequest{})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	m := &extension.Manifest{Name: a.Manifest.GetName(), Version: a.Manifest.GetVersion()}
	for _, p := range a.Manifest.GetPhases() {
		m.Phases = append(m.Phases, phase.Phase(p))
	}
	return m, nil
}

func (r *tempRemote) Configure(ctx context.Context, config json.RawMessage, contracts []extension.Contract, v string) ([]fault.Diagnostic, error) {
	a, err := r.c.Configure(ctx, &extensionv1.ConfigureRequest{Config: config, GatewayVersion: v})
	var out []fault.Diagnostic
	for _, d := range a.GetDiagnostics() {
		out = append(out, fault.Diagnostic{Summary: d.Summary})
	}
	return out, fault.FromStatus(err)
}

func (r *tempRemote) Call(ctx context.Context, call *extension.Call) (*extension.Answer, error) {
	req := &extensionv1.PhaseRequest{Step: &extensionv1.Step{Phase: string(call.Phase), Key: call.Key, Number: call.Number}, Subject: &extensionv1.Subject{}}
	if call.Sandbox != nil {
		req.Subject.Sandbox = &extensionv1.Identity{Id: call.Sandbox.ID}
	}
	if call.Phase == phase.OnCreateFailed {
		a, err := r.c.OnCreateFailed(ctx, req)
		return &extension.Answer{Diagnostics: diags(a.GetDiagnostics())}, fault.FromStatus(err)
	}
	a, err := r.c.BeforeCreate(ctx, req)
	return &extension.Answer{Denied: a.GetDenied(), Diagnostics: diags(a.GetDiagnostics())}, fault.FromStatus(err)
}

func (r *tempRemote) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) ([]extension.Item, error) {
	return nil, fault.New(fault.Unimplemented, "reconcile")
}

func (r *tempRemote) Health(ctx context.Context) (bool, string, error) {
	a, err := r.c.Health(ctx, &extensionv1.HealthRequest{})
	return a.GetReady(), a.GetReason(), fault.FromStatus(err)
}

func (r *tempRemote) Drain(ctx context.Context, d time.Duration) error {
	_, err := r.c.Drain(ctx, &extensionv1.DrainRequest{DeadlineMs: d.Milliseconds()})
	return fault.FromStatus(err)
}

func diags(in []*extensionv1.Diagnostic) (out []fault.Diagnostic) {
	for _, d := range in {
		out = append(out, fault.Diagnostic{Summary: d.Summary})
	}
	return out
}

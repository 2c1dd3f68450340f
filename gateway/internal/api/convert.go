package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/plan"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Door is the name of the gateway's own API, as a caller's origin has it.
const Door = "api"

// origin says who calls: the peer's user, or the name of its certificate.
func origin(ctx context.Context) sandbox.Origin {
	o := sandbox.Origin{Door: Door, Caller: "unknown"}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		o.Trace = strings.Join(md.Get("traceparent"), "")
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return o
	}
	switch info := p.AuthInfo.(type) {
	case PeerInfo:
		o.Caller = fmt.Sprintf("uid:%d", info.UID)
	case credentials.TLSInfo:
		if certs := info.State.PeerCertificates; len(certs) > 0 {
			o.Caller = "cert:" + certs[0].Subject.CommonName // no name can pass for a uid
		}
	}
	return o
}

func createRequest(ctx context.Context, r *gatewayv1.CreateSandboxRequest) (engine.CreateRequest, error) {
	spec := r.GetSpec()
	return engine.CreateRequest{
		ID: r.GetId(), Driver: r.GetDriver(), Workspace: r.GetWorkspace(), Name: r.GetName(), Origin: origin(ctx),
		Spec: sandbox.Spec{
			Image: spec.GetImage(), Command: spec.GetCommand(), Environment: spec.GetEnvironment(), Labels: spec.GetLabels(),
			Resources: sandbox.Resources{MilliCPU: spec.GetResources().GetMilliCpu(), Memory: spec.GetResources().GetMemory(),
				PIDs: spec.GetResources().GetPids()},
			DriverConfig: []byte(spec.GetDriverConfigJson()), Extensions: spec.GetExtensions(), Token: spec.GetToken(),
		},
	}, nil
}

func ref(r *gatewayv1.SandboxRef) engine.Ref {
	return engine.Ref{IDOrName: r.GetIdOrName(), Driver: r.GetDriver(), Workspace: r.GetWorkspace()}
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func stampOf(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

func (s *Server) sandbox(sb engine.Sandbox) *gatewayv1.Sandbox {
	m := &gatewayv1.Sandbox{
		Id: sb.ID, Driver: sb.Driver, Workspace: sb.Workspace, WorkspaceId: sb.WorkspaceID, Name: sb.Name,
		State: string(sb.State), Reason: sb.Reason, Created: stamp(sb.Created), Ended: stampOf(sb.Ended),
		Image: sb.Image, Labels: sb.Labels,
		Resources: &gatewayv1.Resources{MilliCpu: sb.Resources.MilliCPU, Memory: sb.Resources.Memory, Pids: sb.Resources.PIDs},
		Run:       int32(sb.Run.Number), RunStarted: stamp(sb.Run.Started), RunEnded: stampOf(sb.Run.Ended),
		Addresses: sb.Addresses, Generation: sb.Generation, Caller: sb.Origin.Caller,
		Without: sb.Run.Without, Retiring: s.engine.Retiring(sb), Operation: s.engine.Unfinished(sb.ID),
	}
	if sb.Run.ExitCode != nil {
		code := int32(*sb.Run.ExitCode)
		m.ExitCode = &code
	}
	for _, b := range sb.Binds {
		m.Extensions = append(m.Extensions, b.Extension)
		if b.Without {
			m.Without = append(m.Without, b.Extension)
		}
	}
	return m
}

func (s *Server) workspace(ws engine.Workspace) *gatewayv1.Workspace {
	m := &gatewayv1.Workspace{Id: ws.ID, Driver: ws.Driver, Name: ws.Name, State: string(ws.State), Reason: ws.Reason,
		Created: stamp(ws.Created), Generation: ws.Generation}
	for _, sb := range s.engine.Sandboxes(false) {
		if sb.WorkspaceID == ws.ID {
			m.Sandboxes++
		}
	}
	return m
}

func operation(op engine.Operation) *gatewayv1.Operation {
	return &gatewayv1.Operation{
		Id: op.ID, Kind: string(op.Kind), Subject: op.Subject, Name: op.Name, Driver: op.Driver, Workspace: op.Workspace,
		Generation: op.Generation, State: string(op.State), Undo: string(op.Undo), Error: op.Error, Code: op.Code,
		Waiting: op.Waiting, Started: stamp(op.Started), Ended: stampOf(op.Ended), Without: op.Without,
		Observed: observations(op.Observed), Report: op.Report, Caller: op.Origin.Caller,
	}
}

func steps(list []engine.Step) []*gatewayv1.Step {
	var out []*gatewayv1.Step
	for _, st := range list {
		out = append(out, &gatewayv1.Step{
			Seq: int32(st.Seq), Phase: string(st.Phase), DriverCall: st.Driver, Extension: st.Extension, Cause: string(st.Cause),
			State: string(st.State), Attempt: int32(st.Attempt), Error: st.Error, Code: st.Code, Started: stamp(st.Started),
			Duration: durationpb.New(st.Duration), Note: st.Note, Number: st.Number,
		})
	}
	return out
}

func fields(list []plan.Field) []*gatewayv1.Field {
	var out []*gatewayv1.Field
	for _, f := range list {
		m := &gatewayv1.Field{Object: f.Object, Path: f.Path, Owner: string(f.Owner), Sensitive: f.Sensitive, Value: show(f)}
		for _, o := range f.Overrode {
			m.Overrode = append(m.Overrode, string(o))
		}
		out = append(out, m)
	}
	return out
}

// show renders a value: JSON, or the digest that stands for a sensitive one.
func show(f plan.Field) string {
	if text, ok := f.Value.(string); ok && f.Sensitive {
		return text
	}
	b, err := json.Marshal(f.Value)
	if err != nil {
		return fmt.Sprint(f.Value)
	}
	return string(b)
}

func observations(list []pipeline.Observation) []*gatewayv1.Observation {
	var out []*gatewayv1.Observation
	for _, o := range list {
		m := &gatewayv1.Observation{Extension: o.Extension, Fields: fields(o.Fields), Error: o.Err}
		for _, p := range o.Late {
			m.Late = append(m.Late, string(p))
		}
		for _, p := range o.Phases {
			m.Phases = append(m.Phases, string(p))
		}
		out = append(out, m)
	}
	return out
}

func auditEntry(a engine.AuditEntry) *gatewayv1.AuditEntry {
	return &gatewayv1.AuditEntry{Time: stamp(a.Time), What: a.What, Subject: a.Subject, Operation: a.Operation,
		Extension: a.Extension, Phase: string(a.Phase), Actor: a.Actor, Outcome: a.Outcome, Text: a.Text, Duration: durationpb.New(a.Duration)}
}

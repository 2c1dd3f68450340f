package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

const defaultAdmission = `v1:{"allow_driver_config":false,"resource_admission":{"enabled":true,"required_labels":{"openshell.ai/sandbox-attachable":"true","openshell.ai/workspace":"${workspace}"}}}`

func (p *probe) caps(hello *computev1.PeerMetadata) (*computev1.GetCapabilitiesResponse, error) {
	return p.g.Client().GetCapabilities(p.Context(), &computev1.GetCapabilitiesRequest{Gateway: hello})
}

// refusesHello checks that a peer that says this of itself is refused.
func refusesHello(change func(*computev1.PeerMetadata)) func(*probe) {
	return func(p *probe) {
		hello := openshelltest.Hello()
		change(hello)
		_, err := p.caps(hello)
		p.code(err, codes.FailedPrecondition)
	}
}

var startChecks = []doorCheck{
	{"2.3 start", "the first calls are the negotiation, and nothing else", 0, func(p *probe) {
		want := []string{"GetCapabilities", "GetGatewayListenerRequirements"}
		if p.gen == openshelltest.Second {
			want = want[:1]
		}
		g := p.replica(doorAcme, nil)
		p.want(slices.Equal(g.Calls(), want), "%v", g.Calls())
	}},
	{"2.2 connection", "any authority is served", 0, func(p *probe) {
		for _, authority := range []string{"[::]:50051", "localhost", "acme.example:443", "driver"} {
			_, err := p.dial(doorAcme, authority).ListSandboxes(p.Context(), &computev1.ListSandboxesRequest{})
			p.code(err, codes.OK)
		}
	}},
	{"2.2 trust", "the socket is 0600 in a directory that is 0700", 0, func(p *probe) {
		for path, want := range map[string]os.FileMode{p.door(doorAcme): 0o600, filepath.Dir(p.door(doorAcme)): 0o700} {
			info, err := os.Stat(path)
			p.must(err)
			p.want(info.Mode().Perm() == want, "%s has the mode %v", path, info.Mode().Perm())
		}
	}},
	{"2.2 trust", "a peer of another user is refused", 0, func(p *probe) {
		if os.Geteuid() != 0 {
			return // only root can serve another user, and so be one that is not let in
		}
		_, err := os.Stat(p.door(doorOthers))
		p.must(err) // it is served, and yet
		_, err = p.dial(doorOthers, "localhost").GetCapabilities(p.Context(), &computev1.GetCapabilitiesRequest{})
		p.code(err, codes.Unavailable)
	}},
	{"1.4 trace", "the caller's traceparent is that of the operation", 0, func(p *probe) {
		m := p.running()
		sb, ok := p.d.engine.Lookup(m.GetId())
		p.want(ok && strings.Contains(sb.Origin.Trace, "0af7651916cd43dd8448eb211c80319c"), "%q", sb.Origin.Trace)
	}},
	{"1.7 capabilities", "the driver's name is the one that is configured, and it has a version", 0, func(p *probe) {
		c := p.g.Capabilities()
		p.want(c.GetDriverName() == doorAcme && c.GetDriverVersion() != "", "%q %q", c.GetDriverName(), c.GetDriverVersion())
	}},
	{"1.7 capabilities", "who manages the lifecycle, and the image, are the base's to say", 0, func(p *probe) {
		base, err := p.dial(p.driver, "localhost").GetCapabilities(p.Context(), &computev1.GetCapabilitiesRequest{})
		p.must(err)
		c := p.g.Capabilities()
		p.want(c.GetGatewayManagesLifecycle() == base.GetGatewayManagesLifecycle() && c.GetDefaultImage() == base.GetDefaultImage(), "%v %v", c, base)
	}},
	{"1.7 listeners", "the base's listener requirements are passed on", openshelltest.First, func(p *probe) {
		r := &computev1.GetGatewayListenerRequirementsRequest{}
		base, err := p.dial(p.driver, "localhost").GetGatewayListenerRequirements(p.Context(), r)
		p.must(err)
		got, err := p.g.Client().GetGatewayListenerRequirements(p.Context(), r)
		p.must(err)
		p.want(proto.Equal(base, got), "%v %v", base, got)
	}},
	{"1.9 drift", "a peer of the first generation is told nothing of a negotiation", openshelltest.First, func(p *probe) {
		p.want(p.g.Capabilities().GetExtension() == nil, "%v", p.g.Capabilities())
	}},
	{"1.9 drift", "the call that the first generation alone has is there for it, and the second's is not offered", 0, func(p *probe) {
		_, err := p.g.Client().GetGatewayListenerRequirements(p.Context(), &computev1.GetGatewayListenerRequirementsRequest{})
		p.code(err, codes.OK)
		_, err = p.g.Client().AuthenticateSandbox(p.Context(), &computev1.AuthenticateSandboxRequest{Credential: "x"})
		p.code(err, codes.Unimplemented)
		p.want(!p.g.Capabilities().GetSupportsSandboxAuthentication(), "it is advertised")
	}},
	{"1.9 negotiation", "both sides name the contract", openshelltest.Second, func(p *probe) {
		e := p.g.Capabilities().GetExtension()
		p.want(slices.Contains(e.GetSupportedCapabilities(), openshelltest.Contract) && e.GetProtocolVersion().GetMajor() == 1, "%v", e)
	}},
	{"1.9 negotiation", "another major version is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) { m.ProtocolVersion.Major = 2 })},
	{"1.9 negotiation", "no version is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) { m.ProtocolVersion = nil })},
	{"1.9 negotiation", "a peer without a name is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) { m.ImplementationName = "" })},
	{"1.9 negotiation", "a version with a control character is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) { m.ImplementationVersion = "1\x1b[0m" })},
	{"1.9 negotiation", "a capability that is required and not offered is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) {
		m.RequiredCapabilities = append(m.RequiredCapabilities, "openshell.compute.more")
	})},
	{"1.9 negotiation", "a peer that does not offer the contract is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) { m.SupportedCapabilities = nil })},
	{"1.9 negotiation", "a capability that is named twice is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) {
		m.SupportedCapabilities = append(m.SupportedCapabilities, openshelltest.Contract)
	})},
	{"1.9 negotiation", "a capability that is none is refused", openshelltest.Second, refusesHello(func(m *computev1.PeerMetadata) {
		m.SupportedCapabilities = append(m.SupportedCapabilities, "Something Else")
	})},
	{"1.9 admission", "the default policy is acknowledged to the byte", openshelltest.Second, func(p *probe) {
		p.want(p.g.Capabilities().GetResourceAdmissionPolicy() == defaultAdmission, "%s", p.g.Capabilities().GetResourceAdmissionPolicy())
	}},
	{"1.9 admission", "the answer is the same each time, to the byte", openshelltest.Second, func(p *probe) {
		var first []byte
		for range 20 {
			c, err := p.caps(openshelltest.Hello())
			p.must(err)
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
			p.must(err)
			if first == nil {
				first = raw
			}
			p.want(bytes.Equal(first, raw), "it has changed")
		}
	}},
	{"1.9 admission", "it is read again before a validation, a create and a start", openshelltest.Second, func(p *probe) {
		g := p.replica(doorAcme, nil)
		m, n := p.asked(), len(g.Calls())
		p.must(g.Create(p.Context(), m, ""))
		defer func() {
			_, _ = g.Client().DeleteSandbox(p.Context(), &computev1.DeleteSandboxRequest{SandboxId: m.GetId()})
		}()
		want := []string{"GetCapabilities", "ValidateSandboxCreate", "GetCapabilities", "CreateSandbox"}
		p.want(slices.Equal(since(g, n), want), "%v", since(g, n))
	}},
	{"1.9 admission", "driver_config that its table does not allow does not reach the driver", openshelltest.Second, func(p *probe) {
		g := p.replica(doorAcme, nil)
		m, n := p.asked(), len(g.Calls())
		m.Spec.Template.DriverConfig, _ = structpb.NewStruct(map[string]any{"x": true})
		p.code(g.Create(p.Context(), m, ""), codes.FailedPrecondition)
		p.want(len(since(g, n)) == 0, "%v", since(g, n))
	}},
	{"1.1 unknown fields", "they are ignored, wherever they are", 0, func(p *probe) {
		m := p.asked()
		strange := protowire.AppendString(protowire.AppendTag(nil, 1900, protowire.BytesType), "what is this")
		m.ProtoReflect().SetUnknown(strange)
		m.Spec.ProtoReflect().SetUnknown(strange)
		m.Spec.Template.ProtoReflect().SetUnknown(strange)
		p.must(p.g.Create(p.Context(), m, ""))
		p.up(p.g, m.GetId())
		p.drop(p.g, m.GetId())
		hello := openshelltest.Hello()
		hello.ProtoReflect().SetUnknown(strange)
		_, err := p.caps(hello)
		p.code(err, codes.OK)
	}},
}

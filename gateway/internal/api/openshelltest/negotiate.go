package openshelltest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Contract is the capability that both sides of the second generation must name.
const Contract = "openshell.compute.contract"

// Table is what a gateway of the second generation reads of its own table of the driver, besides the socket.
type Table struct {
	AllowDriverConfig bool
	NoAdmission       bool
	RequiredLabels    map[string]string // nil: the default
}

// admission is the policy in the form in which the driver has to acknowledge it.
func (t Table) admission() any {
	labels := map[string]any{"openshell.ai/sandbox-attachable": "true", "openshell.ai/workspace": "${workspace}"}
	if t.RequiredLabels != nil {
		labels = map[string]any{}
		for k, v := range t.RequiredLabels {
			labels[k] = v
		}
	}
	return map[string]any{"allow_driver_config": t.AllowDriverConfig,
		"resource_admission": map[string]any{"enabled": !t.NoAdmission, "required_labels": labels}}
}

// appears waits for the driver to accept connections.
func appears(ctx context.Context, socket string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(connectEvery)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the compute driver on %s accepts nobody: %w", socket, err)
		}
	}
}

// Hello is what a gateway of the second generation says of itself.
func Hello() *computev1.PeerMetadata {
	return &computev1.PeerMetadata{ProtocolVersion: &computev1.ProtocolVersion{Major: 1},
		ImplementationName: "openshell/gateway", ImplementationVersion: "0.1.2",
		SupportedCapabilities: []string{Contract}, RequiredCapabilities: []string{Contract}}
}

func (g *Gateway) capabilities(ctx context.Context) (*computev1.GetCapabilitiesResponse, error) {
	r := &computev1.GetCapabilitiesRequest{}
	if g.opts.Generation == Second {
		r.Gateway = Hello()
	}
	return g.client.GetCapabilities(ctx, r)
}

// negotiate asks what the driver is, and refuses one that this generation refuses.
func (g *Gateway) negotiate(ctx context.Context) (err error) {
	if g.caps, err = g.capabilities(ctx); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if g.opts.Generation == Second {
		return errors.Join(checkPeer(g.caps.GetExtension()), g.checkAdmission())
	}
	r, err := g.client.GetGatewayListenerRequirements(ctx, &computev1.GetGatewayListenerRequirementsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listener requirements: %w", err)
	}
	g.needs = r.GetRequirements()
	for _, n := range g.needs {
		if err := g.checkListener(n); err != nil {
			return err
		}
	}
	return nil
}

func (g *Gateway) checkListener(n *computev1.GatewayListenerRequirement) error {
	if n.GetSelector() == nil {
		return fmt.Errorf("the listener requirement %q selects nothing", n.GetReason())
	}
	if _, ok := n.GetSelector().(*computev1.GatewayListenerRequirement_ExactBindAddress); !ok {
		return nil
	}
	at, err := netip.ParseAddrPort(n.GetExactBindAddress())
	switch {
	case err != nil:
		return fmt.Errorf("the listener requirement %q: %w", n.GetReason(), err)
	case at.Port() == 0, at.Addr().IsUnspecified(), at.Addr().IsMulticast(), g.opts.Port != 0 && int(at.Port()) != g.opts.Port:
		return fmt.Errorf("the listener requirement %q asks for %s", n.GetReason(), at)
	}
	return nil
}

var capabilityForm = regexp.MustCompile(`^openshell(\.[a-z0-9-]+){2,}$`)

func checkPeer(p *computev1.PeerMetadata) error {
	if p == nil {
		return errors.New("the driver says nothing of itself")
	}
	if major := p.GetProtocolVersion().GetMajor(); major != 1 {
		return fmt.Errorf("the driver speaks version %d", major)
	}
	for _, text := range []string{p.GetImplementationName(), p.GetImplementationVersion()} {
		if text == "" || len(text) > 128 || strings.ContainsFunc(text, unicode.IsControl) {
			return fmt.Errorf("the driver calls itself %q", text)
		}
	}
	for _, list := range [][]string{p.GetSupportedCapabilities(), p.GetRequiredCapabilities()} {
		seen := map[string]bool{}
		for _, c := range list {
			if len(c) > 128 || !capabilityForm.MatchString(c) || seen[c] || len(list) > 128 {
				return fmt.Errorf("the driver names the capability %q", c)
			}
			seen[c] = true
		}
	}
	if !slices.Contains(p.GetSupportedCapabilities(), Contract) {
		return fmt.Errorf("the driver does not support %s", Contract)
	}
	for _, c := range p.GetRequiredCapabilities() {
		if c != Contract {
			return fmt.Errorf("the driver requires %s", c)
		}
	}
	return nil
}

// checkAdmission compares the acknowledgement with the policy, as structures.
func (g *Gateway) checkAdmission() error {
	text := g.caps.GetResourceAdmissionPolicy()
	if text == "" && g.opts.Table.NoAdmission {
		return nil
	}
	raw, ok := strings.CutPrefix(text, "v1:")
	var got any
	if !ok || json.Unmarshal([]byte(raw), &got) != nil {
		return fmt.Errorf("the admission policy is acknowledged by %q", text)
	}
	if want := g.opts.Table.admission(); !reflect.DeepEqual(got, want) {
		return fmt.Errorf("the admission policy %v is acknowledged by %s", want, raw)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, []byte(raw)) != nil || compact.String() != raw {
		return fmt.Errorf("the acknowledgement %q is not compact", text)
	}
	return nil
}

// admitted asks again before what makes or starts something: the acknowledgement must not have changed by a byte.
func (g *Gateway) admitted(ctx context.Context) error {
	if g.opts.Generation == First {
		return nil
	}
	now, err := g.capabilities(ctx)
	if err != nil {
		return seen(codes.Internal, "capabilities: %s", status.Convert(err).Message())
	}
	if now.GetResourceAdmissionPolicy() != g.caps.GetResourceAdmissionPolicy() {
		return seen(codes.FailedPrecondition, "the driver acknowledges another admission policy than at the start")
	}
	return nil
}

package conformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// method is the RPC of a phase.
func method(p phase.Phase) string {
	if p == phase.Reconcile {
		return "Repair"
	}
	var b strings.Builder
	for word := range strings.SplitSeq(string(p), "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// messages are the request of a call, and what answers it.
func messages(c *extension.Call) (req, answer proto.Message, err error) {
	switch {
	case c.Phase.Pure():
		req, err = wire.PureToProto(c)
		answer = &extensionv1.PreparePlanResponse{}
		if c.Phase == phase.ValidateRequest {
			answer = &extensionv1.ValidateResponse{}
		}
	case c.Phase == phase.Reconcile:
		req, answer = wire.RepairToProto(c), &extensionv1.HoldResponse{}
	default:
		req, err = wire.PhaseToProto(c)
		answer = &extensionv1.HoldResponse{}
		if c.Phase.Takes() != phase.None && c.Phase.Contributes() {
			answer = &extensionv1.SetupResponse{}
		}
	}
	return req, answer, err
}

// raw makes a call with a message that is not made from one of ours.
func (r *rig) raw(ctx context.Context, p phase.Phase, req, answer proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	err := r.proc.conn.Invoke(ctx, "/"+extensionv1.Extension_ServiceDesc.ServiceName+"/"+method(p), req, answer)
	if ctx.Err() != nil {
		return r.why(fmt.Errorf("%s was not answered within %s: %w", p, r.patience, err))
	}
	return err
}

func phasesServed(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	for _, p := range r.manifest.Phases {
		s := r.newWorkspace()
		if !p.OfWorkspace() {
			var err error
			if s, err = r.newSandbox(ctx); err != nil {
				return err
			}
		}
		if _, err := r.send(ctx, r.next(s, p)); fault.Is(err, fault.Unimplemented) {
			return fmt.Errorf("%s is declared: %w", p, err)
		} else if fault.Is(err, fault.Unavailable) {
			return err
		}
	}
	return r.releaseAll(ctx)
}

func phasesUndeclared(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	all := true
	for _, p := range phase.All() {
		if r.has(p) {
			continue
		}
		all = false
		s := r.newWorkspace()
		if !p.OfWorkspace() {
			var err error
			if s, err = r.newSandbox(ctx); err != nil {
				return err
			}
		}
		c := r.next(s, p)
		s.begun = nil
		if _, err := r.send(ctx, c); !fault.Is(err, fault.Unimplemented) {
			return fmt.Errorf("%s is not declared, and the answer to it is %v", p, orFine(err))
		}
	}
	if all {
		return notApplicable("it declares every phase")
	}
	return nil
}

func orFine(err error) string {
	if err == nil {
		return "OK"
	}
	return err.Error()
}

// pures returns the declared pure phases, or says that the rule does not apply.
func (r *rig) pures() ([]phase.Phase, error) {
	var out []phase.Phase
	for _, p := range []phase.Phase{phase.ValidateRequest, phase.PreparePlan} {
		if r.has(p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, notApplicable("it declares no pure phase")
	}
	return out, nil
}

func pureRepeat(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	pures, err := r.pures()
	if err != nil {
		return err
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	labels := r.p.Labels
	for _, extra := range []map[string]string{nil, {"a.example/one": "1", "a.example/two": "2", "b.example/three": "", "x": "y"}} {
		for _, p := range pures {
			var first *extension.Answer
			for i := range 8 {
				if i == 6 { // the last ones are asked of another process
					r.drop()
					if _, err := r.up(ctx); err != nil {
						return err
					}
				}
				c := r.next(s, p)
				c.Labels = merged(labels, extra)
				a, err := r.send(ctx, c)
				if err != nil {
					return err
				}
				if first == nil {
					first = a
				} else if d := differ(first, a); d != "" {
					return fmt.Errorf("%s, asked again, answers something else: %s", p, d)
				}
			}
		}
	}
	return nil
}

func merged(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func pureEffect(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	pures, err := r.pures()
	if err != nil {
		return err
	}
	if !r.has(phase.Reconcile) {
		return notApplicable("it does not reconcile, so what it holds cannot be seen")
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	for _, p := range pures {
		if _, err := r.send(ctx, r.next(s, p)); err != nil {
			return err
		}
	}
	held, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	if got := held.of(s); len(got) > 0 {
		return fmt.Errorf("after pure phases alone it holds %s", texts(got))
	}
	return nil
}

func missingFeatures(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	if len(r.manifest.Uses) == 0 {
		return notApplicable("it names no feature that it can use")
	}
	bare := r.contract
	bare.Missing = r.manifest.Uses
	bare.Features = slices.DeleteFunc(slices.Clone(bare.Features), func(f extension.Feature) bool { return !slices.Contains(r.manifest.Requires, f.Name) })
	d, err := r.configure(ctx, r.p.Config, bare)
	if err != nil || len(d) > 0 {
		return fmt.Errorf("without them it refuses its configuration: %s %s", orFine(err), told(d))
	}
	defer r.drop()
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	for _, p := range []phase.Phase{phase.ValidateRequest, phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart, phase.AfterCreate, phase.AfterReady} {
		if !r.has(p) {
			continue
		}
		a, err := r.send(ctx, r.next(s, p))
		if err != nil {
			return fmt.Errorf("without %s: %w", strings.Join(bare.Missing, ", "), err)
		}
		if a.Denied { // a decision: it says so, and nothing broke
			break
		}
	}
	return r.release(ctx, s)
}

// strange puts fields that nobody knows into a message and the messages in it.
func strange(m proto.Message) {
	unknown := protowire.AppendTag(nil, 29999, protowire.BytesType)
	unknown = protowire.AppendString(unknown, "of a later version")
	unknown = protowire.AppendTag(unknown, 29998, protowire.VarintType)
	unknown = protowire.AppendVarint(unknown, 7)
	m.ProtoReflect().SetUnknown(unknown)
	for _, name := range []string{"step", "subject", "state"} {
		f := m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
		if f != nil && m.ProtoReflect().Has(f) {
			m.ProtoReflect().Mutable(f).Message().SetUnknown(unknown)
		}
	}
}

func unknownFields(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	for _, p := range []phase.Phase{phase.ValidateRequest, phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart, phase.AfterCreate, phase.AfterReady, phase.BeforeStop} {
		if !r.has(p) {
			continue
		}
		plain := r.next(s, p)
		a, err := r.take(ctx, s, plain)
		if err != nil {
			return err
		}
		again := r.next(s, p)
		again.State, again.Kind = plain.State, "of_a_later_version"
		req, answer, err := messages(again)
		if err != nil {
			return err
		}
		strange(req)
		if err := r.raw(ctx, p, req, answer); err != nil {
			return fmt.Errorf("%s with fields that it does not know: %w", p, r.why(err))
		}
		if got, ok := answer.(interface{ GetEntries() []*extensionv1.Entry }); ok && len(got.GetEntries()) != len(a.Entries) {
			return fmt.Errorf("%s with fields that it does not know answers %d entries; without them %d", p, len(got.GetEntries()), len(a.Entries))
		}
	}
	return r.release(ctx, s)
}

func malformed(ctx context.Context, r *rig) error {
	x, err := r.up(ctx)
	if err != nil {
		return err
	}
	for _, p := range r.manifest.Phases {
		for i, c := range []*extension.Call{{}, {}, {Bind: "nobody/knows", Config: []byte("{"), State: &extension.State{SchemaVersion: -1, Payload: []byte{0xff, '{'}},
			Number: 1, Plan: []plan.Object{{}}, Orphans: []extension.Entry{{}}, Lost: []extension.Entry{{Kind: "?", ID: "?"}}}} {
			c.Phase = p
			req, answer, err := messages(c)
			if err != nil {
				return err
			}
			if i == 0 {
				proto.Reset(req) // not even an empty subject
			}
			err = r.raw(ctx, p, req, answer)
			if status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded || x.ended(0) {
				return fmt.Errorf("%s without a subject: %w", p, r.why(err))
			}
		}
	}
	within, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	if _, err := serving(within, x.conn); err != nil {
		return r.why(fmt.Errorf("after calls that lack what they should have, its health: %w", err))
	}
	return nil
}

func largeRequest(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	for _, p := range []phase.Phase{phase.PreparePlan, phase.ValidateRequest, phase.BeforeCreate, phase.BeforeStart, phase.EnsureWorkspace, phase.AfterStop} {
		if !r.has(p) {
			continue
		}
		s, err := r.fresh(ctx, p)
		if err != nil {
			return err
		}
		c := r.next(s, p)
		c.Plan = []plan.Object{{Kind: "Process", Name: "main", Fields: map[string]any{"environment": map[string]any{"BIG": strings.Repeat("x", 12<<20)}}}}
		if _, err := r.take(ctx, s, c); err != nil {
			return fmt.Errorf("a request of 12 MiB, where the limit is %d: %w", wire.MaxRequest>>20, err)
		}
		return r.release(ctx, s)
	}
	return notApplicable("it declares no phase that is shown the plan")
}

// interrupted begins a call in each phase, has it end early, and then makes the one that undoes it.
func (r *rig) interrupted(ctx context.Context, end func(context.Context) (context.Context, context.CancelFunc)) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	for _, p := range r.manifest.Phases {
		if p == phase.Reconcile || !p.Setup() {
			continue
		}
		for range 3 {
			s, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			short, cancel := end(ctx)
			_, err = r.remote.Call(short, r.next(s, p))
			cancel()
			if fault.Is(err, fault.Unavailable) {
				return r.why(err)
			}
			after := p
			if u := undoer(p); p.Takes() != phase.None && r.has(u) {
				after = u
			}
			if _, err := r.send(ctx, r.next(s, after)); err != nil && !fault.Is(err, fault.Conflict) {
				return fmt.Errorf("after a call of %s that was ended early: %w", p, err)
			}
		}
	}
	return r.releaseAll(ctx)
}

func deadline(ctx context.Context, r *rig) error {
	return r.interrupted(ctx, func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 3*time.Millisecond)
	})
}

func cancellation(ctx context.Context, r *rig) error {
	return r.interrupted(ctx, func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(3*time.Millisecond, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	})
}

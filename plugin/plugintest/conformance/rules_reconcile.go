package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// key is a subject and a lifetime.
type key struct {
	subject string
	of      phase.Lifetime
}

// holdings is what a reconcile reported.
type holdings map[key][]extension.Entry

// of returns what is held for a subject, of every lifetime.
func (h holdings) of(s *subject) []extension.Entry {
	var out []extension.Entry
	for k, list := range h {
		if k.subject == s.id() {
			out = append(out, list...)
		}
	}
	return out
}

// items are what the gateway knows: every subject that is not fully released.
func (r *rig) items() iter.Seq[extension.Item] {
	return func(yield func(extension.Item) bool) {
		for _, s := range r.subjects {
			if !yield(extension.Item{Sandbox: s.sandbox, Workspace: s.workspace, Number: s.number, State: s.state}) {
				return
			}
		}
	}
}

// holdings asks what is held through the kit's bind.
func (r *rig) holdings(ctx context.Context) (holdings, error) {
	return r.reconcile(ctx, r.contract.Bind, r.items())
}

// reconcile asks page by page, and judges the pages.
func (r *rig) reconcile(ctx context.Context, bind string, known iter.Seq[extension.Item]) (holdings, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	stream, err := extensionv1.NewExtensionClient(r.proc.conn).Reconcile(ctx)
	if err != nil {
		return nil, r.why(fault.FromStatus(err))
	}
	sent := make(chan error, 1)
	go func() { sent <- sendKnown(stream, bind, known) }()
	out := holdings{}
	for {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("Reconcile ended before a page that is marked as the last")
		case err != nil:
			return nil, r.why(fmt.Errorf("Reconcile: %w", fault.FromStatus(err)))
		case len(page.GetItems()) > extension.MaxReconcilePage:
			return nil, fmt.Errorf("a page of Reconcile has %d items; at most %d", len(page.GetItems()), extension.MaxReconcilePage)
		}
		for _, p := range page.GetItems() {
			item := wire.ItemFromProto(p)
			id := item.Workspace.ID
			if item.Sandbox != nil {
				id = item.Sandbox.ID
			}
			out[key{id, item.Lifetime}] = append(out[key{id, item.Lifetime}], item.Entries...)
		}
		if page.GetLast() {
			break
		}
	}
	cancel()
	if err := <-sent; err != nil && !errors.Is(err, io.EOF) && !fault.Is(fault.FromStatus(err), fault.Canceled) {
		return nil, r.why(err)
	}
	return out, nil
}

func sendKnown(stream extensionv1.Extension_ReconcileClient, bind string, known iter.Seq[extension.Item]) error {
	for page := range chunks(known, extension.MaxReconcilePage) {
		m := &extensionv1.ReconcileRequest{Bind: bind, Operation: "reconcile"}
		for _, item := range page {
			m.Items = append(m.Items, wire.ItemToProto(item))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	if err := stream.Send(&extensionv1.ReconcileRequest{Bind: bind, Operation: "reconcile", Last: true}); err != nil {
		return err
	}
	return stream.CloseSend()
}

func chunks[T any](all iter.Seq[T], n int) iter.Seq[[]T] { return slices.Chunk(slices.Collect(all), n) }

// reconciles returns the phases in which something is taken, if it reconciles.
func (r *rig) reconciles(ctx context.Context) ([]phase.Phase, error) {
	if _, err := r.started(ctx); err != nil {
		return nil, err
	}
	if !r.has(phase.Reconcile) {
		return nil, notApplicable("it does not reconcile")
	}
	return r.holding(ctx)
}

// taken returns a new subject that holds something of the phase's lifetime.
func (r *rig) taken(ctx context.Context, p phase.Phase) (*subject, error) {
	s, err := r.fresh(ctx, p)
	if err != nil {
		return nil, err
	}
	_, err = r.do(ctx, s, p)
	return s, err
}

func reconcileHoldings(ctx context.Context, r *rig) error {
	phases, err := r.reconciles(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		if _, err := r.taken(ctx, p); err != nil {
			return err
		}
	}
	held, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	for _, s := range r.subjects {
		for l, want := range s.held {
			if got := held[key{s.id(), l}]; !sameEntries(got, want) {
				return fmt.Errorf("of the lifetime %q of %s the answers held %s, and it reports %s", l, s.id(), texts(want), texts(got))
			}
		}
	}
	return r.releaseAll(ctx)
}

func reconcileBind(ctx context.Context, r *rig) error {
	phases, err := r.reconciles(ctx)
	if err != nil {
		return err
	}
	s, err := r.taken(ctx, phases[0])
	if err != nil {
		return err
	}
	held, err := r.reconcile(ctx, "another-driver/"+r.manifest.Name, func(func(extension.Item) bool) {})
	if err != nil {
		return err
	}
	if got := held.of(s); len(got) > 0 {
		return fmt.Errorf("asked about another driver's bind it reports %s, which is held through %s", texts(got), r.contract.Bind)
	}
	return r.releaseAll(ctx)
}

func reconcilePages(ctx context.Context, r *rig) error {
	if _, err := r.up(ctx); err != nil {
		return err
	}
	if !r.has(phase.Reconcile) {
		return notApplicable("it does not reconcile")
	}
	const known = 2*extension.MaxReconcilePage + 88
	strangers := func(yield func(extension.Item) bool) {
		for i := range known {
			id := fmt.Sprintf("stranger-%s-%d", r.run, i)
			w := sandbox.Workspace{ID: "workspace-of-" + id, Driver: driverName, Name: r.p.Workspace}
			item := extension.Item{Sandbox: &sandbox.Identity{ID: id, Driver: driverName, Workspace: w.Name, WorkspaceID: w.ID, Name: id}, Workspace: w, Number: 7}
			if !yield(item) {
				return
			}
		}
	}
	held, err := r.reconcile(ctx, r.contract.Bind, strangers)
	if err != nil {
		return fmt.Errorf("with %d sandboxes in three pages: %w", known, err)
	}
	for i := range known {
		for _, l := range []phase.Lifetime{phase.Sandbox, phase.Run} {
			if got := held[key{fmt.Sprintf("stranger-%s-%d", r.run, i), l}]; len(got) > 0 {
				return fmt.Errorf("it reports %s for a sandbox that it was never called for", texts(got))
			}
		}
	}
	return nil
}

func reconcileKeeps(ctx context.Context, r *rig) error {
	phases, err := r.reconciles(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		s, err := r.taken(ctx, p)
		if err != nil {
			return err
		}
		for _, time := range []string{"first", "second"} {
			held, err := r.reconcile(ctx, r.contract.Bind, func(func(extension.Item) bool) {})
			if err != nil {
				return err
			}
			if got := held[key{s.id(), p.Takes()}]; !sameEntries(got, s.held[p.Takes()]) {
				return fmt.Errorf("told of no sandbox at all, it holds %s after the %s reconcile; before it held %s", texts(got), time, texts(s.held[p.Takes()]))
			}
		}
	}
	return r.releaseAll(ctx)
}

// repair makes the call that mends a difference.
func (r *rig) repair(ctx context.Context, s *subject, l phase.Lifetime, orphans, lost []extension.Entry) (*extension.Answer, error) {
	c := r.next(s, phase.Reconcile)
	c.Lifetime, c.Orphans, c.Lost, c.Held = l, orphans, lost, s.held[l]
	if len(orphans) > 0 {
		c.Held = nil
	}
	a, err := r.send(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("Repair: %w", err)
	}
	s.held[l] = a.Entries
	return a, nil
}

// reported returns what a reconcile reports for a subject and lifetime.
func (r *rig) reported(ctx context.Context, s *subject, l phase.Lifetime) ([]extension.Entry, error) {
	held, err := r.holdings(ctx)
	return held[key{s.id(), l}], err
}

func repairOrphan(ctx context.Context, r *rig) error {
	phases, err := r.reconciles(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		s, err := r.taken(ctx, p)
		if err != nil {
			return err
		}
		l, orphans := p.Takes(), s.held[p.Takes()]
		a, err := r.repair(ctx, s, l, orphans, nil)
		if err != nil {
			return err
		}
		if got := common(orphans, a.Entries); len(got) > 0 {
			return fmt.Errorf("told to release %s it answers that it holds %s", texts(orphans), texts(got))
		}
		got, err := r.reported(ctx, s, l)
		if err != nil {
			return err
		}
		if left := common(orphans, got); len(left) > 0 {
			return fmt.Errorf("told to release %s it agrees, and reconcile reports %s", texts(orphans), texts(left))
		}
		if _, err := r.repair(ctx, s, l, orphans, nil); err != nil {
			return fmt.Errorf("told again to release what is released: %w", err)
		}
	}
	return r.releaseAll(ctx)
}

func repairLost(ctx context.Context, r *rig) error {
	phases, err := r.reconciles(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		s, err := r.taken(ctx, p)
		if err != nil {
			return err
		}
		l, lost := p.Takes(), s.held[p.Takes()]
		if _, err := r.repair(ctx, s, l, lost, nil); err != nil {
			return err
		}
		s.held[l] = lost // the ledger has it, the extension has not
		a, err := r.repair(ctx, s, l, nil, lost)
		if err != nil {
			return err
		}
		if len(common(lost, a.Entries)) < len(lost) {
			return fmt.Errorf("told to take back %s it answers that it holds %s", texts(lost), texts(a.Entries))
		}
		got, err := r.reported(ctx, s, l)
		if err != nil {
			return err
		}
		if !sameEntries(got, a.Entries) {
			return fmt.Errorf("told to take back %s it agrees, and reconcile reports %s", texts(lost), texts(got))
		}
	}
	return r.releaseAll(ctx)
}

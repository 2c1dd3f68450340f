package conformance

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// effects returns the setup phases with effects that are declared, or says that the rule does not apply.
func (r *rig) effects(ctx context.Context) ([]phase.Phase, error) {
	if _, err := r.alive(ctx); err != nil {
		return nil, err
	}
	var out []phase.Phase
	for _, p := range setups {
		if r.has(p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, notApplicable("it declares no setup phase with effects")
	}
	return out, nil
}

// each tries something for a new subject in each of the phases, and releases it again.
func (r *rig) each(ctx context.Context, phases []phase.Phase, try func(phase.Phase, *subject) error) error {
	for _, p := range phases {
		s, err := r.fresh(ctx, p)
		if err != nil {
			return err
		}
		if err := try(p, s); err != nil {
			return err
		}
		if err := r.release(ctx, s); err != nil {
			return fmt.Errorf("the release afterwards: %w", err)
		}
	}
	return nil
}

func replay(ctx context.Context, r *rig) error {
	phases, err := r.effects(ctx)
	if err != nil {
		return err
	}
	return r.each(ctx, phases, func(p phase.Phase, s *subject) error {
		c := r.next(s, p)
		a, err := r.send(ctx, c)
		if err != nil {
			return err
		}
		for attempt := 2; attempt <= 3; attempt++ {
			again := *c // state and ledger are those of the first attempt: its answer was never seen
			s.number++
			again.Number, again.Attempt = s.number, attempt
			b, err := r.send(ctx, &again)
			if err != nil {
				return fmt.Errorf("%s with the same key: %w", p, err)
			}
			if d := differ(a, b); d != "" {
				return fmt.Errorf("%s with the same key answers something else: %s", p, d)
			}
			r.enter(s, &again, b)
		}
		return nil
	})
}

// atOnce sends calls at the same time, and returns what was answered. That a call was overtaken is no error.
func (r *rig) atOnce(ctx context.Context, calls []*extension.Call) ([]*extension.Answer, error) {
	answers, errs := make([]*extension.Answer, len(calls)), make([]error, len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, r.patience)
			defer cancel()
			answers[i], errs[i] = r.remote.Call(ctx, c)
		})
	}
	wg.Wait()
	var out []*extension.Answer
	for i, err := range errs {
		switch {
		case err == nil:
			r.look(calls[i], answers[i])
			out = append(out, answers[i])
		case !fault.Is(err, fault.Conflict):
			return nil, r.why(fmt.Errorf("%s: %w", calls[i].Phase, err))
		}
	}
	return out, nil
}

// agree checks that answers say the same, and that no more is held than they say.
func (r *rig) agree(ctx context.Context, p phase.Phase, s *subject, answers []*extension.Answer) error {
	if len(answers) == 0 {
		return fmt.Errorf("%s: every one of the calls was refused", p)
	}
	for _, a := range answers[1:] {
		if d := differ(answers[0], a); d != "" {
			return fmt.Errorf("%s: two calls of one step are answered differently: %s", p, d)
		}
	}
	if !r.has(phase.Reconcile) || p.Takes() == phase.None {
		return nil
	}
	held, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	if got := held[key{s.id(), p.Takes()}]; len(got) > len(answers[0].Entries) {
		return fmt.Errorf("%s: the answers hold %s, and reconcile reports %s", p, texts(answers[0].Entries), texts(got))
	}
	return nil
}

func duplicate(ctx context.Context, r *rig) error {
	phases, err := r.effects(ctx)
	if err != nil {
		return err
	}
	return r.each(ctx, phases, func(p phase.Phase, s *subject) error {
		c := r.next(s, p)
		a, err := r.atOnce(ctx, []*extension.Call{c, c, c, c})
		if err != nil {
			return err
		}
		late, err := r.atOnce(ctx, []*extension.Call{c})
		if err != nil {
			return err
		}
		return r.agree(ctx, p, s, append(a, late...))
	})
}

func numberOld(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	tried := false
	for _, p := range r.manifest.Phases {
		if p.Pure() || p == phase.Reconcile {
			continue
		}
		tried = true
		s, err := r.fresh(ctx, p)
		if err != nil {
			return err
		}
		s.number += 10
		c := r.next(s, p)
		if _, err := r.send(ctx, c); err != nil {
			return err
		}
		old := *c
		old.Number -= 5
		if _, err := r.send(ctx, &old); !fault.Is(err, fault.Conflict) {
			return fmt.Errorf("%s: after number %d was answered number %d is answered with %s, not with ABORTED", p, c.Number, old.Number, orFine(err))
		}
		other, err := r.fresh(ctx, p)
		if err != nil {
			return err
		}
		if _, err := r.send(ctx, r.next(other, p)); err != nil {
			return fmt.Errorf("another subject's number %d: %w", other.number, err)
		}
	}
	if !tried {
		return notApplicable("it declares pure phases only, whose calls may overtake each other")
	}
	return r.releaseAll(ctx)
}

func oneAtATime(ctx context.Context, r *rig) error {
	phases, err := r.effects(ctx)
	if err != nil {
		return err
	}
	return r.each(ctx, phases, func(p phase.Phase, s *subject) error {
		var calls []*extension.Call
		c := r.next(s, p)
		for i := range 8 {
			again := *c
			again.Number, again.Attempt = c.Number+uint64(i), i+1
			calls = append(calls, &again)
			s.number = again.Number
		}
		answers, err := r.atOnce(ctx, calls)
		if err != nil {
			return err
		}
		return r.agree(ctx, p, s, answers)
	})
}

func overtaking(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	if !r.has(phase.Reconcile) {
		return notApplicable("it does not reconcile, so what is left cannot be seen")
	}
	type release struct {
		s  *subject
		of phase.Lifetime
	}
	var released []release
	for _, p := range phases {
		for _, wait := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
			s, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			take, undo := r.next(s, p), r.next(s, undoer(p))
			undo.InDoubt = take.Key
			early, cancel := context.WithTimeout(ctx, wait+time.Millisecond)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				_, _ = r.remote.Call(early, take)
			}()
			select {
			case <-early.Done():
			case <-answered:
			}
			_, err = r.send(ctx, undo)
			cancel()
			<-answered
			if err != nil {
				return fmt.Errorf("the release of a call of %s that was cancelled: %w", p, err)
			}
			released = append(released, release{s, p.Takes()})
		}
	}
	settled := time.NewTimer(r.patience / 10) // for what goes on behind an answer's back
	defer settled.Stop()
	<-settled.C
	held, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	for _, x := range released {
		if got := held[key{x.s.id(), x.of}]; len(got) > 0 {
			return fmt.Errorf("a call was cancelled, its release was answered, and %s is held for %s still", texts(got), x.s.id())
		}
	}
	return r.releaseAll(ctx)
}

func entriesFit(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	return r.found("entries")
}

func entriesComplete(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	s, err := r.newSandbox(ctx)
	if err != nil {
		return err
	}
	held := map[phase.Lifetime][]extension.Entry{}
	for _, p := range phases {
		to := s
		if p.OfWorkspace() {
			to = r.workspace
			held[phase.Workspace] = to.held[phase.Workspace]
		}
		a, err := r.do(ctx, to, p)
		if err != nil {
			return err
		}
		before := held[p.Takes()]
		if len(common(before, a.Entries)) < len(before) {
			return fmt.Errorf("%s answers %s; before it %s was held of that lifetime, and nothing has released it", p, texts(a.Entries), texts(before))
		}
		held[p.Takes()] = a.Entries
	}
	return r.release(ctx, s)
}

func keyedByID(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		var both []*subject
		for range 2 {
			s, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			if s.sandbox != nil {
				s.sandbox.Name = "the-same-name"
			}
			if _, err := r.do(ctx, s, p); err != nil {
				return err
			}
			both = append(both, s)
		}
		if got := common(both[0].everything(), both[1].everything()); len(got) > 0 {
			return fmt.Errorf("%s: two of one name and different ids both hold %s", p, texts(got))
		}
		kept := both[1].everything()
		if err := r.release(ctx, both[0]); err != nil {
			return err
		}
		a, err := r.do(ctx, both[1], p)
		if err != nil {
			return err
		}
		if got := common(kept, a.Entries); len(got) < len(a.Entries) || len(a.Entries) == 0 {
			return fmt.Errorf("%s: after the release of one the other of that name holds %s, and had %s", p, texts(a.Entries), texts(kept))
		}
		if err := r.release(ctx, both[1]); err != nil {
			return err
		}
	}
	return nil
}

func releaseComplete(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		for _, undo := range phase.Releasers(p.Takes()) {
			s, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			if _, err := r.do(ctx, s, p); err != nil {
				return err
			}
			if _, err := r.do(ctx, s, undo); err != nil {
				return err
			}
			if !r.has(phase.Reconcile) {
				continue
			}
			held, err := r.holdings(ctx)
			if err != nil {
				return err
			}
			if got := held[key{s.id(), p.Takes()}]; len(got) > 0 {
				return fmt.Errorf("%s after %s was answered, and reconcile reports that it still holds %s", undo, p, texts(got))
			}
		}
	}
	if err := r.found("release-complete"); err != nil {
		return err
	}
	return r.releaseAll(ctx)
}

func releaseAgain(ctx context.Context, r *rig) error {
	if _, err := r.alive(ctx); err != nil {
		return err
	}
	tried := false
	for _, p := range []phase.Phase{phase.AfterStop, phase.OnCreateFailed, phase.AfterDelete, phase.DeleteWorkspace} {
		if !r.has(p) {
			continue
		}
		tried = true
		s := r.newWorkspace()
		if !p.OfWorkspace() {
			var err error
			if s, err = r.newSandbox(ctx); err != nil {
				return err
			}
		}
		c := r.next(s, p)
		c.InDoubt = "a-key-that-was-never-served"
		if _, err := r.send(ctx, c); err != nil {
			return fmt.Errorf("where there is nothing to release: %w", err)
		}
		again := *c
		again.Number, again.Attempt = c.Number+1, 2
		s.number++
		if _, err := r.send(ctx, &again); err != nil {
			return fmt.Errorf("a second time: %w", err)
		}
	}
	if !tried {
		return notApplicable("it declares no phase that releases")
	}
	return nil
}

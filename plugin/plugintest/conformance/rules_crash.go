package conformance

import (
	"context"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
)

func stateVersions(ctx context.Context, r *rig) error {
	l, err := r.alive(ctx)
	if err != nil {
		return err
	}
	if !l.states && r.manifest.StateWrites == 0 {
		return notApplicable("it keeps no state")
	}
	return r.found("state-versions")
}

// again ends the process as a crash does, and starts a new one.
func (r *rig) again(ctx context.Context) error {
	r.drop()
	_, err := r.up(ctx)
	return err
}

func stateRoundTrip(ctx context.Context, r *rig) error {
	l, err := r.alive(ctx)
	if err != nil {
		return err
	}
	if !l.states {
		return notApplicable("it keeps no state")
	}
	for _, forgotten := range []bool{false, true} {
		s, err := r.newSandbox(ctx)
		if err != nil {
			return err
		}
		var last phase.Phase
		for _, p := range setups[1:] {
			if r.has(p) {
				last = p
				if _, err := r.do(ctx, s, p); err != nil {
					return err
				}
			}
		}
		if err := r.again(ctx); err != nil {
			return err
		}
		what := "with the state that it wrote"
		if forgotten { // the answer with the state was never seen
			what = "without any state"
			s.state, s.held = nil, map[phase.Lifetime][]extension.Entry{}
		}
		if last != "" && !forgotten {
			if _, err := r.do(ctx, s, last); err != nil {
				return fmt.Errorf("a new process, %s: %w", what, err)
			}
		}
		if err := r.release(ctx, s); err != nil {
			return fmt.Errorf("a release by a new process, %s: %w", what, err)
		}
	}
	return nil
}

func killKeeps(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		s, err := r.fresh(ctx, p)
		if err != nil {
			return err
		}
		c := r.next(s, p)
		a, err := r.take(ctx, s, c)
		if err != nil {
			return err
		}
		if err := r.again(ctx); err != nil {
			return err
		}
		// Others come first: they must not get what the first one has.
		for range 3 {
			other, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			b, err := r.do(ctx, other, p)
			if err != nil {
				return err
			}
			if got := common(a.Entries, b.Entries); len(got) > 0 {
				return fmt.Errorf("%s: after a kill and a new start somebody else gets %s, which is held already", p, texts(got))
			}
		}
		retry := *c
		s.number++
		retry.Number, retry.Attempt = s.number, 2
		b, err := r.take(ctx, s, &retry)
		if err != nil {
			return err
		}
		if !sameEntries(a.Entries, b.Entries) {
			return fmt.Errorf("%s: it held %s; after a kill, asked again with the same key, it holds %s", p, texts(a.Entries), texts(b.Entries))
		}
	}
	return r.releaseAll(ctx)
}

func killInDoubt(ctx context.Context, r *rig) error {
	phases, err := r.holding(ctx)
	if err != nil {
		return err
	}
	for _, p := range phases {
		// The last one is answered before it is killed, and the answer is lost.
		for _, wait := range []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond, r.patience} {
			s, err := r.fresh(ctx, p)
			if err != nil {
				return err
			}
			if err := r.killed(ctx, s, p, wait); err != nil {
				return err
			}
		}
	}
	return r.releaseAll(ctx)
}

// killed kills the process under a call, and has a new one undo it.
func (r *rig) killed(ctx context.Context, s *subject, p phase.Phase, wait time.Duration) error {
	c := r.next(s, p)
	begun := make(chan struct{})
	call, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	remote := r.remote
	go func() {
		defer close(begun)
		_, _ = remote.Call(call, c)
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	sent := time.Now()
	select {
	case <-timer.C:
	case <-begun:
	}
	wait = time.Since(sent).Round(time.Millisecond)
	if err := r.again(ctx); err != nil {
		return err
	}
	<-begun
	undo := r.next(s, undoer(p))
	undo.InDoubt, undo.Held = c.Key, nil
	if _, err := r.take(ctx, s, undo); err != nil {
		return fmt.Errorf("%s was killed %s after it was sent; its release: %w", p, wait, err)
	}
	if !r.has(phase.Reconcile) {
		return nil
	}
	held, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	if got := held[key{s.id(), p.Takes()}]; len(got) > 0 {
		return fmt.Errorf("%s was killed %s after it was sent; a new process answered its release, and still holds %s", p, wait, texts(got))
	}
	return nil
}

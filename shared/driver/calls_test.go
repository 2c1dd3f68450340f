package driver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestACallOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := NewCalls()
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the caller went away")
		answer := make(chan struct{})
		first := make(chan error, 1)
		go func() {
			first <- calls.Do(ctx, "a", func(asked, told context.Context) error {
				<-asked.Done()
				if context.Cause(asked) != gone || told.Err() != nil {
					t.Errorf("asked ended with %v, told with %v", context.Cause(asked), told.Err())
				}
				<-answer
				return told.Err()
			})
		}()
		synctest.Wait()
		cancel(gone)
		if err := <-first; !errors.Is(err, gone) {
			t.Errorf("it waited for the engine: %v", err)
		}
		impatient, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := calls.Do(impatient, "a", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the key was free before the engine had answered: %v", err)
		}
		if err := calls.Do(t.Context(), "b", func(_, _ context.Context) error { return gone }); !errors.Is(err, gone) {
			t.Errorf("another key: %v", err)
		}
		close(answer)
		if err := calls.Do(t.Context(), "a", func(_, _ context.Context) error { return nil }); err != nil {
			t.Errorf("it was not given up: %v", err)
		}
		calls.Close(time.Minute)
	})
}

func TestNoCallOfACallerWhoIsGone(t *testing.T) {
	calls := NewCalls()
	defer calls.Close(0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := calls.Do(ctx, "a", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCloseEndsWhatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := NewCalls()
		said := make(chan error, 1)
		go func() {
			said <- calls.Do(t.Context(), "a", func(asked, told context.Context) error {
				<-told.Done()
				<-asked.Done()
				return told.Err()
			})
		}()
		synctest.Wait()
		from := time.Now()
		calls.Close(10 * time.Second)
		if took := time.Since(from); took != 10*time.Second {
			t.Errorf("it had %v", took)
		}
		if err := <-said; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		from = time.Now()
		calls.Close(10 * time.Second)
		if took := time.Since(from); took != 0 {
			t.Errorf("nothing is under way, and it took %v", took)
		}
	})
}

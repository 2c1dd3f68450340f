package driver

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestTheKeyedLock(t *testing.T) {
	var k Keyed
	unlock, err := k.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.Lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one waits beyond its context: %v", err)
	}
	if _, ok := k.Try("a"); ok {
		t.Error("it was taken twice")
	}
	other, ok := k.Try("b")
	if !ok {
		t.Fatal("another key is not free")
	}
	other()
	unlock()
	if again, ok := k.Try("a"); !ok {
		t.Error("it was not given up")
	} else {
		again()
	}
	if len(k.locks) > 0 {
		t.Errorf("locks that nobody uses stay: %d", len(k.locks))
	}
}

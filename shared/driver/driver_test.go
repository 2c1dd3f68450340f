package driver_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// Every code is on one side, so that a new one is not on either by chance.
func TestInDoubt(t *testing.T) {
	want := map[fault.Code]bool{
		fault.Invalid: false, fault.NotFound: false, fault.AlreadyExists: false, fault.Conflict: false, fault.Denied: false,
		fault.FailedPrecondition: false, fault.ResourceExhausted: false, fault.Unimplemented: false, fault.Unauthenticated: false,
		fault.Unavailable: true, fault.DeadlineExceeded: true, fault.Canceled: true, fault.Internal: true,
	}
	for c := fault.Invalid; c <= fault.Internal; c++ {
		doubt, known := want[c]
		if got := driver.InDoubt(fmt.Errorf("create: %w", fault.New(c, "no"))); !known || got != doubt {
			t.Errorf("InDoubt(%v) = %v, want %v (known: %v)", c, got, doubt, known)
		}
	}
	for err, doubt := range map[error]bool{nil: false, errors.New("no fault"): true, context.DeadlineExceeded: true} {
		if got := driver.InDoubt(err); got != doubt {
			t.Errorf("InDoubt(%v) = %v, want %v", err, got, doubt)
		}
	}
}

package engine

import (
	"context"
	"sync"

	"github.com/sandgate/sandgate/shared/fault"
)

// Handle follows one operation. Whoever drops it cancels nothing.
type Handle struct {
	mu       sync.Mutex
	accepted chan struct{} // closed when the operation is journaled, or will never be
	ended    chan struct{}
	started  bool
	op       Operation
	err      error
	detail   []fault.Diagnostic
}

func newHandle(op Operation) *Handle {
	return &Handle{accepted: make(chan struct{}), ended: make(chan struct{}), op: op}
}

// Accepted waits until the operation is in the journal, from where it will be finished whatever happens, and returns
// its id. An error says that it was refused before that, and nothing was touched.
func (h *Handle) Accepted(ctx context.Context) (string, error) {
	select {
	case <-h.accepted:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		return "", h.err
	}
	return h.op.ID, nil
}

// Wait waits until the operation has ended and returns what became of it; the error is the operation's own.
func (h *Handle) Wait(ctx context.Context) (Operation, error) {
	select {
	case <-h.ended:
	case <-ctx.Done():
		return Operation{}, context.Cause(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.op, h.err
}

func (h *Handle) accept() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		h.started = true
		close(h.accepted)
	}
}

func (h *Handle) finish(op Operation, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.op, h.err = op, err
	if !h.started {
		close(h.accepted)
	}
	close(h.ended)
}

// diagnose keeps the diagnostics of the error that ends the operation; the journal keeps its message only.
func (h *Handle) diagnose(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.detail = fault.DiagnosticsOf(err)
}

func (h *Handle) diagnostics() []fault.Diagnostic {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.detail
}

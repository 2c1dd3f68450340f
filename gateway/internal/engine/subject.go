package engine

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

// subject is one sandbox or workspace: its operations, one after the other.
type subject struct {
	e  *Engine
	id string

	// Published records; guarded by Engine.mu. The subject's own goroutine is the only one that replaces them.
	sandbox   *Sandbox
	workspace *Workspace
	holdings  map[string]*holding
	closing   bool     // of a workspace: a delete has begun
	reserved  *Sandbox // that may yet be refused, and has the id
	notices   []Notice // the newest that the driver gave of it, oldest first

	mu        sync.Mutex
	queue     []*task
	running   bool
	interrupt context.CancelCauseFunc // of the task that runs, where a delete may end it early
	overtaken bool                    // a delete is queued
	status    *driver.Status          // the newest that the driver said and that was not acted upon
	probing   bool                    // it is being found out whether the driver still has it
	current   *execution
	failure   error // of a workspace: why its first ensure failed, for those who waited for it
}

// reusable reports whether the id may be given to another sandbox: nothing of the one that had it is there or owed. The
// engine's lock is held.
func (s *subject) reusable() bool {
	return s.sandbox != nil && s.sandbox.Ended != nil && len(s.holdings) == 0 && s.reserved == nil
}

// numbersBefore returns the numbers of a sandbox that had the id before, and has ended: extensions know calls by them.
func (s *subject) numbersBefore() map[string]uint64 {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if s.sandbox == nil {
		return nil
	}
	return maps.Clone(s.sandbox.Numbers)
}

// numberOf returns the last number of an extension that the subject was done with, or 0. The engine's lock is held.
func (s *subject) numberOf(extension string) uint64 {
	switch {
	case s.sandbox != nil:
		return s.sandbox.Numbers[extension]
	case s.workspace != nil:
		return s.workspace.Numbers[extension]
	}
	return 0
}

// taken names the newest step in which an extension may have come to hold something of the workspace that the subject
// is; names sort by time. The engine's lock is held.
func (s *subject) taken(extension string) string {
	if h := s.holdings[extension]; h != nil {
		return h.rec.Taken[phase.Workspace]
	}
	return ""
}

// task is one thing to do for a subject, when its turn comes.
type task struct {
	run func(ctx context.Context)
	// fixed tasks are not ended early by a delete.
	fixed bool
}

var errOvertaken = fault.New(fault.Canceled, "it is being deleted")

// push queues a task; first puts it before all others.
func (s *subject) push(t *task, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first {
		s.queue = append([]*task{t}, s.queue...)
	} else {
		s.queue = append(s.queue, t)
	}
	if !s.running {
		s.running = true
		s.e.spawn(s.loop)
	}
}

// overtake ends what runs early and makes whatever is queued find the delete before it.
func (s *subject) overtake(t *task) {
	s.interruptAll()
	s.push(t, true)
}

// interruptAll ends what runs, and what would run before the delete, early.
func (s *subject) interruptAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overtaken = true
	if s.interrupt != nil {
		s.interrupt(errOvertaken)
	}
}

func (s *subject) loop() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.e.ctx.Err() != nil {
			s.running = false
			s.mu.Unlock()
			s.idle()
			return
		}
		t := s.queue[0]
		if s.queue = slices.Delete(s.queue, 0, 1); len(s.queue) == 0 {
			s.queue = nil // what it did would be kept as long as the subject
		}
		ctx, cancel := context.WithCancelCause(s.e.ctx)
		if !t.fixed {
			s.interrupt = cancel
			if s.overtaken {
				cancel(errOvertaken)
			}
		}
		s.mu.Unlock()
		t.run(ctx)
		s.mu.Lock()
		s.interrupt = nil
		s.mu.Unlock()
		cancel(nil)
	}
}

// idle tells those who wait for it that the subject has nothing to do.
func (s *subject) idle() {
	s.e.mu.Lock()
	s.e.notify()
	s.e.mu.Unlock()
}

func (s *subject) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *subject) isOvertaken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overtaken
}

// holding is a Holding with the right to call its extension for this subject: one at a time.
type holding struct {
	busy chan struct{} // capacity 1; whoever is in may call and change rec
	rec  Holding       // replaced under Engine.mu by who is in
	live bool          // a goroutine retries its releases
}

func newHolding(rec Holding) *holding { return &holding{busy: make(chan struct{}, 1), rec: rec} }

// enter waits for the right to call.
func (h *holding) enter(ctx context.Context) error {
	select {
	case h.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *holding) leave() { <-h.busy }

// subjectOf returns the subject, making it where it is not there. The lock is held.
func (e *Engine) subjectOf(id string) *subject {
	s := e.subjects[id]
	if s == nil {
		s = &subject{e: e, id: id, holdings: map[string]*holding{}}
		e.subjects[id] = s
	}
	return s
}

package engine

import "context"

// A generation that something uses is not ended: whoever takes one says so, before the catalog is asked, and says when
// it is done with it.

// current returns the configuration in force, and what ends the use of it.
func (e *Engine) current() (*Generation, func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	gen := e.Catalog.Current()
	e.using[gen.ID]++
	return gen, func() { e.unuse(gen.ID) }
}

// generation returns one that is still referred to, and what ends the use of it.
func (e *Engine) generation(ctx context.Context, id string) (*Generation, func(), error) {
	e.mu.Lock()
	e.using[id]++
	e.mu.Unlock()
	gen, err := e.Catalog.Generation(ctx, id)
	if err != nil {
		e.unuse(id)
		return nil, nil, err
	}
	return gen, func() { e.unuse(id) }, nil
}

// again counts a further use of a generation that is in use.
func (e *Engine) again(gen *Generation) func() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.using[gen.ID]++
	return func() { e.unuse(gen.ID) }
}

func (e *Engine) unuse(id string) {
	e.mu.Lock()
	e.using[id]--
	idle := e.using[id] == 0
	if idle {
		delete(e.using, id)
	}
	e.mu.Unlock()
	if idle {
		e.Unused(id)
	}
}

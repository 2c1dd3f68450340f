package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/journal"
)

// kindGeneration is the kind of the journal's records of configurations.
const kindGeneration = "generation"

// catalog has the generations: the current one, those that operations in flight still use, and on demand those that
// are only stored.
type catalog struct {
	d *Daemon

	mu   sync.Mutex
	now  *generation
	live map[string]*generation
	once map[string]*sync.Mutex // a stored generation is launched once
}

func newCatalog(d *Daemon) *catalog {
	return &catalog{d: d, live: map[string]*generation{}, once: map[string]*sync.Mutex{}}
}

// use puts a generation into force. It returns the one whose place it takes, if any, which is to be retired: what of it
// is in flight goes on, since what serves it is shared.
func (c *catalog) use(g *generation) (before *generation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.live, func(_ string, o *generation) bool { return o == g }) // by an earlier id
	before = c.live[g.ID]
	c.now, c.live[g.ID] = g, g
	return before
}

func (c *catalog) current() *generation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Current implements engine.Catalog.
func (c *catalog) Current() *engine.Generation { return &c.current().Generation }

// Generation implements engine.Catalog.
func (c *catalog) Generation(ctx context.Context, id string) (*engine.Generation, error) {
	c.mu.Lock()
	g := c.live[id]
	once := c.once[id]
	if once == nil {
		once = &sync.Mutex{}
		c.once[id] = once
	}
	c.mu.Unlock()
	if g != nil {
		return &g.Generation, nil
	}
	once.Lock()
	defer once.Unlock()
	c.mu.Lock()
	g = c.live[id]
	c.mu.Unlock()
	if g != nil {
		return &g.Generation, nil
	}
	g, err := c.revive(ctx, id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.live[id] = g
	c.mu.Unlock()
	return &g.Generation, nil
}

// next returns the id of a generation that is newer than all that are stored. It counts, whatever the clock says: a
// workspace never goes back to an older one.
func (c *catalog) next(ctx context.Context) (string, error) {
	last, err := c.d.journal.List(ctx, journal.Query{Kind: kindGeneration, Last: true, Limit: 1})
	if err != nil {
		return "", err
	}
	var n uint64
	if len(last) == 1 {
		if _, err := fmt.Sscanf(last[0].ID, generationForm, &n); err != nil {
			return "", fmt.Errorf("the stored configuration %q has no number: %w", last[0].ID, err)
		}
	}
	return fmt.Sprintf(generationForm, n+1), nil
}

// generationForm makes ids that sort by their number.
const generationForm = "g%012d"

// keep stores the generation, so that it can be launched again when its programs and the environment have changed.
// One that is the same as the newest that is stored takes its id: nothing has changed for anyone. It is not in use yet.
func (c *catalog) keep(ctx context.Context, g *generation) error {
	snapshot, err := g.config.Snapshot()
	if err != nil {
		return err
	}
	sealed, err := json.Marshal(stored{Snapshot: snapshot, Copies: g.copies, Contracts: g.contracts()})
	if err != nil {
		return err
	}
	print := c.d.journal.Digest(append([]byte("generation"), sealed...))
	last, err := c.d.journal.List(ctx, journal.Query{Kind: kindGeneration, Last: true, Limit: 1})
	if err != nil {
		return err
	}
	if len(last) == 1 && string(last[0].Body) == `"`+print+`"` {
		g.ID = last[0].ID
		return nil
	}
	return c.d.journal.Commit(ctx, []journal.Write{{Record: journal.Record{Kind: kindGeneration, ID: g.ID, Body: []byte(`"` + print + `"`), Sealed: sealed}}})
}

// collect ends the processes of generations that nothing uses at the moment: one that is stored is launched again when
// it is needed. Records and copies that nothing refers to any more are forgotten.
func (c *catalog) collect(ctx context.Context) error {
	refs := c.d.engine.References()
	needed := refs.Generations
	c.mu.Lock()
	needed[c.now.ID], refs.Live[c.now.ID] = true, true
	var idle []*generation
	copies := []string{}
	for id, g := range c.live {
		if !refs.Live[id] {
			idle = append(idle, g)
			delete(c.live, id)
			continue
		}
		for _, ref := range g.copies {
			copies = append(copies, ref)
		}
	}
	c.mu.Unlock()
	var errs []error
	for _, g := range idle {
		errs = append(errs, c.d.retire(g))
	}
	records, err := c.d.journal.List(ctx, journal.Query{Kind: kindGeneration})
	errs = append(errs, err)
	var writes []journal.Write
	for _, r := range records {
		var s stored
		if !needed[r.ID] {
			writes = append(writes, journal.Write{Record: journal.Record{Kind: kindGeneration, ID: r.ID}, Delete: true})
		} else if json.Unmarshal(r.Sealed, &s) == nil {
			for _, ref := range s.Copies {
				copies = append(copies, ref)
			}
		}
	}
	if len(writes) > 0 {
		errs = append(errs, c.d.journal.Commit(ctx, writes))
	}
	return errors.Join(append(errs, c.d.supervisor.Collect(copies))...)
}

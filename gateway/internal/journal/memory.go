package journal

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"

	"github.com/sandgate/sandgate/shared/fault"
)

// Memory is a journal that lives as long as the program: for tests, simulations and benchmarks. What was committed
// survives a Crash, as a disk would keep it. It runs nothing of its own.
type Memory struct {
	disk *disk

	mu     sync.Mutex
	gone   error // why this handle may write no more
	fail   []error
	before func([]Write) // called before a commit takes effect
	after  func([]Write) // and after it has, before it is acknowledged
}

// disk is what outlives a Memory.
type disk struct {
	mu      sync.Mutex
	records map[string]map[string]Record // kind -> id
	uniques map[string]string            // kind and unique -> id
	token   int
	commits int
}

// NewMemory returns an empty journal.
func NewMemory() *Memory {
	return &Memory{disk: &disk{records: map[string]map[string]Record{}, uniques: map[string]string{}}}
}

// Crash ends the handle as the death of its process would: whatever it is asked from now on fails and changes
// nothing. It returns a new handle on what was committed.
func (m *Memory) Crash() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = fault.New(fault.FailedPrecondition, "this journal was taken over by another gateway")
	return &Memory{disk: m.disk}
}

// FailNext lets the next commits fail, one with each error, before they take effect.
func (m *Memory) FailNext(errs ...error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = append(m.fail, errs...)
}

// Hook has before called before each commit takes effect, and after when it has but is not acknowledged. Either may
// be nil, and may call Crash.
func (m *Memory) Hook(before, after func([]Write)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before, m.after = before, after
}

// Commits returns how many commits have taken effect since the journal was made.
func (m *Memory) Commits() int {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.commits
}

// Commit implements Journal.
func (m *Memory) Commit(ctx context.Context, writes []Write) error {
	m.mu.Lock()
	before, after := m.before, m.after
	m.mu.Unlock()
	if before != nil {
		before(writes)
	}
	if err := m.admit(ctx); err != nil {
		return err
	}
	if err := m.disk.apply(writes); err != nil {
		return err
	}
	if after != nil {
		after(writes)
	}
	return m.alive()
}

// admit decides whether a commit may take effect.
func (m *Memory) admit(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone != nil {
		return m.gone
	}
	if len(m.fail) > 0 {
		err := m.fail[0]
		m.fail = m.fail[1:]
		return err
	}
	return ctx.Err()
}

func (m *Memory) alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone
}

func (d *disk) apply(writes []Write) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(writes); err != nil {
		return err
	}
	for _, w := range writes {
		d.write(w)
	}
	d.commits++
	return nil
}

func (d *disk) write(w Write) {
	r := w.Record
	if d.records[r.Kind] == nil {
		d.records[r.Kind] = map[string]Record{}
	}
	if old := d.records[r.Kind][r.ID].Unique; old != "" && d.uniques[r.Kind+"\x00"+old] == r.ID {
		delete(d.uniques, r.Kind+"\x00"+old)
	}
	if w.Delete {
		delete(d.records[r.Kind], r.ID)
		return
	}
	if r.Unique != "" {
		d.uniques[r.Kind+"\x00"+r.Unique] = r.ID
	}
	d.records[r.Kind][r.ID] = copyRecord(r)
}

// check says whether a unique value is taken by a record that the writes leave as it is.
func (d *disk) check(writes []Write) error {
	for i, w := range writes {
		r := w.Record
		id, found := d.uniques[r.Kind+"\x00"+r.Unique]
		if w.Delete || r.Unique == "" || !found || id == r.ID {
			continue
		}
		freed := slices.ContainsFunc(writes[:i], func(o Write) bool {
			return o.Record.Kind == r.Kind && o.Record.ID == id && (o.Delete || o.Record.Unique != r.Unique)
		})
		if !freed {
			return alreadyTaken(r)
		}
	}
	return nil
}

func copyRecord(r Record) Record {
	r.Body, r.Sealed = slices.Clone(r.Body), slices.Clone(r.Sealed)
	return r
}

// Get implements Journal.
func (m *Memory) Get(_ context.Context, kind, id string) (Record, error) {
	if err := m.alive(); err != nil {
		return Record{}, err
	}
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	r, ok := m.disk.records[kind][id]
	if !ok {
		return Record{}, fault.New(fault.NotFound, "there is no %s %q", kind, id)
	}
	return copyRecord(r), nil
}

// List implements Journal.
func (m *Memory) List(_ context.Context, q Query) ([]Record, error) {
	if err := m.alive(); err != nil {
		return nil, err
	}
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	var out []Record
	for _, r := range m.disk.records[q.Kind] {
		if (q.Parent == "" || r.Parent == q.Parent) && r.ID > q.After {
			out = append(out, copyRecord(r))
		}
	}
	slices.SortFunc(out, func(a, b Record) int {
		if q.Last {
			a, b = b, a
		}
		return cmp.Compare(a.ID, b.ID)
	})
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, nil
}

// Digest implements Journal.
func (m *Memory) Digest(value []byte) string { return digest([]byte("a key for tests"), value) }

// Close implements Journal.
func (m *Memory) Close() error { return nil }

// digest is the short keyed digest that stands for a sensitive value.
func digest(key, value []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write(value)
	return hex.EncodeToString(mac.Sum(nil))[:8]
}

func alreadyTaken(r Record) error {
	return fault.New(fault.AlreadyExists, "there is a %s %q already", r.Kind, r.Unique)
}

var _ Journal = (*Memory)(nil)

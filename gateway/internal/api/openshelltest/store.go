package openshelltest

import (
	"slices"
	"strings"
	"sync"
	"time"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Row is a sandbox as the gateway has stored it.
type Row struct {
	ID, Name, Workspace string
	Phase               Phase
	Reason              string
	Conditions          []*computev1.DriverCondition
	Instance            string
	Runtime             string // the runtime identity, where the driver authenticates sandboxes
	Progress            []*computev1.DriverPlatformEvent
	Seen                []Phase // every phase that a user saw, in order
	Session             bool    // a supervisor is connected
	created             time.Time
}

// Store has the rows. It outlives the gateway, and several replicas may share it.
type Store struct {
	mu      sync.Mutex
	rows    map[string]*Row
	past    map[string]*Row
	changed chan struct{}
}

// NewStore makes an empty one.
func NewStore() *Store {
	return &Store{rows: map[string]*Row{}, past: map[string]*Row{}, changed: make(chan struct{})}
}

// Changed is closed at the next change. Take it before looking.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Get returns a row; one that is not there, or no more, is Gone.
func (s *Store) Get(id string) Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[id]
	if r == nil {
		r = s.past[id]
	}
	if r == nil {
		return Row{ID: id, Phase: Gone}
	}
	return r.clone()
}

func (r *Row) clone() Row {
	out := *r
	out.Seen, out.Progress = slices.Clone(r.Seen), slices.Clone(r.Progress)
	return out
}

// Rows returns all that are there.
func (s *Store) Rows() []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Row
	for _, r := range s.rows {
		out = append(out, r.clone())
	}
	slices.SortFunc(out, func(a, b Row) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Connect says that a sandbox's supervisor has opened its session, or has lost it.
func (s *Store) Connect(id string, session bool) {
	s.update(id, func(r *Row) {
		r.Session = session
		switch {
		case session && slices.Contains([]Phase{Provisioning, Starting, Unknown}, r.Phase):
			r.Phase, r.Reason = Ready, ""
		case !session && r.Phase == Ready:
			r.Phase, r.Reason = Provisioning, "DependenciesNotReady"
		}
	})
}

// update changes a row and keeps what users saw. It reports whether the row is there.
func (s *Store) update(id string, fn func(*Row)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[id]
	if r == nil {
		return false
	}
	fn(r)
	r.saw()
	s.tell()
	return true
}

func (r *Row) saw() {
	if n := len(r.Seen); n == 0 || r.Seen[n-1] != r.Phase {
		r.Seen = append(r.Seen, r.Phase)
	}
}

func (s *Store) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) set(id string, p Phase, reason string) {
	s.update(id, func(r *Row) { r.Phase, r.Reason = p, reason })
}

// insert stores a new row; a name that another row of the workspace has is not free.
func (s *Store) insert(row *Row) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rows {
		if r.ID == row.ID || r.Workspace == row.Workspace && r.Name == row.Name {
			return false
		}
	}
	row.created = time.Now()
	row.saw()
	s.rows[row.ID] = row
	s.tell()
	return true
}

func (s *Store) remove(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[id]
	if r == nil {
		return false
	}
	delete(s.rows, id)
	r.Phase = Gone
	r.saw()
	s.past[id] = r
	s.tell()
	return true
}

// Interrupt leaves a row as a gateway that crashed in the middle would.
func (s *Store) Interrupt(id string, p Phase) { s.set(id, p, "") }

// Add stores a row that no driver knows.
func (s *Store) Add(id, name string, p Phase) {
	s.insert(&Row{ID: id, Name: name, Workspace: "default", Phase: p})
}

// Package journal keeps what happened, durably. It knows kinds and bytes, not what they mean. DESIGN.md says why it
// is built as it is.
package journal

import (
	"context"
)

// Record is one thing that is kept. Kind and ID together identify it.
type Record struct {
	Kind   string
	ID     string
	Parent string // what it belongs to, for List; an index
	Unique string // no two records of one kind have the same; "" for none
	Body   []byte
	Sealed []byte // kept encrypted in a table of its own, and gone with the record; nil for none
}

// Write puts a record, replacing the one of the same kind and id, or deletes it.
type Write struct {
	Record Record
	Delete bool
}

// Query selects records of one kind, in order of ID.
type Query struct {
	Kind   string
	Parent string // "" for every parent
	After  string // only ids greater than this
	Last   bool   // the newest (greatest ids) first
	Limit  int    // 0 for all
}

// Journal is a store of records that one gateway at a time may write. It is safe for concurrent use; commits that
// arrive together may share one transaction of the database, but each succeeds or fails by itself.
type Journal interface {
	// Commit makes all the writes durable, or none. AlreadyExists: a Unique is taken. ResourceExhausted: the disk is
	// full; nothing was lost and the same commit may succeed later. FailedPrecondition: another gateway has taken
	// over; every later commit fails too.
	Commit(ctx context.Context, writes []Write) error
	// Get returns one record, or NotFound.
	Get(ctx context.Context, kind, id string) (Record, error)
	// List returns the records that the query selects.
	List(ctx context.Context, q Query) ([]Record, error)
	// Digest returns a short keyed digest of a sensitive value, the same for the same value as long as the store lives.
	Digest(value []byte) string
	// Close releases the store for another gateway.
	Close() error
}

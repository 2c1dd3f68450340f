package journal

import (
	"context"
	"database/sql"
	"errors"

	"github.com/sandgate/sandgate/shared/fault"
)

type commit struct {
	ctx    context.Context
	writes []Write
	err    chan error
}

// statements are what the writer executes, prepared once.
type statements struct{ fence, put, remove, seal, unseal *sql.Stmt }

func (s *Store) prepare(ctx context.Context) error {
	s.sealing = map[string]bool{}
	rows, err := s.db.QueryContext(ctx, `SELECT DISTINCT kind FROM sealed`)
	if err != nil {
		return classify(err, "read the store")
	}
	for rows.Next() {
		var kind string
		if err := rows.Scan(&kind); err != nil {
			return errors.Join(classify(err, "read the store"), rows.Close())
		}
		s.sealing[kind] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return classify(err, "read the store")
	}
	fence := `SELECT token, owner FROM fence WHERE name = 'gateway'`
	if !s.sqlite {
		fence += ` FOR SHARE`
	}
	for _, p := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&s.write.fence, fence},
		{&s.write.put, `INSERT INTO records (kind, id, parent, uniq, body, token) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (kind, id) DO UPDATE SET parent = excluded.parent, uniq = excluded.uniq, body = excluded.body, token = excluded.token`},
		{&s.write.remove, `DELETE FROM records WHERE kind = $1 AND id = $2`},
		{&s.write.seal, `INSERT INTO sealed (kind, id, body) VALUES ($1, $2, $3) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body`},
		{&s.write.unseal, `DELETE FROM sealed WHERE kind = $1 AND id = $2`},
	} {
		if *p.to, err = s.db.PrepareContext(ctx, p.text); err != nil {
			return classify(err, "prepare the store")
		}
	}
	return nil
}

func (w *statements) close() error {
	var errs []error
	for _, st := range []*sql.Stmt{w.fence, w.put, w.remove, w.seal, w.unseal} {
		if st != nil {
			errs = append(errs, st.Close())
		}
	}
	return errors.Join(errs...)
}

// Commit implements Journal.
func (s *Store) Commit(ctx context.Context, writes []Write) error {
	if err := s.isLost(); err != nil {
		return err
	}
	c := &commit{ctx: ctx, writes: writes, err: make(chan error, 1)}
	select {
	case s.commits <- c:
	case <-s.closing:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return <-c.err
}

var errClosed = fault.New(fault.Unavailable, "the journal is closed")

func (s *Store) isLost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *Store) lose(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = err
	}
	return s.lost
}

// maxGroup is how many commits may share a transaction.
const maxGroup = 128

// run commits what arrives: the first at once, and whatever arrived meanwhile together.
func (s *Store) run() {
	defer close(s.done)
	for {
		var group []*commit
		select {
		case c := <-s.commits:
			group = append(group, c)
		case <-s.closing:
			return
		}
		for more := true; more && len(group) < maxGroup; {
			select {
			case c := <-s.commits:
				group = append(group, c)
			default:
				more = false
			}
		}
		s.transact(group)
	}
}

// transact writes a group. Where it fails and it was not alone, nothing of it is there, and each is tried by itself, so
// that nobody fails for another's sake: a name that is taken, or a record that is too large for the space left.
func (s *Store) transact(group []*commit) {
	err := s.transaction(group)
	if err != nil && len(group) > 1 && s.isLost() == nil {
		for _, c := range group {
			c.err <- s.transaction([]*commit{c})
		}
		return
	}
	for _, c := range group {
		c.err <- err
	}
}

func (s *Store) transaction(group []*commit) (err error) {
	ctx := context.Background() // what has begun is brought to its end
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return classify(err, "begin a commit")
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // it is over in any case; err says why
		}
	}()
	if err := s.fenced(ctx, tx); err != nil {
		return err
	}
	for _, c := range group {
		for _, w := range c.writes {
			if err := s.put(ctx, tx, w); err != nil {
				return err
			}
		}
	}
	return classify(tx.Commit(), "commit")
}

// fenced checks in the transaction that nobody has taken the store over.
func (s *Store) fenced(ctx context.Context, tx *sql.Tx) error {
	var token int64
	var owner string
	if err := tx.StmtContext(ctx, s.write.fence).QueryRowContext(ctx).Scan(&token, &owner); err != nil {
		return classify(err, "check the fence")
	}
	if token != s.token {
		return s.lose(fault.New(fault.FailedPrecondition, "another gateway has taken the store over: %s", owner))
	}
	return nil
}

func (s *Store) put(ctx context.Context, tx *sql.Tx, w Write) error {
	r := w.Record
	exec := func(st *sql.Stmt, args ...any) error {
		_, err := tx.StmtContext(ctx, st).ExecContext(ctx, args...)
		return err
	}
	if w.Delete {
		if err := exec(s.write.remove, r.Kind, r.ID); err != nil {
			return classify(err, "delete "+r.Kind)
		}
		return s.unseal(exec, r)
	}
	body := r.Body
	if body == nil {
		body = []byte{}
	}
	uniq := sql.NullString{String: r.Unique, Valid: r.Unique != ""}
	err := exec(s.write.put, r.Kind, r.ID, r.Parent, uniq, body, s.token)
	if isUnique(err) {
		return alreadyTaken(r)
	}
	if err != nil {
		return classify(err, "write "+r.Kind)
	}
	if r.Sealed == nil {
		return s.unseal(exec, r)
	}
	sealed, err := s.keys.seal(r.Kind, r.ID, r.Sealed)
	if err != nil {
		return err
	}
	s.sealing[r.Kind] = true
	return classify(exec(s.write.seal, r.Kind, r.ID, sealed), "write "+r.Kind)
}

// unseal removes what a record had sealed, where its kind has such a thing at all.
func (s *Store) unseal(exec func(*sql.Stmt, ...any) error, r Record) error {
	if !s.sealing[r.Kind] {
		return nil
	}
	return classify(exec(s.write.unseal, r.Kind, r.ID), "write "+r.Kind)
}

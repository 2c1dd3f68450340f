package journal

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx" of database/sql
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"github.com/sandgate/sandgate/shared/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config says where a store is.
type Config struct {
	// Dir is the gateway's data directory: the key file and, for SQLite, the database lie in it.
	Dir string
	// URL of a PostgreSQL database; empty: SQLite in Dir.
	URL string
}

// Store is a journal in SQLite or PostgreSQL.
type Store struct {
	db     *sql.DB
	reads  *sql.DB // SQLite: readers beside the one writer
	keys   *keyring
	token  int64
	sqlite bool
	path   string // of the database, for SQLite
	lock   io.Closer

	write   statements
	sealing map[string]bool // kinds that have, or had, something sealed; the writer's own

	commits chan *commit
	done    chan struct{} // closed when the writer has ended
	closing chan struct{}
	once    sync.Once

	mu   sync.Mutex
	lost error // why no commit is possible any more
}

// Open opens the store for this gateway alone. FailedPrecondition: another gateway has it, or the key file is not the
// store's.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	s := &Store{sqlite: cfg.URL == "", commits: make(chan *commit), done: make(chan struct{}), closing: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeAll())
		}
	}()
	if s.sqlite {
		err = s.openSQLite(cfg)
	} else {
		err = s.openPostgres(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	fresh := false
	if err := s.db.QueryRowContext(ctx, `SELECT NOT EXISTS (SELECT 1 FROM sealed)`).Scan(&fresh); err != nil {
		return nil, classify(err, "read the store")
	}
	if s.keys, err = openKey(cfg.Dir, fresh); err != nil {
		return nil, err
	}
	if err := s.takeOver(ctx); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	go s.run()
	return s, nil
}

func (s *Store) openSQLite(cfg Config) error {
	lock, err := lockFile(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return err
	}
	s.lock = lock
	s.path = filepath.Join(cfg.Dir, "journal.db")
	if err := touch(s.path); err != nil {
		return err
	}
	dsn := "file:" + s.path + "?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(ON)&_pragma=temp_store(MEMORY)&_pragma=busy_timeout(2000)&_txlock=immediate"
	if s.db, err = sql.Open("sqlite", dsn); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(1)
	if s.reads, err = sql.Open("sqlite", dsn+"&_pragma=query_only(ON)"); err != nil {
		return err
	}
	s.reads.SetMaxOpenConns(4)
	return nil
}

// touch makes the database file with the mode that it keeps.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	return f.Close()
}

// lockFile takes a file for this process. It says who has it otherwise.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		_ = f.Close()
		return nil, fault.New(fault.FailedPrecondition, "another gateway has the store: %s (%s)", strings.TrimSpace(string(holder)), path)
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the store: %w", err), f.Close())
	}
	if _, err := f.WriteAt([]byte(self()+"\n"), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the store: %w", err), f.Close())
	}
	return f, nil
}

// self names this gateway to people.
func self() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("process %d on %s, since %s", os.Getpid(), host, time.Now().Format(time.DateTime))
}

// advisoryLock is the key of PostgreSQL's session lock: "sandgate" in ASCII.
const advisoryLock = 0x73616e6467617465

func (s *Store) openPostgres(ctx context.Context, cfg Config) error {
	var err error
	if s.db, err = sql.Open("pgx", cfg.URL); err != nil {
		return fault.New(fault.Invalid, "the url of the store cannot be used")
	}
	s.db.SetMaxOpenConns(8)
	s.reads = s.db
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return classify(err, "connect to the store")
	}
	s.lock = conn
	got := false
	if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, int64(advisoryLock)).Scan(&got); err != nil {
		return classify(err, "lock the store")
	}
	if !got {
		return fault.New(fault.FailedPrecondition, "another gateway has the store: %s", s.holder(ctx))
	}
	return nil
}

func (s *Store) holder(ctx context.Context) string {
	var owner string
	if s.db.QueryRowContext(ctx, `SELECT owner FROM fence WHERE name = 'gateway'`).Scan(&owner) != nil {
		return "unknown"
	}
	return owner
}

func (s *Store) migrate(ctx context.Context) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	dialect := goose.DialectPostgres
	if s.sqlite {
		dialect = goose.DialectSQLite3
	}
	p, err := goose.NewProvider(dialect, s.db, sub)
	if err != nil {
		return fmt.Errorf("migrate the store: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return s.damaged(ctx, classify(err, "migrate the store"))
	}
	return nil
}

// damaged says so where an error comes of a database file that is damaged: SQLite itself may say anything.
func (s *Store) damaged(ctx context.Context, cause error) error {
	if !s.sqlite {
		return cause
	}
	found := ""
	err := s.db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	if !fileDamaged(cause) && !fileDamaged(err) && (err != nil || found == "ok") {
		return cause
	}
	return fault.New(fault.FailedPrecondition, "the journal %s is damaged: put the data directory back from a backup: %w", s.path, cause)
}

// fileDamaged reports whether SQLite cannot read a file as a database.
func fileDamaged(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code()&0xff == 11 || e.Code()&0xff == 26) // SQLITE_CORRUPT, SQLITE_NOTADB
}

// takeOver raises the fence: whoever had the store before can commit nothing from now on.
func (s *Store) takeOver(ctx context.Context) error {
	err := s.db.QueryRowContext(ctx, `UPDATE fence SET token = token + 1, owner = $1 WHERE name = 'gateway' RETURNING token`, self()).Scan(&s.token)
	return classify(err, "take the store over")
}

const selection = `SELECT r.kind, r.id, r.parent, COALESCE(r.uniq, ''), r.body, s.body FROM records r LEFT JOIN sealed s ON s.kind = r.kind AND s.id = r.id WHERE r.kind = $1`

// Get implements Journal.
func (s *Store) Get(ctx context.Context, kind, id string) (Record, error) {
	list, err := s.query(ctx, selection+` AND r.id = $2`, kind, id)
	if err != nil {
		return Record{}, err
	}
	if len(list) == 0 {
		return Record{}, fault.New(fault.NotFound, "there is no %s %q", kind, id)
	}
	return list[0], nil
}

// List implements Journal.
func (s *Store) List(ctx context.Context, q Query) ([]Record, error) {
	text, args := selection, []any{q.Kind}
	arg := func(clause string, v any) {
		args = append(args, v)
		text += fmt.Sprintf(clause, len(args))
	}
	if q.Parent != "" {
		arg(` AND r.parent = $%d`, q.Parent)
	}
	order := `r.id`
	if !s.sqlite {
		order = `r.id COLLATE "C"`
	}
	if q.After != "" {
		arg(` AND `+order+` > $%d`, q.After)
	}
	text += ` ORDER BY ` + order
	if q.Last {
		text += ` DESC`
	}
	if q.Limit > 0 {
		arg(` LIMIT $%d`, q.Limit)
	}
	return s.query(ctx, text, args...)
}

func (s *Store) query(ctx context.Context, text string, args ...any) (_ []Record, err error) {
	rows, err := s.reads.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, classify(err, "read the store")
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []Record
	for rows.Next() {
		var r Record
		if err := rows.Scan(&r.Kind, &r.ID, &r.Parent, &r.Unique, &r.Body, &r.Sealed); err != nil {
			return nil, classify(err, "read the store")
		}
		if r.Sealed != nil {
			if r.Sealed, err = s.keys.open(r.Kind, r.ID, r.Sealed); err != nil {
				return nil, err
			}
		}
		out = append(out, r)
	}
	return out, classify(rows.Err(), "read the store")
}

// Digest implements Journal.
func (s *Store) Digest(value []byte) string { return digest(s.keys.digests, value) }

// Close implements Journal. Commits that were accepted are brought to their end.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closing)
		<-s.done
		err = s.closeAll()
	})
	return err
}

func (s *Store) closeAll() error {
	errs := []error{s.write.close()}
	if s.lock != nil && !s.sqlite {
		errs = append(errs, s.lock.Close()) // before the pool that it is of
	}
	if s.reads != nil && s.reads != s.db {
		errs = append(errs, s.reads.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.lock != nil && s.sqlite {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// isUnique reports whether a write was refused by the index of unique values.
func isUnique(err error) bool {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case errors.As(err, &pg):
		return pg.Code == "23505"
	case errors.As(err, &lite):
		return lite.Code() == 2067 // SQLITE_CONSTRAINT_UNIQUE
	}
	return false
}

// classify says what an error of the database means to a caller. The codes are SQLite's result codes and PostgreSQL's
// SQLSTATE classes.
func classify(err error, doing string) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	var lite *sqlite.Error
	code := fault.Internal
	switch {
	case errors.As(err, &pg):
		switch {
		case strings.HasPrefix(pg.Code, "53"): // insufficient resources: disk full, out of memory, too many connections
			code = fault.ResourceExhausted
		case strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "57"), strings.HasPrefix(pg.Code, "40"), pg.Code == "55P03":
			code = fault.Unavailable
		}
	case errors.As(err, &lite):
		switch lite.Code() & 0xff {
		case 13: // SQLITE_FULL
			code = fault.ResourceExhausted
		case 5, 6, 10: // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR
			code = fault.Unavailable
		}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = fault.CodeOf(err)
	default:
		code = fault.Unavailable // the connection
	}
	return fault.New(code, "%s: %w", doing, err)
}

var _ Journal = (*Store)(nil)

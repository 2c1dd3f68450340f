package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/sandgate/sandgate/shared/fault"
)

// Store is a directory of leases, open. It is safe for concurrent use, also by several processes.
type Store struct {
	lockFile *os.File

	mu    sync.Mutex
	queue []*request // work that nobody has taken on yet

	turn    sync.Mutex // held by whoever works; guards what follows and the done and err of every request
	journal journal
}

// request is one piece of work on the book. What it changes is written down before it is done.
type request struct {
	ctx  context.Context
	work func(*book) error
	err  error
	done bool
}

// Open opens the store in dir, which is made if it is not there. A log that cannot be read as a whole is an error
// that names the line: guessing would give an address away twice.
func Open(ctx context.Context, dir string) (*Store, error) {
	return open(ctx, dir, realDisk())
}

func open(ctx context.Context, dir string, d disk) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open lease store: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lease store: %w", err)
	}
	s := &Store{lockFile: f, journal: journal{dir: dir, disk: d}}
	if err := s.do(ctx, func(*book) error { return nil }); err != nil {
		return nil, fmt.Errorf("open lease store: %w", errors.Join(err, s.Close()))
	}
	return s, nil
}

// Close waits for work in progress and closes the files. What is held stays held.
func (s *Store) Close() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.journal.close()
	return s.lockFile.Close()
}

// Subnet returns the subnet that the workspace owner holds, and takes one when it holds none: want if that is valid,
// else the lowest of the pool that is free. *FullError: there is none. Conflict: want is somebody else's.
func (s *Store) Subnet(ctx context.Context, p *Pool, owner Owner, want netip.Prefix) (Hold, error) {
	var got Hold
	err := s.do(ctx, func(b *book) error {
		if held := b.of(owner.key(), Subnet); len(held) > 0 {
			got = held[0]
			return nil
		}
		if !want.IsValid() {
			var err error
			if want, err = b.freeSubnet(p); err != nil {
				return err
			}
		}
		got = Hold{Kind: Subnet, Prefix: want, Pool: p.Name, Owner: owner}
		return b.take(got)
	})
	return got, err
}

// Address returns the address that the sandbox owner holds, and takes the lowest free one when it holds none: of its
// workspace's subnet, or with fromPool of the pool itself. FailedPrecondition: the workspace has no subnet.
// *FullError: there is none.
func (s *Store) Address(ctx context.Context, p *Pool, owner Owner, fromPool bool) (Hold, error) {
	var got Hold
	err := s.do(ctx, func(b *book) error {
		if held := b.of(owner.key(), Address); len(held) > 0 {
			got = held[0]
			return nil
		}
		var subnet *Hold
		if !fromPool {
			of := b.of(owner.ofWorkspace(), Subnet)
			if len(of) == 0 {
				return fault.New(fault.FailedPrecondition, "workspace %s/%s holds no subnet", owner.Driver, owner.Workspace)
			}
			subnet = &of[0]
		}
		address, err := b.freeAddress(p, subnet)
		if err != nil {
			return err
		}
		got = Hold{Kind: Address, Prefix: address, Pool: p.Name, Owner: owner}
		if subnet != nil {
			got.Pool = subnet.Pool
		}
		return b.take(got)
	})
	return got, err
}

// Release frees everything that the owner holds. Holding nothing is no error.
func (s *Store) Release(ctx context.Context, owner Owner) ([]Hold, error) {
	var freed []Hold
	err := s.do(ctx, func(b *book) error {
		freed = append(b.of(owner.key(), Address), b.of(owner.key(), Subnet)...)
		for _, h := range freed {
			if err := b.free(h); err != nil {
				return err
			}
		}
		return nil
	})
	return freed, err
}

// Repair frees those of the given holds that the owner has, takes those that it lost, and returns what it holds then.
// Either all of that happens or nothing. What is lost comes as ParseID gives it, and belongs to the pool that it
// lies in. Conflict: it is somebody else's by now.
func (s *Store) Repair(ctx context.Context, pools []*Pool, owner Owner, orphans, lost []Hold) ([]Hold, error) {
	var held []Hold
	err := s.do(ctx, func(b *book) error {
		for _, h := range orphans {
			if has, ok := b.holds[h.resource()]; ok && has.key() == owner.key() {
				if err := b.free(has); err != nil {
					return err
				}
			}
		}
		for _, h := range lost {
			if has, ok := b.holds[h.resource()]; ok && has.key() == owner.key() {
				continue
			}
			h.Owner = owner
			if err := b.take(b.place(h, pools)); err != nil {
				return err
			}
		}
		held = append(b.of(owner.key(), Subnet), b.of(owner.key(), Address)...)
		return nil
	})
	return held, err
}

// place says of a hold that was lost from which pool it was, and of an address in which network.
func (b *book) place(h Hold, pools []*Pool) Hold {
	if h.Kind == Address {
		for _, subnet := range b.of(h.ofWorkspace(), Subnet) {
			if overlaps(subnet, h) {
				h.Prefix, h.Pool = netip.PrefixFrom(h.Prefix.Addr(), subnet.Prefix.Bits()), subnet.Pool
				return h
			}
		}
	}
	for _, p := range pools {
		if p.CIDR.Contains(h.Prefix.Addr()) {
			h.Pool = p.Name
			if h.Kind == Address {
				h.Prefix = netip.PrefixFrom(h.Prefix.Addr(), p.CIDR.Bits())
			}
		}
	}
	return h
}

// Holds returns what is held under a driver, by owner. With driver "" it returns everything.
func (s *Store) Holds(ctx context.Context, driver string) ([]Hold, error) {
	var out []Hold
	err := s.do(ctx, func(b *book) error {
		out = b.sorted()
		return nil
	})
	return slices.DeleteFunc(out, func(h Hold) bool { return driver != "" && h.Driver != driver }), err
}

// Check reports whether the store can be read and locked now.
func (s *Store) Check(ctx context.Context) error {
	return s.do(ctx, func(*book) error { return nil })
}

// do has the work done. Whoever gets the turn does all that has queued up meanwhile, with one flush for all of it.
func (s *Store) do(ctx context.Context, work func(*book) error) error {
	r := &request{ctx: ctx, work: work}
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()

	s.turn.Lock()
	defer s.turn.Unlock()
	if r.done {
		return r.err
	}
	if err := lock(ctx, s.lockFile); err != nil {
		s.mu.Lock()
		s.queue = slices.DeleteFunc(s.queue, func(x *request) bool { return x == r })
		s.mu.Unlock()
		return err
	}
	defer unlock(s.lockFile)
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.run(batch)
	return r.err
}

// run does a batch. If its changes cannot be written down, none of its requests is answered: each may have read what
// another one changed.
func (s *Store) run(batch []*request) {
	err := s.journal.catchUp()
	for _, r := range batch {
		r.done = true
		if r.err = err; r.err == nil {
			r.err = r.try(s.journal.book)
		}
	}
	if err != nil {
		s.fail(batch, err)
		return
	}
	if err := s.journal.commit(); err != nil {
		s.fail(batch, err)
	}
}

// try does the work of one request, or nothing of it.
func (r *request) try(b *book) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	before := len(b.changes)
	err := r.work(b)
	if err != nil {
		b.rollback(before)
	}
	return err
}

func (s *Store) fail(batch []*request, err error) {
	code := fault.CodeOf(err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = fault.ResourceExhausted
	case code == fault.Internal:
		code = fault.Unavailable
	}
	for _, r := range batch {
		r.err = &fault.Error{Code: code, Message: err.Error(), Err: err}
	}
}

// Read returns what a log says is held, without the lock and without changing anything. It is for programs that look
// at a store from outside.
func Read(dir string) ([]Hold, error) {
	path := filepath.Join(dir, logName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	p := replay{book: newBook()}
	if err := p.read(data); err != nil {
		return nil, fmt.Errorf("read leases %q: %w", path, err)
	}
	return p.book.sorted(), nil
}

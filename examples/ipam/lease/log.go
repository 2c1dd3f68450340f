package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

const (
	logName  = "leases.jsonl"
	nextName = "leases.jsonl.next"
	lockName = "lock"

	// slack is how many lines a log may have beyond twice what is held, before it is written anew.
	slack = 1024
	// lockPause is how long to wait before asking again for a lock that another process has.
	lockPause = 2 * time.Millisecond
)

// disk is the file operations that may fail halfway. Tests put faults into them.
type disk struct {
	write func(f *os.File, b []byte, at int64) error
	sync  func(f *os.File) error
}

func realDisk() disk {
	return disk{
		write: func(f *os.File, b []byte, at int64) error { _, err := f.WriteAt(b, at); return err },
		sync:  (*os.File).Sync,
	}
}

// journal is the log file and what was read from it. All of its methods need the lock of the directory.
type journal struct {
	dir  string
	disk disk

	file *os.File // nil before the first use, and after a failure: then everything is read anew
	replay
	unsynced bool // lines of others were read, which perhaps nobody has flushed
	suspect  bool // a flush failed: what reads well may not be on the disk, and has to be written anew
	compact  int  // number of lines from which on the log is written anew
}

// catchUp reads what was written since the last time. Afterwards the book says what the file says.
func (j *journal) catchUp() error {
	path := filepath.Join(j.dir, logName)
	now, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && j.file == nil && j.line == 0:
		j.replay = replay{book: newBook()}
		return j.rewrite()
	case err != nil:
		return fmt.Errorf("find leases: %w", err)
	}
	if j.file == nil || !j.current(now) {
		return j.reload(path)
	}
	if now.Size() == j.size {
		return nil
	}
	return j.extend(now.Size())
}

// current reports whether the file that is open is still the one in place.
func (j *journal) current(now fs.FileInfo) bool {
	was, err := j.file.Stat()
	return err == nil && os.SameFile(was, now)
}

// reload reads the log from its beginning.
func (j *journal) reload(path string) error {
	j.close()
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	j.replay = replay{book: newBook()}
	if err := j.read(data); err != nil {
		return fmt.Errorf("read leases %q: %w", path, err)
	}
	if j.suspect || j.size != int64(len(data)) {
		return j.rewrite()
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open leases: %w", err)
	}
	j.file, j.unsynced, j.compact = file, true, j.limit()
	return nil
}

// extend reads what another process has added.
func (j *journal) extend(size int64) error {
	if size < j.size {
		return fault.New(fault.FailedPrecondition, "leases %q became shorter, from %d to %d bytes: something else wrote to it", j.file.Name(), j.size, size)
	}
	data := make([]byte, size-j.size)
	if _, err := j.file.ReadAt(data, j.size); err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	if err := j.read(data); err != nil {
		j.close()
		return fmt.Errorf("read leases %q: %w", filepath.Join(j.dir, logName), err)
	}
	j.unsynced = true
	if j.size != size {
		return j.rewrite()
	}
	return nil
}

// commit makes the book's changes durable, and whatever was read and perhaps is not. After an error the file is
// the truth, not the book: the next catchUp reads it anew, and writes it anew since nobody knows what a failed flush
// left on the disk.
func (j *journal) commit() error {
	if len(j.book.changes) == 0 && !j.unsynced {
		return nil
	}
	var lines bytes.Buffer
	for i, c := range j.book.changes {
		line, err := record{Seq: j.seq + uint64(i) + 1, Op: c.op, Hold: &c.hold}.encode()
		if err != nil {
			return err
		}
		lines.Write(line)
	}
	err := j.disk.write(j.file, lines.Bytes(), j.size)
	if err == nil {
		err = j.disk.sync(j.file)
	}
	if err != nil {
		j.distrust()
		return fmt.Errorf("write leases: %w", err)
	}
	j.seq += uint64(len(j.book.changes))
	j.line += len(j.book.changes)
	j.size += int64(lines.Len())
	j.unsynced, j.book.changes = false, nil
	if j.line > j.compact && j.rewrite() != nil && j.file != nil {
		j.compact = 2 * j.line // no room for a second file now: later
	}
	return nil
}

// rewrite puts a new file in place of the log that says the same with one line for each hold.
func (j *journal) rewrite() error {
	data, seq, err := j.book.snapshot(j.seq)
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, logName)
	next, err := os.OpenFile(filepath.Join(j.dir, nextName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write leases anew: %w", err)
	}
	err = j.disk.write(next, data, 0)
	if err == nil {
		err = j.disk.sync(next)
	}
	if err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write leases anew: %w", errors.Join(err, next.Close(), os.Remove(next.Name())))
	}
	j.close()
	j.file, j.seq, j.size = next, seq, int64(len(data))
	j.line, j.live = 1+len(j.book.holds), 0
	j.compact = j.limit()
	if err := j.syncDir(); err != nil {
		j.distrust()
		return fmt.Errorf("write leases anew: %w", err)
	}
	j.unsynced, j.suspect = false, false
	return nil
}

func (j *journal) limit() int { return 2*len(j.book.holds) + slack }

func (j *journal) syncDir() error {
	d, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	return errors.Join(j.disk.sync(d), d.Close())
}

func (j *journal) distrust() {
	j.close()
	j.suspect = true
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close() // whatever was to be kept was flushed
		j.file = nil
	}
}

// lock takes the directory for this process. It waits for another one that has it until ctx ends.
func lock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %q: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "lock %q: another process has it: %w", f.Name(), ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

func unlock(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) } // fails for a closed file only

package native

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// writeJSON replaces a file, durably.
func writeJSON(path string, v any) error { return replaceJSON(path, v, true) }

// noteJSON replaces a file that means nothing once the host was restarted, and so need not be durable.
func noteJSON(path string, v any) error { return replaceJSON(path, v, false) }

func replaceJSON(path string, v any, durable bool) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(path, raw, 0o600, durable)
}

// replaceFile replaces a file whole: whoever reads it sees the old or the new one. Durable: also after a power cut.
func replaceFile(path string, raw []byte, mode os.FileMode, durable bool) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil && durable {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil || !durable {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeTree removes a directory and all in it, also directories that the sandbox has closed to its own user.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// An error of the walk is one of the removal too, which says it.
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// A sandbox's lock is one of the open file description (fcntl_locking(2)): it passes on to the shim that inherits the
// descriptor, the kernel gives it up with the last process that has it, and it can be asked for without being taken.

// takeLock takes the sandbox's lock for a shim that is about to be started.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, classify(err, "take the sandbox's lock")
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		return nil, errors.Join(fault.New(fault.Unavailable, "the sandbox is held by another shim: %w", err), f.Close())
	}
	return f, nil
}

// locked reports whether somebody holds the lock: a shim is alive, or a first process that has not been told anything.
func locked(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &whole)
	return whole.Type != unix.F_UNLCK, errors.Join(err, f.Close())
}

func randomName() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}

// classify says what an error of the host means to the gateway.
func classify(err error, doing string) error {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, full) {
			return fault.New(fault.ResourceExhausted, "%s: %w", doing, err)
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// keyed is a lock for each key.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has an element while it is held
	users int
}

// try takes the key's lock if nobody has it.
func (k *keyed) try(key string) (unlock func(), ok bool) {
	l, leave := k.join(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, true
	default:
		leave()
		return nil, false
	}
}

// lock waits for the key's lock and returns what gives it up, or fails when ctx ends.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	l, leave := k.join(key)
	if ctx.Err() == nil {
		select {
		case l.held <- struct{}{}:
			return func() { <-l.held; leave() }, nil
		case <-ctx.Done():
		}
	}
	leave()
	return nil, context.Cause(ctx)
}

// join counts the caller among the users of the key's lock, until it leaves.
func (k *keyed) join(key string) (l *keyedLock, leave func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	if l = k.locks[key]; l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	return l, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}

// Package host has what the drivers that run things on this very host have in common: files that are replaced whole, the
// lock that says who lives, processes that are never mistaken for others, links that bear the marks of who made them, and
// the reading of logs that grow.
package host

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// WriteJSON replaces a file, durably.
func WriteJSON(path string, v any) error { return replaceJSON(path, v, true) }

// NoteJSON replaces a file that means nothing once the host was restarted, and so need not be durable.
func NoteJSON(path string, v any) error { return replaceJSON(path, v, false) }

func replaceJSON(path string, v any, durable bool) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return ReplaceFile(path, raw, 0o600, durable)
}

// ReplaceFile replaces a file whole: whoever reads it sees the old or the new one. Durable: also after a power cut.
func ReplaceFile(path string, raw []byte, mode os.FileMode, durable bool) error {
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
	return SyncDir(filepath.Dir(path))
}

// ReadJSON reads what WriteJSON or NoteJSON wrote.
func ReadJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// RemoveTree removes a directory and all in it, also directories that the sandbox has closed to its own user.
func RemoveTree(dir string) error {
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

// A sandbox's lock is one of the open file description (fcntl_locking(2)): it passes on to the process that inherits the
// descriptor, the kernel gives it up with the last process that has it, and it can be asked for without being taken.

// TakeLock takes the sandbox's lock for a process that is about to be started and will have it.
func TakeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, Classify(err, "take the sandbox's lock")
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		return nil, errors.Join(fault.New(fault.Unavailable, "the sandbox is held by another process: %w", err), f.Close())
	}
	return f, nil
}

// Locked reports whether somebody holds the lock.
func Locked(path string) (bool, error) {
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

// Instance reads the name of a driver's data directory, or gives it one.
func Instance(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = make([]byte, 8)
		_, _ = rand.Read(raw) // it never fails
		raw = []byte(hex.EncodeToString(raw))
		err = ReplaceFile(path, raw, 0o644, true)
	}
	return strings.TrimSpace(string(raw)), err
}

// BootID names this run of the host.
func BootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// Classify says what an error of the host means to the gateway.
func Classify(err error, doing string) error {
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

// Package image makes what a machine boots from: its kernel, its initramfs, its root file system and its own disk.
//
// What is made from the same source is made once. It gets its name, which says what it is made from, only when it is
// whole; who finds it under that name may use it. Nothing of a source is ever unpacked onto the host: layers become one
// stream, and that a file system's image. So no name in it, and no symbolic link, reaches a file of the host; it needs
// no privileges; and a device in it is nothing but an entry.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/fault"
)

// Store keeps what was made. It is safe for concurrent use, by several processes too: what is being made is locked.
type Store struct {
	dir string

	mu     sync.Mutex
	making map[string]*making
}

// making is something that is being made, for those who wait for it.
type making struct {
	done chan struct{}
	err  error
}

// Open opens the store in a directory, which it makes. What an earlier process had not finished is removed.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unfinished, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	for _, path := range unfinished {
		if f, bad := os.Open(path); bad == nil { // or it is finished, or gone
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				err = errors.Join(err, os.Remove(path))
			}
			_ = f.Close()
		}
	}
	return &Store{dir: dir, making: map[string]*making{}}, err
}

// once returns the path of what is called that, which the first who asks for it makes.
func (s *Store) once(ctx context.Context, name string, make func(ctx context.Context, out *os.File) error) (string, error) {
	path := filepath.Join(s.dir, name)
	for {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		s.mu.Lock()
		m := s.making[name]
		mine := m == nil
		if mine {
			m = &making{done: newDone()}
			s.making[name] = m
		}
		s.mu.Unlock()
		if mine {
			m.err = s.make(ctx, path, make)
			s.mu.Lock()
			delete(s.making, name)
			s.mu.Unlock()
			close(m.done)
			return path, m.err
		}
		select {
		case <-m.done: // what one who went away did not finish is tried again
			if m.err != nil && !errors.Is(m.err, context.Canceled) && !errors.Is(m.err, context.DeadlineExceeded) {
				return "", m.err
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func newDone() chan struct{} { return make(chan struct{}) }

// make makes a file beside its place, and puts it there.
func (s *Store) make(ctx context.Context, path string, fill func(context.Context, *os.File) error) (err error) {
	out, err := os.CreateTemp(s.dir, ".new-")
	if err != nil {
		return full(err)
	}
	defer func() {
		_ = out.Close()
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	if err := unix.Flock(int(out.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if err := fill(ctx, out); err != nil {
		return full(err)
	}
	return place(out, path)
}

// place puts a file that is whole in its place, durably.
func place(out *os.File, path string) error {
	err := out.Sync()
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err == nil {
		err = host.SyncDir(filepath.Dir(path))
	}
	return full(err)
}

// full gives an error for want of space its code.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.ResourceExhausted, "there is no space left for the disks of machines: %w", err)
	}
	return err
}

// Disk makes a disk with an empty file system, of a size in bytes, unless it is there already.
func Disk(ctx context.Context, path string, size int64) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if size < 8<<20 {
		return fault.New(fault.Invalid, "a disk of %d bytes is too small: 8 MiB at least", size)
	}
	out, err := os.CreateTemp(filepath.Dir(path), ".disk-")
	if err != nil {
		return full(err)
	}
	defer func() {
		_ = out.Close()
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	if err := out.Truncate(size); err != nil {
		return full(err)
	}
	// With a journal: a machine may end at any moment. What is written of it at first is a few hundred KiB, whatever its size.
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", out.Name()); err != nil {
		return err
	}
	return place(out, path)
}

// run runs a tool that has nothing to say if all is well.
func run(ctx context.Context, name string, args ...string) error {
	path, err := tool(name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = toolEnvironment
	said, err := cmd.CombinedOutput()
	return judge(ctx, name, err, said)
}

var toolEnvironment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// judge says what the end of a tool means.
func judge(ctx context.Context, name string, err error, said []byte) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case strings.Contains(string(said), "No space left"):
		return fault.New(fault.ResourceExhausted, "there is no space left for the disks of machines: %s", clip(said))
	}
	return fmt.Errorf("%s: %w: %s", name, err, clip(said))
}

func clip(said []byte) string { return strings.ToValidUTF8(string(said[max(0, len(said)-1000):]), "?") }

// tool finds a program where Debian has it, also for a user whose PATH has no sbin.
func tool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.FailedPrecondition, "%s is not installed: it is in the package %s", name, map[string]string{
		"mkfs.ext4": "e2fsprogs", "sqfstar": "squashfs-tools"}[name])
}

package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Watch implements driver.Driver. What happens to a sandbox shows in its directory: files of the shim appear, and the
// kernel closes the lock of one that died.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch sandboxes: %w", err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = in.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	w := &watcher{ctx: ctx, d: d, fd: fd, fn: fn, dirs: map[int32]string{}, seen: map[string]*driver.Status{}}
	if _, err := unix.InotifyAddWatch(fd, d.sandboxes(), unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_CREATE|unix.IN_DELETE); err != nil {
		return fmt.Errorf("watch sandboxes: %w", err)
	}
	if err := w.all(); err != nil {
		return err
	}
	if err := fn(driver.Event{Synced: true}); err != nil {
		return err
	}
	return w.follow(ctx, in)
}

type watcher struct {
	ctx  context.Context
	d    *Driver
	fd   int
	fn   func(driver.Event) error
	dirs map[int32]string // watch -> sandbox id
	seen map[string]*driver.Status
}

// all looks at every sandbox.
func (w *watcher) all() error {
	entries, err := os.ReadDir(w.d.sandboxes())
	if err != nil {
		return fmt.Errorf("watch sandboxes: %w", err)
	}
	for _, e := range entries {
		if err := w.look(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// look tells what changed about one sandbox.
func (w *watcher) look(id string) error {
	if sandbox.CheckID("id", id) != nil {
		return nil // being made or removed
	}
	wd, err := unix.InotifyAddWatch(w.fd, w.d.dir(id), unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR)
	switch {
	case err == nil:
		w.dirs[int32(wd)] = id
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
		return host.Classify(fmt.Errorf("%w; the host's limit is fs.inotify.max_user_watches", err), "watch sandbox "+id)
	}
	m, st, err := w.d.look(id)
	old := w.seen[id]
	switch {
	case fault.Is(err, fault.NotFound) && m != nil:
		return nil // it is being removed: told once nobody can see any of it, and asking the driver confirms it
	case fault.Is(err, fault.NotFound) && old != nil:
		delete(w.seen, id)
		return w.fn(driver.Event{Deleted: old.Identity})
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	}
	if err := w.await(m); err != nil {
		return err
	}
	if reflect.DeepEqual(old, st) {
		return nil
	}
	w.seen[id] = st
	return w.fn(driver.Event{Status: st})
}

// await arranges for another look at a sandbox whose shim was killed and that has not ended yet. Its lock is free
// already, so nothing more would show in its directory.
func (w *watcher) await(m *meta) error {
	if held, err := host.Locked(w.d.file(m.Identity.ID, lockFile)); held || err != nil {
		return err
	}
	h, err := w.d.orphan(m)
	if h == nil || err != nil {
		return err
	}
	go func() {
		defer func() { _ = h.Close() }()
		if h.Wait(w.ctx) == nil {
			if f, err := os.OpenFile(w.d.file(m.Identity.ID, metaFile), os.O_WRONLY, 0); err == nil { // closing it is an event
				_ = f.Close()
			}
		}
	}()
	return nil
}

func (w *watcher) follow(ctx context.Context, in *os.File) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("watch sandboxes: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
			size := binary.NativeEndian.Uint32(b[12:])
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			b = b[unix.SizeofInotifyEvent+size:]
			if err := w.event(wd, mask, name); err != nil {
				return err
			}
		}
	}
}

func (w *watcher) event(wd int32, mask uint32, name string) error {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		return fault.New(fault.Unavailable, "events were lost")
	}
	if id, ok := w.dirs[wd]; ok {
		if mask&unix.IN_IGNORED != 0 {
			delete(w.dirs, wd)
		}
		return w.look(id)
	}
	return w.look(name)
}

package vm

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

// maxLog is how long a log grows before it becomes the older one, and the one before that is let go.
const maxLog = 8 << 20

// Watch implements driver.Driver. What happens to a sandbox shows in its directory: its files are replaced, its guest's
// report grows, and for a QEMU that ends a file is touched.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch sandboxes: %w", err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = in.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	w := &watcher{ctx: ctx, d: d, fd: fd, fn: fn, watched: map[int32]place{}, seen: map[string]*driver.Status{}, awaited: map[string]host.Process{}}
	if _, err := unix.InotifyAddWatch(fd, d.sandboxes(), unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_CREATE|unix.IN_DELETE); err != nil {
		return fmt.Errorf("watch sandboxes: %w", err)
	}
	if err := w.all(); err != nil {
		return err
	}
	if err := fn(driver.Event{Synced: true}); err != nil {
		return err
	}
	return w.follow(in)
}

// place is what an inotify watch is about.
type place struct{ id, file string }

type watcher struct {
	ctx     context.Context
	d       *Driver
	fd      int
	fn      func(driver.Event) error
	watched map[int32]place
	seen    map[string]*driver.Status
	awaited map[string]host.Process // the QEMU whose end is waited for, by sandbox
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

// add watches a directory or a file of a sandbox, if it is there.
func (w *watcher) add(p place, mask uint32) error {
	wd, err := unix.InotifyAddWatch(w.fd, w.d.file(p.id, p.file), mask)
	switch {
	case err == nil:
		w.watched[int32(wd)] = p
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
		return host.Classify(fmt.Errorf("%w; the host's limit is fs.inotify.max_user_watches", err), "watch sandbox "+p.id)
	}
	return nil
}

// look tells what changed about one sandbox.
func (w *watcher) look(id string) error {
	if sandbox.CheckID("id", id) != nil {
		return nil // being made or removed
	}
	if err := w.add(place{id: id}, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err != nil {
		return err
	}
	m, err := w.d.load(id)
	if err == nil {
		if err := w.await(m); err != nil { // before it is judged: what comes after shows again
			return err
		}
	}
	var st *driver.Status
	if err == nil {
		st, err = w.d.status(m)
	}
	old := w.seen[id]
	switch {
	case fault.Is(err, fault.NotFound) && old != nil:
		delete(w.seen, id)
		return w.fn(driver.Event{Deleted: old.Identity})
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case reflect.DeepEqual(old, st):
		return nil
	}
	w.seen[id] = st
	return w.fn(driver.Event{Status: st})
}

// await sees to it that the sandbox is looked at again when its guest reports something, writes much, or QEMU ends.
func (w *watcher) await(m *meta) error {
	b, ok := w.d.begunOf(m)
	if !ok || w.awaited[m.Identity.ID] == b.Process {
		return nil
	}
	h, err := w.d.hold(m)
	if h == nil || err != nil {
		return err
	}
	for _, file := range []string{eventsFile(m.Run), host.LogFile, consoleFile} {
		if err := w.add(place{m.Identity.ID, file}, unix.IN_MODIFY); err != nil {
			return errors.Join(err, h.Close())
		}
	}
	w.awaited[m.Identity.ID] = b.Process
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

func (w *watcher) follow(in *os.File) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
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
	p, ok := w.watched[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.watched, wd)
	}
	switch {
	case !ok:
		return w.look(name)
	case p.file == host.LogFile || p.file == consoleFile:
		if mask&unix.IN_MODIFY != 0 {
			w.d.turn(w.ctx, p.id, p.file)
		}
		return nil
	}
	return w.look(p.id)
}

// turn begins a log anew that has grown long: QEMU is told to go on in a new file. A guest that writes without end has
// its share of the disk and no more, for as long as somebody watches.
func (d *Driver) turn(ctx context.Context, id, name string) {
	if info, err := os.Stat(d.file(id, name)); err != nil || info.Size() < maxLog {
		return
	}
	unlock, ok := d.ones.Try(id)
	if !ok {
		return // there is a next time
	}
	defer unlock()
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := openMonitor(limited, d.dir(id))
	if err != nil {
		return
	}
	defer mon.close()
	if err := os.Rename(d.file(id, name), d.file(id, name+".1")); err != nil {
		return
	}
	to := map[string]any{"id": name, "backend": map[string]any{"type": "file", "data": map[string]any{"out": name, "append": true}}}
	if err := mon.execute(limited, "chardev-change", to, nil); err != nil {
		d.cfg.Logger.Warn("a log could not be begun anew", "sandbox", id, "log", name, "error", err)
	}
}

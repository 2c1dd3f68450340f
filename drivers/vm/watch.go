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
		delete(w.awaited, id)
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
	id := m.Identity.ID
	b, ok := w.d.begunOf(m)
	if !ok {
		return nil
	}
	h, err := w.d.hold(m)
	if h == nil || err != nil {
		return err
	}
	for _, file := range []string{eventsFile(m.Run), host.LogFile, consoleFile} { // again each time: a log may be another file by now
		if err := w.add(place{id, file}, unix.IN_MODIFY); err != nil {
			return errors.Join(err, h.Close())
		}
	}
	if w.awaited[id] == b.Process {
		return h.Close()
	}
	w.awaited[id] = b.Process
	w.bound(id, host.LogFile) // while nobody watched
	w.bound(id, consoleFile)
	go func() {
		defer func() { _ = h.Close() }()
		if h.Wait(w.ctx) == nil {
			w.d.touch(id)
		}
	}()
	return nil
}

// touch has whoever watches look at a sandbox again.
func (d *Driver) touch(id string) {
	if f, err := os.OpenFile(d.file(id, metaFile), os.O_WRONLY, 0); err == nil { // closing it is an event
		_ = f.Close()
	}
}

// bound sees to it that a file into which a guest writes does not grow without end. That may take a while, and the other
// sandboxes do not wait for it.
func (w *watcher) bound(id, name string) {
	info, err := os.Stat(w.d.file(id, name))
	lost := errors.Is(err, os.ErrNotExist) // a gateway was killed while it began the log anew
	if log := name == host.LogFile || name == consoleFile; log && !lost && (err != nil || info.Size() < maxLog) || !log && (err != nil || info.Size() <= maxEvents) {
		return
	}
	go func() {
		unlock, ok := w.d.ones.Try(id)
		if !ok {
			return // there is a next time
		}
		defer unlock()
		if err := w.d.turn(w.ctx, id, name, lost); err != nil && w.ctx.Err() == nil {
			w.d.cfg.Logger.Warn("what a guest writes could not be bounded", "sandbox", id, "file", name, "error", err)
		}
		w.d.touch(id)
	}()
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
	case p.file == "":
	case mask&unix.IN_MODIFY == 0:
		return nil
	default:
		w.bound(p.id, p.file)
		if p.file == host.LogFile || p.file == consoleFile {
			return nil
		}
	}
	return w.look(p.id)
}

// turn has QEMU go on in a new file, where a log has grown long; a report that is longer than one can be goes nowhere.
func (d *Driver) turn(ctx context.Context, id, name string, lost bool) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := openMonitor(limited, d.dir(id))
	if err != nil {
		return err
	}
	defer mon.close()
	change := func(device string, backend map[string]any) error {
		return mon.execute(limited, "chardev-change", map[string]any{"id": device, "backend": backend}, nil)
	}
	if name != host.LogFile && name != consoleFile {
		return errors.Join(change("events", map[string]any{"type": "null", "data": map[string]any{}}), os.Truncate(d.file(id, name), maxEvents))
	}
	old := d.file(id, name+".1")
	if !lost {
		if err := os.Rename(d.file(id, name), old); err != nil {
			return err
		}
	}
	err = change(name, map[string]any{"type": "file", "data": map[string]any{"out": name, "append": true}})
	if err != nil {
		return errors.Join(err, os.Rename(old, d.file(id, name))) // QEMU goes on there
	}
	return nil
}

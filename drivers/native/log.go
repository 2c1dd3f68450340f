package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// maxLog is how long a sandbox's log grows before it becomes the older one, and the one before that is let go.
const maxLog = 8 << 20

func openLog(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// keepLog writes what a sandbox says into its log until all that could say more have ended. What cannot be written,
// to a full disk say, is let go: a sandbox never waits for its log.
func keepLog(dir string, in io.ReadCloser, limit int64) {
	w := &boundedLog{dir: dir, limit: limit}
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			w.write(buf[:n])
		}
		if err != nil {
			_ = errors.Join(w.close(), in.Close())
			return
		}
	}
}

// boundedLog is the log as the shim writes it: two files that together hold at most twice the limit.
type boundedLog struct {
	dir   string
	limit int64
	f     *os.File // nil: to be opened
	size  int64
}

func (w *boundedLog) write(b []byte) {
	w.open()
	if w.size > 0 && w.size+int64(len(b)) > w.limit {
		_ = w.close()
		_ = os.Rename(filepath.Join(w.dir, logFile), filepath.Join(w.dir, oldLog))
		w.open()
	}
	if w.f != nil {
		n, _ := w.f.Write(b)
		w.size += int64(n)
	}
}

func (w *boundedLog) open() {
	if w.f != nil {
		return
	}
	f, err := openLog(w.dir)
	if err != nil {
		return
	}
	if info, err := f.Stat(); err == nil {
		w.f, w.size = f, info.Size()
	}
}

func (w *boundedLog) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f, w.size = nil, 0
	return f.Close()
}

// Logs implements driver.Driver.
func (d *Driver) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	if _, err := d.load(id.ID); err != nil {
		return err
	}
	r := &logReader{dir: d.dir(id.ID)}
	defer r.close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Asked before the copy: what was written before the end is copied.
		st, err := d.Get(ctx, id)
		running := err == nil && (st.State == driver.Ready || st.State == driver.Provisioning)
		if err := r.copy(out); err != nil {
			return err
		}
		if fault.Is(err, fault.NotFound) || !follow || !running {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// logReader reads a log that grows, and its successor when it has become the older one.
type logReader struct {
	dir string
	cur *os.File
}

func (r *logReader) close() {
	if r.cur != nil {
		_ = r.cur.Close()
	}
}

// copy copies what was written since the last time.
func (r *logReader) copy(out io.Writer) error {
	cur, err := os.Open(filepath.Join(r.dir, logFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open the log: %w", err)
	}
	if r.cur != nil {
		if _, err := io.Copy(out, r.cur); err != nil {
			return err
		}
	}
	if cur == nil {
		return nil
	}
	if r.cur != nil && same(cur, r.cur) {
		return cur.Close()
	}
	defer func() { r.close(); r.cur = cur }()
	old, err := os.Open(filepath.Join(r.dir, oldLog))
	if err == nil {
		defer func() { _ = old.Close() }()
		if !same(old, cur) && (r.cur == nil || !same(old, r.cur)) {
			if _, err := io.Copy(out, old); err != nil {
				return err
			}
		}
	}
	_, err = io.Copy(out, cur)
	return err
}

func same(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

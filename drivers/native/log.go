package native

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// maxLog is how long a sandbox's log grows before it becomes the older one, and the one before that is let go.
const maxLog = 8 << 20

func openLog(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, host.LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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
		_ = os.Rename(filepath.Join(w.dir, host.LogFile), filepath.Join(w.dir, host.OldLog))
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
	return host.CopyLog(ctx, d.dir(id.ID), follow, func() bool {
		st, err := d.Get(ctx, id)
		return err == nil && (st.State == driver.Ready || st.State == driver.Provisioning)
	}, out)
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The two files of a log: what was written last, and before that. What was written earlier still is let go.
const (
	LogFile = "log"
	OldLog  = "log.1"
)

// CopyLog copies the log in a directory to out, and with follow what is written into it for as long as running says so.
func CopyLog(ctx context.Context, dir string, follow bool, running func() bool, out io.Writer) error {
	r := &LogReader{Dir: dir}
	defer r.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		going := running() // asked before the copy: what was written before the end is copied
		if err := r.Copy(out); err != nil {
			return err
		}
		if !follow || !going {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// LogReader reads a log that grows, and its successor when it has become the older one.
type LogReader struct {
	Dir string
	cur *os.File
}

// Close closes what it reads.
func (r *LogReader) Close() {
	if r.cur != nil {
		_ = r.cur.Close()
	}
}

// Copy copies what was written since the last time.
func (r *LogReader) Copy(out io.Writer) error {
	cur, err := os.Open(filepath.Join(r.Dir, LogFile))
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
	defer func() { r.Close(); r.cur = cur }()
	old, err := os.Open(filepath.Join(r.Dir, OldLog))
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

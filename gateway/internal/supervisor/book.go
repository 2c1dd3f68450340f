package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandgate/sandgate/shared/fault"
)

// Bounds on what is kept in memory of the output of one extension.
const (
	bookLines = 2000
	bookBytes = 512 << 10
	bookLine  = 4 << 10 // bytes of a message, and of an attribute
)

// Line is one line that an extension printed, as it was understood.
type Line struct {
	Time       time.Time
	Level      slog.Level
	Message    string
	Attributes []string // "key=value", in the order of the log
	Stream     string   // stderr or stdout
	PID        int      // of the process that printed it
}

func (l *Line) size() int {
	n := len(l.Message) + 64
	for _, a := range l.Attributes {
		n += len(a)
	}
	return n
}

// book keeps the last lines of one extension, over all its processes and configurations. What is old goes when there
// is too much: who reads too slowly is told how many lines have passed by. Safe for concurrent use.
type book struct {
	mu    sync.Mutex
	lines []Line
	first int // the number of lines[0]
	bytes int
	more  chan struct{} // closed and replaced when a line comes
}

func newBook() *book { return &book{more: make(chan struct{})} }

func (b *book) add(l Line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, l)
	b.bytes += l.size()
	for len(b.lines) > bookLines || b.bytes > bookBytes {
		b.bytes -= b.lines[0].size()
		b.lines[0] = Line{}
		b.lines = b.lines[1:]
		b.first++
	}
	close(b.more)
	b.more = make(chan struct{})
}

// since returns the lines from a number on, how many before them are lost, the number that follows, and what is closed
// when there are more.
func (b *book) since(from int) (lines []Line, lost, next int, more <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if from < b.first {
		lost, from = b.first-from, b.first
	}
	return slices.Clone(b.lines[from-b.first:]), lost, b.first + len(b.lines), b.more
}

// record makes a line of what a process printed.
func (rec *record) entry(now time.Time, stream string, pid int) Line {
	l := Line{Time: now, Level: rec.level, Message: shorten(rec.message), Stream: stream, PID: pid}
	for _, a := range rec.attrs {
		l.Attributes = append(l.Attributes, shorten(a.String()))
	}
	return l
}

func shorten(s string) string {
	if len(s) <= bookLine {
		return s
	}
	return strings.ToValidUTF8(s[:bookLine], "") + "…"
}

// book returns that of an extension's name.
func (s *Supervisor) book(name string) *book {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.books[name] == nil {
		s.books[name] = newBook()
	}
	return s.books[name]
}

// Logs hands what an extension printed to each, the oldest first: what is kept, and with follow also what comes, until
// ctx ends or each fails. It does not hold up the extension.
func (s *Supervisor) Logs(ctx context.Context, name string, follow bool, each func([]Line) error) error {
	s.mu.Lock()
	b := s.books[name]
	s.mu.Unlock()
	if b == nil {
		return fault.New(fault.NotFound, "there is no extension %q that printed anything", name)
	}
	from := 0
	if _, lost, _, _ := b.since(0); lost > 0 {
		from = lost // what was before anybody looked is not missed
	}
	for {
		lines, lost, next, more := b.since(from)
		if lost > 0 {
			lines = slices.Insert(lines, 0, Line{Time: s.cfg.Now(), Level: slog.LevelWarn, Message: fmt.Sprintf("%d lines came faster than they were read, and are lost", lost)})
		}
		if len(lines) > 0 {
			if err := each(lines); err != nil {
				return err
			}
		}
		if from = next; !follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

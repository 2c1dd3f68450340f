package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds on what a process may make us keep and write.
const (
	maxLine   = 64 << 10 // bytes of one line; the rest of it is dropped
	keptLines = 50       // last lines of standard error, for the report of an exit
	keptLine  = 1 << 10  // bytes of such a line
	maxPrefix = 256      // bytes at the start of a plain line in which its level is looked for
	maxAttrs  = 32       // attributes of one structured line
	lineRate  = 200      // lines a second that reach the log, once the burst is used up
	lineBurst = 1000
)

// output takes what a process prints: it keeps the last lines and puts lines into the log, at a bounded rate and
// with the level that they carry, and into the extension's book. It never blocks the process for longer than the log takes. Safe for concurrent use.
type output struct {
	log  *slog.Logger
	book *book
	now  func() time.Time
	pid  atomic.Int64 // of the process, once there is one

	mu      sync.Mutex
	ring    []string
	next    int
	tokens  float64
	filled  time.Time
	dropped int
	crash   bool // inside the report of a crash: plain lines are errors
}

func newOutput(log *slog.Logger, book *book, now func() time.Time) *output {
	return &output{log: log, book: book, now: now, tokens: lineBurst, filled: now()}
}

// read passes lines on until r ends.
func (o *output) read(r io.Reader, stream string) {
	_ = eachLine(r, func(line string) { o.line(line, stream) })
	o.flush()
}

// line takes one line.
func (o *output) line(line, stream string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if stream != "stdout" {
		o.keep(line)
	}
	if !o.allow() {
		o.dropped++
		return
	}
	o.reportDropped()
	rec := parseLine(line)
	switch {
	case rec.structured:
		o.crash = false
	case rec.crash:
		o.crash = true
	}
	if o.crash && !rec.structured {
		rec.level = slog.LevelError
	}
	o.book.add(rec.entry(o.now(), stream, int(o.pid.Load())))
	ctx := context.Background()
	if !o.log.Enabled(ctx, rec.level) {
		return
	}
	attrs := rec.attrs
	if stream != "stderr" {
		attrs = append(attrs, slog.String("stream", stream))
	}
	o.log.LogAttrs(ctx, rec.level, rec.message, attrs...)
}

// flush reports what was dropped since the last line that was not.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reportDropped()
}

// last returns the last lines of standard error, oldest first.
func (o *output) last() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Concat(o.ring[o.next:], o.ring[:o.next])
}

func (o *output) keep(line string) {
	if len(line) > keptLine {
		line = line[:keptLine] + "…"
	}
	line = strings.ToValidUTF8(line, "�")
	if len(o.ring) < keptLines {
		o.ring = append(o.ring, line)
		return
	}
	o.ring[o.next] = line
	o.next = (o.next + 1) % keptLines
}

func (o *output) allow() bool {
	now := o.now()
	if d := now.Sub(o.filled); d > 0 {
		o.tokens = min(lineBurst, o.tokens+d.Seconds()*lineRate)
		o.filled = now
	}
	if o.tokens < 1 {
		return false
	}
	o.tokens--
	return true
}

func (o *output) reportDropped() {
	if o.dropped > 0 {
		o.log.Warn("dropped lines of the extension's output: it prints too much", "lines", o.dropped)
		o.book.add(Line{Time: o.now(), Level: slog.LevelWarn, Message: fmt.Sprintf("dropped %d lines: it prints too much", o.dropped), PID: int(o.pid.Load())})
		o.dropped = 0
	}
}

// eachLine calls f with every line, without its end and cut to maxLine, and returns what ended the reading.
func eachLine(r io.Reader, f func(string)) error {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, more, err := br.ReadLine()
		if err != nil {
			return err
		}
		text := string(line)
		for more { // the rest of a line that is too long
			if _, more, err = br.ReadLine(); err != nil {
				break
			}
		}
		f(text)
	}
}

// lineWriter makes lines of what is written to it, for the streams that go-plugin carries over gRPC.
type lineWriter struct {
	out    *output
	stream string
	buf    []byte
}

// Write never fails: what is printed can be lost, the stream must not stop.
func (w *lineWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == '\n':
			w.out.line(strings.TrimSuffix(string(w.buf), "\r"), w.stream)
			w.buf = w.buf[:0]
		case len(w.buf) < maxLine:
			w.buf = append(w.buf, c)
		}
	}
	return len(p), nil
}

// record is what a line says.
type record struct {
	level      slog.Level
	message    string
	attrs      []slog.Attr
	structured bool
	crash      bool
}

var (
	klogForm   = regexp.MustCompile(`^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([^ \]]+:\d+)\] (.*)$`)
	prefixForm = regexp.MustCompile(`(?i)^(?:\S+ \S+ )?\[?(trace|debug|info|warn|warning|error|fatal)(?:\]:?|:) *`)
	crashForm  = regexp.MustCompile(`^(panic: |fatal error: |Traceback \(most recent call last\)|thread '.*' panicked at|SIG[A-Z]+: )`)
)

var levels = map[string]slog.Level{
	"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo, "notice": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError, "err": slog.LevelError,
	"critical": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError, "dpanic": slog.LevelError,
}

// parseLine recognises JSON of hclog, slog, zap and logrus, klog's form, and plain text, perhaps with a level.
func parseLine(line string) record {
	line = strings.ToValidUTF8(line, "�")
	if strings.HasPrefix(line, "{") {
		if rec, ok := parseJSON(line); ok {
			return rec
		}
	}
	if m := klogForm.FindStringSubmatch(line); m != nil {
		level := map[string]slog.Level{"I": slog.LevelInfo, "W": slog.LevelWarn, "E": slog.LevelError, "F": slog.LevelError}[m[1]]
		return record{level: level, message: m[3], attrs: []slog.Attr{slog.String("source", m[2])}, structured: true}
	}
	if crashForm.MatchString(line) {
		return record{level: slog.LevelError, message: line, crash: true}
	}
	head := line[:min(len(line), maxPrefix)]
	if m := prefixForm.FindStringSubmatchIndex(head); m != nil {
		return record{level: levels[strings.ToLower(head[m[2]:m[3]])], message: line[m[1]:]}
	}
	return record{level: slog.LevelInfo, message: line}
}

func parseJSON(line string) (record, bool) {
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil {
		return record{}, false
	}
	take := func(names ...string) string {
		for _, name := range names {
			if s, ok := fields[name].(string); ok {
				delete(fields, name)
				return s
			}
		}
		return ""
	}
	message := take("@message", "msg", "message")
	word := take("@level", "level", "severity", "lvl")
	level, known := levelOf(word)
	if message == "" && !known {
		return record{}, false // JSON, but not a log line
	}
	take("@timestamp", "time", "ts", "timestamp")
	delete(fields, "ts") // zap's is a number
	rec := record{level: level, message: message, structured: true}
	if module := take("@module"); module != "" {
		rec.attrs = append(rec.attrs, slog.String("module", module))
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names[:min(len(names), maxAttrs)] {
		rec.attrs = append(rec.attrs, slog.Any(name, fields[name]))
	}
	return rec, true
}

// levelOf reads a level's word, slog's "INFO+2" among them. An unknown one counts as information.
func levelOf(word string) (slog.Level, bool) {
	word = strings.ToLower(word)
	if level, ok := levels[word]; ok {
		return level, true
	}
	var level slog.Level
	if word != "" && level.UnmarshalText([]byte(word)) == nil {
		return level, true
	}
	return slog.LevelInfo, false
}

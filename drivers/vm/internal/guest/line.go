package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxLine is the longest line of an event or an order, in bytes. A reader gives up a longer one.
const MaxLine = 16 << 10

// maxMessage is how much of a message is kept.
const maxMessage = 4 << 10

// Happening is what an event says has happened.
type Happening string

// What happens to a machine, in this order. Each at most once in a run; after Exit and Failed it turns itself off.
const (
	Init   Happening = "init"   // its first process has begun
	Ready  Happening = "ready"  // its command was executed
	Exit   Happening = "exit"   // its command has ended, with Code
	Failed Happening = "failed" // it could not come so far, for Reason
)

// The reasons of Failed.
const (
	ConfigInvalid = "ConfigInvalid"
	RootFailed    = "RootFailed"
	NetworkFailed = "NetworkFailed"
	DropInFailed  = "DropInFailed"
	CommandFailed = "CommandFailed"
)

// Event is a line from a machine.
type Event struct {
	Type    Happening `json:"type"`
	Run     int       `json:"run,omitempty"` // of its configuration; 0: it could not read that
	Uptime  int64     `json:"uptime_ms"`     // since its kernel began, in milliseconds
	Code    int       `json:"code"`          // of Exit; 128+n for signal n
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
}

// ParseEvent reads a line from a machine.
func ParseEvent(line []byte) (Event, error) {
	var e Event
	if err := parse(line, &e); err != nil {
		return Event{}, err
	}
	switch e.Type {
	case Init, Ready, Exit, Failed:
	default:
		return Event{}, fmt.Errorf("the event %q is not known", e.Type)
	}
	if e.Code < 0 || e.Code > 255 || e.Run < 0 || e.Uptime < 0 {
		return Event{}, fmt.Errorf("the event has a number that cannot be")
	}
	e.Reason, e.Message = text(e.Reason, 64), text(e.Message, maxMessage)
	return e, nil
}

// text makes what a machine says fit for people: no control characters, and not too long.
func text(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// Order is a line to a machine.
type Order struct {
	Stop *Stop `json:"stop"` // the only one there is
}

// Stop ends the command, and with it the machine.
type Stop struct {
	Grace int64 `json:"grace_ms"` // how long the command has between SIGTERM and SIGKILL, in milliseconds
}

// ParseOrder reads a line to a machine.
func ParseOrder(line []byte) (Order, error) {
	var o Order
	if err := parse(line, &o); err != nil {
		return Order{}, err
	}
	if o.Stop == nil || o.Stop.Grace < 0 {
		return Order{}, fmt.Errorf("the order is not known")
	}
	return o, nil
}

func parse(line []byte, into any) error {
	if len(line) > MaxLine {
		return fmt.Errorf("the line is longer than %d bytes", MaxLine)
	}
	return json.Unmarshal(line, into)
}

// Line returns an event or an order as it is written.
func Line(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // neither has what JSON cannot say
	}
	return append(raw, '\n')
}

// Lines cuts a stream into lines. What is left of one that is longer than MaxLine is thrown away.
type Lines struct {
	rest []byte
	skip bool
}

// Add takes a piece of the stream, and calls fn for each line that is complete with it, without its end.
func (l *Lines) Add(piece []byte, fn func(line []byte)) {
	for {
		line, more, found := bytes.Cut(piece, []byte{'\n'})
		if !l.skip {
			l.rest = append(l.rest, line...)
		}
		if len(l.rest) > MaxLine {
			l.rest, l.skip = nil, true
		}
		if !found {
			return
		}
		if !l.skip && len(l.rest) > 0 {
			fn(l.rest)
		}
		l.rest, l.skip = l.rest[:0:0], false
		piece = more
	}
}

// Package fault is the error vocabulary that both sides of every boundary share.
//
// A fault has a code, which callers act on, and a message, which people read. Codes follow the meaning of the
// gRPC status codes of the same name, and status.go is the only place that translates between the two.
// Wrap with fmt.Errorf and %w as usual: Code finds the fault inside.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Code says what kind of failure an error is. The zero value is no failure.
type Code int

// The codes. Whoever returns one promises what its comment says.
const (
	OK                 Code = iota
	Invalid                 // the request can never succeed as written; the caller has to change it
	NotFound                // the thing named does not exist
	AlreadyExists           // a thing of that name or id exists and is somebody else's
	Conflict                // two parties claim one field, or the object changed meanwhile
	Denied                  // a policy or an extension decided against it
	FailedPrecondition      // the thing exists, in a state in which this cannot be done
	ResourceExhausted       // a pool, a quota or a disk is full
	Unavailable             // the other side cannot be reached now; the same call may succeed later
	DeadlineExceeded        // it did not answer in time; whether it took effect is unknown
	Canceled                // the caller gave up; whether it took effect is unknown
	Unimplemented           // the other side does not offer this
	Unauthenticated         // the caller did not prove who it is
	Internal                // a fault in the program that answered
)

var names = [...]string{"ok", "invalid", "not_found", "already_exists", "conflict", "denied", "failed_precondition",
	"resource_exhausted", "unavailable", "deadline_exceeded", "canceled", "unimplemented", "unauthenticated", "internal"}

// String returns the code's name as it is journaled and printed, for example "not_found".
func (c Code) String() string {
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("code(%d)", int(c))
	}
	return names[c]
}

// ParseCode is the inverse of String. An unknown name is Internal.
func ParseCode(name string) Code {
	for i, n := range names {
		if n == name {
			return Code(i)
		}
	}
	return Internal
}

// Diagnostic is one thing that is wrong, said to the person who can change it.
type Diagnostic struct {
	Summary string `json:"summary"`          // one line: what is wrong
	Detail  string `json:"detail,omitempty"` // what was expected and what to do, perhaps several lines
	Path    string `json:"path,omitempty"`   // the field it is about, dotted, for example "environment.HOME"
}

// Error is a failure with a code. Message is complete without the wrapped error.
type Error struct {
	Code        Code
	Message     string
	Diagnostics []Diagnostic
	Err         error // the cause, for errors.Is; its text is not repeated
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes a fault. The format follows fmt.Errorf; an operand of %w becomes the cause.
func New(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// With returns the fault with diagnostics added, for the end of a New call.
func (e *Error) With(d ...Diagnostic) *Error {
	e.Diagnostics = append(e.Diagnostics, d...)
	return e
}

// CodeOf finds the code of an error: that of the outermost fault inside it, else Canceled or DeadlineExceeded for
// the context's errors, else Internal. CodeOf(nil) is OK.
func CodeOf(err error) Code {
	var f *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &f):
		return f.Code
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

// Is reports whether err has the code.
func Is(err error, code Code) bool { return err != nil && CodeOf(err) == code }

// DiagnosticsOf returns the diagnostics of the outermost fault inside err.
func DiagnosticsOf(err error) []Diagnostic {
	var f *Error
	if errors.As(err, &f) {
		return f.Diagnostics
	}
	return nil
}

package plan

import (
	"fmt"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// Conflict is one field that two owners set to two values.
type Conflict struct {
	Object, Path      string
	Owner, Other      Owner  // who has it, who also wants it
	Value, OtherValue string // as shown to people: JSON, or the digest of a sensitive value
}

// String tells the conflict in one line.
func (c Conflict) String() string {
	return fmt.Sprintf("%s %s: %s set it to %s, %s wants %s", c.Object, c.Path, c.Owner, c.Value, c.Other, c.OtherValue)
}

// ConflictError is every conflict of one contribution.
type ConflictError struct{ Conflicts []Conflict }

// Error tells every conflict.
func (e *ConflictError) Error() string {
	lines := make([]string, len(e.Conflicts))
	for i, c := range e.Conflicts {
		lines[i] = c.String()
	}
	return "conflict: " + strings.Join(lines, "; ")
}

func conflictFault(conflicts []Conflict) error {
	cause := &ConflictError{Conflicts: conflicts}
	f := &fault.Error{Code: fault.Conflict, Message: cause.Error(), Err: cause}
	for _, c := range conflicts {
		f.Diagnostics = append(f.Diagnostics, fault.Diagnostic{Path: c.Object + "." + c.Path,
			Summary: fmt.Sprintf("%s and %s set it to two values", c.Owner, c.Other),
			Detail:  fmt.Sprintf("%s: %s\n%s: %s\nLet one of them leave it, or grant the later one the point in override.", c.Owner, c.Value, c.Other, c.OtherValue)})
	}
	return f
}

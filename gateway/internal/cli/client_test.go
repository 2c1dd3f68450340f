package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
)

// What gRPC says of a connection is told so that one knows what to do; what the gateway says itself is left as it is.
func TestWhatAConnectionSays(t *testing.T) {
	c := &client{addr: "unix:///g.sock", env: Env{Getenv: func(string) string { return "" }}}
	for said, want := range map[string]struct {
		says string
		code int
	}{
		`connection error: desc = "transport: Error while dialing: dial unix /g.sock: connect: no such file or directory"`: {"no gateway answers at unix:///g.sock", exitUnavailable},
		`connection error: desc = "transport: Error while dialing: dial unix /g.sock: connect: permission denied"`:         {"is not open to this user", exitRefused},
		"error reading from server: EOF":        {"went away before it had answered", exitUnavailable},
		`extension "x": connection error: lost`: {`extension "x": connection error: lost`, exitUnavailable},
	} {
		err := c.unanswered(fault.New(fault.Unavailable, "%w", errors.New(said)))
		if !strings.Contains(err.Error(), want.says) || exitCode(err) != want.code {
			t.Errorf("%s\n  is told as %v, exit %d", said, err, exitCode(err))
		}
	}
}

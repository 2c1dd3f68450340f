package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
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

// An operation that says nothing itself waits for the call that it is in, and what is retried comes before that.
func TestWhatAnOperationWaitsFor(t *testing.T) {
	begun := &gatewayv1.Step{Phase: "before_create", Extension: "ipam", State: "begun", Started: timestamppb.New(time.Now().Add(-90 * time.Second))}
	retried := &gatewayv1.Step{Phase: "after_stop", Extension: "ipam", State: "waiting", Error: "unreachable"}
	for want, op := range map[string]*gatewayv1.Operation{
		"before_create of ipam, for 1m3":  {Steps: []*gatewayv1.Step{{Phase: "prepare_plan", State: "ok"}, begun}},
		"the store":                       {Waiting: "the store", Steps: []*gatewayv1.Step{begun}},
		"after_stop of ipam: unreachable": {Waiting: "releases are retried", Steps: []*gatewayv1.Step{retried, begun}},
		"its turn":                        {State: "queued"},
		"":                                {Steps: []*gatewayv1.Step{{Phase: "prepare_plan", State: "ok"}}},
	} {
		if got := waitingFor(op); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("it waits for %q, want %q", got, want)
		}
	}
}

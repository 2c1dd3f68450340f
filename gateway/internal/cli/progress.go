package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

type grpcOption = grpc.CallOption

// follow shows the steps of an operation as they go, on standard error, until it has ended. On a terminal the step
// in hand is one live line; otherwise each step is a line once it is over. The operation's own error is returned.
func follow(ctx context.Context, env Env, g gatewayv1.GatewayClient, id string) error {
	stream, err := g.WatchOperation(ctx, &gatewayv1.GetOperationRequest{Id: id})
	if err != nil {
		return err
	}
	p := &progress{w: env.Stderr, live: isTerminal(env.Stderr), done: map[int32]bool{}}
	for {
		op, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unavailable, "the gateway ended the stream before operation %s had ended", id)
		}
		if ctx.Err() != nil {
			p.clear()
			return fault.New(fault.Canceled, "interrupted; the operation goes on: see sandgate operation show %s", id)
		}
		if err != nil {
			return err
		}
		p.show(op)
		if op.Ended == nil {
			continue
		}
		p.clear()
		if op.State == "failed" {
			return fault.New(fault.ParseCode(op.Code), "%s", op.Error)
		}
		return nil
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress draws the steps of one operation.
type progress struct {
	w       io.Writer
	live    bool
	drawn   bool
	done    map[int32]bool
	waiting string
}

func (p *progress) show(op *gatewayv1.Operation) {
	p.clear()
	var now *gatewayv1.Step
	for _, st := range op.Steps {
		if st.State == "begun" {
			now = st
			continue
		}
		if !p.done[st.Seq] {
			p.done[st.Seq] = true
			fmt.Fprintln(p.w, printable(stepLine(op, st)))
		}
	}
	switch {
	case op.Waiting != "" && op.Waiting != p.waiting:
		p.waiting = op.Waiting
		fmt.Fprintln(p.w, printable(fmt.Sprintf("%-8s waits: %s", op.Kind, op.Waiting)))
	case p.live && now != nil && op.Ended == nil:
		fmt.Fprintf(p.w, "%s", printable(fmt.Sprintf("%-8s %s %s …", op.Kind, stepName(now), now.Extension)))
		p.drawn = true
	}
}

// clear wipes the live line.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func stepName(st *gatewayv1.Step) string {
	if st.DriverCall != "" {
		return "driver." + st.DriverCall
	}
	return st.Phase
}

func stepLine(op *gatewayv1.Operation, st *gatewayv1.Step) string {
	line := fmt.Sprintf("%-8s %-18s %-18s %-9s %9s", op.Kind, stepName(st), st.Extension, st.State, took(st))
	if st.Error != "" {
		line += "  " + st.Error
	}
	return line
}

// settled waits, after a delete, until all that was held is released, as long as the gateway itself would.
func settled(ctx context.Context, env Env, g gatewayv1.GatewayClient, verb, id string) error {
	if verb != "delete" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	err := eachChange(ctx, g, id, func(sb *gatewayv1.Sandbox) (bool, error) { return sb.State == "deleted", nil })
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		fmt.Fprintln(env.Stderr, "the sandbox is gone; releases still go on: see sandgate operation list")
		return nil
	}
	return err
}

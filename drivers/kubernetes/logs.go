package kubernetes

import (
	"context"
	"io"

	corev1 "k8s.io/api/core/v1"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

var _ driver.Logger = (*Driver)(nil)

// Logs implements driver.Logger. What a pod has written goes with it: of a sandbox that is stopped there is nothing.
func (d *Driver) Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error {
	anchor, err := d.anchorOf(ctx, id)
	if err != nil {
		return err
	}
	state, err := d.look(ctx, anchor)
	if err != nil {
		return err
	}
	if state.pod == nil {
		return fault.New(fault.FailedPrecondition, "sandbox %q has no pod, and a pod's output goes with it", id.ID)
	}
	r, err := d.cluster.typed.CoreV1().Pods(state.pod.GetNamespace()).GetLogs(state.pod.GetName(), &corev1.PodLogOptions{Container: agentContainer, Follow: follow}).Stream(ctx)
	if err != nil {
		return failed("read", "the log of pod "+state.pod.GetName(), err)
	}
	defer func() { _ = r.Close() }()
	if _, err := io.Copy(out, r); err != nil && ctx.Err() == nil {
		return failed("read", "the log of pod "+state.pod.GetName(), err)
	}
	return context.Cause(ctx)
}

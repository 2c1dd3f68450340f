package kubernetes

import (
	"context"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.mutate(ctx, id.ID, func(w *work) error {
		anchor, err := d.anchorOf(w, id)
		if fault.Is(err, fault.NotFound) {
			return d.removeOrphans(w, id)
		}
		if err != nil {
			return err
		}
		state, err := d.look(w, anchor)
		if err != nil {
			return err
		}
		if state.status(d, anchor).State == driver.Exited { // how it has ended is still to be seen
			return d.exit(w, anchor, &state)
		}
		return d.end(w, anchor, &state)
	})
}

// exit notes how a run has ended by itself, and sees to it that nobody runs it again: a Sandbox's controller would, as soon
// as the pod that has ended is removed.
func (d *Driver) exit(w *work, anchor *unstructured.Unstructured, state *runState) error {
	if state.exited == state.run {
		return nil
	}
	marks := state.exitMarks()
	marks[exitedAnnotation] = strconv.Itoa(state.run)
	if err := d.noteRun(w, anchor, state, marks); err != nil || !d.pods() || state.pod == nil || ended(podOf(state.pod)) {
		return err
	}
	return d.cluster.remove(w, podResource, state.pod) // its other containers still run
}

// removeOrphans removes the pods of a sandbox whose anchor somebody has removed, and waits until they are gone.
func (d *Driver) removeOrphans(w *work, id sandbox.Identity) error {
	pods, _, err := d.cluster.list(w, podResource, d.scope(id), d.ours(id.ID))
	if err != nil {
		return err
	}
	for _, p := range pointers(pods) {
		if p.GetAnnotations()[sandboxLabel] != id.ID || p.GetDeletionTimestamp() != nil {
			continue
		}
		if err := d.cluster.remove(w, podResource, p); err != nil {
			return err
		}
	}
	return d.podsGone(w, id, "")
}

// rest sees to it that nothing of an earlier run is left, before the next one.
func (d *Driver) rest(w *work, anchor *unstructured.Unstructured, state *runState) error {
	switch st := state.status(d, anchor); st.State {
	case driver.Running, driver.Ready, driver.Provisioning:
		if state.told && state.run > 0 {
			return fault.New(fault.FailedPrecondition, "sandbox %q still runs, as run %d", st.Identity.ID, state.run)
		}
	}
	if state.run == 0 {
		return nil
	}
	return d.end(w, anchor, state)
}

// end ends the run and waits until its pod is gone.
func (d *Driver) end(w *work, anchor *unstructured.Unstructured, state *runState) error {
	if state.told || state.stopped != state.run {
		marks := state.exitMarks()
		marks[stoppedAnnotation] = strconv.Itoa(state.run)
		err := d.noteRun(w, anchor, state, marks)
		if err != nil && !fault.Is(err, fault.Conflict) { // another uid: it was removed meanwhile
			return err
		}
	}
	if state.pod != nil && (d.pods() || anchor.GetDeletionTimestamp() != nil) { // nobody else does
		if err := d.cluster.remove(w, podResource, state.pod); err != nil {
			return err
		}
	}
	return d.podsGone(w, identity(anchor), anchor.GetNamespace())
}

// noteRun ends a run and writes what is known of it.
func (d *Driver) noteRun(w *work, anchor *unstructured.Unstructured, state *runState, marks map[string]string) error {
	o := d.cluster.bare(anchor)
	marks[runAnnotation] = strconv.Itoa(state.run)
	o.SetAnnotations(marks)
	if !d.pods() {
		setMode(o, false)
	}
	_, err := d.cluster.apply(w, d.cluster.anchorAs(anchor), o, runManager, true)
	return err
}

// podsGone waits until no pod of a sandbox is left.
func (d *Driver) podsGone(w *work, id sandbox.Identity, namespace string) error {
	if namespace == "" {
		namespace = d.scope(id)
	}
	return d.cluster.until(w, podResource, namespace, d.ours(id.ID), func(all map[string]*unstructured.Unstructured) bool {
		return d.count(all, id.ID) == 0
	})
}

// count is how many objects are of the very sandbox: a label may be a digest.
func (d *Driver) count(all map[string]*unstructured.Unstructured, id string) int {
	n := 0
	for _, o := range all {
		if o.GetAnnotations()[sandboxLabel] == id {
			n++
		}
	}
	return n
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		anchor, err := d.anchorOf(w, r.Identity)
		namespace := d.scope(r.Identity)
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return err
		case anchor.GetAnnotations()[operationAnnotation] != r.Operation: // it is not what was asked for
		default:
			namespace = anchor.GetNamespace()
			if err := d.cluster.remove(w, d.cluster.anchor(), anchor); err != nil {
				return err
			}
		}
		left, err := d.leftovers(w, namespace, r.Identity, r.Operation, anchor == nil)
		if err != nil {
			return err
		}
		for _, l := range left {
			if err := d.cluster.remove(w, l.resource, l.object); err != nil {
				return err
			}
		}
		return d.gone(w, namespace, r, left)
	})
}

// gone waits until nothing of a sandbox is left.
func (d *Driver) gone(w *work, namespace string, r *driver.DeleteRequest, left []leftover) error {
	kinds := []resource{d.cluster.anchor(), podResource}
	for _, l := range left {
		kinds = append(kinds, l.resource)
	}
	seen := map[resource]bool{}
	for _, k := range kinds {
		if seen[k] {
			continue
		}
		seen[k] = true
		err := d.cluster.until(w, k, namespace, d.ours(r.Identity.ID), func(all map[string]*unstructured.Unstructured) bool {
			for _, o := range all {
				if d.bears(o, r.Identity, r.Operation) {
					return false
				}
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// leftover is an object that bears a sandbox's marks, beside the sandbox itself.
type leftover struct {
	resource resource
	object   metav1.Object
}

// leftovers returns what bears the marks of a sandbox and an operation, but for the anchor and, unless it is an orphan, the
// Sandbox's pod, which its controller removes.
func (d *Driver) leftovers(ctx context.Context, namespace string, id sandbox.Identity, operation string, orphans bool) ([]leftover, error) {
	kinds, err := d.cluster.kindsIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	if d.pods() || orphans {
		kinds = append(kinds, podResource)
	}
	found := make([][]leftover, len(kinds))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, k := range kinds {
		g.Go(func() error {
			all, _, err := d.cluster.list(ctx, k, namespace, d.ours(id.ID))
			for _, o := range pointers(all) {
				if d.bears(o, id, operation) && !d.isAnchor(k, o) {
					found[i] = append(found[i], leftover{resource: k, object: o})
				}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// isAnchor tells a plain Pod's anchor from a ConfigMap of its plan.
func (d *Driver) isAnchor(r resource, o metav1.Object) bool {
	return r == d.cluster.anchor() && o.GetName() == d.sandboxName(identity(o))
}

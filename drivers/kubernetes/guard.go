package kubernetes

import (
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A pod that somebody deletes, or that a node is drained of, is made again by the Sandbox's controller at once. To the
// gateway that is a run which was lost: what extensions hold for it has to be released while nothing runs, and taken anew.
// So the driver notes which pod a run has, and suspends a Sandbox whose run has another one or none. Start runs it again.

// guard notes the pod of a run that is new, and sees to one that has another. It waits for nothing.
func (w *watcher) guard(id string) {
	anchor := w.anchors[id]
	if anchor == nil || anchor.GetDeletionTimestamp() != nil || w.d.pods() {
		return
	}
	var pods []*unstructured.Unstructured
	for _, p := range w.pods[id] {
		pods = append(pods, p)
	}
	s := w.d.stateWith(anchor, pods)
	if s.run == 0 || !s.told {
		return
	}
	switch {
	case s.had == "" && s.pod != nil:
		mark := strconv.Itoa(s.run) + "/" + string(s.pod.GetUID())
		if w.noted[id] == mark {
			return
		}
		w.noted[id] = mark
		w.aside(id, func(k *work) error {
			o := bare(anchor)
			setAnnotation(o, podAnnotation, mark)
			_, err := w.d.cluster.apply(k, w.d.cluster.anchor(), o, podManager, true)
			return err
		})
	case s.replaced():
		w.aside(id, func(k *work) error { return w.d.lose(k, identity(anchor)) })
	}
}

// replaced reports whether the run's pod is not there any more.
func (s *runState) replaced() bool {
	return s.told && s.had != "" && (s.pod == nil || string(s.pod.GetUID()) != s.had)
}

// aside does something for a sandbox in its turn, while the watch goes on.
func (w *watcher) aside(id string, fn func(*work) error) {
	go func() {
		err := w.d.mutate(w.ctx, id, fn)
		if err != nil && w.ctx.Err() == nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
			w.d.cfg.Logger.Warn("cannot note what became of a run's pod", "sandbox", id, "err", err)
		}
	}()
}

// lose suspends a Sandbox whose run has lost its pod, if that is still so.
func (d *Driver) lose(w *work, id sandbox.Identity) error {
	anchor, err := d.anchorOf(w, id)
	if err != nil {
		return err
	}
	s, err := d.look(w, anchor)
	if err != nil || !s.replaced() {
		return err
	}
	d.cfg.Logger.Warn("somebody has removed a run's pod; the run is lost", "sandbox", id.ID, "run", s.run)
	return d.noteRun(w, anchor, &s, map[string]string{lostAnnotation: strconv.Itoa(s.run)})
}

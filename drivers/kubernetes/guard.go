package kubernetes

import (
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A pod that somebody deletes, or that a node is drained of, is made again by the Sandbox's controller at once. To the
// gateway that is a run which was lost: what extensions hold for it has to be released while nothing runs, and taken anew.
// So the driver notes which pod a run has, and suspends a Sandbox whose run has another one or none. Start runs it again.

// guard notes the pod of a run that is new, sees to one that has another, and to one that has ended. It waits for nothing.
func (w *watcher) guard(id string, st *driver.Status) {
	anchor := w.anchors[id]
	if anchor == nil || anchor.GetDeletionTimestamp() != nil {
		return
	}
	s := w.d.stateWith(anchor, w.podsOf(id))
	if s.run == 0 || !s.told {
		return
	}
	switch {
	case st.State == driver.Exited, st.Reason == reasonExited:
		w.once(id, "exited", &s, func(k *work) error {
			return w.d.settle(k, identity(anchor), func(now *runState, st *driver.Status) bool {
				return st.State == driver.Exited || st.Reason == reasonExited
			}, w.d.exit)
		})
	case w.d.pods():
	case s.had == "" && s.pod != nil && s.pod.GetDeletionTimestamp() == nil && number(s.pod, runAnnotation) == s.run:
		w.once(id, "has "+string(s.pod.GetUID()), &s, func(k *work) error {
			o := w.d.cluster.bare(anchor)
			setAnnotation(o, podAnnotation, strconv.Itoa(s.run)+"/"+string(s.pod.GetUID()))
			_, err := w.d.cluster.apply(k, w.d.cluster.anchorAs(anchor), o, podManager, true)
			return err
		})
	case s.replaced():
		w.once(id, "lost", &s, func(k *work) error {
			return w.d.settle(k, identity(anchor), func(now *runState, _ *driver.Status) bool { return now.replaced() }, w.d.lose)
		})
	}
}

// replaced reports whether the run's pod is not there any more.
func (s *runState) replaced() bool {
	return s.told && s.had != "" && (s.pod == nil || string(s.pod.GetUID()) != s.had)
}

// once does something for a sandbox's run in its turn, while the watch goes on; again only when it has failed.
func (w *watcher) once(id, what string, s *runState, fn func(*work) error) {
	mark := strconv.Itoa(s.run) + " " + what
	if had, _ := w.noted.Swap(id, mark); had == mark {
		return
	}
	go func() {
		err := w.d.mutate(w.ctx, id, fn)
		if err == nil || w.ctx.Err() != nil {
			return
		}
		w.noted.CompareAndDelete(id, mark)
		if !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
			w.d.cfg.Logger.Warn("cannot note what became of a run", "sandbox", id, "err", err)
		}
	}()
}

// settle does what a sandbox's run calls for, if that is still so.
func (d *Driver) settle(w *work, id sandbox.Identity, still func(*runState, *driver.Status) bool, do func(*work, *unstructured.Unstructured, *runState) error) error {
	anchor, err := d.anchorOf(w, id)
	if err != nil {
		return err
	}
	s, err := d.look(w, anchor)
	if err != nil || !still(&s, s.status(d, anchor)) {
		return err
	}
	return do(w, anchor, &s)
}

// lose suspends a Sandbox whose run has lost its pod.
func (d *Driver) lose(w *work, anchor *unstructured.Unstructured, s *runState) error {
	d.cfg.Logger.Warn("somebody has removed a run's pod; the run is lost", "sandbox", identity(anchor).ID, "run", s.run)
	return d.noteRun(w, anchor, s, map[string]string{lostAnnotation: strconv.Itoa(s.run)})
}

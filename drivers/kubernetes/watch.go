package kubernetes

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// view is what is known of the cluster's sandboxes, from which each one's status is told without asking again.
type view struct {
	d       *Driver
	anchors map[string]*unstructured.Unstructured            // by sandbox
	pods    map[string]map[string]*unstructured.Unstructured // by sandbox and uid
	names   map[string]string                                // the sandbox by namespace/name of its anchor and pod
}

func newView(d *Driver) *view {
	return &view{d: d, anchors: map[string]*unstructured.Unstructured{}, pods: map[string]map[string]*unstructured.Unstructured{}, names: map[string]string{}}
}

// put takes an object into the view and returns the sandbox that it is of, "" if of none.
func (v *view) put(r resource, o *unstructured.Unstructured) string {
	id := o.GetAnnotations()[sandboxLabel]
	if !v.d.isOurs(o) || id == "" {
		return ""
	}
	if r == podResource {
		if v.pods[id] == nil {
			v.pods[id] = map[string]*unstructured.Unstructured{}
		}
		v.pods[id][string(o.GetUID())] = o
		return id
	}
	if o.GetName() != v.d.sandboxName(identity(o)) {
		return "" // a ConfigMap of a plan
	}
	v.anchors[id] = o
	v.names[o.GetNamespace()+"/"+o.GetName()] = id
	return id
}

// drop takes it out again.
func (v *view) drop(r resource, o *unstructured.Unstructured) string {
	id := o.GetAnnotations()[sandboxLabel]
	if r == podResource {
		if delete(v.pods[id], string(o.GetUID())); len(v.pods[id]) == 0 {
			delete(v.pods, id)
		}
		return id
	}
	if have := v.anchors[id]; have == nil || have.GetUID() != o.GetUID() {
		return ""
	}
	delete(v.anchors, id)
	delete(v.names, o.GetNamespace()+"/"+o.GetName())
	return id
}

func (v *view) podsOf(id string) []*unstructured.Unstructured {
	return slices.Collect(maps.Values(v.pods[id]))
}

// status is what a sandbox is now; nil: it is not there.
func (v *view) status(id string) *driver.Status {
	anchor, pods := v.anchors[id], v.podsOf(id)
	switch {
	case anchor != nil:
		s := v.d.stateWith(anchor, pods)
		return s.status(v.d, anchor)
	case len(pods) > 0:
		return orphan(pods[0])
	}
	return nil
}

// all returns every sandbox, sorted by id.
func (v *view) all() []*driver.Status {
	ids := map[string]bool{}
	for id := range v.anchors {
		ids[id] = true
	}
	for id := range v.pods {
		ids[id] = true
	}
	var out []*driver.Status
	for id := range ids {
		out = append(out, v.status(id))
	}
	slices.SortFunc(out, func(a, b *driver.Status) int { return strings.Compare(a.Identity.ID, b.Identity.ID) })
	return out
}

// change is one event of one resource.
type change struct {
	resource resource
	event    watch.Event
}

// Watch implements driver.Driver.
func (d *Driver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	w := &watcher{view: newView(d), told: map[string]*driver.Status{}, fn: fn}
	all, cancel := context.WithCancel(ctx)
	defer cancel()
	w.ctx = all
	g, inner := errgroup.WithContext(all)
	changes := make(chan change)
	follow := func(r resource, version, selector string) {
		g.Go(func() error {
			opts := metav1.ListOptions{LabelSelector: selector, ResourceVersion: version}
			return d.cluster.follow(inner, r, d.everywhere(), opts, func(e watch.Event) (bool, error) {
				select {
				case changes <- change{r, e}:
					return false, nil
				case <-inner.Done():
					return true, nil
				}
			})
		})
	}
	for _, r := range []resource{d.cluster.anchor(), podResource} {
		found, version, err := d.cluster.list(ctx, r, d.everywhere(), d.ours(""))
		if err != nil {
			return err
		}
		for _, o := range pointers(found) {
			w.put(r, o)
		}
		follow(r, version, d.ours(""))
	}
	if d.cluster.events {
		now, err := d.cluster.now(ctx, eventResource, d.everywhere())
		if err != nil {
			return err
		}
		follow(eventResource, now, "") // events have no labels
	}
	g.Go(func() error { return w.run(inner, changes) })
	err := g.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errGone):
		return fault.New(fault.Unavailable, "kubernetes: the watch has ended")
	}
	return err
}

// watcher tells what became of each sandbox.
type watcher struct {
	*view
	ctx   context.Context // of the watch
	noted sync.Map        // what was done last for each sandbox's run
	told  map[string]*driver.Status
	fn    func(driver.Event) error
}

func (w *watcher) run(ctx context.Context, changes <-chan change) error {
	for _, st := range w.all() {
		if err := w.tell(st.Identity.ID); err != nil {
			return err
		}
	}
	if err := w.fn(driver.Event{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-changes:
			o, is := c.event.Object.(*unstructured.Unstructured)
			if !is {
				continue
			}
			if c.resource == eventResource {
				if err := w.heard(c.event.Type, o); err != nil {
					return err
				}
				continue
			}
			put := w.put
			if c.event.Type == watch.Deleted {
				put = w.drop
			}
			if id := put(c.resource, o); id != "" {
				if err := w.tell(id); err != nil {
					return err
				}
			}
		}
	}
}

// tell says what a sandbox is, unless that was said.
func (w *watcher) tell(id string) error {
	st, old := w.status(id), w.told[id]
	switch {
	case st == nil && old == nil, reflect.DeepEqual(st, old):
		return nil
	case st == nil:
		delete(w.told, id)
		w.noted.Delete(id)
		return w.fn(driver.Event{Deleted: old.Identity})
	}
	w.guard(id, st)
	w.told[id] = st
	return w.fn(driver.Event{Status: st})
}

package kubernetes

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/sandgate/sandgate/shared/fault"
)

// callTimeout is how long the API server may take for one call.
const callTimeout = 30 * time.Second

// patiently makes a call that may be repeated, until the server has answered it. A server that is away is waited for, for as
// long as there is a caller: ctx is of the call alone, which goes on without one.
func (c *cluster) patiently(ctx, caller context.Context, call, object string, fn func(ctx context.Context) error) error {
	away, pause := time.Time{}, minPause
	for {
		one, cancel := context.WithTimeout(ctx, callTimeout)
		err := fn(one)
		cancel()
		if err == nil {
			return nil
		}
		if caller.Err() != nil {
			return failed(call, object, context.Cause(caller))
		}
		if code := codeOf(err); code != fault.Unavailable && code != fault.DeadlineExceeded {
			return failed(call, object, err)
		}
		if away.IsZero() {
			away = time.Now()
		}
		if time.Since(away) > c.patience || c.back(caller, away.Add(c.patience), &pause) != nil {
			return fault.New(fault.Unavailable, "kubernetes: %s %s: the API server does not answer: %w", call, object, err)
		}
	}
}

// How long it is waited before a server that did not answer is asked again. The pause grows also where it is ready and
// refuses: a webhook of it may be away.
const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// back waits until the server says that it is ready: one that has just begun refuses what it will allow in a moment.
func (c *cluster) back(ctx context.Context, deadline time.Time, next *time.Duration) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	for {
		if err := pause(ctx, *next); err != nil {
			return err
		}
		*next = min(2**next, maxPause)
		err := c.typed.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			return nil
		}
	}
}

// write makes a call that changes something. One that was begun is waited for, whether the caller is still there or not.
func (c *cluster) write(w *work, call, object string, fn func(ctx context.Context) error) error {
	if w.Err() != nil {
		return context.Cause(w)
	}
	return c.patiently(w.writes, w, call, object, fn)
}

func (c *cluster) at(r resource, namespace string) dynamic.ResourceInterface {
	if !r.namespaced {
		return c.dynamic.Resource(r.gvr)
	}
	return c.dynamic.Resource(r.gvr).Namespace(namespace)
}

// get returns an object; NotFound is a fault.
func (c *cluster) get(ctx context.Context, r resource, namespace, name string) (*unstructured.Unstructured, error) {
	var out *unstructured.Unstructured
	err := c.patiently(ctx, ctx, "get", r.named(name), func(ctx context.Context) (err error) {
		out, err = c.at(r, namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return out, err
}

// asMade returns an anchor in the version in which it was made. One that is not there any more proves nothing: it was there a
// moment ago.
func (c *cluster) asMade(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	r := c.anchorAs(o)
	if r.gvk.Version == o.GroupVersionKind().Version {
		return o, nil
	}
	made, err := c.get(ctx, r, o.GetNamespace(), o.GetName())
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.Unavailable, "the %s %s/%s, which was made in version %s, cannot be read in it", r, o.GetNamespace(), o.GetName(), r.gvk.Version)
	}
	return made, err
}

// pageSize is how many objects are asked for at once.
const pageSize = 500

// list returns the objects that a selector selects, in all namespaces where namespace is "", and the version at which it
// did.
func (c *cluster) list(ctx context.Context, r resource, namespace, selector string) (all []unstructured.Unstructured, version string, err error) {
	return c.listBy(ctx, r, namespace, metav1.ListOptions{LabelSelector: selector})
}

func (c *cluster) listBy(ctx context.Context, r resource, namespace string, opts metav1.ListOptions) (all []unstructured.Unstructured, version string, err error) {
	opts.Limit = pageSize
	err = c.patiently(ctx, ctx, "list", r.gvr.Resource, func(ctx context.Context) error {
		all, opts.Continue = nil, ""
		for {
			page, err := c.at(r, namespace).List(ctx, opts)
			if err != nil {
				return err
			}
			all, version = append(all, page.Items...), page.GetResourceVersion()
			if opts.Continue = page.GetContinue(); opts.Continue == "" {
				return nil
			}
		}
	})
	return all, version, served(r, err)
}

// served says of a resource that is not found that the cluster does not serve it: that there are none of it is said by an
// empty list.
func served(r resource, err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Unavailable, "the cluster does not serve %s: %w", r.gvr.GroupResource(), err)
	}
	return err
}

// now is the version from which on changes are new.
func (c *cluster) now(ctx context.Context, r resource, namespace string) (version string, err error) {
	err = c.patiently(ctx, ctx, "list", r.gvr.Resource, func(ctx context.Context) error {
		page, err := c.at(r, namespace).List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			version = page.GetResourceVersion()
		}
		return err
	})
	return version, served(r, err)
}

// apply writes an owner's fields.
func (c *cluster) apply(w *work, r resource, o *unstructured.Unstructured, manager string, force bool) (*unstructured.Unstructured, error) {
	var out *unstructured.Unstructured
	err := c.write(w, "apply", r.named(o.GetName()), func(ctx context.Context) (err error) {
		out, err = c.at(r, o.GetNamespace()).Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: force})
		return err
	})
	return out, err
}

// create writes an object that is not there yet, whole.
func (c *cluster) create(w *work, r resource, o *unstructured.Unstructured, manager string) (*unstructured.Unstructured, error) {
	var out *unstructured.Unstructured
	err := c.write(w, "create", r.named(o.GetName()), func(ctx context.Context) (err error) {
		out, err = c.at(r, o.GetNamespace()).Create(ctx, o, metav1.CreateOptions{FieldManager: manager})
		return err
	})
	return out, err
}

// remove deletes an object, if it is still the one that was seen.
func (c *cluster) remove(w *work, r resource, o metav1.Object) error {
	uid, background := o.GetUID(), metav1.DeletePropagationBackground
	err := c.write(w, "delete", r.named(o.GetName()), func(ctx context.Context) error {
		return c.at(r, o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	})
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) { // gone, or another one has its name now
		return nil
	}
	return err
}

// errGone is how what is watched says that its end of the history is no longer there, or that the server went away.
var errGone = errors.New("the watch has ended")

// follow tells fn of each change after a version, until fn says that it is done or fails, or the watch breaks: errGone.
func (c *cluster) follow(ctx context.Context, r resource, namespace string, opts metav1.ListOptions, fn func(watch.Event) (done bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts.AllowWatchBookmarks = true
	for {
		w, err := c.at(r, namespace).Watch(ctx, opts)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if apierrors.IsForbidden(err) {
			return failed("watch", r.gvr.Resource, err)
		}
		if err != nil {
			return errGone
		}
		done, err := drain(ctx, w, &opts, fn)
		w.Stop()
		if done || err != nil {
			return err
		}
	}
}

// drain tells of the changes of one watch, until that ends, which it does now and then.
func drain(ctx context.Context, w watch.Interface, opts *metav1.ListOptions, fn func(watch.Event) (bool, error)) (done bool, err error) {
	seen := false
	for {
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case e, more := <-w.ResultChan():
			o, is := e.Object.(*unstructured.Unstructured)
			switch {
			case !more && !seen: // one that ends at once would be asked for without end
				return false, errGone
			case !more:
				return false, nil
			case e.Type == watch.Error || !is:
				return false, errGone
			}
			seen, opts.ResourceVersion = true, o.GetResourceVersion()
			if e.Type == watch.Bookmark {
				continue
			}
			if done, err := fn(e); done || err != nil {
				return done, err
			}
		}
	}
}

// until waits for a change of what a selector selects, until ok says yes to all that there is.
func (c *cluster) until(ctx context.Context, r resource, namespace, selector string, ok func(all map[string]*unstructured.Unstructured) bool) error {
	for {
		items, version, err := c.list(ctx, r, namespace, selector)
		if err != nil {
			return err
		}
		all := map[string]*unstructured.Unstructured{}
		for i := range items {
			all[string(items[i].GetUID())] = &items[i]
		}
		if ok(all) {
			return nil
		}
		err = c.follow(ctx, r, namespace, metav1.ListOptions{LabelSelector: selector, ResourceVersion: version}, func(e watch.Event) (bool, error) {
			o, is := e.Object.(*unstructured.Unstructured)
			if !is {
				return false, nil
			}
			if all[string(o.GetUID())] = o; e.Type == watch.Deleted {
				delete(all, string(o.GetUID()))
			}
			return ok(all), nil
		})
		if !errors.Is(err, errGone) {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func (r resource) named(name string) string { return r.String() + " " + name }

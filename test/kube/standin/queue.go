package standin

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// queue calls look for every key that was added, several at a time, one key once at a time, and again where it fails
// or asks for it.
type queue struct {
	workqueue.TypedRateLimitingInterface[string]
	look func(ctx context.Context, namespace, name string) (again time.Duration, err error)
}

func newQueue(look func(ctx context.Context, namespace, name string) (time.Duration, error)) *queue {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, time.Second)
	return &queue{workqueue.NewTypedRateLimitingQueue(limit), look}
}

// on adds what an informer sees, under the key that of makes of it.
func (q *queue) on(informer cache.SharedInformer, of func(metav1.Object) string) error {
	add := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			if key := of(m); key != "" {
				q.Add(key)
			}
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }, DeleteFunc: add})
	return err
}

func itself(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// its is the key of the Sandbox that controls an object.
func its(o metav1.Object) string {
	if ref := metav1.GetControllerOf(o); ref != nil && ref.Kind == "Sandbox" {
		return o.GetNamespace() + "/" + ref.Name
	}
	return ""
}

func (q *queue) run(ctx context.Context) {
	for range 4 {
		go func() {
			for {
				key, shutdown := q.Get()
				if shutdown {
					return
				}
				q.one(ctx, key)
			}
		}()
	}
	<-ctx.Done()
	q.ShutDown()
}

func (q *queue) one(ctx context.Context, key string) {
	defer q.Done(key)
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return
	}
	again, err := q.look(ctx, namespace, name)
	switch {
	case err != nil:
		if !apierrors.IsConflict(err) { // it has seen an older one than there is
			fmt.Fprintf(os.Stderr, "%s: %v\n", key, err)
		}
		q.AddRateLimited(key)
	case again > 0:
		q.Forget(key)
		q.AddAfter(key, again)
	default:
		q.Forget(key)
	}
}

// faults finds what is to befall an object.
type faults struct{ namespaces corelisters.NamespaceLister }

func newFaults(f informers.SharedInformerFactory) faults {
	return faults{f.Core().V1().Namespaces().Lister()}
}

func (f faults) of(o metav1.Object, fault string) (string, bool) {
	if v, ok := o.GetAnnotations()["stand-in/"+fault]; ok {
		return v, true
	}
	ns, err := f.namespaces.Get(o.GetNamespace())
	if err != nil {
		return "", false
	}
	v, ok := ns.Annotations["stand-in/"+fault]
	return v, ok
}

func (f faults) has(o metav1.Object, fault string) bool {
	_, ok := f.of(o, fault)
	return ok
}

// whenFaultsChange adds all keys of a namespace whose faults may have changed.
func (q *queue) whenFaultsChange(namespaces cache.SharedInformer, keys func(namespace string) []string) error {
	_, err := namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, o any) {
		for _, key := range keys(o.(*corev1.Namespace).Name) {
			q.Add(key)
		}
	}})
	return err
}

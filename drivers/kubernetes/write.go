package kubernetes

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sandgate/sandgate/shared/fault"
)

// runManager owns whether a Sandbox runs, and the marks of its runs. They are apart from what the plan says, so that a run
// can be ended by who does not have the plan. Each apply of it says all that is known of the run, and so forgets the one
// before. PodManager notes the run's pod, and may do so at any time.
const (
	runManager = "sandgate.run"
	podManager = "sandgate.pod"
)

// setMode says whether a Sandbox runs.
func setMode(o *unstructured.Unstructured, runs bool) {
	field, value := []string{"spec", "operatingMode"}, any("Suspended")
	if runs {
		value = "Running"
	}
	if o.GroupVersionKind().Version == APIV1Alpha1 {
		field, value = []string{"spec", "replicas"}, int64(0)
		if runs {
			value = int64(1)
		}
	}
	_ = unstructured.SetNestedField(o.Object, value, field...) // spec is a map, or not there
}

// told reports whether a Sandbox was told to run.
func told(o *unstructured.Unstructured) bool {
	if o.GroupVersionKind().Version == APIV1Alpha1 {
		n, there, _ := unstructured.NestedInt64(o.Object, "spec", "replicas")
		return !there || n > 0
	}
	mode, _, _ := unstructured.NestedString(o.Object, "spec", "operatingMode")
	return mode != "Suspended"
}

func setAnnotation(o *unstructured.Unstructured, key, value string) {
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[key] = value
	o.SetAnnotations(a)
}

// bare is an object with nothing set; an anchor in the version in which it was made.
func (c *cluster) bare(of *unstructured.Unstructured) *unstructured.Unstructured {
	gvk := of.GroupVersionKind()
	if a := c.anchorAs(of).gvk; a.GroupKind() == gvk.GroupKind() {
		gvk = a
	}
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(gvk)
	o.SetNamespace(of.GetNamespace())
	o.SetName(of.GetName())
	o.SetUID(of.GetUID())
	return o
}

// ownedBy is the reference of what goes with a sandbox.
func (c *cluster) ownedBy(anchor *unstructured.Unstructured) metav1.OwnerReference {
	gvk := c.anchor().gvk
	return metav1.OwnerReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Name: anchor.GetName(), UID: anchor.GetUID()}
}

// applyObject writes an object beside the sandbox, each owner's fields under its own manager. The first one's apply makes it,
// with the marks and, in the anchor's namespace, with a reference to that. Uid is that of the one that is there, if one is.
func (d *Driver) applyObject(w *work, o object, anchor *unstructured.Unstructured, uid types.UID) error {
	r, known := d.cluster.resourceOf(o.GVK.Kind)
	if !known {
		return fault.New(fault.Invalid, "%s: the driver cannot make a %s", o.ref(), o.GVK.Kind)
	}
	var made, source *unstructured.Unstructured
	if o.Source != "" {
		var err error
		if source, err = d.cluster.get(w, r, d.cfg.Namespace, o.Source); err != nil {
			return err
		}
	}
	for _, own := range o.Owners {
		fields := own.Fields.DeepCopy()
		if made == nil && source != nil {
			fields.Object["type"], fields.Object["data"] = source.Object["type"], source.Object["data"]
		}
		if made == nil && anchor != nil && o.Namespace == anchor.GetNamespace() {
			fields.SetOwnerReferences([]metav1.OwnerReference{d.cluster.ownedBy(anchor)})
		}
		var err error
		if made, err = d.applyFirst(w, r, fields, manager(own.Owner), uid); err != nil {
			return err
		}
		uid = made.GetUID()
	}
	return nil
}

// applyFirst writes an owner's fields of the object that has the uid, or of one that is not there yet. One that somebody
// else has made meanwhile is given back as it was.
func (d *Driver) applyFirst(w *work, r resource, o *unstructured.Unstructured, manager string, uid types.UID) (*unstructured.Unstructured, error) {
	o.SetUID(uid)
	got, err := d.cluster.apply(w, r, o, manager, false)
	if err != nil || uid != "" || !slices.ContainsFunc(got.GetManagedFields(), foreign) {
		return got, err
	}
	if _, err := d.cluster.apply(w, r, d.cluster.bare(got), manager, false); err != nil {
		return nil, err
	}
	return nil, fault.New(fault.FailedPrecondition, "the %s %s/%s is in the way: somebody else has just made it", r, o.GetNamespace(), o.GetName())
}

// foreign reports whether fields of an object are nobody's that the driver writes for. Its status is its controller's.
func foreign(e metav1.ManagedFieldsEntry) bool {
	return e.Subresource == "" && e.Manager != manager(driverOwner) && e.Manager != runManager && e.Manager != podManager && !strings.HasPrefix(e.Manager, manager(""))
}

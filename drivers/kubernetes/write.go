package kubernetes

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

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
func (c *cluster) setMode(o *unstructured.Unstructured, runs bool) {
	field, value := []string{"spec", "operatingMode"}, any("Suspended")
	if runs {
		value = "Running"
	}
	if c.api == APIV1Alpha1 {
		field, value = []string{"spec", "replicas"}, int64(0)
		if runs {
			value = int64(1)
		}
	}
	_ = unstructured.SetNestedField(o.Object, value, field...) // spec is a map, or not there
}

// told reports whether a Sandbox was told to run.
func (c *cluster) told(o *unstructured.Unstructured) bool {
	if c.api == APIV1Alpha1 {
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

// bare is an anchor with nothing set.
func bare(anchor *unstructured.Unstructured) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(anchor.GroupVersionKind())
	o.SetNamespace(anchor.GetNamespace())
	o.SetName(anchor.GetName())
	o.SetUID(anchor.GetUID())
	return o
}

// ownedBy is the reference of what goes with a sandbox.
func (c *cluster) ownedBy(anchor *unstructured.Unstructured) metav1.OwnerReference {
	gvk := c.anchor().gvk
	return metav1.OwnerReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Name: anchor.GetName(), UID: anchor.GetUID()}
}

// applyObject writes an object beside the sandbox, each owner's fields under its own manager. The first one's apply makes it,
// with the marks and, in the anchor's namespace, with a reference to that.
func (d *Driver) applyObject(w *work, o object, anchor *unstructured.Unstructured) error {
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
		if made != nil {
			fields.SetUID(made.GetUID())
		}
		var err error
		if made, err = d.cluster.apply(w, r, fields, manager(own.Owner), false); err != nil {
			return err
		}
	}
	return nil
}

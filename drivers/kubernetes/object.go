package kubernetes

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sandgate/sandgate/shared/plan"
)

const sandboxGroup = "agents.x-k8s.io"

// object is one API object of a plan, as it is to be in the cluster.
type object struct {
	GVK             schema.GroupVersionKind
	Namespace, Name string // "" where the kind has no namespaces
	Kind, PlanName  string // as the plan calls it
	// Whole has the fields of every owner, and the marks.
	Whole *unstructured.Unstructured
	Scope plan.Scope
	// Source is the Secret in the driver's own namespace of which it is a copy, or "". No value is in a plan.
	Source string
	// Owners say who sets what of it. The first one makes it and sets the marks too: the driver, where it sets more than
	// those, else the extension whose object it is. Each has apiVersion, kind, name and namespace.
	Owners []ownerFields
}

// ownerFields are what one owner sets of an object.
type ownerFields struct {
	Owner  string // driverOwner, for what gateway, request and driver set together, or an extension's name
	Fields *unstructured.Unstructured
}

const driverOwner = "driver"

// manager is the field manager of an owner.
func manager(owner string) string {
	if owner == driverOwner {
		return "sandgate"
	}
	return "sandgate-" + owner
}

func (o *object) ref() string { return o.Kind + "/" + o.PlanName }

// resource is where the objects of a kind are found.
type resource struct {
	gvk        schema.GroupVersionKind
	gvr        schema.GroupVersionResource
	namespaced bool
}

func newResource(group, version, kind, plural string, namespaced bool) resource {
	return resource{gvk: schema.GroupVersionKind{Group: group, Version: version, Kind: kind},
		gvr: schema.GroupVersionResource{Group: group, Version: version, Resource: plural}, namespaced: namespaced}
}

var claimResource = newResource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true)

// resources are those that the driver writes beside the one that is the sandbox, in the order in which they are made.
var resources = []resource{
	newResource("", "v1", "Namespace", "namespaces", false),
	newResource("", "v1", "ResourceQuota", "resourcequotas", true),
	newResource("", "v1", "LimitRange", "limitranges", true),
	newResource("", "v1", "ServiceAccount", "serviceaccounts", true),
	newResource("", "v1", "Secret", "secrets", true),
	newResource("", "v1", "ConfigMap", "configmaps", true),
	claimResource,
	newResource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
	newResource("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates", true),
	newResource("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", true),
	newResource("", "v1", "Service", "services", true),
}

var podResource = newResource("", "v1", "Pod", "pods", true)

// anchor is the resource that stands for a sandbox: it is made first and owns the others. A plain Pod cannot be one,
// since it does not outlive its run.
func (c *cluster) anchor() resource {
	if c.api == APIPod {
		return newResource("", "v1", "ConfigMap", "configmaps", true)
	}
	return newResource(sandboxGroup, c.api, "Sandbox", "sandboxes", true)
}

// anchorAs is that resource in the version in which one was made: what a manager has applied in one version, the API server
// does not let it apply in another.
func (c *cluster) anchorAs(o *unstructured.Unstructured) resource {
	r := c.anchor()
	for _, e := range o.GetManagedFields() {
		made, err := schema.ParseGroupVersion(e.APIVersion)
		if err == nil && e.Manager == manager(driverOwner) && e.Operation == metav1.ManagedFieldsOperationApply && made.Group == r.gvk.Group {
			r.gvk.Version, r.gvr.Version = made.Version, made.Version
		}
	}
	return r
}

// as is the object in another version of its kind, which has the same fields where the plan sets some.
func (o object) as(gvk schema.GroupVersionKind) object {
	o.GVK = gvk
	o.Whole = o.Whole.DeepCopy()
	o.Whole.SetGroupVersionKind(gvk)
	o.Owners = slices.Clone(o.Owners)
	for i := range o.Owners {
		o.Owners[i].Fields = o.Owners[i].Fields.DeepCopy()
		o.Owners[i].Fields.SetGroupVersionKind(gvk)
	}
	return o
}

// resourceOf returns the resource of a kind, by its name alone: no two of them share one.
func (c *cluster) resourceOf(kind string) (resource, bool) {
	switch kind {
	case "Pod":
		return podResource, true
	case "Sandbox":
		return c.anchor(), c.api != APIPod
	}
	for _, r := range resources {
		if r.gvk.Kind == kind {
			return r, true
		}
	}
	return resource{}, false
}

// plural is for messages.
func (r resource) String() string { return strings.ToLower(r.gvk.Kind) }

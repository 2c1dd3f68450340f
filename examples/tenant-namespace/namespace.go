package main

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
)

// What a driver over Kubernetes has for namespaces.
const (
	featureCluster         = "kubernetes"          // its attribute "mode" says whose namespaces they are
	featurePlacement       = "namespace"           // where a sandbox is, of a workspace's namespaces
	featureNamespace       = "workspace-namespace" // one of the plan's own
	featureNamespaceLabels = "workspace-labels"    // of the one that the driver makes
	featureQuota           = "quota"
	featureLimitRange      = "limit-range"
	featureNetworkPolicy   = "network-policy"
)

var namespaceFeatures = []string{featureCluster, featurePlacement, featureNamespace, featureNamespaceLabels, featureQuota, featureLimitRange, featureNetworkPolicy}

// modeShared is the mode in which workspaces have one namespace together.
const modeShared = "shared"

// The names of the tenant's objects in the plan.
const (
	tenantObject = "tenant"
	denyObject   = "deny-traffic"
)

// namespace is what a tenant's namespaces get, checked.
type namespace struct {
	own    bool
	labels map[string]string
	quota  corev1.ResourceList
	deny   bool
}

func (c namespaceConfig) check(at string, wrong []fault.Diagnostic) (namespace, []fault.Diagnostic) {
	n := namespace{own: c.Own, labels: c.Labels, deny: c.Deny}
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		if bad := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(c.Labels[k])...); len(bad) > 0 {
			wrong = append(wrong, fault.Diagnostic{Path: at + ".labels", Summary: k + " is no label of Kubernetes", Detail: bad[0]})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.Quota)) {
		q, err := apiresource.ParseQuantity(c.Quota[k])
		if err != nil {
			wrong = append(wrong, fault.Diagnostic{Path: at + ".quota", Summary: k + " is no quantity of Kubernetes", Detail: `Write it as in a ResourceQuota: "16", "500m", "64Gi".`})
			continue
		}
		if n.quota == nil {
			n.quota = corev1.ResourceList{}
		}
		n.quota[corev1.ResourceName(k)] = q
	}
	return n, wrong
}

// namespaceLabels are those of the tenant's namespaces.
func (t *tenant) namespaceLabels() map[string]string {
	out := map[string]string{tenantLabel: labelValue(t.name)}
	maps.Copy(out, t.namespace.labels)
	return out
}

// mark is the label of the tenant's sandboxes: its glob, or where that can be no label what comes close.
func (t *tenant) mark(r *plugin.Request) string {
	if _, cluster := r.Feature(featureCluster); cluster {
		return labelValue(t.name)
	}
	return t.name
}

// labelValue makes of a glob what a label's value may be.
func labelValue(glob string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '-'
	}, glob[:min(len(glob), 63)]), "-_.")
}

// contribute adds the tenant's objects to a workspace's plan. Only a namespace that is the workspace's alone gets a quota
// and a policy: in one that others share they would bind those too.
func (t *tenant) contribute(r *plugin.Request, s *plugin.Setup) error {
	cluster, ok := r.Feature(featureCluster)
	if !ok {
		return nil
	}
	f, can := r.Feature(featureNamespace)
	if t.namespace.own && can {
		if err := s.Contribute(string(f.Point), f.Object, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: t.namespaceLabels()}}); err != nil {
			return err
		}
	} else if cluster.Attributes["mode"] == modeShared {
		if len(t.namespace.quota) > 0 || t.namespace.deny { // it is not to go missing quietly
			s.DenyField("tenant."+t.name+".namespace", "the workspace has no namespace of its own, so that its quota and policy would bind others",
				"Set own = true, and grant Namespace and Sandbox.placement.namespace.")
		}
		return nil
	}
	if f, ok := r.Feature(featureNamespaceLabels); ok {
		if err := s.Set(f, t.namespaceLabels()); err != nil {
			return err
		}
	}
	if f, ok := r.Feature(featureQuota); ok && len(t.namespace.quota) > 0 {
		if err := s.Contribute(string(f.Point), tenantObject, corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: t.namespace.quota}}); err != nil {
			return err
		}
	}
	if item := t.limitRange(); len(item.Default)+len(item.Max) > 0 {
		if f, ok := r.Feature(featureLimitRange); ok {
			if err := s.Contribute(string(f.Point), tenantObject, corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}}}); err != nil {
				return err
			}
		}
	}
	if f, ok := r.Feature(featureNetworkPolicy); ok && t.namespace.deny {
		return s.Contribute(string(f.Point), denyObject, networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}})
	}
	return nil
}

// limitRange says the tenant's defaults and limits as the API does.
func (t *tenant) limitRange() corev1.LimitRangeItem {
	item := corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Default: corev1.ResourceList{}, Max: corev1.ResourceList{}}
	for _, res := range []struct {
		name      corev1.ResourceName
		most, own int64
		quantity  func(int64) *apiresource.Quantity
	}{
		{corev1.ResourceCPU, t.limits.MilliCPU, t.defaults.MilliCPU, func(n int64) *apiresource.Quantity { return apiresource.NewMilliQuantity(n, apiresource.DecimalSI) }},
		{corev1.ResourceMemory, t.limits.Memory, t.defaults.Memory, func(n int64) *apiresource.Quantity { return apiresource.NewQuantity(n, apiresource.BinarySI) }},
	} {
		if res.own > 0 {
			item.Default[res.name] = *res.quantity(res.own)
		}
		if res.most > 0 {
			item.Max[res.name] = *res.quantity(res.most)
		}
	}
	return item
}

// place puts a sandbox into its workspace's own namespace.
func (t *tenant) place(r *plugin.Request, p *plugin.Plan) error {
	place, can := r.Feature(featurePlacement)
	f, own := r.Feature(featureNamespace)
	if !can || !own || !t.namespace.own {
		return nil
	}
	return p.Set(place, f.Object)
}

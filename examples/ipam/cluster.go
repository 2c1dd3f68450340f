package main

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sandgate/sandgate/plugin"
)

// What it uses of a driver over Kubernetes, whose pods get their addresses from the cluster: there the lease is written
// down, for a network that reads it.
const (
	featureAnnotations = "annotations"
	featureLabels      = "labels"
	featurePolicy      = "network-policy"
)

var clusterFeatures = []string{featureAnnotations, featureLabels, featurePolicy}

const (
	addressAnnotation = "extensions.sandgate.dev/address" // the lease, as "10.80.0.5/16"
	addressLabel      = "extensions.sandgate.dev/address" // the address, as a label can be
	policyObject      = "leased-range"
)

// writeDown contributes a lease to a plan: an annotation of the pod, and a policy by which the pod and the range that its
// address is of may talk. The policy finds the pod by a label that no other has.
func writeDown(r *plugin.Request, s *plugin.Setup, lease netip.Prefix) error {
	if f, ok := r.Feature(featureAnnotations); ok {
		if err := s.Set(f, map[string]string{addressAnnotation: lease.String()}); err != nil {
			return err
		}
	}
	label, ok := r.Feature(featureLabels)
	policy, can := r.Feature(featurePolicy)
	if !ok || !can {
		return nil
	}
	mark := map[string]string{addressLabel: strings.Trim(strings.ReplaceAll(lease.Addr().String(), ":", "-"), "-")}
	if err := s.Set(label, mark); err != nil {
		return err
	}
	leased := []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: lease.Masked().String()}}}
	return s.Contribute(string(policy.Point), policyObject, networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: mark},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: leased}}, Egress: []networkingv1.NetworkPolicyEgressRule{{To: leased}}}})
}

package kubernetes

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// dryRun has the API server judge an object without storing it: as new, or as an apply over the one that is there. A pod is
// judged as its maker's, where the driver may speak for that.
func (c *cluster) dryRun(ctx context.Context, r resource, o *unstructured.Unstructured, there bool) error {
	err := c.patiently(ctx, "check", r.named(o.GetName()), func(ctx context.Context) error {
		at := c.at(r, o.GetNamespace())
		if there {
			_, err := at.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager(driverOwner), Force: true, DryRun: []string{metav1.DryRunAll}})
			return err
		}
		opts := metav1.CreateOptions{FieldManager: manager(driverOwner), DryRun: []string{metav1.DryRunAll}}
		if c.maker != nil && r == podResource {
			_, err := c.maker.Resource(r.gvr).Namespace(o.GetNamespace()).Create(ctx, o, opts)
			if !lacksRight(err) {
				return err
			}
		}
		_, err := at.Create(ctx, o, opts)
		return err
	})
	return err
}

// findMaker makes a client that speaks for who makes the pods of Sandboxes, where the driver may.
func (c *cluster) findMaker(ctx context.Context, cfg Config) error {
	if c.api == APIPod || cfg.NoDryRun || cfg.Impersonate != "" || cfg.Controller == "" {
		return nil
	}
	ask := authorizationv1.ResourceAttributes{Verb: "impersonate", Resource: "users", Name: cfg.Controller}
	if account, ok := strings.CutPrefix(cfg.Controller, "system:serviceaccount:"); ok {
		ask.Resource = "serviceaccounts"
		ask.Namespace, ask.Name, _ = strings.Cut(account, ":")
	}
	r, err := c.typed.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &ask}}, metav1.CreateOptions{})
	if err != nil {
		return failed("ask", "whom the account may impersonate", err)
	}
	if !r.Status.Allowed {
		return nil
	}
	as := rest.CopyConfig(c.config)
	as.Impersonate = rest.ImpersonationConfig{UserName: cfg.Controller}
	c.maker, err = dynamic.NewForConfig(as)
	return err
}

// lacksRight tells the refusal of RBAC from those of quotas and policies: they name the object.
func lacksRight(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), " is forbidden: User ") && strings.Contains(err.Error(), "cannot create resource")
}

// missingNamespace reports whether the server has refused because the namespace is not there.
func missingNamespace(err error, namespace string) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Reason != metav1.StatusReasonNotFound {
		return false
	}
	details := status.Status().Details
	return details != nil && details.Kind == "namespaces" && details.Name == namespace
}

// refusal says of what the API server does not take whose it is and what to do about it.
func (j *judging) refusal(o object, r resource, whole *unstructured.Unstructured, err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return err
	}
	ref := o.ref()
	if r == podResource {
		ref = kindPodTemplate + "/" + mainObject
	}
	f := fault.New(codeOf(err), "the cluster refuses %s (%s %s): %w", ref, r, o.Name, err)
	switch {
	case lacksRight(err):
		f.Message = "the driver's account lacks a right: " + status.Status().Message
	case f.Code == fault.NotFound || f.Code == fault.AlreadyExists: // something that it refers to
		f.Code = fault.FailedPrecondition
	case f.Code == fault.Invalid && strings.Contains(status.Status().Message, "ValidatingAdmissionPolicy"):
		f.Code = fault.FailedPrecondition // a policy may call itself what it likes
	}
	if details := status.Status().Details; details != nil {
		for _, cause := range details.Causes {
			f = f.With(j.diagnostic(o, r, whole, cause))
		}
	}
	return f
}

// diagnostic finds the owner of a field that the API server names.
func (j *judging) diagnostic(o object, r resource, whole *unstructured.Unstructured, cause metav1.StatusCause) fault.Diagnostic {
	d := fault.Diagnostic{Summary: cause.Message}
	if cause.Field == "" {
		return d
	}
	ref, segments := inPlan(o, r, segmentsOf(whole.Object, cause.Field))
	d.Path = ref + "." + strings.Join(segments, ".")
	if owner := ownerOf(j.r.Plan.Fields(), ref, strings.Join(segments, ".")); owner != "" {
		d.Detail = "It was set by " + string(owner) + "."
	}
	return d
}

// inPlan is where a field of an object is in the plan.
func inPlan(o object, r resource, segments []string) (ref string, place []string) {
	pod := kindPodTemplate + "/" + mainObject
	switch {
	case r == podResource:
		return pod, append([]string{"template"}, segments...)
	case o.Kind == kindSandbox && len(segments) > 1 && segments[0] == "spec" && segments[1] == "podTemplate":
		return pod, append([]string{"template"}, segments[2:]...)
	}
	return o.ref(), segments
}

// segmentsOf takes a path of the API server's apart, such as spec.containers[1].resources.limits[cpu], and calls the items
// of lists by their keys, as a plan does.
func segmentsOf(tree any, path string) []string {
	var out []string
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		switch node := tree.(type) {
		case map[string]any:
			tree = node[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(node) {
				return append(out, part)
			}
			tree = node[i]
			item, _ := tree.(map[string]any)
			for _, key := range []string{"name", "mountPath", "devicePath"} {
				if s, ok := item[key].(string); ok {
					part = s
					break
				}
			}
		default:
			tree = nil
		}
		out = append(out, part)
	}
	return out
}

// ownerOf returns who set a field of the plan: the field itself, the one that it lies in, or, if they are all one
// owner's, those that lie in it.
func ownerOf(fields []plan.Field, ref, path string) plan.Owner {
	var inside []plan.Owner
	for _, f := range fields {
		if f.Object != ref {
			continue
		}
		if path == f.Path || strings.HasPrefix(path, f.Path+".") {
			return f.Owner
		}
		if strings.HasPrefix(f.Path, path+".") && !slices.Contains(inside, f.Owner) {
			inside = append(inside, f.Owner)
		}
	}
	if len(inside) == 1 {
		return inside[0]
	}
	return ""
}

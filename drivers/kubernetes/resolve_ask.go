package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// dryRun has the API server judge an object without storing it: as new, or as an apply over the one that is there. A pod is
// judged as its maker's, where the driver may speak for that.
func (c *cluster) dryRun(ctx context.Context, r resource, o *unstructured.Unstructured, there bool) error {
	err := c.patiently(ctx, ctx, "check", r.named(o.GetName()), func(ctx context.Context) error {
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

// findMaker makes a client that speaks for who makes the pods of Sandboxes, where the driver may, and where that is who
// makes them.
func (c *cluster) findMaker(ctx context.Context, cfg Config) error {
	if c.api == APIPod || cfg.NoDryRun || cfg.Impersonate != "" || cfg.Controller == "" {
		return nil
	}
	speak := authorizationv1.ResourceAttributes{Verb: "impersonate", Resource: "users", Name: cfg.Controller}
	if account, ok := strings.CutPrefix(cfg.Controller, "system:serviceaccount:"); ok {
		speak.Resource = "serviceaccounts"
		speak.Namespace, speak.Name, _ = strings.Cut(account, ":")
	}
	if ok, err := allowed(ctx, c.typed, speak); err != nil || !ok {
		return err
	}
	as := rest.CopyConfig(c.config)
	as.Impersonate = rest.ImpersonationConfig{UserName: cfg.Controller}
	maker, err := kubernetes.NewForConfig(as)
	if err != nil {
		return failed("speak for", cfg.Controller, err)
	}
	create := authorizationv1.ResourceAttributes{Verb: "create", Resource: podResource.gvr.Resource}
	if cfg.Mode == Shared {
		create.Namespace = cfg.Namespace
	}
	ok, err := allowed(ctx, maker, create)
	if err == nil && ok {
		c.maker, err = dynamic.NewForConfig(as)
	}
	return err
}

// allowed asks whether a client may do something.
func allowed(ctx context.Context, as kubernetes.Interface, what authorizationv1.ResourceAttributes) (bool, error) {
	r, err := as.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &what}}, metav1.CreateOptions{})
	if err != nil {
		return false, failed("ask", "who makes pods", err)
	}
	return r.Status.Allowed, nil
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
	d.Path = ref + "." + place(segments)
	if owner := ownerOf(j.r.Plan.Fields(), ref, segments); owner != "" {
		d.Detail = "It was set by " + string(owner) + "."
	}
	return d
}

// place writes segments as a plan does.
func place(segments []string) string {
	var b strings.Builder
	for i, s := range segments {
		switch {
		case strings.ContainsAny(s, `.[]\`):
			b.WriteString("[" + s + "]")
		case i > 0:
			b.WriteString("." + s)
		default:
			b.WriteString(s)
		}
	}
	return b.String()
}

// inPlan is where a field of an object is in the plan.
func inPlan(o object, r resource, segments []string) (ref string, in []string) {
	pod := kindPodTemplate + "/" + mainObject
	switch {
	case r == podResource:
		return pod, append([]string{"template"}, segments...)
	case o.Kind == kindSandbox && len(segments) > 1 && segments[0] == "spec" && segments[1] == "podTemplate":
		return pod, append([]string{"template"}, segments[2:]...)
	}
	return o.ref(), segments
}

// fieldPart is a name, or what stands in brackets.
var fieldPart = regexp.MustCompile(`[^.\[\]]+|\[[^\]]*\]`)

// segmentsOf takes a path of the API server's apart, such as spec.containers[1].resources.limits[cpu], and calls the items
// of lists by their keys, as a plan does.
func segmentsOf(tree any, path string) []string {
	var out []string
	for _, part := range fieldPart.FindAllString(path, -1) {
		part = strings.Trim(part, "[]")
		switch node := tree.(type) {
		case map[string]any:
			tree = node[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(node) {
				return append(out, part)
			}
			tree, part = node[i], itemKey(node[i], part)
		default:
			tree = nil
		}
		out = append(out, part)
	}
	return out
}

// itemKey is what a plan calls the item of a list: by its name, path or port; by its index where it has none.
func itemKey(item any, index string) string {
	o, _ := item.(map[string]any)
	for _, key := range []string{"containerPort", "port"} {
		if port, ok := o[key]; ok {
			protocol, _ := o["protocol"].(string)
			return fmt.Sprint(port) + "," + cmp.Or(protocol, "TCP")
		}
	}
	for _, key := range []string{"name", "mountPath", "devicePath"} {
		if s, ok := o[key].(string); ok {
			return s
		}
	}
	return index
}

// ownerOf returns who set a field of the plan: the field itself, or what it lies in; or the only one who set anything
// there.
func ownerOf(fields []plan.Field, ref string, segments []string) plan.Owner {
	for ; len(segments) > 0; segments = segments[:len(segments)-1] {
		path := place(segments)
		var owners []plan.Owner
		for _, f := range fields {
			below := strings.HasPrefix(f.Path, path+".") || strings.HasPrefix(f.Path, path+"[")
			if f.Object == ref && (f.Path == path || below) && !slices.Contains(owners, f.Owner) {
				owners = append(owners, f.Owner)
			}
		}
		if len(owners) > 0 {
			if len(owners) > 1 {
				return ""
			}
			return owners[0]
		}
	}
	return ""
}

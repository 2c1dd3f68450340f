package kubernetes

import (
	"context"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// workspaceKey is what calls for a workspace take turns by; no sandbox's id begins with a slash.
func workspaceKey(w sandbox.Workspace) string { return "/" + w.ID }

// EnsureWorkspace implements driver.Driver.
func (d *Driver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	return d.mutate(ctx, workspaceKey(r.Workspace), func(w *work) error {
		if d.cfg.Mode == Operator {
			if err := d.admitted(w, r.Workspace.Name); err != nil {
				return err
			}
		}
		objects, err := d.renderWorkspace(r.Workspace, r.Plan)
		if err != nil {
			return err
		}
		for _, o := range objects {
			if err := d.ensure(w, r.Workspace, o); err != nil {
				return err
			}
		}
		return nil
	})
}

// ensure writes one object of a workspace, unless somebody else's is in its place.
func (d *Driver) ensure(w *work, ws sandbox.Workspace, o object) error {
	r, known := d.cluster.resourceOf(o.GVK.Kind)
	if !known {
		return fault.New(fault.Invalid, "%s: the driver cannot make a %s", o.ref(), o.GVK.Kind)
	}
	have, err := d.cluster.get(w, r, o.Namespace, o.Name)
	var uid types.UID
	switch {
	case fault.Is(err, fault.NotFound):
	case err != nil:
		return err
	case !d.isWorkspaces(have, ws):
		return fault.New(fault.Conflict, "the %s %s is in the way: it bears no marks of workspace %q", r, o.Name, ws.Name)
	case have.GetDeletionTimestamp() != nil:
		return fault.New(fault.Unavailable, "the %s %s is still being removed", r, o.Name)
	default:
		uid = have.GetUID()
	}
	return answer(d.applyObject(w, o, nil, uid))
}

// isWorkspaces reports whether an object was made for a workspace.
func (d *Driver) isWorkspaces(o metav1.Object, ws sandbox.Workspace) bool {
	l, a := o.GetLabels(), o.GetAnnotations()
	return l[managedByLabel] == managedBy && l[gatewayLabel] == d.cfg.GatewayID && a[workspaceIDLabel] == ws.ID && a[sandboxLabel] == ""
}

// admitted checks that a namespace of somebody else's may be a workspace.
func (d *Driver) admitted(ctx context.Context, namespace string) error {
	r, _ := d.cluster.resourceOf("Namespace")
	ns, err := d.cluster.get(ctx, r, "", namespace)
	switch {
	case fault.Is(err, fault.NotFound):
		return fault.New(fault.FailedPrecondition, "there is no namespace %q: in mode operator, a workspace is a namespace that is there", namespace)
	case err != nil:
		return err
	case !hasLabel(ns, d.cfg.OperatorLabel):
		return fault.New(fault.Denied, "namespace %q is not one that may be a workspace: it lacks the label %q", namespace, d.cfg.OperatorLabel)
	}
	return nil
}

// hasLabel reports whether an object has a label, "key" or "key=value". None has the label "".
func hasLabel(o metav1.Object, label string) bool {
	selector, err := labels.Parse(label)
	return err == nil && label != "" && selector.Matches(labels.Set(o.GetLabels()))
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(ctx context.Context, ws sandbox.Workspace) error {
	return d.mutate(ctx, workspaceKey(ws), func(w *work) error {
		selector := strings.Join([]string{d.ours(""), workspaceIDLabel + "=" + labelValue(ws.ID), "!" + sandboxLabel}, ",")
		kinds, err := d.cluster.kindsIn(w, d.workspaceNamespace(ws.Name))
		if err != nil {
			return err
		}
		if namespaces := resources[0]; d.cluster.writes[namespaces] {
			kinds = append(kinds, namespaces)
		}
		where := func(r resource) string {
			if d.cluster.writes[r] {
				return d.everywhere()
			}
			return d.workspaceNamespace(ws.Name)
		}
		var touched []resource
		for _, r := range kinds {
			all, _, err := d.cluster.list(w, r, where(r), selector)
			if err != nil {
				return err
			}
			for _, o := range pointers(all) {
				if !d.isWorkspaces(o, ws) {
					continue
				}
				if err := d.cluster.remove(w, r, o); err != nil {
					return err
				}
				if !slices.Contains(touched, r) {
					touched = append(touched, r)
				}
			}
		}
		for _, r := range touched {
			err := d.cluster.until(w, r, where(r), selector, func(all map[string]*unstructured.Unstructured) bool {
				for _, o := range all {
					if d.isWorkspaces(o, ws) {
						return false
					}
				}
				return true
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

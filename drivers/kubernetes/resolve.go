package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// Resolve implements driver.Driver. The API server itself is asked: each object is sent to be judged and not to be stored,
// with every owner's fields, and so is a pod of the template, since quotas and policies judge pods. A namespace that is not
// there yet cannot be asked about: what is to be in it was judged by the API's schema, and that is all.
func (d *Driver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	for _, name := range r.Requires {
		if !slices.ContainsFunc(d.about.Features, func(f extension.Feature) bool { return f.Name == name }) {
			return fault.New(fault.FailedPrecondition, "the feature %q is required, and this cluster does not give it: %s", name, d.about.Missing[name])
		}
	}
	objects, err := d.render(r.Identity, "", r.Plan, r.Workspace)
	if err == nil {
		err = d.admits(ctx, r, objects[0].Namespace)
	}
	if err != nil || d.cfg.NoDryRun {
		return err
	}
	j := &judging{Context: ctx, d: d, r: r, own: objects, known: d.verdicts.of(r.Identity.ID)}
	if err := j.all(); err != nil {
		return err
	}
	if !r.Preview {
		d.verdicts.keep(r.Identity.ID, j.known)
	}
	return nil
}

// admits checks that a sandbox may be in a namespace that somebody else has made.
func (d *Driver) admits(ctx context.Context, r *driver.ResolveRequest, namespace string) error {
	if d.cfg.Mode == Operator {
		err := d.admitted(ctx, namespace)
		if fault.Is(err, fault.Denied) {
			return fault.New(fault.FailedPrecondition, "%w", err)
		}
		return err
	}
	placed := placement(r.Plan)
	if r.Workspace == nil || placed == "" {
		return nil
	}
	if _, own := r.Workspace.Object(kindNamespace, placed); own {
		return nil
	}
	res, _ := d.cluster.resourceOf(kindNamespace)
	ns, err := d.cluster.get(ctx, res, "", namespace)
	switch {
	case fault.Is(err, fault.NotFound):
		return fault.New(fault.FailedPrecondition, "Sandbox/main is to be in %q, which is neither a Namespace of the plan of workspace %q nor a namespace that is there", placed, r.Identity.Workspace)
	case err != nil:
		return err
	case ns.GetLabels()[managedByLabel] != "":
		return fault.New(fault.FailedPrecondition, "Sandbox/main is to be in the namespace %s, which is another workspace's", namespace)
	case !hasLabel(ns, d.cfg.PlacementLabel):
		return fault.New(fault.FailedPrecondition, "Sandbox/main is to be in the namespace %s, which lacks the label of placement_label, %q", namespace, d.cfg.PlacementLabel)
	}
	return nil
}

// judging is one plan's way past the API server.
type judging struct {
	context.Context
	d     *Driver
	r     *driver.ResolveRequest
	own   []object
	known verdicts // what it would take, so that it is not asked again
}

func (j *judging) all() error {
	for _, o := range j.own {
		if o.GVK == podResource.gvk {
			continue
		}
		whole := o.Whole
		if o.Kind == kindSandbox {
			whole = whole.DeepCopy()
			setMode(whole, false)
		}
		res, _ := j.d.cluster.resourceOf(o.GVK.Kind)
		there, err := j.judge(o, res, whole)
		if err != nil {
			return err
		}
		if !there {
			if j.r.Note != nil {
				j.r.Note(fmt.Sprintf("the namespace %s is not there yet: what is to be in it was judged by the API's schema alone", o.Namespace))
			}
			return nil
		}
	}
	pod, err := j.pod()
	if err == nil {
		_, err = j.judge(j.own[0], podResource, pod)
	}
	return err
}

// judge asks about one object, if it was not judged as it is. False: its namespace is not there.
func (j *judging) judge(o object, r resource, whole *unstructured.Unstructured) (bool, error) {
	key := keyOf(whole)
	if j.known[key] {
		return true, nil
	}
	err := j.d.cluster.dryRun(j, r, whole, false)
	switch {
	case fault.Is(err, fault.AlreadyExists):
		err = j.inTheWay(o, r, whole)
	case missingNamespace(err, o.Namespace):
		return false, nil
	}
	if err != nil {
		return false, j.refusal(o, r, whole, err)
	}
	j.known[key] = true
	return true, nil
}

// inTheWay judges an object whose name is taken: by the sandbox itself, which is to be changed, or by somebody else.
func (j *judging) inTheWay(o object, r resource, whole *unstructured.Unstructured) error {
	have, err := j.d.cluster.get(j, r, o.Namespace, whole.GetName())
	switch {
	case fault.Is(err, fault.NotFound):
		return nil // it went just now
	case err != nil:
		return err
	case !j.d.isOurs(have) || have.GetAnnotations()[sandboxLabel] != j.r.Identity.ID:
		code := fault.Conflict
		if j.d.isOurs(have) && have.GetAnnotations()[sandboxLabel] != "" { // another sandbox has the name
			code = fault.AlreadyExists
		}
		return fault.New(code, "the %s %s/%s is in the way: it bears no marks of this sandbox", r, o.Namespace, have.GetName())
	}
	return j.d.cluster.dryRun(j, r, whole, true)
}

// pod is a pod as it will come to be.
func (j *judging) pod() (*unstructured.Unstructured, error) {
	o := j.own[0]
	pod := o.Whole.DeepCopy()
	if o.Kind == kindSandbox && o.GVK != podResource.gvk {
		template, _, err := unstructured.NestedMap(o.Whole.Object, "spec", "podTemplate")
		if err != nil {
			return nil, fault.New(fault.Internal, "the pod of the template: %w", err)
		}
		pod = &unstructured.Unstructured{Object: template}
		pod.SetGroupVersionKind(podResource.gvk)
		pod.SetNamespace(o.Namespace)
		claims, _, _ := unstructured.NestedSlice(o.Whole.Object, "spec", "volumeClaimTemplates")
		addClaims(pod, o.Name, claims)
	}
	pod.SetName("")
	pod.SetGenerateName(o.Name + "-") // an earlier run's may be there
	for _, side := range j.own[1:] {  // it will be there before the pod is
		if account, _, _ := unstructured.NestedString(pod.Object, "spec", "serviceAccountName"); side.Kind == kindServiceAccount && side.Name == account {
			_ = unstructured.SetNestedField(pod.Object, "default", "spec", "serviceAccountName")
		}
	}
	return pod, nil
}

// addClaims adds the volumes that the controller adds for claim templates.
func addClaims(pod *unstructured.Unstructured, sandbox string, templates []any) {
	volumes, _, _ := unstructured.NestedSlice(pod.Object, "spec", "volumes")
	for _, t := range templates {
		one, _ := t.(map[string]any)
		name, _, _ := unstructured.NestedString(one, "metadata", "name")
		volumes = append(volumes, map[string]any{"name": name, "persistentVolumeClaim": map[string]any{"claimName": name + "-" + sandbox}})
	}
	if len(volumes) > 0 {
		_ = unstructured.SetNestedSlice(pod.Object, volumes, "spec", "volumes")
	}
}

// verdicts are digests of what the API server would take.
type verdicts map[[sha256.Size]byte]bool

func keyOf(u *unstructured.Unstructured) [sha256.Size]byte {
	raw, err := json.Marshal(u.Object)
	if err != nil {
		raw = fmt.Append(nil, u.Object) // no JSON tree; a map prints sorted
	}
	return sha256.Sum256(raw)
}

// How long verdicts are kept, and of how many sandboxes: from a plan to its late contributions.
const (
	verdictAge = 10 * time.Minute
	maxJudged  = 4096
)

// judged keeps the verdicts of sandboxes, so that of a plan with late contributions only what changed is asked about again.
type judged struct {
	mu  sync.Mutex
	all map[string]judgement
}

type judgement struct {
	verdicts
	at time.Time
}

func (j *judged) of(id string) verdicts {
	j.mu.Lock()
	defer j.mu.Unlock()
	if old := j.all[id]; time.Since(old.at) < verdictAge {
		return maps.Clone(old.verdicts)
	}
	return verdicts{}
}

func (j *judged) keep(id string, v verdicts) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.all == nil || len(j.all) >= maxJudged {
		j.all = map[string]judgement{} // what is forgotten is asked again
	}
	j.all[id] = judgement{verdicts: v, at: time.Now()}
}

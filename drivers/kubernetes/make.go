package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, r *driver.CreateRequest) error {
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		m, err := d.making(w, (*driver.StartRequest)(r))
		if err != nil {
			return err
		}
		found, err := m.find()
		switch {
		case err != nil:
			return err
		case found && m.begun():
			return m.noteBegun()
		}
		if err := m.clear(); err != nil {
			return err
		}
		return answer(m.make())
	})
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, r *driver.StartRequest) error {
	return d.mutate(ctx, r.Identity.ID, func(w *work) error {
		m, err := d.making(w, r)
		if err != nil {
			return err
		}
		found, err := m.find()
		switch {
		case err != nil:
			return err
		case !found:
			return fault.New(fault.NotFound, "there is no sandbox %q", r.Identity.ID)
		case m.begun():
			return m.noteBegun()
		}
		if err := m.clear(); err != nil {
			return err
		}
		if err := d.rest(w, m.anchor, &m.state); err != nil {
			return err
		}
		if err := m.make(); err != nil {
			return answer(err)
		}
		return answer(m.prune())
	})
}

// answer is what a call says whose object was not found or in conflict while it was being made: NotFound would be said of
// the sandbox, AlreadyExists and Conflict that nothing was made.
func answer(err error) error {
	switch fault.CodeOf(err) {
	case fault.NotFound, fault.Conflict, fault.AlreadyExists:
		return fault.New(fault.FailedPrecondition, "%w", err)
	}
	return err
}

// making is how a run of a sandbox comes into being: everything is written while the sandbox is suspended, and what runs it
// is told to last.
type making struct {
	*work
	d         *Driver
	r         *driver.StartRequest
	box       object // the Sandbox, or the Pod where there is none
	sides     []object
	at        resource                   // of the anchor
	namespace string                     // of the sandbox
	anchor    *unstructured.Unstructured // as it is; nil while there is none
	state     runState
	applied   map[string]string    // what each manager of the Sandbox has, after its apply
	there     map[string]types.UID // the side objects that are there already
}

func (d *Driver) making(w *work, r *driver.StartRequest) (*making, error) {
	objects, err := d.render(r.Identity, r.Operation, r.Plan, r.Workspace)
	if err != nil {
		return nil, err
	}
	m := &making{work: w, d: d, r: r, box: objects[0], sides: objects[1:], at: d.cluster.anchor(), namespace: objects[0].Namespace,
		applied: map[string]string{}, there: map[string]types.UID{}}
	if len(r.Token) > 0 {
		m.sides = append([]object{d.tokenObject(r, m.namespace)}, m.sides...)
	}
	return m, nil
}

// tokenObject is the Secret that the pod's template mounts.
func (d *Driver) tokenObject(r *driver.StartRequest, namespace string) object {
	secret, _ := d.cluster.resourceOf("Secret")
	labels, annotations := d.marks(r.Identity, r.Operation)
	o := &unstructured.Unstructured{Object: map[string]any{"type": "Opaque", "stringData": map[string]any{tokenKey: string(r.Token)}}}
	o.SetGroupVersionKind(secret.gvk)
	o.SetNamespace(namespace)
	o.SetName(d.tokenSecret(r.Identity))
	o.SetLabels(labels)
	o.SetAnnotations(annotations)
	return object{GVK: secret.gvk, Namespace: namespace, Name: o.GetName(), Kind: "Secret", PlanName: "token",
		Owners: []ownerFields{{Owner: driverOwner, Fields: o}}}
}

// find looks for what an earlier call has made.
func (m *making) find() (bool, error) {
	o, err := m.d.cluster.get(m, m.at, m.namespace, m.d.sandboxName(m.r.Identity))
	switch {
	case fault.Is(err, fault.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case !m.d.bears(o, m.r.Identity, m.r.Operation) || identity(o) != m.r.Identity:
		return false, fault.New(fault.AlreadyExists, "the %s %s/%s is in the way: it bears no marks of this sandbox and operation", m.at, m.namespace, o.GetName())
	case o.GetDeletionTimestamp() != nil:
		return false, fault.New(fault.Unavailable, "the %s %s/%s is still being removed", m.at, m.namespace, o.GetName())
	}
	if m.anchor, err = m.d.cluster.asMade(m, o); err != nil {
		return false, err
	}
	if m.at = m.d.cluster.anchorAs(o); !m.d.pods() {
		m.box = m.box.as(m.at.gvk)
	}
	m.state, err = m.d.look(m, m.anchor)
	return true, err
}

// begun reports whether the run was begun already.
func (m *making) begun() bool { return m.state.run >= m.r.Run && m.state.told }

// clear checks that nothing of somebody else's is in the way of what is to be made.
func (m *making) clear() error {
	all := m.sides
	if m.d.pods() {
		all = append(slices.Clone(all), m.box)
	}
	for _, name := range m.claims() {
		all = append(slices.Clone(all), object{GVK: claimResource.gvk, Namespace: m.namespace, Name: name, Kind: claimResource.gvk.Kind, PlanName: name})
	}
	for _, o := range all {
		r, _ := m.d.cluster.resourceOf(o.GVK.Kind)
		have, err := m.d.cluster.get(m, r, o.Namespace, o.Name)
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return err
		case !m.d.bears(have, m.r.Identity, m.r.Operation):
			return fault.New(fault.AlreadyExists, "the %s %s is in the way: it bears no marks of this sandbox and operation", r, o.Name)
		default:
			m.there[o.ref()] = have.GetUID()
		}
	}
	return nil
}

// make writes everything and begins the run.
func (m *making) make() error {
	if err := m.makeAnchor(); err != nil {
		return err
	}
	for _, o := range m.sides {
		if err := m.d.applyObject(m.work, o, m.anchor, m.there[o.ref()]); err != nil {
			return err
		}
	}
	if m.d.pods() {
		return m.runPod()
	}
	for _, own := range m.box.Owners[1:] {
		if err := m.applyBox(own); err != nil {
			return err
		}
	}
	if err := m.drop(); err != nil {
		return err
	}
	return m.run()
}

// makeAnchor writes what owns all else: suspended, where it is a Sandbox that is not there yet.
func (m *making) makeAnchor() error {
	if !m.d.pods() {
		return m.applyBox(m.box.Owners[0])
	}
	labels, annotations := m.d.marks(m.r.Identity, m.r.Operation)
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(m.at.gvk)
	o.SetNamespace(m.namespace)
	o.SetName(m.d.sandboxName(m.r.Identity))
	o.SetLabels(labels)
	annotations[objectsAnnotation] = m.list()
	o.SetAnnotations(annotations)
	var err error
	m.anchor, err = m.d.applyFirst(m.work, m.at, o, manager(driverOwner), m.uid())
	return err
}

// uid is the anchor's, where it is there.
func (m *making) uid() types.UID {
	if m.anchor == nil {
		return ""
	}
	return m.anchor.GetUID()
}

// list is the objects of the plan besides the sandbox, as a mark.
func (m *making) list() string {
	var out []string
	for _, o := range m.sides {
		out = append(out, o.GVK.Kind+"/"+o.Name)
	}
	return strings.Join(out, ",")
}

// applyBox writes an owner's fields of the Sandbox. Only the driver's first apply may make it.
func (m *making) applyBox(own ownerFields) error {
	o := own.Fields.DeepCopy()
	if own.Owner == driverOwner {
		setAnnotation(o, objectsAnnotation, m.list())
		if m.anchor == nil || m.state.run == 0 {
			setMode(o, false)
		}
	}
	m.markClaims(o)
	got, err := m.d.applyFirst(m.work, m.at, o, manager(own.Owner), m.uid())
	if err != nil {
		return err
	}
	m.anchor = got
	m.applied[manager(own.Owner)] = fieldsOf(got, manager(own.Owner))
	return nil
}

// markClaims puts the marks on the claims that the controller makes from templates: Delete has to find them.
func (m *making) markClaims(o *unstructured.Unstructured) {
	claims, there, _ := unstructured.NestedSlice(o.Object, "spec", "volumeClaimTemplates")
	if !there {
		return
	}
	for i := range claims {
		c := &unstructured.Unstructured{Object: map[string]any{}}
		c.Object, _ = claims[i].(map[string]any) // its schema says so
		labels, annotations := m.d.marks(m.r.Identity, m.r.Operation)
		maps.Copy(labels, c.GetLabels())
		maps.Copy(annotations, c.GetAnnotations())
		c.SetLabels(labels)
		c.SetAnnotations(annotations)
	}
	_ = unstructured.SetNestedSlice(o.Object, claims, "spec", "volumeClaimTemplates") // spec is a map: it was read from there
}

// claims are the names of those claims.
func (m *making) claims() []string {
	if m.d.pods() {
		return nil
	}
	var out []string
	templates, _, _ := unstructured.NestedSlice(m.box.Whole.Object, "spec", "volumeClaimTemplates")
	for _, t := range templates {
		one, _ := t.(map[string]any)
		name, _, _ := unstructured.NestedString(one, "metadata", "name")
		out = append(out, name+"-"+m.box.Name)
	}
	return out
}

// drop takes away what an extension has set for an earlier run and no longer sets.
func (m *making) drop() error {
	for _, e := range m.anchor.GetManagedFields() {
		if e.Operation != metav1.ManagedFieldsOperationApply || !strings.HasPrefix(e.Manager, manager("")) || m.applied[e.Manager] != "" {
			continue
		}
		got, err := m.d.cluster.apply(m.work, m.at, m.d.cluster.bare(m.anchor), e.Manager, false)
		if err != nil {
			return err
		}
		m.anchor = got
	}
	return nil
}

// fieldsOf says which fields a manager has set with its applies.
func fieldsOf(o *unstructured.Unstructured, manager string) string {
	for _, e := range o.GetManagedFields() {
		if e.Manager == manager && e.Operation == metav1.ManagedFieldsOperationApply && e.FieldsV1 != nil {
			return string(e.FieldsV1.Raw)
		}
	}
	return ""
}

// attempts bounds how often a run is tried to begin while others change its Sandbox.
const attempts = 20

// run begins the run, if the Sandbox has every owner's fields at that very version.
func (m *making) run() error {
	for range attempts {
		if err := m.settle(); err != nil {
			return err
		}
		if err := m.complete(); err != nil {
			return err
		}
		o := m.d.cluster.bare(m.anchor)
		o.SetResourceVersion(m.anchor.GetResourceVersion())
		o.SetAnnotations(map[string]string{runAnnotation: strconv.Itoa(m.r.Run)})
		setMode(o, true)
		_ = unstructured.SetNestedField(o.Object, strconv.Itoa(m.r.Run), "spec", "podTemplate", "metadata", "annotations", runAnnotation) // by which its pod is known
		_, err := m.d.cluster.apply(m.work, m.at, o, runManager, true)
		if !fault.Is(err, fault.Conflict) {
			return err
		}
		if err := m.again(); err != nil {
			return err
		}
		if m.state = m.d.cluster.stateOf(m.anchor); m.begun() { // an answer that was lost
			return nil
		}
	}
	return fault.New(fault.FailedPrecondition, "the %s %s/%s is changed by others all the time", m.at, m.namespace, m.anchor.GetName())
}

// settlePatience is how long the controller may take to see a Sandbox. What it writes then would be in the way of the run;
// without it there is only one more attempt.
const settlePatience = 10 * time.Second

// settle waits until the controller has seen the Sandbox as it is.
func (m *making) settle() error {
	if settled(m.anchor) {
		return nil
	}
	ctx, cancel := context.WithTimeout(m, settlePatience)
	defer cancel()
	opts := metav1.ListOptions{FieldSelector: "metadata.name=" + m.anchor.GetName(), ResourceVersion: m.anchor.GetResourceVersion()}
	err := m.d.cluster.follow(ctx, m.at, m.namespace, opts, func(e watch.Event) (bool, error) {
		o, is := e.Object.(*unstructured.Unstructured)
		if !is || e.Type == watch.Deleted {
			return false, fault.New(fault.FailedPrecondition, "the %s %s/%s was removed by somebody else", m.at, m.namespace, m.anchor.GetName())
		}
		m.anchor = o
		return settled(o), nil
	})
	if m.Err() != nil {
		return context.Cause(m)
	}
	if ctx.Err() != nil || errors.Is(err, errGone) {
		return m.again()
	}
	return err
}

// again reads the anchor, which has to be the same one.
func (m *making) again() error {
	o, err := m.d.cluster.get(m, m.at, m.namespace, m.anchor.GetName())
	if err == nil && o.GetUID() != m.anchor.GetUID() || fault.Is(err, fault.NotFound) {
		return fault.New(fault.FailedPrecondition, "the %s %s/%s was removed by somebody else", m.at, m.namespace, m.anchor.GetName())
	}
	if err == nil {
		m.anchor = o
	}
	return err
}

// settled reports whether the controller has seen the newest generation.
func settled(o *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		one, _ := c.(map[string]any)
		if seen, _ := one["observedGeneration"].(int64); seen != o.GetGeneration() {
			return false
		}
	}
	return len(conditions) > 0
}

// complete sees to it that every owner's fields are there, as they were written.
func (m *making) complete() error {
	for range attempts {
		at := slices.IndexFunc(m.box.Owners, func(own ownerFields) bool {
			return fieldsOf(m.anchor, manager(own.Owner)) != m.applied[manager(own.Owner)]
		})
		if at < 0 {
			return nil
		}
		own := m.box.Owners[at]
		m.d.cfg.Logger.Warn("somebody has changed what an owner had set, which is set again", "sandbox", m.r.Identity.ID, "owner", own.Owner)
		if err := m.applyBox(own); err != nil {
			return err
		}
	}
	return fault.New(fault.FailedPrecondition, "somebody takes away what is set in the %s %s/%s", m.at, m.namespace, m.anchor.GetName())
}

// runPod begins a run that is a plain Pod: it is made at once, whole.
func (m *making) runPod() error {
	o := m.box.Whole.DeepCopy()
	setAnnotation(o, runAnnotation, strconv.Itoa(m.r.Run))
	o.SetOwnerReferences([]metav1.OwnerReference{m.d.cluster.ownedBy(m.anchor)})
	if _, err := m.createPod(o); err != nil {
		return err
	}
	return m.noteBegun()
}

// noteBegun sees to it that the anchor says which run was begun: a plain Pod is made before that.
func (m *making) noteBegun() error {
	if !m.d.pods() || number(m.anchor, runAnnotation) >= m.r.Run {
		return nil
	}
	a := m.d.cluster.bare(m.anchor)
	a.SetAnnotations(map[string]string{runAnnotation: strconv.Itoa(m.r.Run)})
	_, err := m.d.cluster.apply(m.work, m.at, a, runManager, true)
	return err
}

func (m *making) createPod(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	for end := time.Now().Add(m.d.cfg.Patience); ; {
		got, err := m.d.cluster.create(m.work, podResource, o, manager(driverOwner))
		switch {
		case fault.Is(err, fault.AlreadyExists): // perhaps by a call whose answer was lost
			have, lost := m.d.cluster.get(m, podResource, o.GetNamespace(), o.GetName())
			if lost == nil && m.d.bears(have, m.r.Identity, m.r.Operation) && number(have, runAnnotation) == m.r.Run {
				return have, nil
			}
			return nil, cmp.Or(lost, err)
		case err != nil && noServiceAccount(err) && time.Now().Before(end): // a new namespace gets it in a moment
			if err := pause(m, 200*time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		return got, err
	}
}

func noServiceAccount(err error) bool {
	return strings.Contains(err.Error(), "serviceaccount") && strings.Contains(err.Error(), "not found")
}

// prune removes what an earlier run had beside the sandbox, and this one has not.
func (m *making) prune() error {
	left, err := m.d.leftovers(m.work, m.namespace, m.r.Identity, m.r.Operation, false)
	if err != nil {
		return err
	}
	for _, l := range left {
		if metav1.GetControllerOf(l.object) != nil || l.resource == podResource || slices.ContainsFunc(m.sides, func(o object) bool { return o.GVK.Kind == l.resource.gvk.Kind && o.Name == l.object.GetName() }) {
			continue
		}
		if err := m.d.cluster.remove(m.work, l.resource, l.object); err != nil {
			return err
		}
	}
	return nil
}

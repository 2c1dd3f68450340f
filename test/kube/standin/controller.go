package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// nameHash is the label by which the objects of a Sandbox are found.
const nameHash = "agents.x-k8s.io/sandbox-name-hash"

// sandbox is what the controller reads of one, in both versions.
type sandbox struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		PodTemplate struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
			Spec     corev1.PodSpec    `json:"spec"`
		} `json:"podTemplate"`
		Claims []struct {
			Metadata metav1.ObjectMeta                `json:"metadata"`
			Spec     corev1.PersistentVolumeClaimSpec `json:"spec"`
		} `json:"volumeClaimTemplates"`
		Service        bool         `json:"service"`
		ShutdownTime   *metav1.Time `json:"shutdownTime"`
		ShutdownPolicy string       `json:"shutdownPolicy"`
		Replicas       *int32       `json:"replicas"`      // v1alpha1
		OperatingMode  string       `json:"operatingMode"` // v1beta1
	} `json:"spec"`
	Status status `json:"status"`
}

type status struct {
	Conditions  []metav1.Condition `json:"conditions,omitempty"`
	Selector    string             `json:"selector,omitempty"`
	Service     string             `json:"service,omitempty"`
	ServiceFQDN string             `json:"serviceFQDN,omitempty"`
	PodIPs      []string           `json:"podIPs,omitempty"`
	NodeName    string             `json:"nodeName,omitempty"` // v1beta1
	Replicas    *int32             `json:"replicas,omitempty"` // v1alpha1
}

func (s *sandbox) suspended() bool {
	return s.Spec.OperatingMode == "Suspended" || s.Spec.Replicas != nil && *s.Spec.Replicas == 0
}

// controller makes of a Sandbox its pod, claims and service, and says how they are.
type controller struct {
	client    kubernetes.Interface
	objects   dynamic.Interface
	resource  schema.GroupVersionResource
	sandboxes cache.GenericLister
	dynamics  dynamicinformer.DynamicSharedInformerFactory
	watches   informers.SharedInformerFactory
	faults    faults
	queue     *queue

	mu      sync.Mutex
	seen    map[string]time.Time // when a generation was seen first, for one that is slow
	meddled map[types.UID]bool
}

func newController(client kubernetes.Interface, objects dynamic.Interface, version string) *controller {
	resource := schema.GroupVersionResource{Group: "agents.x-k8s.io", Version: version, Resource: "sandboxes"}
	watches := informers.NewSharedInformerFactory(client, 0)
	dynamics := dynamicinformer.NewDynamicSharedInformerFactory(objects, 0)
	c := &controller{client: client, objects: objects, resource: resource, sandboxes: dynamics.ForResource(resource).Lister(), dynamics: dynamics,
		watches: watches, faults: newFaults(watches), seen: map[string]time.Time{}, meddled: map[types.UID]bool{}}
	c.queue = newQueue(c.look)
	return c
}

func (c *controller) run(ctx context.Context) error {
	core := c.watches.Core().V1()
	sandboxes := c.dynamics.ForResource(c.resource).Informer()
	err := errors.Join(c.queue.on(sandboxes, itself), c.queue.on(core.Pods().Informer(), its), c.queue.on(core.Services().Informer(), its),
		c.queue.whenFaultsChange(core.Namespaces().Informer(), func(namespace string) (keys []string) {
			for _, o := range sandboxes.GetStore().List() {
				if m := o.(metav1.Object); m.GetNamespace() == namespace {
					keys = append(keys, itself(m))
				}
			}
			return keys
		}))
	if err != nil {
		return err
	}
	c.watches.Start(ctx.Done())
	c.dynamics.Start(ctx.Done())
	c.watches.WaitForCacheSync(ctx.Done())
	c.dynamics.WaitForCacheSync(ctx.Done())
	c.queue.run(ctx)
	return nil
}

func (c *controller) look(ctx context.Context, namespace, name string) (time.Duration, error) {
	o, err := c.sandboxes.ByNamespace(namespace).Get(name)
	if err != nil {
		return 0, ignoreNotFound(err)
	}
	u := o.(*unstructured.Unstructured)
	var s sandbox
	raw, err := u.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil || s.DeletionTimestamp != nil || c.faults.has(&s, "ignore") {
		return 0, err
	}
	if err := c.meddle(ctx, &s); err != nil {
		return 0, err
	}
	if wait := c.slow(&s); wait > 0 {
		return wait, nil
	}
	was := s.Status.deepCopy()
	again, err := c.reconcile(ctx, &s)
	if !same(was, s.Status) {
		changed := u.DeepCopy()
		next, convertErr := runtime.DefaultUnstructuredConverter.ToUnstructured(&s.Status)
		if convertErr != nil {
			return 0, convertErr
		}
		changed.Object["status"] = next
		_, updateErr := c.objects.Resource(c.resource).Namespace(namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
		err = errors.Join(err, ignoreNotFound(updateErr))
	}
	return again, err
}

// reconcile makes what a Sandbox asks for, and fills its status.
func (c *controller) reconcile(ctx context.Context, s *sandbox) (time.Duration, error) {
	var again time.Duration
	expired := false
	if s.Spec.ShutdownTime != nil {
		again = time.Until(s.Spec.ShutdownTime.Time)
		expired = again <= 0
	}
	if expired && s.Spec.ShutdownPolicy == "Delete" {
		return 0, ignoreNotFound(c.objects.Resource(c.resource).Namespace(s.Namespace).Delete(ctx, s.Name, *metav1.NewPreconditionDeleteOptions(string(s.UID))))
	}
	pod, err := c.pod(ctx, s, s.suspended() || expired)
	service := ""
	if err == nil {
		service, err = c.service(ctx, s)
	}
	s.Status.Selector = nameHash + "=" + hash(s.Name)
	s.Status.Service, s.Status.ServiceFQDN = service, ""
	if service != "" {
		s.Status.ServiceFQDN = service + "." + s.Namespace + ".svc.cluster.local"
	}
	c.status(s, pod, err, expired)
	return max(again, 0), err
}

// pod is the Sandbox's pod, made where there is to be one, deleted where there is not.
func (c *controller) pod(ctx context.Context, s *sandbox, none bool) (*corev1.Pod, error) {
	pods := c.client.CoreV1().Pods(s.Namespace)
	// Asked of the API server, not of the watch: a pod is never made twice.
	pod, err := pods.Get(ctx, s.Name, metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return nil, err
	case err == nil && !metav1.IsControlledBy(pod, s):
		return pod, fmt.Errorf("pod %q is not owned by this sandbox", s.Name)
	case none && err != nil:
		return nil, nil
	case none:
		if pod.DeletionTimestamp == nil {
			err = ignoreNotFound(pods.Delete(ctx, s.Name, *metav1.NewPreconditionDeleteOptions(string(pod.UID))))
		}
		return pod, err
	case err == nil:
		return c.copyMetadata(ctx, s, pod)
	}
	spec := *s.Spec.PodTemplate.Spec.DeepCopy()
	if err := c.claims(ctx, s, &spec); err != nil {
		return nil, err
	}
	labels := maps.Clone(s.Spec.PodTemplate.Metadata.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[nameHash] = hash(s.Name)
	pod, err = pods.Create(ctx, &corev1.Pod{Spec: spec, ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: labels,
		Annotations: s.Spec.PodTemplate.Metadata.Annotations, OwnerReferences: owned(s)}}, metav1.CreateOptions{FieldManager: "sandbox-controller"})
	if err != nil {
		return nil, err
	}
	return pod, nil
}

// copyMetadata brings labels and annotations that the template got later to the pod that runs. No other field of it is
// changed.
func (c *controller) copyMetadata(ctx context.Context, s *sandbox, pod *corev1.Pod) (*corev1.Pod, error) {
	changed := pod.DeepCopy()
	put := func(to *map[string]string, from map[string]string) {
		if *to == nil {
			*to = map[string]string{}
		}
		maps.Copy(*to, from)
	}
	put(&changed.Labels, s.Spec.PodTemplate.Metadata.Labels)
	put(&changed.Annotations, s.Spec.PodTemplate.Metadata.Annotations)
	if maps.Equal(changed.Labels, pod.Labels) && maps.Equal(changed.Annotations, pod.Annotations) || pod.DeletionTimestamp != nil {
		return pod, nil
	}
	return c.client.CoreV1().Pods(s.Namespace).Update(ctx, changed, metav1.UpdateOptions{FieldManager: "sandbox-controller"})
}

// claims makes the volume claims of a Sandbox, and has its pod use them.
func (c *controller) claims(ctx context.Context, s *sandbox, spec *corev1.PodSpec) error {
	for _, t := range s.Spec.Claims {
		name := t.Metadata.Name + "-" + s.Name
		_, err := c.client.CoreV1().PersistentVolumeClaims(s.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{Spec: t.Spec, ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: t.Metadata.Labels, Annotations: t.Metadata.Annotations, OwnerReferences: owned(s)}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		source := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
		there := false
		for i := range spec.Volumes {
			if spec.Volumes[i].Name == t.Metadata.Name {
				spec.Volumes[i].VolumeSource, there = source, true
			}
		}
		if !there {
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: t.Metadata.Name, VolumeSource: source})
		}
	}
	return nil
}

// service is the name of the Sandbox's headless service, made where it asks for one.
func (c *controller) service(ctx context.Context, s *sandbox) (string, error) {
	if !s.Spec.Service {
		return "", nil
	}
	label := map[string]string{nameHash: hash(s.Name)}
	_, err := c.client.CoreV1().Services(s.Namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: label, OwnerReferences: owned(s)},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: label}}, metav1.CreateOptions{FieldManager: "sandbox-controller"})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	return s.Name, nil
}

// status says how the pod is.
func (c *controller) status(s *sandbox, pod *corev1.Pod, err error, expired bool) {
	st := &s.Status
	st.PodIPs, st.NodeName, st.Replicas = nil, "", nil
	count := int32(0)
	ours := pod != nil && metav1.IsControlledBy(pod, s)
	if ours {
		count = 1
		for _, ip := range pod.Status.PodIPs {
			st.PodIPs = append(st.PodIPs, ip.IP)
		}
	}
	if c.resource.Version == "v1alpha1" {
		st.Replicas = &count
	} else if ours {
		st.NodeName = pod.Spec.NodeName
	}
	set := func(kind string, is bool, reason, message string) {
		now := metav1.ConditionFalse
		if is {
			now = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&st.Conditions, metav1.Condition{Type: kind, Status: now, Reason: reason, Message: message, ObservedGeneration: s.Generation})
	}
	switch {
	case !s.suspended():
		set("Suspended", false, "NotSuspended", "Sandbox is not suspended")
	case pod == nil:
		set("Suspended", true, "PodTerminated", "Pod has been terminated. Sandbox is suspended")
	case !ours:
		set("Suspended", false, "PodNotOwned", "Refused to delete pod because it is not owned by this sandbox")
	default:
		set("Suspended", false, "PodTerminating", "Pod is terminating. Sandbox is suspending")
	}
	meta.RemoveStatusCondition(&st.Conditions, "Finished")
	meta.RemoveStatusCondition(&st.Conditions, "PodScheduled")
	if ours {
		for _, p := range pod.Status.Conditions {
			if p.Type == corev1.PodScheduled {
				reason := p.Reason
				if reason == "" {
					reason = "PodScheduled"
				}
				set("PodScheduled", p.Status == corev1.ConditionTrue, reason, p.Message)
			}
		}
	}
	finished := map[corev1.PodPhase]string{corev1.PodSucceeded: "Pod completed successfully", corev1.PodFailed: "Pod failed"}
	switch {
	case err != nil:
		set("Ready", false, "ReconcilerError", "Error seen: "+err.Error())
	case expired:
		set("Ready", false, "SandboxExpired", "Sandbox has expired")
	case s.suspended():
		set("Ready", false, "SandboxSuspended", "Sandbox is suspended")
	case pod == nil:
		set("Ready", false, "DependenciesNotReady", "Pod does not exist")
	case finished[pod.Status.Phase] != "":
		set("Finished", true, "Pod"+string(pod.Status.Phase), finished[pod.Status.Phase])
		set("Ready", false, "Pod"+string(pod.Status.Phase), finished[pod.Status.Phase])
	case pod.Status.Phase != corev1.PodRunning:
		set("Ready", false, "DependenciesNotReady", "Pod exists with phase: "+string(pod.Status.Phase))
	case !podReady(pod.Status):
		set("Ready", false, "DependenciesNotReady", "Pod is Running but not Ready")
	case len(pod.Status.PodIPs) == 0:
		set("Ready", false, "DependenciesNotReady", "Pod is Ready but has no podIPs yet")
	default:
		set("Ready", true, "DependenciesReady", "Pod is Ready")
	}
}

// slow says how long a change is still not to be looked at.
func (c *controller) slow(s *sandbox) time.Duration {
	v, ok := c.faults.of(s, "slow")
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := fmt.Sprint(s.UID, s.Generation)
	if _, ok := c.seen[key]; !ok {
		c.seen[key] = time.Now()
	}
	return time.Until(c.seen[key].Add(d))
}

// meddle removes once what a field manager has set on a suspended Sandbox, as another client could: it applies as that
// manager, and has no field.
func (c *controller) meddle(ctx context.Context, s *sandbox) error {
	manager, ok := c.faults.of(s, "meddle")
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || !s.suspended() || c.meddled[s.UID] {
		return nil
	}
	for _, m := range s.ManagedFields {
		if m.Manager != manager || m.Operation != metav1.ManagedFieldsOperationApply {
			continue
		}
		nothing := &unstructured.Unstructured{Object: map[string]any{"apiVersion": c.resource.GroupVersion().String(), "kind": "Sandbox",
			"metadata": map[string]any{"name": s.Name, "uid": string(s.UID)}}}
		_, err := c.objects.Resource(c.resource).Namespace(s.Namespace).Apply(ctx, s.Name, nothing, metav1.ApplyOptions{FieldManager: manager, Force: true})
		c.meddled[s.UID] = err == nil
		return err
	}
	return nil
}

func owned(s *sandbox) []metav1.OwnerReference {
	return []metav1.OwnerReference{*metav1.NewControllerRef(s, schema.FromAPIVersionAndKind(s.APIVersion, s.Kind))}
}

func (s status) deepCopy() status {
	s.Conditions = append([]metav1.Condition(nil), s.Conditions...)
	return s
}

func same(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

func hash(name string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // a hash does not fail
	return fmt.Sprintf("%08x", h.Sum32())
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

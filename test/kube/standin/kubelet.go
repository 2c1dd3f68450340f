package standin

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// node is where all pods are said to run.
const node = "stand-in"

// kubelet binds pods, says that they run, that they have ended, and that they are gone.
type kubelet struct {
	client  kubernetes.Interface
	pods    corelisters.PodLister
	faults  faults
	watches informers.SharedInformerFactory
	queue   *queue
	last    atomic.Uint32 // address given
}

func newKubelet(client kubernetes.Interface) *kubelet {
	watches := informers.NewSharedInformerFactory(client, 0)
	k := &kubelet{client: client, pods: watches.Core().V1().Pods().Lister(), faults: newFaults(watches), watches: watches}
	k.queue = newQueue(k.look)
	return k
}

func (k *kubelet) run(ctx context.Context) error {
	core := k.watches.Core().V1()
	if err := k.queue.on(core.Pods().Informer(), itself); err != nil {
		return err
	}
	err := k.queue.whenFaultsChange(core.Namespaces().Informer(), func(namespace string) (keys []string) {
		pods, _ := k.pods.Pods(namespace).List(labels.Everything()) // of a cache: it does not fail
		for _, p := range pods {
			keys = append(keys, itself(p))
		}
		return keys
	})
	if err != nil {
		return err
	}
	k.watches.Start(ctx.Done())
	k.watches.WaitForCacheSync(ctx.Done())
	k.queue.run(ctx)
	return nil
}

// look does the next thing that a pod needs.
func (k *kubelet) look(ctx context.Context, namespace, name string) (time.Duration, error) {
	p, err := k.pods.Pods(namespace).Get(name)
	if err != nil {
		return 0, ignoreNotFound(err)
	}
	switch {
	case p.DeletionTimestamp != nil:
		if k.faults.has(p, "stuck") || len(p.Finalizers) > 0 && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0 {
			return 0, nil
		}
		at := metav1.NewPreconditionDeleteOptions(string(p.UID))
		at.GracePeriodSeconds = new(int64) // 0: it has ended
		return 0, ignoreNotFound(k.client.CoreV1().Pods(namespace).Delete(ctx, name, *at))
	case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || len(p.Spec.SchedulingGates) > 0:
		return 0, nil
	case p.Spec.NodeName == "":
		return k.schedule(ctx, p)
	}
	return k.ends(p), k.runPod(ctx, p)
}

// exitCommand is a command that ends with the code that is its argument, after it has run for a moment.
const exitCommand = "/stand-in/exit"

const exitsAfter = 300 * time.Millisecond

// ends is when to look again at a pod that ends by itself; at once, once it is over.
func (k *kubelet) ends(p *corev1.Pod) time.Duration {
	if c := p.Spec.Containers[0].Command; len(c) == 2 && c[0] == exitCommand {
		return exitsAfter
	}
	return 0
}

// exit is the code with which a pod's containers are to end now.
func (k *kubelet) exit(p *corev1.Pod) (code string, ends bool) {
	if code, ends := k.faults.of(p, "exit"); ends {
		return code, true
	}
	if k.ends(p) > 0 && p.Status.StartTime != nil && time.Since(p.Status.StartTime.Time) > exitsAfter && podReady(p.Status) {
		return p.Spec.Containers[0].Command[1], true
	}
	return "", false
}

func podReady(status corev1.PodStatus) bool {
	for _, c := range status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// schedule binds a pod when what it refers to exists. Claims are not allocated: they only have to be there.
func (k *kubelet) schedule(ctx context.Context, p *corev1.Pod) (time.Duration, error) {
	why, none := k.faults.of(p, "unschedulable")
	if !none {
		var err error
		if why, err = k.missing(ctx, p); err != nil {
			return 0, err
		}
	}
	if why != "" || none {
		err := k.condition(ctx, p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: why})
		if err == nil {
			err = k.event(ctx, p, "Warning", "FailedScheduling", why)
		}
		return 100 * time.Millisecond, err
	}
	return 0, ignoreNotFound(k.client.CoreV1().Pods(p.Namespace).Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: p.Name, UID: p.UID},
		Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{}))
}

// missing says which claim of a pod there is not.
func (k *kubelet) missing(ctx context.Context, p *corev1.Pod) (string, error) {
	for _, c := range p.Spec.ResourceClaims {
		name := c.ResourceClaimName
		for _, s := range p.Status.ResourceClaimStatuses {
			if s.Name == c.Name {
				name = s.ResourceClaimName
			}
		}
		if name == nil {
			return fmt.Sprintf("waiting for the ResourceClaim of %q to be created from its template", c.Name), nil
		}
		_, err := k.client.ResourceV1().ResourceClaims(p.Namespace).Get(ctx, *name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Sprintf("resourceclaim %q not found", *name), nil
		}
		if err != nil {
			return "", err
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		_, err := k.client.CoreV1().PersistentVolumeClaims(p.Namespace).Get(ctx, v.PersistentVolumeClaim.ClaimName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Sprintf("persistentvolumeclaim %q not found", v.PersistentVolumeClaim.ClaimName), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// runPod says of a bound pod what its containers do.
func (k *kubelet) runPod(ctx context.Context, p *corev1.Pod) error {
	status := *p.Status.DeepCopy()
	if status.StartTime == nil {
		now := metav1.Now()
		status.StartTime, status.HostIP = &now, "10.0.0.1"
		status.HostIPs = []corev1.HostIP{{IP: status.HostIP}}
	}
	if why, fails := k.faults.of(p, "image-pull"); fails {
		status.Phase = corev1.PodPending
		k.containers(p, &status, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: why}}, false)
		return k.update(ctx, p, status, "Warning", "Failed", "Failed to pull image: "+why)
	}
	if status.PodIP == "" {
		n := k.last.Add(1)
		status.PodIP = fmt.Sprintf("10.244.%d.%d", n/250%250, n%250+1)
		status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	}
	if code, ends := k.exit(p); ends {
		n, err := strconv.Atoi(code)
		if err != nil {
			return fmt.Errorf("stand-in/exit: %w", err)
		}
		return k.end(ctx, p, status, int32(n))
	}
	why, never := k.faults.of(p, "never-ready")
	status.Phase = corev1.PodRunning
	k.containers(p, &status, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: *status.StartTime}}, !never)
	if never {
		return k.update(ctx, p, status, "Warning", "Unhealthy", why)
	}
	return k.update(ctx, p, status, "Normal", "Started", "Container started")
}

// end ends the containers of a pod, for good or, as its restart policy says, until they are started again.
func (k *kubelet) end(ctx context.Context, p *corev1.Pod, status corev1.PodStatus, code int32) error {
	if p.Spec.RestartPolicy == corev1.RestartPolicyAlways || p.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && code != 0 {
		status.Phase = corev1.PodRunning
		k.containers(p, &status, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff",
			Message: "back-off restarting failed container"}}, false)
		return k.update(ctx, p, status, "Warning", "BackOff", "Back-off restarting failed container")
	}
	reason := "Completed"
	status.Phase = corev1.PodSucceeded
	if code != 0 {
		status.Phase, reason = corev1.PodFailed, "Error"
	}
	k.containers(p, &status, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason,
		StartedAt: *status.StartTime, FinishedAt: metav1.Now()}}, false)
	return k.update(ctx, p, status, "", "", "")
}

// containers puts all containers of a pod into a state, and its conditions.
func (k *kubelet) containers(p *corev1.Pod, status *corev1.PodStatus, state corev1.ContainerState, ready bool) {
	status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		started := state.Running != nil
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, Image: c.Image, State: state, Ready: ready, Started: &started})
	}
	is := corev1.ConditionFalse
	if ready {
		is = corev1.ConditionTrue
	}
	setCondition(status, corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue})
	setCondition(status, corev1.PodCondition{Type: corev1.ContainersReady, Status: is})
	setCondition(status, corev1.PodCondition{Type: corev1.PodReady, Status: is})
}

func setCondition(status *corev1.PodStatus, c corev1.PodCondition) {
	c.LastTransitionTime = metav1.Now()
	for i, had := range status.Conditions {
		if had.Type == c.Type {
			if had.Status == c.Status {
				c.LastTransitionTime = had.LastTransitionTime
			}
			status.Conditions[i] = c
			return
		}
	}
	status.Conditions = append(status.Conditions, c)
}

func (k *kubelet) condition(ctx context.Context, p *corev1.Pod, c corev1.PodCondition) error {
	status := *p.Status.DeepCopy()
	setCondition(&status, c)
	return k.update(ctx, p, status, "", "", "")
}

// update stores a status that says something new, with an event that says so too.
func (k *kubelet) update(ctx context.Context, p *corev1.Pod, status corev1.PodStatus, kind, reason, message string) error {
	if same(p.Status, status) {
		return nil
	}
	changed := p.DeepCopy()
	changed.Status = status
	if _, err := k.client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return ignoreNotFound(err)
	}
	if reason == "" {
		return nil
	}
	return k.event(ctx, p, kind, reason, message)
}

// event tells of a pod once.
func (k *kubelet) event(ctx context.Context, p *corev1.Pod, kind, reason, message string) error {
	now := metav1.Now()
	_, err := k.client.CoreV1().Events(p.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: p.Name + "." + hash(string(p.UID)+reason+message)},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Type:           kind, Reason: reason, Message: message, Source: corev1.EventSource{Component: "stand-in"},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return ignoreNotFound(err)
}

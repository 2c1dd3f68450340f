package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// agentContainer is the container of a pod that runs the sandbox's command.
const agentContainer = "agent"

// runState is what is known of a sandbox's runs.
type runState struct {
	run     int                        // that was begun last; 0: none yet
	told    bool                       // the anchor says that it is to run
	stopped int                        // the run that Stop ended
	lost    int                        // the run whose pod somebody has taken away
	exited  int                        // the run that ended by itself, where it is noted
	had     string                     // the uid of the pod that the run has, where it is noted
	pod     *unstructured.Unstructured // nil: there is none
}

// stateOf reads it from an anchor, without the pod.
func (c *cluster) stateOf(anchor *unstructured.Unstructured) runState {
	s := runState{run: number(anchor, runAnnotation), stopped: number(anchor, stoppedAnnotation), lost: number(anchor, lostAnnotation),
		exited: number(anchor, exitedAnnotation)}
	if run, uid, _ := strings.Cut(anchor.GetAnnotations()[podAnnotation], "/"); run == strconv.Itoa(s.run) {
		s.had = uid
	}
	if c.api == APIPod {
		s.told = s.run > 0 && s.stopped != s.run && s.lost != s.run
	} else {
		s.told = told(anchor)
	}
	return s
}

// stateWith reads it from an anchor and the pods that bear its sandbox's id, of which it takes the newest.
func (d *Driver) stateWith(anchor *unstructured.Unstructured, pods []*unstructured.Unstructured) runState {
	s := d.cluster.stateOf(anchor)
	for _, p := range pods {
		if p.GetAnnotations()[sandboxLabel] != anchor.GetAnnotations()[sandboxLabel] || p.GetNamespace() != anchor.GetNamespace() {
			continue
		}
		if s.pod == nil || s.pod.GetCreationTimestamp().Time.Before(p.GetCreationTimestamp().Time) {
			s.pod = p
		}
	}
	if d.pods() && s.pod != nil {
		if n := number(s.pod, runAnnotation); n > s.run { // it is made before it is noted
			s.run, s.told = n, true
		}
	}
	return s
}

// look reads it from the cluster.
func (d *Driver) look(ctx context.Context, anchor *unstructured.Unstructured) (runState, error) {
	pods, _, err := d.cluster.list(ctx, podResource, anchor.GetNamespace(), d.ours(anchor.GetAnnotations()[sandboxLabel]))
	if err != nil {
		return runState{}, err
	}
	return d.stateWith(anchor, pointers(pods)), nil
}

func pointers(all []unstructured.Unstructured) []*unstructured.Unstructured {
	out := make([]*unstructured.Unstructured, len(all))
	for i := range all {
		out[i] = &all[i]
	}
	return out
}

// scope is the namespace in which a sandbox is looked for; "" is all of them.
func (d *Driver) scope(id sandbox.Identity) string {
	if d.cfg.Mode == Shared && d.cluster.wide {
		return "" // its plan may have placed it anywhere
	}
	return d.workspaceNamespace(id.Workspace)
}

// everywhere is the namespace in which all of them are looked for.
func (d *Driver) everywhere() string {
	if d.cluster.wide {
		return ""
	}
	return d.cfg.Namespace
}

// anchorOf finds the anchor of a sandbox, by its name and its annotations: a label that somebody takes away proves nothing.
func (d *Driver) anchorOf(ctx context.Context, id sandbox.Identity) (*unstructured.Unstructured, error) {
	all, _, err := d.cluster.listBy(ctx, d.cluster.anchor(), d.scope(id), metav1.ListOptions{FieldSelector: "metadata.name=" + d.sandboxName(id)})
	if err != nil {
		return nil, err
	}
	for _, o := range pointers(all) {
		if o.GetAnnotations()[sandboxLabel] == id.ID && o.GetAnnotations()[operationAnnotation] != "" {
			return d.cluster.asMade(ctx, o)
		}
	}
	return nil, fault.New(fault.NotFound, "there is no sandbox %q", id.ID)
}

// Get implements driver.Driver. A pod that has outlived its Sandbox is still one.
func (d *Driver) Get(ctx context.Context, id sandbox.Identity) (*driver.Status, error) {
	for range 2 { // NotFound is asked twice: an anchor may come between the two lists
		anchor, err := d.anchorOf(ctx, id)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			state, err := d.look(ctx, anchor)
			if err != nil {
				return nil, err
			}
			return state.status(d, anchor), nil
		}
		pods, _, err := d.cluster.list(ctx, podResource, d.scope(id), d.ours(id.ID))
		if err != nil {
			return nil, err
		}
		for i := range pods {
			if d.isOurs(&pods[i]) && pods[i].GetAnnotations()[sandboxLabel] == id.ID {
				return orphan(&pods[i]), nil
			}
		}
	}
	if err := d.cluster.same(ctx, d.cfg); err != nil {
		return nil, err
	}
	return nil, fault.New(fault.NotFound, "there is no sandbox %q", id.ID)
}

// orphan is the status of a sandbox of which nothing but a pod is left.
func orphan(pod *unstructured.Unstructured) *driver.Status {
	return &driver.Status{Identity: identity(pod), Operation: pod.GetAnnotations()[operationAnnotation], State: driver.Removing, Reason: "SandboxRemoved",
		Message: "somebody has removed what the pod belongs to; it goes too", Objects: []driver.RealObject{real(podResource.gvk.Kind, pod)}}
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]*driver.Status, error) {
	anchors, _, err := d.cluster.list(ctx, d.cluster.anchor(), d.everywhere(), d.ours(""))
	if err != nil {
		return nil, err
	}
	pods, _, err := d.cluster.list(ctx, podResource, d.everywhere(), d.ours(""))
	if err != nil {
		return nil, err
	}
	v := newView(d)
	for _, o := range pointers(anchors) {
		v.put(d.cluster.anchor(), o)
	}
	for _, o := range pointers(pods) {
		v.put(podResource, o)
	}
	return v.all(), nil
}

func real(kind string, o metav1.Object) driver.RealObject {
	return driver.RealObject{Kind: kind, Name: o.GetNamespace() + "/" + o.GetName()}
}

// status says what a sandbox is.
func (s *runState) status(d *Driver, anchor *unstructured.Unstructured) *driver.Status {
	a := anchor.GetAnnotations()
	st := &driver.Status{Identity: identity(anchor), Operation: a[operationAnnotation], Run: s.run, State: driver.Provisioning,
		Objects: []driver.RealObject{real(anchor.GetKind(), anchor)}, Since: anchor.GetCreationTimestamp().UTC()}
	var pod *corev1.Pod
	if s.pod != nil {
		st.Objects = append(st.Objects, real(podResource.gvk.Kind, s.pod))
		pod = podOf(s.pod)
	}
	for _, o := range strings.Split(a[objectsAnnotation], ",") {
		if kind, name, ok := strings.Cut(o, "/"); ok {
			st.Objects = append(st.Objects, driver.RealObject{Kind: kind, Name: anchor.GetNamespace() + "/" + name})
		}
	}
	switch {
	case anchor.GetDeletionTimestamp() != nil:
		st.State = driver.Removing
	case s.run == 0:
		st.Run = 1
	case s.exited == s.run && (pod == nil || ended(pod)):
		exitedWith(st, a[exitAnnotation])
	case !s.told && pod != nil:
		st.State, st.Reason, st.Message = driver.Running, "Stopping", "the pod is being removed"
	case !s.told && s.lost == s.run && s.stopped != s.run, d.pods() && s.told && pod == nil:
		st.State, st.Reason, st.Message = driver.Lost, "PodRemoved", "somebody else has removed the pod"
	case !s.told && s.stopped == s.run:
		st.State = driver.Stopped
		if code, _, err := readExit(a[exitAnnotation]); err == nil {
			st.ExitCode = &code
		}
	case !s.told:
		st.State, st.Reason, st.Message = driver.Stopped, "SuspendedByOthers", "somebody has suspended the Sandbox"
	case pod != nil:
		d.running(st, pod, anchor)
	default:
		d.waiting(st, anchor)
	}
	return st
}

func podOf(o *unstructured.Unstructured) *corev1.Pod {
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, pod); err != nil {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: o.GetName()}} // the API server gives no such pod
	}
	return pod
}

// waiting completes the status of a Sandbox whose pod is not there yet, or not any more.
func (d *Driver) waiting(st *driver.Status, anchor *unstructured.Unstructured) {
	c := condition(anchor, "Ready")
	st.Reason, st.Message = c.Reason, c.Message
	switch {
	case strings.Contains(c.Message, "exceeded quota"):
		st.State, st.Reason = driver.Failed, "QuotaExceeded"
	case c.Reason == "SandboxExpired":
		st.State = driver.Failed
	}
}

// condition returns a condition that is about the newest generation.
func condition(o *unstructured.Unstructured, kind string) metav1.Condition {
	all, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range all {
		m, _ := c.(map[string]any)
		text := func(key string) string { s, _ := m[key].(string); return s }
		if seen, there := m["observedGeneration"].(int64); text("type") == kind && (!there || seen == o.GetGeneration()) {
			return metav1.Condition{Type: kind, Status: metav1.ConditionStatus(text("status")), Reason: text("reason"), Message: text("message")}
		}
	}
	return metav1.Condition{}
}

// reasonExited is of a process that ended, also while other containers of its pod still run.
const reasonExited = "ProcessExited"

// lostReasons are of pods that have ended with their node, or to make room on it.
var lostReasons = []string{"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeAffinity"}

// running completes the status of a sandbox that has a pod.
func (d *Driver) running(st *driver.Status, pod *corev1.Pod, anchor *unstructured.Unstructured) {
	for _, ip := range pod.Status.PodIPs {
		st.Addresses = append(st.Addresses, ip.IP)
	}
	if pod.Status.StartTime != nil {
		st.Since = pod.Status.StartTime.UTC()
	}
	ended := ended(pod)
	if ended {
		st.Addresses = nil
	}
	agent := statusOf(pod)
	switch {
	case ended && (slices.Contains(lostReasons, pod.Status.Reason) || disrupted(pod)):
		st.State, st.Reason = driver.Lost, cmp.Or(pod.Status.Reason, "Disrupted")
		st.Message = cmp.Or(pod.Status.Message, "the pod was ended with its node, or to make room on it")
	case ended && agent != nil && agent.State.Terminated != nil:
		exited(st, agent.State.Terminated)
	case ended:
		st.State, st.Reason, st.Message = driver.Failed, cmp.Or(pod.Status.Reason, "PodFailed"), cmp.Or(pod.Status.Message, "the pod has failed")
	case agent != nil && agent.State.Terminated != nil:
		st.State, st.Reason, st.Message = driver.Running, reasonExited, "the process has ended, and other containers of the pod are being ended"
	case pod.DeletionTimestamp != nil:
		st.State, st.Reason, st.Message = driver.Running, "PodTerminating", "somebody else removes the pod"
	case pod.Status.Phase == corev1.PodPending || pod.Status.Phase == "":
		pending(st, pod)
	case readyPod(pod) && (d.pods() || condition(anchor, "Ready").Status == metav1.ConditionTrue):
		st.State = driver.Ready
	default:
		st.State = driver.Running
		c := podCondition(pod, corev1.PodReady)
		st.Reason, st.Message = cmp.Or(c.Reason, "PodNotReady"), cmp.Or(c.Message, "the pod is not ready")
		if agent != nil && agent.State.Waiting != nil {
			st.Reason, st.Message = agent.State.Waiting.Reason, cmp.Or(agent.State.Waiting.Message, agent.State.Waiting.Reason)
		}
	}
}

// ended reports whether no container of a pod runs any more.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

func exited(st *driver.Status, t *corev1.ContainerStateTerminated) {
	exitedWith(st, exitMark(t))
}

// exitedWith completes the status of a sandbox that has ended by itself, from the mark that says how.
func exitedWith(st *driver.Status, mark string) {
	st.State, st.Addresses, st.Reason, st.Message = driver.Exited, nil, reasonExited, "the process has ended"
	code, reason, err := readExit(mark)
	if err != nil {
		return
	}
	st.ExitCode, st.Message = &code, fmt.Sprintf("the process ended with exit code %d", code)
	if reason == "OOMKilled" {
		st.Reason, st.Message = reason, "the process was killed: it had used up its memory"
	}
}

// exitMark says how a container has ended, as an annotation has it: "137 OOMKilled".
func exitMark(t *corev1.ContainerStateTerminated) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", t.ExitCode, t.Reason))
}

func readExit(mark string) (code int, reason string, err error) {
	number, reason, _ := strings.Cut(mark, " ")
	code, err = strconv.Atoi(number)
	return code, reason, err
}

// exitMarks say how the run's pod has ended, where it has.
func (s *runState) exitMarks() map[string]string {
	if s.pod != nil {
		if agent := statusOf(podOf(s.pod)); agent != nil && agent.State.Terminated != nil {
			return map[string]string{exitAnnotation: exitMark(agent.State.Terminated)}
		}
	}
	return map[string]string{}
}

// hopeless are the reasons of containers that will not run unless somebody does something.
var hopeless = []string{"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
	"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}

// pending completes the status of a sandbox whose pod does not run yet.
func pending(st *driver.Status, pod *corev1.Pod) {
	st.State, st.Reason, st.Message = driver.Provisioning, "PodPending", "the pod is pending"
	if c := podCondition(pod, corev1.PodScheduled); c.Status == corev1.ConditionFalse {
		st.Reason, st.Message = c.Reason, c.Message
		if c.Reason == corev1.PodReasonUnschedulable {
			st.State = driver.Failed
		}
		return
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		w := c.State.Waiting
		if w == nil {
			continue
		}
		st.Reason, st.Message = cmp.Or(w.Reason, st.Reason), cmp.Or(w.Message, "container "+c.Name+" waits")
		if slices.Contains(hopeless, w.Reason) {
			st.State, st.Message = driver.Failed, fmt.Sprintf("container %s (image %s): %s", c.Name, c.Image, cmp.Or(w.Message, w.Reason))
			return
		}
	}
}

func statusOf(pod *corev1.Pod) *corev1.ContainerStatus {
	for i, c := range pod.Status.ContainerStatuses {
		if c.Name == agentContainer {
			return &pod.Status.ContainerStatuses[i]
		}
	}
	return nil
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func readyPod(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && podCondition(pod, corev1.PodReady).Status == corev1.ConditionTrue
}

func disrupted(pod *corev1.Pod) bool {
	return podCondition(pod, corev1.DisruptionTarget).Status == corev1.ConditionTrue
}

package kubernetes

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sandgate/sandgate/shared/driver"
)

var eventResource = newResource("", "v1", "Event", "events", true)

// The metadata of a notice, as OpenShell's own driver names it.
const (
	metaKind      = "involved_kind"
	metaName      = "involved_name"
	metaNamespace = "namespace"
	metaCount     = "count"
	metaActive    = "openshell.progress.active_step"
	metaComplete  = "openshell.progress.complete_step"
)

// progress is what some reasons say about how far a sandbox is.
var progress = map[string]map[string]string{
	"Scheduled": {metaComplete: "requesting_sandbox"},
	"Pulling":   {metaActive: "pulling_image"},
	"Pulled":    {metaComplete: "pulling_image"},
	"Created":   {metaActive: "starting_sandbox"},
	"Started":   {metaComplete: "starting_sandbox"},
}

// heard tells people an event of a sandbox, or of its pod, which has the same name.
func (w *watcher) heard(kind watch.EventType, o *unstructured.Unstructured) error {
	if kind == watch.Deleted { // it has grown old
		return nil
	}
	e := &corev1.Event{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, e); err != nil {
		return nil // the API server gives no such event
	}
	on := e.InvolvedObject
	id, known := w.names[on.Namespace+"/"+on.Name]
	if !known || on.Kind != podResource.gvk.Kind && on.Kind != w.d.cluster.anchor().gvk.Kind {
		return nil
	}
	anchor := w.anchors[id]
	if anchor == nil {
		return nil
	}
	n := &driver.Notice{Identity: identity(anchor), At: eventTime(e), Warning: e.Type == corev1.EventTypeWarning, Source: e.Source.Component,
		Reason: e.Reason, Message: e.Message, Metadata: map[string]string{metaKind: on.Kind, metaName: on.Name, metaNamespace: on.Namespace}}
	if n.Source == "" {
		n.Source = e.ReportingController
	}
	if e.Count > 0 {
		n.Metadata[metaCount] = strconv.Itoa(int(e.Count))
	}
	for k, v := range progress[e.Reason] {
		n.Metadata[k] = v
	}
	return w.fn(driver.Event{Notice: n})
}

func eventTime(e *corev1.Event) time.Time {
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time, e.CreationTimestamp.Time} {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

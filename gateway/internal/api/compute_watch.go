package api

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/fault"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// watcher is one stream of events. It looks at what is there at every change and sends what differs from what it sent,
// so that a slow reader is told of fewer steps between, and of no wrong end.
type watcher struct {
	door   *ComputeDoor
	stream computev1.ComputeDriver_WatchSandboxesServer
	sent   map[string]*computev1.DriverSandbox
	steps  map[string]string // sandbox -> the last progress that was told
	begun  uint64            // notices up to this number are older than the stream
	heard  map[string]uint64 // sandbox -> the last notice that was told
}

// WatchSandboxes implements the service: every sandbox there is, then each change.
func (d *ComputeDoor) WatchSandboxes(_ *computev1.WatchSandboxesRequest, stream computev1.ComputeDriver_WatchSandboxesServer) error {
	w := &watcher{door: d, stream: stream, sent: map[string]*computev1.DriverSandbox{}, steps: map[string]string{}, begun: d.engine.Noticed(), heard: map[string]uint64{}}
	for {
		changed := d.engine.Changed() // taken before looking, so that nothing falls between
		if err := w.look(); err != nil {
			return err
		}
		select {
		case <-d.left.Done():
			return fault.New(fault.Unavailable, "driver %q is not served here any more: watch again", d.driver)
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-d.engine.Done():
			return errStopping
		}
	}
}

func (w *watcher) look() error {
	here := map[string]bool{}
	for _, sb := range w.door.own() {
		here[sb.ID] = true
		if err := w.sandbox(sb); err != nil {
			return err
		}
	}
	for id := range w.sent {
		if here[id] {
			continue
		}
		delete(w.sent, id)
		delete(w.steps, id)
		delete(w.heard, id)
		gone := &computev1.WatchSandboxesEvent_Deleted{Deleted: &computev1.WatchSandboxesDeletedEvent{SandboxId: id}}
		if err := w.stream.Send(&computev1.WatchSandboxesEvent{Payload: gone}); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) sandbox(sb engine.Sandbox) error {
	if now := driverSandbox(sb); !proto.Equal(w.sent[sb.ID], now) {
		w.sent[sb.ID] = now
		event := &computev1.WatchSandboxesEvent_Sandbox{Sandbox: &computev1.WatchSandboxesSandboxEvent{Sandbox: now}}
		if err := w.stream.Send(&computev1.WatchSandboxesEvent{Payload: event}); err != nil {
			return err
		}
	}
	for _, n := range w.door.engine.Notices(sb.ID, max(w.begun, w.heard[sb.ID])) {
		w.heard[sb.ID] = n.Number
		event := &computev1.WatchSandboxesEvent_PlatformEvent{PlatformEvent: platformEvent(sb.ID, n)}
		if err := w.stream.Send(&computev1.WatchSandboxesEvent{Payload: event}); err != nil {
			return err
		}
	}
	step, ok := w.door.engine.Progress(sb.ID)
	if !ok || w.steps[sb.ID] == step.String() {
		return nil
	}
	w.steps[sb.ID] = step.String()
	event := &computev1.WatchSandboxesEvent_PlatformEvent{PlatformEvent: progress(sb.ID, step)}
	return w.stream.Send(&computev1.WatchSandboxesEvent{Payload: event})
}

// progress says what is being done for a sandbox, in the keys that the command line of OpenShell shows.
func progress(id string, p engine.Progress) *computev1.WatchSandboxesPlatformEvent {
	step := "requesting_sandbox"
	if p.Driver != "" {
		step = "starting_sandbox"
	}
	detail := p.String()
	return &computev1.WatchSandboxesPlatformEvent{SandboxId: id, Event: &computev1.DriverPlatformEvent{
		TimestampMs: p.Since.UnixMilli(), EventTime: timestamppb.New(p.Since.UTC()), Source: "sandgate", Type: "Normal", Reason: "Progress",
		Message: fmt.Sprintf("%s: %s", p.Operation, detail),
		Metadata: map[string]string{"openshell.progress.active_step": step, "openshell.progress.active_detail": detail,
			"sandgate.operation": string(p.Operation), "sandgate.since": p.Since.UTC().Format(time.RFC3339Nano)},
	}}
}

// platformEvent passes on what the driver's platform said.
func platformEvent(id string, n engine.Notice) *computev1.WatchSandboxesPlatformEvent {
	kind := "Normal"
	if n.Warning {
		kind = "Warning"
	}
	return &computev1.WatchSandboxesPlatformEvent{SandboxId: id, Event: &computev1.DriverPlatformEvent{TimestampMs: n.At.UnixMilli(),
		EventTime: timestamppb.New(n.At.UTC()), Source: n.Source, Type: kind, Reason: n.Reason, Message: n.Message, Metadata: n.Metadata}}
}

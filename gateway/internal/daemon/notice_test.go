package daemon

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// What the platform under a base says reaches the people on the other side of the door word for word, and those who
// look at the sandbox here.
func TestWhatThePlatformSaysIsPassedOn(t *testing.T) {
	s, base := newStrangerSite(t)
	acme := s.openshell("acme", openshelltest.Table{})
	acme.Run(t.Context())
	if err := acme.Create(t.Context(), wanted("box-1", "one"), "token"); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 25, 8, 30, 0, 0, time.UTC)
	base.tell("nobody", "of nobody", at)
	base.tell("box-1", "cannot pull\x1b[2J the image", at)
	var got *computev1.DriverPlatformEvent
	s.until("it is told", func() bool {
		for _, e := range acme.Store().Get("box-1").Progress {
			if e.GetSource() == "kubelet" {
				got = e
			}
		}
		return got != nil
	})
	if !got.GetEventTime().AsTime().Equal(at) || got.GetTimestampMs() != at.UnixMilli() || got.GetType() != "Warning" || got.GetReason() != "Failed" ||
		got.GetMessage() != "cannot pull\ufffd[2J the image" || got.GetMetadata()["count"] != "3" {
		t.Errorf("it is told as %v", got)
	}
	conn, err := grpc.NewClient("unix://"+s.dir+"/gw.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	sb, err := gatewayv1.NewGatewayClient(conn).GetSandbox(t.Context(), &gatewayv1.SandboxRef{IdOrName: "box-1"})
	if err != nil || len(sb.GetNotices()) != 1 || sb.GetNotices()[0].GetReason() != "Failed" || !sb.GetNotices()[0].GetWarning() {
		t.Errorf("it is shown as %v (%v)", sb.GetNotices(), err)
	}

	// A stream that begins later tells what is said from then on.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := acme.Client().WatchSandboxes(ctx, &computev1.WatchSandboxesRequest{})
	for first := true; err == nil; first = false {
		var m *computev1.WatchSandboxesEvent
		if m, err = stream.Recv(); err != nil {
			break
		}
		if first {
			base.tell("box-1", "pulled", at)
		}
		if e := m.GetPlatformEvent().GetEvent(); e.GetSource() == "kubelet" {
			if e.GetMessage() != "pulled" {
				t.Errorf("it begins with %v", e)
			}
			return
		}
	}
	t.Error(err)
}

// tell says something of a sandbox, as its platform does.
func (d *stranger) tell(id, message string, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := &computev1.DriverPlatformEvent{EventTime: timestamppb.New(at), Source: "kubelet", Type: "Warning", Reason: "Failed",
		Message: message, Metadata: map[string]string{"count": "3"}}
	d.news = append(d.news, &computev1.WatchSandboxesEvent{Payload: &computev1.WatchSandboxesEvent_PlatformEvent{
		PlatformEvent: &computev1.WatchSandboxesPlatformEvent{SandboxId: id, Event: e}}})
	close(d.changed)
	d.changed = make(chan struct{})
}

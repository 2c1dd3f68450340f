package api

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// TestAPanicEndsOneCall: it is answered as Internal and logged with its stack, and the door serves on.
func TestAPanicEndsOneCall(t *testing.T) {
	var log bytes.Buffer
	var nobody struct{ Host } // every call of it panics
	server, _ := New(&engine.Engine{Config: engine.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}, nobody)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }() // until it is stopped
	defer server.Stop()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	gateway := gatewayv1.NewGatewayClient(conn)
	_, err = gateway.GetVersion(t.Context(), &gatewayv1.GetVersionRequest{})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "nil pointer") {
		t.Errorf("a call that panics: %v", err)
	}
	stream, err := gateway.GetExtensionLogs(t.Context(), &gatewayv1.GetExtensionLogsRequest{Name: "x"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Errorf("a stream that panics: %v", err)
	}
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("the door serves no more: %v", err)
	}
	server.Stop()
	for _, want := range []string{"gateway.v1.Gateway/GetVersion", "gateway.v1.Gateway/GetExtensionLogs", "nil pointer", "server.go:"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

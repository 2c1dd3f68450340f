package remote

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// crowded is a driver with more than four mebibytes of sandboxes, which is what gRPC takes in one message if nobody says
// otherwise.
type crowded struct {
	computev1.UnimplementedComputeDriverServer
}

const crowd = 60_000

func (crowded) GetCapabilities(context.Context, *computev1.GetCapabilitiesRequest) (*computev1.GetCapabilitiesResponse, error) {
	return &computev1.GetCapabilitiesResponse{DriverName: "crowded", DriverVersion: "1"}, nil
}

func (crowded) ListSandboxes(context.Context, *computev1.ListSandboxesRequest) (*computev1.ListSandboxesResponse, error) {
	out := &computev1.ListSandboxesResponse{}
	for i := range crowd {
		out.Sandboxes = append(out.Sandboxes, &computev1.DriverSandbox{Id: fmt.Sprintf("%036d", i), Name: fmt.Sprintf("sandbox-%030d", i), Workspace: "default"})
	}
	return out, nil
}

func TestAListMayBeLong(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	computev1.RegisterComputeDriverServer(server, crowded{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	d, err := Open(Config{Name: "crowded", Socket: socket, Dir: filepath.Join(dir, "notes")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	list, err := d.List(t.Context())
	if err != nil || len(list) != crowd {
		t.Errorf("%d sandboxes: %v", len(list), err)
	}
}

package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// A gateway that may open too few files says so at once, and what to do, instead of failing at whatever it opens next.
func TestTooFewFilesAreRefused(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\n")
	own := s.program()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `ulimit -n 128 && exec "$0" gateway --dev --config "$1"`, os.Args[0], s.config())
	cmd.Env = own.Env
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "may have 128 files open") || !strings.Contains(string(out), "LimitNOFILE=") {
		t.Errorf("%v: %s", err, out)
	}
}

// manySandboxes is a gateway with more than four mebibytes of them.
type manySandboxes struct {
	gatewayv1.UnimplementedGatewayServer
}

func (manySandboxes) ListSandboxes(context.Context, *gatewayv1.ListSandboxesRequest) (*gatewayv1.ListSandboxesResponse, error) {
	out := &gatewayv1.ListSandboxesResponse{}
	for i := range 50_000 {
		out.Sandboxes = append(out.Sandboxes, &gatewayv1.Sandbox{Id: fmt.Sprintf("%036d", i), Name: fmt.Sprint("sandbox-", i), Workspace: "default", Reason: strings.Repeat("r", 60)})
	}
	return out, nil
}

func TestALongListIsShownWhole(t *testing.T) {
	s := newSite(t)
	socket := filepath.Join(s.dir, "large.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	gatewayv1.RegisterGatewayServer(server, manySandboxes{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	s.env["SANDGATE_ADDR"] = "unix://" + socket
	if n := strings.Count(s.ok("sandbox", "list"), "\n"); n != 50_001 {
		t.Errorf("%d lines", n)
	}
}

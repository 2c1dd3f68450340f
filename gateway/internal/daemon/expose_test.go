package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sandgate/sandgate/gateway/internal/api/openshelltest"
	"github.com/sandgate/sandgate/gateway/internal/config"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// exposedSite is a gateway whose driver is served to others; more stands in its expose block.
func exposedSite(t *testing.T, more string) (*site, computev1.ComputeDriverClient) {
	t.Helper()
	s := newSite(t)
	s.writeExposed("30s", more)
	s.start()
	t.Cleanup(s.end)
	return s, s.dialDoor()
}

func (s *site) socket() string { return filepath.Join(s.dir, "doors", "acme.sock") }

func (s *site) writeExposed(timeout, more string) {
	s.write(s.keeperBlock(""), fmt.Sprintf(tunedBind, timeout)+fmt.Sprintf("expose {\n  socket = %q\n%s\n}\n", s.socket(), more))
}

func (s *site) dialDoor() computev1.ComputeDriverClient {
	s.t.Helper()
	conn, err := grpc.NewClient("unix://"+s.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("[::]:50051"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return computev1.NewComputeDriverClient(conn)
}

func wanted(id, name string) *computev1.DriverSandbox {
	return &computev1.DriverSandbox{Id: id, Name: name, Workspace: "default", Spec: &computev1.DriverSandboxSpec{
		Command: []string{"/bin/sleep", "600"}, SandboxToken: "hush", Environment: map[string]string{"A": "spec"},
		Template: &computev1.DriverSandboxTemplate{Environment: map[string]string{"A": "template", "B": "template"}}}}
}

// ready waits on the watch for a sandbox to be ready.
func ready(t *testing.T, watch computev1.ComputeDriver_WatchSandboxesClient, id string) {
	t.Helper()
	for {
		e, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		sb := e.GetSandbox().GetSandbox()
		if sb.GetId() != id {
			continue
		}
		for _, c := range sb.GetStatus().GetConditions() {
			if c.GetType() == "Ready" && c.GetStatus() == "True" {
				return
			}
		}
	}
}

func TestADriverIsServedToOpenShell(t *testing.T) {
	s, c := exposedSite(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	caps, err := c.GetCapabilities(ctx, &computev1.GetCapabilitiesRequest{Gateway: openshelltest.Hello()})
	if err != nil || caps.GetDriverName() != "acme" || caps.GetExtension().GetProtocolVersion().GetMajor() != 1 {
		t.Fatalf("capabilities: %v %v", caps, err)
	}
	if want := `v1:{"allow_driver_config":false,"resource_admission":{"enabled":true,"required_labels":{"openshell.ai/sandbox-attachable":"true","openshell.ai/workspace":"${workspace}"}}}`; caps.GetResourceAdmissionPolicy() != want {
		t.Errorf("the admission policy is %s", caps.GetResourceAdmissionPolicy())
	}
	watch, err := c.WatchSandboxes(ctx, &computev1.WatchSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const id = "3b241101-e2bb-4255-8caf-4136c566a962"
	if _, err := c.ValidateSandboxCreate(ctx, &computev1.ValidateSandboxCreateRequest{Sandbox: wanted(id, "one")}); err != nil {
		t.Fatal(err)
	}
	if s.held() != 0 {
		t.Error("a validation holds something")
	}
	if _, err := c.CreateSandbox(ctx, &computev1.CreateSandboxRequest{Sandbox: wanted(id, "one")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateSandbox(ctx, &computev1.CreateSandboxRequest{Sandbox: wanted(id, "one")}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same create again: %v", err)
	}
	ready(t, watch, id)
	got, err := c.GetSandbox(ctx, &computev1.GetSandboxRequest{SandboxId: id, Name: "one"})
	if err != nil || got.GetSandbox().GetName() != "one" || got.GetSandbox().GetWorkspace() != "default" {
		t.Errorf("get: %v %v", got, err)
	}
	for range 2 { // both are idempotent
		if _, err := c.StopSandbox(ctx, &computev1.StopSandboxRequest{SandboxId: id, Name: "one"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.StartSandbox(ctx, &computev1.StartSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	ready(t, watch, id)
	if d, err := c.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: id}); err != nil || !d.GetDeleted() {
		t.Fatalf("delete: %v %v", d, err)
	}
	for {
		e, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.GetDeleted().GetSandboxId() == id {
			break
		}
	}
	if d, err := c.DeleteSandbox(ctx, &computev1.DeleteSandboxRequest{SandboxId: id}); err != nil || d.GetDeleted() {
		t.Errorf("a second delete: %v %v", d, err)
	}
	if _, err := c.GetSandbox(ctx, &computev1.GetSandboxRequest{SandboxId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("get after the end: %v", err)
	}
	if _, err := c.DeleteWorkspace(ctx, &computev1.DeleteWorkspaceRequest{Workspace: "default"}); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteWorkspace(ctx, &computev1.DeleteWorkspaceRequest{Workspace: "default"}); err != nil {
		t.Errorf("a workspace that is not there: %v", err)
	}
}

func TestWhatTheDoorRefuses(t *testing.T) {
	_, c := exposedSite(t, "")
	gpu := wanted("a1", "gpu")
	gpu.Spec.ResourceRequirements = &computev1.ResourceRequirements{Gpu: &computev1.GpuResourceRequirements{}}
	cpu := wanted("a2", "cpu")
	cpu.Spec.Template.Resources = &computev1.DriverResourceRequirements{CpuLimit: "lots"}
	platform := wanted("a3", "platform")
	platform.Spec.Template.PlatformConfig, _ = structpb.NewStruct(map[string]any{"runtime_class_name": "kata"})
	config := wanted("a4", "config")
	config.Spec.Template.DriverConfig, _ = structpb.NewStruct(map[string]any{"surprise": true})
	for want, sb := range map[string]*computev1.DriverSandbox{
		"gives no GPU": gpu,
		`template.resources.cpu_limit: "lots" is`: cpu,
		"template.platform_config":                platform,
		"driver_config.surprise":                  config,
		"id and the name":                         {},
	} {
		_, err := c.ValidateSandboxCreate(t.Context(), &computev1.ValidateSandboxCreateRequest{Sandbox: sb})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for what, p := range map[string]*computev1.PeerMetadata{
		"another protocol": {ProtocolVersion: &computev1.ProtocolVersion{Major: 2}, ImplementationName: "x", ImplementationVersion: "1"},
		"no name":          {ProtocolVersion: &computev1.ProtocolVersion{Major: 1}, ImplementationVersion: "1"},
		"too much":         {ProtocolVersion: &computev1.ProtocolVersion{Major: 1}, ImplementationName: "x", ImplementationVersion: "1", RequiredCapabilities: []string{"openshell.other.thing"}},
	} {
		if _, err := c.GetCapabilities(t.Context(), &computev1.GetCapabilitiesRequest{Gateway: p}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTheSocketIsItsUsersAlone(t *testing.T) {
	s, c := exposedSite(t, "  allow_driver_config = true\n  resource_admission {\n    enabled = false\n  }")
	for path, want := range map[string]os.FileMode{s.socket(): 0o600, filepath.Dir(s.socket()): 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, want %v (%v)", path, info.Mode().Perm(), want, err)
		}
	}
	before, err := c.GetCapabilities(t.Context(), &computev1.GetCapabilitiesRequest{})
	if err != nil || !strings.Contains(before.GetResourceAdmissionPolicy(), `"allow_driver_config":true,"resource_admission":{"enabled":false`) {
		t.Errorf("%v %v", before, err)
	}
	// A reload that changes the door's setting serves the new one on the same socket; one that drops it serves none.
	s.writeExposed("30s", "")
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	after, err := s.dialDoor().GetCapabilities(t.Context(), &computev1.GetCapabilitiesRequest{})
	if err != nil || !strings.Contains(after.GetResourceAdmissionPolicy(), `"allow_driver_config":false`) {
		t.Errorf("after the reload: %v %v", after, err)
	}
	s.reload("none", "30s")
	if _, err := os.Stat(s.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is there still: %v", err)
	}
}

// Whoever may connect gets at the socket, and can put none of their own in its place for others.
func TestWhoseTheSocketIs(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can let others in
	}
	for name, tt := range map[string]struct {
		uids           []uint32
		there          bool // the directory is, and is the gateway's
		dir, socket    os.FileMode
		owner, ownerOf uint32 // of the directory, of the socket
	}{
		"the gateway's own":                   {nil, false, 0o700, 0o600, 0, 0},
		"one other's":                         {[]uint32{1234}, false, 0o700, 0o600, 1234, 1234},
		"one other's, in a directory of ours": {[]uint32{1234}, true, 0o711, 0o600, 0, 1234},
		"several others'":                     {[]uint32{1234, 1235}, false, 0o711, 0o666, 0, 0},
		"ours and another's":                  {[]uint32{0, 1234}, false, 0o711, 0o666, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "door")
			if tt.there {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			l, err := (&doors{}).listen(config.Expose{Socket: filepath.Join(dir, "d.sock"), AllowedUIDs: tt.uids})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			for path, want := range map[string]struct {
				mode os.FileMode
				uid  uint32
			}{dir: {tt.dir, tt.owner}, filepath.Join(dir, "d.sock"): {tt.socket, tt.ownerOf}} {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if uid := info.Sys().(*syscall.Stat_t).Uid; info.Mode().Perm() != want.mode || uid != want.uid {
					t.Errorf("%s is %v of user %d, want %v of %d", path, info.Mode().Perm(), uid, want.mode, want.uid)
				}
			}
		})
	}
}

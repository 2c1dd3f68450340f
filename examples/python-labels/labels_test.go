package pythonlabels

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/sandgate/sandgate/plugin/plugintest"
	"github.com/sandgate/sandgate/plugin/plugintest/conformance"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

// python is Debian's, which has grpcio as a package.
const python = "/usr/bin/python3"

// needsPython leaves a test out where Python has no grpcio. In CI as root it has: scripts/install-packages.sh sees to it.
func needsPython(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		if os.Geteuid() == 0 && os.Getenv("CI") != "" {
			t.Fatalf("%s", out)
		}
		t.Skip("python3-grpcio and python3-protobuf are not installed; scripts/install-packages.sh does, as root")
	}
}

func TestConformance(t *testing.T) {
	needsPython(t)
	config, err := json.Marshal(map[string]any{"register": t.TempDir(), "labels": map[string]string{"made-by": "python"}, "forbidden": []string{"made-by"}})
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Verify(t, conformance.Program{Command: "labels.py", Interpreter: python, Files: []string{"sandgate_extension.py", "extension_pb2.py"}, Config: config})
}

// The generated file says what the wire says.
func TestTheWireIsFresh(t *testing.T) {
	needsPython(t)
	cmd := exec.Command(python, "-B", "-c", "import extension_pb2; print(extension_pb2.DESCRIPTOR.serialized_pb.hex())")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	got := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	want := protodesc.ToFileDescriptorProto(extensionv1.File_extension_v1_extension_proto)
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&descriptorpb.FieldDescriptorProto{}, "json_name")); diff != "" {
		t.Errorf("extension_pb2.py is not what the proto says: run make generate (-proto +python):\n%s", diff)
	}
}

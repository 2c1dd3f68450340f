package computev1

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fields is the wire of both generations as their peers have it: message, then name=number of each field. A number
// that changes here breaks somebody.
var fields = map[string]string{
	"GetCapabilitiesRequest":                 "gateway=1",
	"GetCapabilitiesResponse":                "driver_name=1 driver_version=2 default_image=3 gateway_manages_lifecycle=6 supports_sandbox_authentication=7 driver_reports_runtime_readiness=8 resource_capabilities=9 rootfs_tar_staging_dir=10 rootfs_tar_max_bytes=11 extension=12 resource_admission_policy=13",
	"PeerMetadata":                           "protocol_version=1 implementation_name=2 implementation_version=3 supported_capabilities=4 required_capabilities=5",
	"ProtocolVersion":                        "major=1 minor=2",
	"ResourceCapabilities":                   "cpu=1 memory=2 gpu=3",
	"CpuCapabilities":                        "limit_supported=1",
	"MemoryCapabilities":                     "limit_supported=1",
	"GpuCapabilities":                        "default_selection_supported=1 count_selection_supported=2",
	"GatewayListenerRequirement":             "reason=1 exact_bind_address=2 default_route_interface=3 loopback_interface=4",
	"GetGatewayListenerRequirementsResponse": "requirements=1",
	"AuthenticateSandboxRequest":             "credential=1",
	"AuthenticateSandboxResponse":            "sandbox_id=1 runtime_identity=2",
	"DriverSandbox":                          "id=1 name=2 namespace=3 spec=4 status=5 workspace=6",
	"DriverSandboxSpec":                      "log_level=1 environment=5 template=6 policy=7 resource_requirements=9 sandbox_token=11 command=12 tty=13 await_main_process_attachment=14 workload_identity=15 launch_authentication=16",
	"WorkloadIdentityRequest":                "user=1 group=2",
	"ResourceRequirements":                   "gpu=1",
	"GpuResourceRequirements":                "count=1",
	"DriverSandboxTemplate":                  "image=1 agent_socket_path=3 labels=4 environment=6 resources=10 platform_config=11 driver_config=12 user_namespaces=13",
	"DriverResourceRequirements":             "cpu_request=1 cpu_limit=2 memory_request=3 memory_limit=4",
	"DriverSandboxStatus":                    "name=1 instance_id=2 agent_fd=3 sandbox_fd=4 conditions=5 deleting=6 resolved_identity=7 fence_evidence=8",
	"ResolvedWorkloadIdentity":               "uid=1 gid=2 supplementary_gids=3 source=4 resource_digest=5",
	"DriverFenceEvidence":                    "generation=1 evidence_digest=2 resource_claims=3",
	"DriverCondition":                        "type=1 status=2 reason=3 message=4 last_transition_time=5 transition_time=105",
	"DriverPlatformEvent":                    "timestamp_ms=1 source=2 type=3 reason=4 message=5 metadata=6 event_time=101",
	"ValidateSandboxCreateRequest":           "sandbox=1",
	"GetSandboxRequest":                      "sandbox_id=1 name=2",
	"GetSandboxResponse":                     "sandbox=1",
	"ListSandboxesResponse":                  "sandboxes=1",
	"CreateSandboxRequest":                   "sandbox=1",
	"CreateSandboxResponse":                  "runtime_identity=1",
	"StopSandboxRequest":                     "sandbox_id=1 name=2",
	"StartSandboxRequest":                    "sandbox_id=1 name=2 launch_authentication=3 generation_id=4 expected_runtime_identity=5",
	"StartSandboxResponse":                   "runtime_identity=1",
	"DeleteSandboxRequest":                   "sandbox_id=1 name=2",
	"DeleteSandboxResponse":                  "deleted=1",
	"WatchSandboxesEvent":                    "sandbox=1 deleted=2 platform_event=3",
	"WatchSandboxesSandboxEvent":             "sandbox=1",
	"WatchSandboxesDeletedEvent":             "sandbox_id=1",
	"WatchSandboxesPlatformEvent":            "sandbox_id=1 event=2",
	"EnsureWorkspaceRequest":                 "workspace=1",
	"DeleteWorkspaceRequest":                 "workspace=1",
}

func TestNamesAndNumbersAreTheirs(t *testing.T) {
	got := map[string]string{}
	messages := File_compute_v1_compute_driver_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		var list []protoreflect.FieldDescriptor
		for j := range m.Fields().Len() {
			list = append(list, m.Fields().Get(j))
		}
		slices.SortFunc(list, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
		var text []string
		for _, f := range list {
			text = append(text, fmt.Sprintf("%s=%d", f.Name(), f.Number()))
		}
		if len(text) > 0 {
			got[string(m.Name())] = strings.Join(text, " ")
		}
	}
	if diff := cmp.Diff(fields, got); diff != "" {
		t.Errorf("the wire (-theirs +ours):\n%s", diff)
	}
	if name := ComputeDriver_ServiceDesc.ServiceName; name != "openshell.compute.v1.ComputeDriver" {
		t.Errorf("the service is %s", name)
	}
}

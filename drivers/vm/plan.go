package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The kinds of the driver's plans, and the names of the objects that mean something to it.
const (
	kindLaunch  = "LaunchPlan"
	kindDropin  = "GuestInitDropin"
	kindNetwork = "Network"
	mainLaunch  = "main"
	workspace   = "workspace"
)

// The features that a backend may have to have.
const (
	featureKernel  = "external-kernel-image"
	featureDropins = "guest-init-dropins"
	featurePCI     = "pci-passthrough"
	featureTAP     = "tap-networking"
)

const launchSchema = `types:
- name: LaunchPlan
  map:
    fields:
    - {name: image, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: directory, type: {scalar: string}}
    - {name: user, type: {scalar: string}}
    - {name: hostname, type: {scalar: string}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
    - {name: backend, type: {scalar: string}}
    - {name: vcpus, type: {scalar: numeric}}
    - {name: mem_mib, type: {scalar: numeric}}
    - {name: pids, type: {scalar: numeric}}
    - {name: required_backends, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: required_backend_features, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: kernel_profile, type: {scalar: string}}
    - {name: kernel_image, type: {scalar: string}}
    - {name: gpu_bdf, type: {scalar: string}}
    - {name: pci_devices, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: tap_device, type: {scalar: string}}
    - {name: guest_ip, type: {scalar: string}}
    - {name: host_ip, type: {scalar: string}}
    - {name: guest_mac, type: {scalar: string}}
    - {name: vsock_cid, type: {scalar: numeric}}
    - {name: gateway_port, type: {scalar: numeric}}
`

const dropinSchema = `types:
- name: GuestInitDropin
  map:
    fields:
    - {name: contents, type: {scalar: string}}
`

const networkSchema = `types:
- name: Network
  map:
    fields:
    - {name: subnet, type: {scalar: string}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
`

// launch, dropin and network are the objects as Go has them.
type launch struct {
	Image            string            `json:"image"`
	Command          []string          `json:"command"`
	Directory        string            `json:"directory"`
	User             string            `json:"user"`
	Hostname         string            `json:"hostname"`
	Environment      map[string]string `json:"environment"`
	Backend          string            `json:"backend"`
	VCPUs            int64             `json:"vcpus"`
	MemMiB           int64             `json:"mem_mib"`
	PIDs             int64             `json:"pids"`
	RequiredBackends []string          `json:"required_backends"`
	RequiredFeatures []string          `json:"required_backend_features"`
	KernelProfile    string            `json:"kernel_profile"`
	KernelImage      string            `json:"kernel_image"`
	GPU              string            `json:"gpu_bdf"`
	PCIDevices       []string          `json:"pci_devices"`
	TAP              string            `json:"tap_device"`
	GuestIP          string            `json:"guest_ip"`
	HostIP           string            `json:"host_ip"`
	GuestMAC         string            `json:"guest_mac"`
	VsockCID         int64             `json:"vsock_cid"`
	GatewayPort      int64             `json:"gateway_port"`
}

type dropin struct {
	Contents string `json:"contents"`
}

type network struct {
	Subnet string `json:"subnet"`
}

// as turns an object's fields into its Go form. A number of the plan may be one that its field cannot hold.
func as[T any](o plan.Object) (T, error) {
	var v T
	raw, err := json.Marshal(o.Fields)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		return v, fault.New(fault.Invalid, "%s: %v", o.Ref(), err)
	}
	return v, nil
}

func launchOf(p *plan.Plan) (launch, error) {
	o, _ := p.Object(kindLaunch, mainLaunch)
	return as[launch](o)
}

func networkOf(ws *plan.Plan) (network, error) {
	if ws == nil {
		return network{}, nil
	}
	o, _ := ws.Object(kindNetwork, workspace)
	return as[network](o)
}

// describe says what the driver offers on this host.
func (d *Driver) describe() *driver.Description {
	prepare := []phase.Phase{phase.PreparePlan}
	late := []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	reserve := []phase.Phase{phase.BeforeCreate, phase.BeforeStart}
	ensure := []phase.Phase{phase.EnsureWorkspace}
	about := &driver.Description{Type: "vm", Version: "1", Instance: d.instance, Missing: d.missing, DefaultImage: d.cfg.DefaultImage,
		Kinds: []plan.Kind{
			{Name: kindLaunch, Scope: plan.ScopeSandbox, Schema: launchSchema, Sensitive: []string{"environment"}},
			{Name: kindDropin, Scope: plan.ScopeSandbox, Schema: dropinSchema, Sensitive: []string{"contents"}},
			{Name: kindNetwork, Scope: plan.ScopeWorkspace, Schema: networkSchema},
		}}
	main := func(field string, phases []phase.Phase, overridable bool, feature, doc string) {
		about.Points = append(about.Points, plan.Point{Pattern: plan.Pattern(kindLaunch + "." + field), Phases: phases,
			Overridable: overridable, Feature: feature, Object: mainLaunch, Doc: doc})
	}
	main("image", prepare, true, "image", "the root file system")
	main("environment", late, true, "environment", "variables of the command")
	main("labels", late, true, "labels", "labels")
	main("annotations", late, false, "annotations", "free notes")
	main("hostname", prepare, false, "hostname", "the name of its host")
	main("vcpus", prepare, true, "", "processors")
	main("mem_mib", prepare, true, "", "memory, in MiB")
	main("backend", prepare, true, "backend", "the machine: microvm or q35")
	main("required_backends", prepare, false, "", "machines that will do")
	main("required_backend_features", prepare, false, "", "what the machine has to have")
	main("kernel_profile", prepare, false, "", "the name of the kernel that is meant, for people")
	main("kernel_image", prepare, true, featureKernel, "the kernel to boot, a path on the host")
	if d.missing[featurePCI] == "" {
		main("pci_devices", late, false, featurePCI, "PCI devices of the host, by address")
		main("gpu_bdf", late, false, "", "a PCI device of the host that is a GPU")
	}
	main("host_ip", reserve, false, "", "the machine's way out of its network")
	main("gateway_port", late, false, "", "where at host_ip the command finds a gateway")
	main("guest_mac", reserve, false, "", "the hardware address of its interface")
	main("vsock_cid", reserve, false, "", "its vsock address")
	if d.missing["network.address"] == "" {
		main("guest_ip", reserve, false, "network.address", "its address, with the length of the prefix")
	}
	if d.missing[featureTAP] == "" {
		main("tap_device", reserve, false, featureTAP, "a TAP of the host, made and removed by whoever names it")
	}
	about.Points = append(about.Points,
		plan.Point{Pattern: kindDropin, Phases: late, Feature: featureDropins, Doc: "a program that the guest runs before the command"},
		plan.Point{Pattern: kindNetwork, Phases: ensure, Feature: "network", Object: workspace, Doc: "the workspace's network"})
	if d.missing["network.subnet"] == "" {
		about.Points = append(about.Points,
			plan.Point{Pattern: "Network.subnet", Phases: ensure, Feature: "network.subnet", Object: workspace, Doc: "the subnet, in CIDR form"})
	}
	for _, pt := range about.Points {
		if pt.Feature != "" {
			about.Features = append(about.Features, extension.Feature{Name: pt.Feature, Point: pt.Pattern, Object: pt.Object})
		}
	}
	about.Features = append(about.Features, extension.Feature{Name: "restart"}, extension.Feature{Name: "logs"})
	return about
}

// Layers implements driver.Driver.
func (d *Driver) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	if err := noConfig(r.Config); err != nil {
		return nil, fault.New(fault.Invalid, "driver_config: %v: the vm driver takes no settings of a sandbox", err).
			With(fault.Diagnostic{Path: "driver_config", Summary: err.Error()})
	}
	id := r.Identity
	object := func(fields map[string]any) []plan.Object {
		return []plan.Object{{Kind: kindLaunch, Name: mainLaunch, Fields: fields}}
	}
	request := map[string]any{}
	if len(r.Spec.Command) > 0 {
		command := make([]any, len(r.Spec.Command))
		for i, v := range r.Spec.Command {
			command[i] = v
		}
		request["command"] = command
	}
	if r.Spec.Image != "" {
		request["image"] = r.Spec.Image
	}
	if len(r.Spec.Environment) > 0 {
		request["environment"] = table(r.Spec.Environment)
	}
	if len(r.Spec.Labels) > 0 {
		request["labels"] = table(r.Spec.Labels)
	}
	// A machine has whole processors, and its memory in MiB; it is never given less than was asked for.
	maps.Copy(request, positive(map[string]int64{
		"vcpus": (r.Spec.Resources.MilliCPU + 999) / 1000, "mem_mib": (r.Spec.Resources.Memory + 1<<20 - 1) >> 20, "pids": r.Spec.Resources.PIDs}))
	defaults := map[string]any{"hostname": id.Name, "vcpus": d.cfg.VCPUs, "mem_mib": d.cfg.MemMiB}
	if d.cfg.DefaultImage != "" {
		defaults["image"] = d.cfg.DefaultImage
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: object(map[string]any{"environment": map[string]any{
			"SANDGATE_SANDBOX_ID": id.ID, "SANDGATE_SANDBOX_NAME": id.Name, "SANDGATE_WORKSPACE": id.Workspace}})},
		{Owner: plan.OwnerRequest, Objects: object(request)},
		{Owner: plan.OwnerDriver, Objects: object(defaults)},
	}, nil
}

// noConfig refuses a driver_config with anything in it.
func noConfig(raw json.RawMessage) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return fmt.Errorf("it is no JSON object")
	}
	for k := range keys {
		return fmt.Errorf("the key %q is not known", k)
	}
	return nil
}

func table(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func positive(m map[string]int64) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		if v > 0 {
			out[k] = v
		}
	}
	return out
}

// WorkspaceLayers implements driver.Driver. A workspace has nothing until somebody contributes it.
func (d *Driver) WorkspaceLayers(context.Context, sandbox.Workspace) ([]plan.Layer, error) {
	return []plan.Layer{{Owner: plan.OwnerDriver}}, nil
}

// words joins names for a message.
func words(s []string) string { return strings.Join(s, ", ") }

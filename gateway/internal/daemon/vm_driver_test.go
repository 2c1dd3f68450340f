package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The scenarios of OpenShell's VM driver that are about hooks, plans, names or the lifecycle, under their names there.
// What is about a plan is asked of the VM driver itself, without a boot; what is about the lifecycle alone runs over the
// native one. drivers/vm/DESIGN.md has the table, with those that other tests show.
var driverScenarios = map[string]func(t *testing.T){
	"post_overlay_provisioning_stages":                               dropinPathRefused,
	"guest_init_dropin_validation_rejects_unsafe_or_duplicate_names": dropinNameRefused,
	"launcher_spawn_failure":                                         launcherFails,
	"validate_vm_sandbox":                                            requestsRefused,
	"validate_vm_sandbox_rejects_path_unsafe_ids":                    idsRefused,
	"resolved_sandbox_image":                                         imageOrder,
	"merged_environment_prefers_spec_values":                         specWins,
	"empty_registry_keeps_sandbox_on_the_default_backend":            emptyRegistry,
	"gpu_sandbox_uses_the_pci_backend":                               backends,
	"launch_plan_rejects_external_kernel_on_unsupported_backend":     backends,
	"backend_feature_requirements_select_the_launch_plan":            backends,
	"explicit_backend_requirement_selects_the_launch_plan":           backends,
	"guest_init_dropin_feature_does_not_force_a_backend":             backends,
	"extension_can_validate_backend_in_before_launch":                judgesBackend,
	"lifecycle_error_resource_exhausted_propagates":                  tooLarge,
	"sandbox_request_metadata_round_trips_for_start":                 startIsNotPlannedAnew,
	"failed_start_preserves_stopped_state":                           failedStartStaysStopped,
	"delete_sandbox_cleans_provisioning_record_without_process":      deleteWithoutProcess,
	"duplicate_create_keeps_existing_state":                          duplicateCreate,
}

func TestDriverScenarios(t *testing.T) {
	for name, show := range driverScenarios {
		t.Run(name, show)
	}
}

// A name that leads out of a directory is refused before anybody holds anything.
func dropinPathRefused(t *testing.T) {
	refusedDropins(t, map[string]string{"a": "../../etc/init.d/x"})
	refusedDropins(t, map[string]string{"a": ".."})
	refusedDropins(t, map[string]string{"a": strings.Repeat("x", 200)})
}

// So are two programs under one name, naming both who want it. Others are in the plan.
func dropinNameRefused(t *testing.T) {
	refusedDropins(t, map[string]string{"a": "10-x.sh", "b": "10-x.sh"}, "a set it")
	c := newChained(t, "none", member("a", "dropin=20-a.sh"), member("b", "dropin=10-b.sh")).up()
	if p, err := c.preview(sandbox.Spec{}); err != nil || !slices.Equal(dropins(p), []string{"10-b.sh", "20-a.sh"}) {
		t.Errorf("%v", err)
	}
	c.end()
}

// refusedDropins makes a sandbox with the drop-ins of one or two extensions, whose create fails.
func refusedDropins(t *testing.T, of map[string]string, words ...string) {
	t.Helper()
	var chain []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		chain = append(chain, member(name, "dropin="+of[name]))
		words = append(words, name)
	}
	c := newChained(t, "none", chain...).up()
	_, err := c.make("one", sandbox.Spec{})
	for _, want := range words {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", of, err, want)
		}
	}
	if held := calls(recorded(t, c.dir), phase.BeforeCreate, phase.OnCreateFailed); len(held) > 0 {
		t.Errorf("%v: %v", of, held)
	}
	c.nothing()
	c.end()
}

// A machine that cannot be built is undone, and everybody is told, in reverse.
func launcherFails(t *testing.T) {
	c := newChained(t, "none", member("a"), member("b"))
	c.extra = "    root \"gone\" {\n      path = \"/nonexistent\"\n    }\n"
	c.up()
	id, err := c.make("one", sandbox.Spec{Image: "gone"})
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("%v", err)
	}
	c.comes(id, sandbox.Deleted)
	c.called([]phase.Phase{phase.AfterStop, phase.OnCreateFailed}, "after_stop b launch_failed", "after_stop a launch_failed", "on_create_failed b launch_failed", "on_create_failed a launch_failed")
	c.nothing()
	c.end()
}

// What a request cannot have is refused, naming the field, before any hook with effects.
func requestsRefused(t *testing.T) {
	c, n := newChained(t, "none", member("a")).up(), 0
	for name, want := range map[string]struct {
		spec sandbox.Spec
		text string
	}{
		"a typo in its settings": {sandbox.Spec{DriverConfig: json.RawMessage(`{"base":{"gpu_device_id":["0000:01:00.0"]}}`)}, "gpu_device_id"},
		"an image that is not":   {sandbox.Spec{Image: "nope"}, `"nope"`},
		"too little memory":      {sandbox.Spec{Resources: sandbox.Resources{Memory: 1 << 20}}, "mem_mib"},
		"a variable with =":      {sandbox.Spec{Environment: map[string]string{"A=B": "c"}}, "A=B"},
	} {
		n++ // the name of one that is refused is free a moment later
		if _, err := c.make(fmt.Sprintf("box-%d", n), want.spec); err == nil || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.preview(sandbox.Spec{Resources: sandbox.Resources{MilliCPU: 1500, Memory: 300 << 20}}); err != nil {
		t.Errorf("resources: %v", err)
	}
	if all := calls(recorded(t, c.dir), phase.BeforeCreate); len(all) > 0 {
		t.Errorf("calls: %v", all)
	}
	c.nothing()
	c.end()
}

func idsRefused(t *testing.T) {
	c := newChained(t, "none", member("a")).up()
	for _, id := range []string{".", "..", "a/b", "../x", `a\b`, "a\nb", "a b", "ä", strings.Repeat("x", 129)} {
		r := c.ask("one", sandbox.Spec{})
		r.ID = id
		if _, _, err := c.d.engine.CreateSandbox(r); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	if all := recorded(t, c.dir); len(all) > 0 {
		t.Errorf("calls: %+v", all)
	}
	c.nothing()
	c.end()
}

// at returns a field of the machine of a plan.
func at(p *plan.Plan, path string) any {
	for _, f := range p.Fields() {
		if f.Object == "LaunchPlan/main" && f.Path == path {
			return f.Value
		}
	}
	return nil
}

func imageOrder(t *testing.T) {
	c := newChained(t, "none")
	c.extra = "    root \"other\" {\n      path = \"/nonexistent\"\n    }\n"
	c.up()
	for asked, want := range map[string]string{"": "busybox", "other": "other", "busybox": "busybox"} {
		p, err := c.preview(sandbox.Spec{Image: asked})
		if err != nil || at(p, "image") != want {
			t.Errorf("%q: %v", asked, err)
		}
	}
	c.end()
}

// What the caller wrote stands over what the driver would set; an extension that wants another value is in conflict with it.
func specWins(t *testing.T) {
	c := newChained(t, "none", member("a", "profile=tuned"), member("b", once(phase.BeforeStart))).up()
	_, err := c.make("one", sandbox.Spec{Environment: map[string]string{"RECORDING_a": "mine"}})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "request") || !strings.Contains(err.Error(), "RECORDING_a") || strings.Contains(err.Error(), "mine") {
		t.Errorf("%v", err)
	}
	p, err := c.preview(sandbox.Spec{Resources: sandbox.Resources{Memory: 300 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range p.Fields() {
		if f.Path == "mem_mib" && f.Owner != plan.OwnerRequest || f.Path == "vcpus" && f.Owner != plan.OwnerDriver {
			t.Errorf("%+v", f)
		}
	}
	c.nothing()
	c.end()
}

func emptyRegistry(t *testing.T) {
	c := newChained(t, "none").up()
	p, err := c.preview(sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"backend", "kernel_image", "pci_devices", "gpu_bdf", "tap_device", "guest_ip", "vsock_cid"} {
		if v := at(p, path); v != nil {
			t.Errorf("%s is %v", path, v)
		}
	}
	if n := len(dropins(p)) + len(c.d.catalog.current().extensions) + len(c.d.catalog.current().Drivers["acme"].Chain.Binds()); n > 0 {
		t.Errorf("there are %d drop-ins, extensions and binds", n)
	}
	c.end()
}

// chosen is a chain that asks for a machine, and what is said to it: "" if it gets one.
type chosen struct {
	chain []string
	host  bool // has a device to be passed on
	want  string
}

const onDevice = "bind:grant { mutate = [\"LaunchPlan.pci_devices\", \"LaunchPlan.backend\"] }"

var choices = map[string]map[string]chosen{
	"gpu_sandbox_uses_the_pci_backend": {
		"a device":                            {[]string{member("a", "device=0000:01:00.0", onDevice)}, true, ""},
		"a device on a machine without a bus": {[]string{member("a", "device=0000:01:00.0", "backend=microvm", onDevice)}, true, "microvm has no pci-passthrough"},
		"a device that is not there":          {[]string{member("a", "device=0000:02:00.0", onDevice)}, true, "no device 0000:02:00.0"},
		"a device that is a path":             {[]string{member("a", "device=../../../etc", onDevice)}, true, "no address of a PCI device"},
	},
	"backend_feature_requirements_select_the_launch_plan": {
		"passing on, and a host that cannot": {[]string{member("a", "needs=pci-passthrough")}, false, "pci-passthrough"},
		"what nobody has":                    {[]string{member("a", "features=teleport")}, false, "teleport"},
	},
	"explicit_backend_requirement_selects_the_launch_plan": {
		"the other machine":           {[]string{member("a", "backends=q35")}, false, ""},
		"no machine will do":          {[]string{member("a", "backends=q35"), member("b", "backend=microvm")}, false, "no machine will do"},
		"a machine that is not known": {[]string{member("a", "backend=krun")}, false, "krun"},
	},
	"launch_plan_rejects_external_kernel_on_unsupported_backend": {
		"a kernel":                       {[]string{member("a", "kernel=/usr/local/lib/sandgate/kernel/vmlinuz")}, false, ""},
		"a kernel that is not there":     {[]string{member("a", "kernel=/nonexistent/vmlinuz")}, false, "/nonexistent"},
		"a kernel that is no clean path": {[]string{member("a", "kernel=/boot/../etc/shadow")}, false, "clean path"},
	},
	"guest_init_dropin_feature_does_not_force_a_backend": {
		"on the smaller machine": {[]string{member("a", "features=guest-init-dropins", "dropin=1.sh", "backend=microvm")}, false, ""},
		"on the other one":       {[]string{member("a", "features=guest-init-dropins", "dropin=1.sh", "backend=q35")}, false, ""},
	},
}

// Which machine it becomes follows from what is needed; what no machine has, or this host has not, is refused by name.
func backends(t *testing.T) {
	sysfs := t.TempDir()
	device := filepath.Join(sysfs, "bus/pci/devices/0000:01:00.0")
	for _, dir := range []string{device, filepath.Join(sysfs, "kernel/iommu_groups/7"), filepath.Join(sysfs, "vfio-pci")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(filepath.Join(sysfs, "vfio-pci"), filepath.Join(device, "driver")),
		os.Symlink(filepath.Join(sysfs, "kernel/iommu_groups/7"), filepath.Join(device, "iommu_group"))); err != nil {
		t.Fatal(err)
	}
	cases := choices[filepath.Base(t.Name())]
	if len(cases) == 0 {
		t.Fatal("nothing is chosen")
	}
	for name, s := range cases {
		c := newChained(t, "none", s.chain...)
		if s.host {
			c.extra = "    pci_passthrough = true\n    sysfs = \"" + sysfs + "\"\n"
		}
		c.up()
		_, err := c.preview(sandbox.Spec{})
		if s.want == "" && err != nil || s.want != "" && (err == nil || !strings.Contains(err.Error(), s.want)) {
			t.Errorf("%s: %v, want %q", name, err, s.want)
		}
		c.end()
	}
}

// An extension that wants another machine than it sees in the plan refuses the run; over the machine that it wants, it
// goes on.
func judgesBackend(t *testing.T) {
	for backend, refused := range map[string]bool{"microvm": true, "q35": false} {
		c := newChained(t, "none", member("a", "backend="+backend), member("b", "demands=q35", once(phase.BeforeStart)))
		c.configure()
		c.startWith(func(o *Options) {
			o.between.driver = func(d driver.Driver) driver.Driver {
				return faulty{d, func(what string) error {
					if what == "create" {
						return fault.New(fault.FailedPrecondition, "far enough")
					}
					return nil
				}}
			}
		})
		id, err := c.make("one", sandbox.Spec{})
		want := "far enough"
		if refused {
			want = "no, says b"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", backend, err, want)
		}
		c.comes(id, sandbox.Deleted)
		c.nothing()
		c.end()
	}
}

func tooLarge(t *testing.T) {
	c := newChained(t, "none", member("a")).up()
	if _, err := c.make("one", sandbox.Spec{Resources: sandbox.Resources{Memory: 1 << 50}}); !fault.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), "mem_mib") {
		t.Errorf("%v", err)
	}
	c.called([]phase.Phase{phase.BeforeCreate, phase.OnCreateFailed})
	c.end()
}

// A start runs what was planned at the create, by another gateway too; no plan is asked for again. What a run's hook adds
// is asked for at every start.
func startIsNotPlannedAnew(t *testing.T) {
	c := newChained(t, "native", member("a")).up()
	spec := sandbox.Spec{Environment: map[string]string{"MINE": "1"}, Labels: map[string]string{"team": "x"}, Command: []string{"/bin/sleep", "600"}}
	id := c.ready("one", spec)
	if err := c.stopIt(id); err != nil {
		t.Fatal(err)
	}
	before, err := c.d.engine.PlanOf(id)
	if err != nil {
		t.Fatal(err)
	}
	c.end()
	if info, err := os.Stat(filepath.Join(c.dir, "data")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v %v", info, err)
	}
	c.start()
	c.forget()
	if err := c.startIt(id); err != nil {
		t.Fatal(err)
	}
	c.comes(id, sandbox.Ready)
	c.rest(id)
	c.called(nil, "before_start a start", "after_ready a start")
	after, err := c.d.engine.PlanOf(id)
	if err != nil {
		t.Fatal(err)
	}
	one, _ := json.Marshal(before.Objects())
	two, _ := json.Marshal(after.Objects())
	if string(one) != string(two) {
		t.Errorf("it was %s, and is %s", one, two)
	}
	c.deleteIt(id)
	c.end()
}

// A start that a hook refuses, and one that the driver cannot do, leave the sandbox stopped, and the run released.
func failedStartStaysStopped(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b"))
	c.configure()
	var fail atomic.Bool
	c.startWith(func(o *Options) {
		o.between.driver = func(d driver.Driver) driver.Driver {
			return faulty{d, func(what string) error {
				if what == "start" && fail.Load() {
					return fault.New(fault.FailedPrecondition, "the image is gone")
				}
				return nil
			}}
		}
	})
	id := c.ready("one", sandbox.Spec{})
	if err := c.stopIt(id); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		name, want string
		released   []string
	}{
		{"a hook refuses", "no, says b", []string{"after_stop b before_start_failed", "after_stop a before_start_failed"}},
		{"the driver fails", "the image is gone", []string{"after_stop b launch_failed", "after_stop a launch_failed"}},
	} {
		c.forget()
		fail.Store(s.name == "the driver fails")
		c.do("b", phase.BeforeStart, map[bool]string{true: "", false: "deny"}[fail.Load()])
		if err := c.startIt(id); err == nil || !strings.Contains(err.Error(), s.want) {
			t.Errorf("%s: %v", s.name, err)
		}
		c.comes(id, sandbox.Stopped)
		c.rest(id)
		c.called([]phase.Phase{phase.AfterStop, phase.OnCreateFailed}, s.released...)
	}
	fail.Store(false)
	if err := c.startIt(id); err != nil {
		t.Fatal(err)
	}
	c.comes(id, sandbox.Ready)
	c.deleteIt(id)
	c.nothing()
	c.end()
}

// What is deleted before it has a process leaves nothing, and its name is free.
func deleteWithoutProcess(t *testing.T) {
	c := newChained(t, "native", member("a")).up()
	c.do("a", phase.BeforeStart, "gate")
	_, id, err := c.d.engine.CreateSandbox(c.ask("one", sandbox.Spec{}))
	if err != nil {
		t.Fatal(err)
	}
	c.wait("the hook runs", func() bool { return slices.Contains(calls(recorded(t, c.dir)), "before_start a create") })
	c.deleteIt(id.ID)
	c.nothing()
	c.do("a", phase.BeforeStart, "")
	c.deleteIt(c.ready("one", sandbox.Spec{}))
	c.end()
}

// A second create of an id is refused, and changes nothing of the first.
func duplicateCreate(t *testing.T) {
	c := newChained(t, "native", member("a")).up()
	id := c.ready("one", sandbox.Spec{})
	c.forget()
	r := c.ask("two", sandbox.Spec{})
	r.ID = id
	h, _, err := c.d.engine.CreateSandbox(r)
	if err == nil {
		_, err = h.Wait(t.Context())
	}
	if !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("%v", err)
	}
	c.called(nil)
	if sb, err := c.d.engine.Find(engine.Ref{IDOrName: id}); err != nil || sb.State != sandbox.Ready || sb.Name != "one" {
		t.Errorf("%+v %v", sb, err)
	}
	c.deleteIt(id)
	c.end()
}

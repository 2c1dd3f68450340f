package vm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/drivers/vm/internal/image"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// hostWithDevices is a driver over a made-up /sys, in which 0000:01:00.0 and .1 may be passed on and 0000:02:00.0 is in use.
func hostWithDevices(t *testing.T) *kit {
	sys := t.TempDir()
	for bdf, by := range map[string]string{"0000:01:00.0": "vfio-pci", "0000:01:00.1": "vfio-pci", "0000:02:00.0": "nvme"} {
		dir := filepath.Join(sys, "bus/pci/devices", bdf)
		for _, err := range []error{os.MkdirAll(dir, 0o755), os.MkdirAll(filepath.Join(sys, "kernel/iommu_groups/7"), 0o755),
			os.Symlink("../../../../kernel/iommu_groups/7", filepath.Join(dir, "iommu_group")), os.Symlink("../../drivers/"+by, filepath.Join(dir, "driver"))} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return newKit(t, func(c *Config) {
		c.PCI, c.Sysfs = true, sys
		c.Kernels = map[string]Kernel{"tuned": {Image: c.Kernel.Image, Modules: "/tuned"}}
	})
}

// A plan is a machine, or is refused for a reason that people can act on.
func TestWhatAPlanBecomes(t *testing.T) {
	k := hostWithDevices(t)
	secret := filepath.Join(k.d.cfg.Dir, "instance")
	link := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		main    map[string]any
		more    []plan.Object
		want    string // backend
		refused string
		code    fault.Code
	}{
		{name: "nothing is asked for", want: "microvm"},
		{name: "a drop-in", more: []plan.Object{dropIn("10-a.sh", "x")}, want: "microvm"},
		{name: "a feature that every backend has", main: fields("required_backend_features", list(featureDropins)), want: "microvm"},
		{name: "a feature that one backend has", main: fields("required_backend_features", list(featurePCI)), want: "q35"},
		{name: "a backend", main: fields("required_backends", list("q35")), want: "q35"},
		{name: "a backend by its name", main: fields("backend", "q35"), want: "q35"},
		{name: "a device", main: fields("pci_devices", list("0000:01:00.0")), want: "q35"},
		{name: "a GPU", main: fields("gpu_bdf", "0000:01:00.1"), want: "q35"},
		{name: "a configured kernel", main: fields("kernel_profile", "tuned"), want: "microvm"},
		{name: "an external kernel", main: fields("kernel_image", k.d.cfg.Kernel.Image, "kernel_profile", "any name"), want: "microvm"},
		{name: "a backend without the feature", main: fields("backend", "microvm", "pci_devices", list("0000:01:00.0")), refused: "microvm has no pci-passthrough", code: fault.FailedPrecondition},
		{name: "backends that exclude each other", main: fields("backend", "microvm", "required_backends", list("q35")), refused: "no machine will do", code: fault.FailedPrecondition},
		{name: "a backend that there is not", main: fields("required_backends", list("libkrun")), refused: "there are microvm and q35", code: fault.FailedPrecondition},
		{name: "a feature that there is not", main: fields("required_backend_features", list("time-travel")), refused: "microvm has no time-travel", code: fault.FailedPrecondition},
		{name: "a kernel that is not configured", main: fields("kernel_profile", "nightly"), refused: `no kernel "nightly"`, code: fault.FailedPrecondition},
		{name: "a kernel that is not there", main: fields("kernel_image", "/no/such/kernel"), refused: "no such file", code: fault.FailedPrecondition},
		{name: "a kernel by a relative path", main: fields("kernel_image", "boot/vmlinuz"), refused: "no absolute, clean path", code: fault.Invalid},
		{name: "a kernel by a path that climbs", main: fields("kernel_image", "/boot/../etc/shadow"), refused: "no absolute, clean path", code: fault.Invalid},
		{name: "a kernel that is the gateway's own file", main: fields("kernel_image", secret), refused: "directory of the gateway's", code: fault.Invalid},
		{name: "a kernel that leads there", main: fields("kernel_image", link), refused: "directory of the gateway's", code: fault.Invalid},
		{name: "a kernel that is a directory", main: fields("kernel_image", "/usr"), refused: "no file that can be booted", code: fault.FailedPrecondition},
		{name: "a device that there is not", main: fields("pci_devices", list("0000:09:00.0")), refused: "no device 0000:09:00.0", code: fault.FailedPrecondition},
		{name: "a device that is in use", main: fields("pci_devices", list("0000:02:00.0")), refused: "not bound to vfio-pci", code: fault.FailedPrecondition},
		{name: "a device by a path", main: fields("pci_devices", list("../../0000:01:00.0")), refused: "no address of a PCI device", code: fault.Invalid},
		{name: "a drop-in of a strange name", more: []plan.Object{dropIn("a b", "x")}, refused: "GuestInitDropin/a b", code: fault.Invalid},
		{name: "drop-ins without end", more: []plan.Object{dropIn("a", strings.Repeat("x", maxDropins)), dropIn("b", "x")}, refused: "at most 1048576", code: fault.Invalid},
		{name: "a second machine", more: []plan.Object{{Kind: kindLaunch, Name: "other", Fields: fields("vcpus", int64(1))}}, refused: "one machine", code: fault.Invalid},
		{name: "memory that no host has", main: fields("mem_mib", int64(1)<<40), refused: "are asked for", code: fault.ResourceExhausted},
		{name: "too little memory", main: fields("mem_mib", int64(16)), refused: "too little", code: fault.Invalid},
		{name: "no processor", main: fields("vcpus", int64(0)), refused: "no number of processors", code: fault.Invalid},
		{name: "a vsock address of the host", main: fields("vsock_cid", int64(2)), refused: "no vsock address", code: fault.Invalid},
		{name: "a TAP where there are none", main: fields("tap_device", "tap0"), refused: featureTAP, code: fault.FailedPrecondition},
		{name: "an address that is none", main: fields("guest_ip", "10.80"), refused: "no address of IPv4", code: fault.Invalid},
		{name: "a gateway outside", main: fields("guest_ip", "10.80.1.2/24", "host_ip", "10.81.0.1"), refused: "no other address", code: fault.Invalid},
		{name: "a port of nothing", main: fields("gateway_port", int64(17670)), refused: "needs a host_ip", code: fault.Invalid},
		{name: "a hardware address of a group", main: fields("guest_mac", "01:00:5e:00:00:01"), refused: "no hardware address", code: fault.Invalid},
		{name: "an image that there is not", main: fields("image", "nope"), refused: `no root "nope"`, code: fault.FailedPrecondition},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects := c.more
			if c.main != nil {
				objects = append(objects, plan.Object{Kind: kindLaunch, Name: mainLaunch, Fields: c.main})
			}
			p := k.plan(nil, sh("true"), objects...)
			r := &driver.ResolveRequest{Identity: p.Identity, Plan: p.Plan, Workspace: p.Workspace}
			err := k.d.Resolve(t.Context(), r)
			if c.refused != "" {
				if !fault.Is(err, c.code) || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("%v (%v), want %v: %s", err, fault.CodeOf(err), c.code, c.refused)
				}
				return
			}
			w, judged := k.d.judge(p.Identity, p.Plan, nil, nil)
			if err != nil || judged != nil || w.on.name != c.want {
				t.Fatalf("%v, %v, %+v; want %s", err, judged, w, c.want)
			}
		})
	}
}

// What extensions require is judged with the rest: it may not be there, or not together with the backend.
func TestWhatIsRequiredIsThere(t *testing.T) {
	k := newKit(t)
	p := k.plan(nil, sh("true"))
	r := &driver.ResolveRequest{Identity: p.Identity, Plan: p.Plan, Requires: []string{featurePCI}}
	if err := k.d.Resolve(t.Context(), r); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "pci_passthrough") {
		t.Errorf("it says %v, want that it is not configured", err)
	}
	k = hostWithDevices(t)
	p = k.plan(nil, sh("true"), plan.Object{Kind: kindLaunch, Name: mainLaunch, Fields: fields("backend", "microvm")})
	r = &driver.ResolveRequest{Identity: p.Identity, Plan: p.Plan, Requires: []string{featurePCI}}
	if err := k.d.Resolve(t.Context(), r); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "microvm has no pci-passthrough") {
		t.Errorf("it says %v, want that the backend has no such thing", err)
	}
}

// Devices are passed to QEMU once each, by the host's own path. Nothing is started: this host has none.
func TestDevicesOnTheCommandLine(t *testing.T) {
	k := hostWithDevices(t)
	p := k.plan(nil, sh("true"), plan.Object{Kind: kindLaunch, Name: mainLaunch,
		Fields: fields("pci_devices", list("0000:01:00.1", "0000:01:00.0"), "gpu_bdf", "0000:01:00.0", "vcpus", int64(2))})
	w, err := k.d.judge(p.Identity, p.Plan, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &meta{Identity: p.Identity, Operation: "op", Run: 3, Root: &image.Root{Path: "/images/root,1"}}
	args := k.d.arguments(m, w, "/images/kernel", AccelKVM, []string{"user", "id=net"})
	var devices []string
	for i, a := range args {
		if a == "-device" {
			devices = append(devices, args[i+1])
		}
	}
	sys := filepath.Join(k.d.cfg.Sysfs, "bus/pci/devices")
	want := []string{"virtio-serial-pci", "virtserialport,chardev=events,name=sandgate.events", "virtserialport,chardev=log,name=sandgate.log",
		"virtserialport,chardev=control,name=sandgate.control", "virtio-blk-pci,drive=root", "virtio-blk-pci,drive=disk", "virtio-rng-pci",
		"virtio-net-pci,netdev=net,mac=" + w.mac.String(), "vfio-pci,sysfsdev=" + sys + "/0000:01:00.0", "vfio-pci,sysfsdev=" + sys + "/0000:01:00.1"}
	if diff := cmp.Diff(want, devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	for _, pair := range [][2]string{{"-machine", "q35,dump-guest-core=off"}, {"-accel", "kvm"}, {"-smp", "2"}, {"-name", "sandgate " + p.Identity.ID + " op " + k.d.instance},
		{"-drive", "id=root,if=none,format=raw,read-only=on," + onError + ",file.filename=/images/root,,1"}} {
		at := slices.Index(args, pair[0])
		for at >= 0 && args[at+1] != pair[1] {
			next := slices.Index(args[at+1:], pair[0])
			if next < 0 {
				at = -1
				break
			}
			at += 1 + next
		}
		if at < 0 {
			t.Errorf("%s is not followed by %s: %q", pair[0], pair[1], args)
		}
	}
}

// What another machine has is not given twice, and there are no more machines than there may be.
func TestWhatIsExhausted(t *testing.T) {
	k := newKit(t, func(c *Config) { c.MaxMachines = 2 })
	run := func(id string, m meta) (func(), error) {
		m.Identity = sandbox.Identity{ID: id, WorkspaceID: "w"}
		if err := os.MkdirAll(k.d.dir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := k.d.save(&m); err != nil {
			t.Fatal(err)
		}
		return k.d.reserve(&m)
	}
	done, err := run("one", meta{Devices: []string{"0000:01:00.0"}, Address: "10.80.1.2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run("two", meta{Devices: []string{"0000:01:00.0"}}); !fault.Is(err, fault.ResourceExhausted) {
		t.Errorf("a device that another has: %v", err)
	}
	if _, err := run("two", meta{Address: "10.80.1.2"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("an address that another has: %v", err)
	}
	if _, err := run("two", meta{}); err != nil {
		t.Errorf("the second machine: %v", err)
	}
	if _, err := run("three", meta{}); !fault.Is(err, fault.ResourceExhausted) {
		t.Errorf("a third machine: %v", err)
	}
	done()
	if _, err := run("three", meta{Devices: []string{"0000:01:00.0"}, Address: "10.80.1.2"}); err != nil {
		t.Errorf("when the first has ended: %v", err)
	}
}

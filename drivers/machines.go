package drivers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sandgate/sandgate/drivers/vm"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

func vmSchema() extension.ConfigSchema {
	text := func(name, value, doc string, of ...any) extension.Attribute {
		return extension.Attribute{Name: name, Type: "string", Default: value, Description: doc, Enum: of}
	}
	number := func(name string, value, least float64, doc string) extension.Attribute {
		return extension.Attribute{Name: name, Type: "number", Whole: true, Default: value, Min: &least, Description: doc}
	}
	path := extension.Attribute{Name: "path", Type: "string", Required: true}
	return extension.ConfigSchema{
		Attributes: []extension.Attribute{
			{Name: "kernel", Type: "string", Required: true, Description: "what machines boot, for example /boot/vmlinuz-6.1.0-32-cloud-amd64"},
			text("modules", "", "of that kernel, for example /lib/modules/6.1.0-32-cloud-amd64; absent: it needs none"),
			text("init", "", "the program guest-init; absent: the one beside sandgate"),
			text("qemu", "qemu-system-x86_64", "the program"),
			text("default_image", "", "of a sandbox that names none"),
			number("cpus", 1, 1, "of a machine where nobody says"),
			number("memory_mib", 256, vm.MinMemMiB, "of a machine where nobody says"),
			number("disk_mib", 1024, 16, "how much a machine may change of its image"),
			number("max_machines", 0, 0, "that run at once; 0: as many as are asked for"),
			text("accel", vm.AccelAuto, "KVM, if a trial machine shows that it works, or emulation", vm.AccelAuto, vm.AccelKVM, vm.AccelTCG),
			text("network", vm.NetworkUser, "how machines are connected: not at all, each for itself, or those of a workspace among each other", vm.NetworkNone, vm.NetworkUser, vm.NetworkTAP),
			{Name: "outbound", Type: "bool", Default: false, Description: "with network user: whether machines reach what the host reaches, its own loopback too"},
			{Name: "pci_passthrough", Type: "bool", Default: false, Description: "whether devices of the host may be passed on"},
			text("sysfs", "/sys", "where the host's devices show"),
			text("stop_timeout", "10s", "how long a command has to end after SIGTERM"),
		},
		Blocks: []extension.Block{
			{Type: "root", Labels: []string{"image"}, Description: "a root file system by image: a directory, a tar file or an OCI image layout", Body: extension.ConfigSchema{Attributes: []extension.Attribute{path}}},
			{Type: "kernel_profile", Labels: []string{"name"}, Description: "a further kernel, for plans that name it", Body: extension.ConfigSchema{
				Attributes: []extension.Attribute{path, text("modules", "", "of that kernel; absent: it needs none")}}},
		},
	}
}

func openVM(c Config) (driver.Driver, error) {
	var s struct {
		Kernel       string                                    `json:"kernel"`
		Modules      string                                    `json:"modules"`
		Init         string                                    `json:"init"`
		QEMU         string                                    `json:"qemu"`
		DefaultImage string                                    `json:"default_image"`
		CPUs         int64                                     `json:"cpus"`
		MemoryMiB    int64                                     `json:"memory_mib"`
		DiskMiB      int64                                     `json:"disk_mib"`
		MaxMachines  int                                       `json:"max_machines"`
		Accel        string                                    `json:"accel"`
		Network      string                                    `json:"network"`
		Outbound     bool                                      `json:"outbound"`
		PCI          bool                                      `json:"pci_passthrough"`
		Sysfs        string                                    `json:"sysfs"`
		StopTimeout  string                                    `json:"stop_timeout"`
		Root         map[string]struct{ Path string }          `json:"root"`
		Profile      map[string]struct{ Path, Modules string } `json:"kernel_profile"`
	}
	if err := json.Unmarshal(c.Setting, &s); err != nil {
		return nil, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	stop, err := c.duration("stop_timeout", s.StopTimeout)
	if err != nil {
		return nil, err
	}
	if s.Init == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("driver %q: %w", c.Name, err)
		}
		s.Init = filepath.Join(filepath.Dir(self), "guest-init")
	}
	paths := map[string]string{"kernel": s.Kernel, "init": s.Init, "sysfs": s.Sysfs}
	cfg := vm.Config{Dir: c.Dir, Hide: c.Hide, Logger: c.Logger, QEMU: s.QEMU, Init: s.Init, Kernel: vm.Kernel{Image: s.Kernel, Modules: s.Modules},
		Kernels: map[string]vm.Kernel{}, Roots: map[string]string{}, DefaultImage: s.DefaultImage, VCPUs: s.CPUs, MemMiB: s.MemoryMiB, DiskBytes: s.DiskMiB << 20,
		MaxMachines: s.MaxMachines, Accel: s.Accel, Network: s.Network, Outbound: s.Outbound, PCI: s.PCI, Sysfs: s.Sysfs, StopTimeout: stop}
	for image, r := range s.Root {
		cfg.Roots[image], paths["root."+image+".path"] = r.Path, r.Path
	}
	for name, k := range s.Profile {
		cfg.Kernels[name], paths["kernel_profile."+name+".path"] = vm.Kernel{Image: k.Path, Modules: k.Modules}, k.Path
	}
	for at, path := range paths {
		if !filepath.IsAbs(path) {
			return nil, fault.New(fault.Invalid, "driver %q: %s %q is no absolute path", c.Name, at, path).With(fault.Diagnostic{Path: at, Summary: "is no absolute path"})
		}
	}
	if _, known := s.Root[s.DefaultImage]; s.DefaultImage != "" && !known {
		return nil, fault.New(fault.Invalid, "driver %q: default_image %q has no root block", c.Name, s.DefaultImage).With(fault.Diagnostic{Path: "default_image", Summary: "has no root block"})
	}
	return vm.Open(cfg)
}

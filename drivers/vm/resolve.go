package vm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// backend is a type of machine that QEMU has.
type backend struct {
	name     string
	bus      string   // the suffix of its virtio devices
	features []string // of those that may be required of a backend
}

// backends are in the order in which they are preferred: the first one that has what is needed is taken.
var backends = []backend{
	{"microvm", "device", []string{featureKernel, featureDropins, featureTAP}},
	{"q35", "pci", []string{featureKernel, featureDropins, featureTAP, featurePCI}},
}

// MinMemMiB is the least memory that a machine has: with less Debian's kernel does not boot.
const MinMemMiB = 96

// Limits on what a plan may ask for.
const (
	maxVCPUs   = 255
	maxDropins = 1 << 20 // bytes, of all of them
	minVsock   = 3       // those below mean the host and the hypervisor
	maxVsock   = 1<<32 - 2
)

var bdfForm = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)

// machine is a plan that was judged: what is to be built.
type machine struct {
	launch
	on      backend
	kernel  Kernel
	root    string // the source of its root file system
	devices []string
	dropins []guest.DropIn
	subnet  netip.Prefix // of its address; zero: it has none
	address netip.Addr
	mac     net.HardwareAddr
}

// judge makes a machine of a plan, or says why there can be none. It is pure, so that what Resolve has accepted is what
// Create builds.
func (d *Driver) judge(id sandbox.Identity, p, ws *plan.Plan, requires []string) (*machine, error) {
	l, err := launchOf(p)
	if err != nil {
		return nil, err
	}
	m := &machine{launch: l}
	for _, o := range p.Objects() {
		switch {
		case o.Kind == kindLaunch && o.Name != mainLaunch:
			return nil, fault.New(fault.Invalid, "%s: a sandbox has one machine, %q", o.Ref(), mainLaunch)
		case o.Kind == kindDropin:
			if err := m.addDropin(o); err != nil {
				return nil, err
			}
		}
	}
	for _, step := range []func() error{m.size, func() error { return d.chooseRoot(m) }, func() error { return d.chooseKernel(m) },
		func() error { return d.chooseDevices(m) }, m.checkGuest, func() error { return m.chooseBackend(d.missing, requires) }, func() error { return d.chooseNetwork(id, m, ws) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *machine) addDropin(o plan.Object) error {
	if err := guest.CheckDropInName(o.Name); err != nil {
		return fault.New(fault.Invalid, "%s: %v", o.Ref(), err)
	}
	v, err := as[dropin](o)
	if err != nil {
		return err
	}
	total := len(v.Contents)
	for _, other := range m.dropins {
		total += len(other.Contents)
	}
	if total > maxDropins {
		return fault.New(fault.Invalid, "%s: with it the drop-ins have %d bytes; at most %d", o.Ref(), total, maxDropins)
	}
	m.dropins = append(m.dropins, guest.DropIn{Name: o.Name, Contents: []byte(v.Contents)})
	slices.SortFunc(m.dropins, func(a, b guest.DropIn) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// checkGuest judges what the guest is told. A command may come with the image, which is not looked at yet.
func (m *machine) checkGuest() error {
	c := guest.Config{Hostname: m.Hostname, Command: m.Command, Environment: m.Environment, Directory: m.Directory, User: m.User, DropIns: m.dropins}
	if len(c.Command) == 0 {
		c.Command = []string{"the image's"}
	}
	if err := c.Check(); err != nil {
		return fault.New(fault.Invalid, "LaunchPlan/main %v", err)
	}
	return nil
}

// size judges how large the machine is to be.
func (m *machine) size() error {
	if m.VCPUs < 1 || m.VCPUs > maxVCPUs {
		return invalid("vcpus", "%d is no number of processors: 1 to %d", m.VCPUs, maxVCPUs)
	}
	if m.MemMiB < MinMemMiB {
		return invalid("mem_mib", "%d MiB is too little for a machine; %d at least", m.MemMiB, MinMemMiB)
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return fmt.Errorf("ask how much memory the host has: %w", err)
	}
	if has := int64(host.Totalram) * int64(host.Unit) >> 20; m.MemMiB > has {
		return fault.New(fault.ResourceExhausted, "LaunchPlan/main mem_mib: %d MiB are asked for, and this host has %d", m.MemMiB, has)
	}
	if m.VsockCID != 0 {
		if m.VsockCID < minVsock || m.VsockCID > maxVsock {
			return invalid("vsock_cid", "%d is no vsock address of a machine: %d to %d", m.VsockCID, minVsock, int64(maxVsock))
		}
		if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
			return fault.New(fault.FailedPrecondition, "LaunchPlan/main vsock_cid: this host has no /dev/vhost-vsock; load the kernel module vhost_vsock")
		}
	}
	return nil
}

func invalid(field, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return fault.New(fault.Invalid, "LaunchPlan/main %s: %s", field, text).With(fault.Diagnostic{Path: field, Summary: text})
}

// chooseRoot finds the root file system that the image means.
func (d *Driver) chooseRoot(m *machine) error {
	if m.Image == "" {
		return fault.New(fault.FailedPrecondition, "no image was named, and this driver has no default_image").With(fault.Diagnostic{Path: "image", Summary: "is missing"})
	}
	var ok bool
	if m.root, ok = d.cfg.Roots[m.Image]; !ok {
		return fault.New(fault.FailedPrecondition, "there is no root %q configured on this host", m.Image).With(fault.Diagnostic{Path: "image", Summary: "is not configured"})
	}
	return nil
}

// chooseKernel finds the kernel: the one that the plan names by its path, or by a configured name, or the driver's own.
func (d *Driver) chooseKernel(m *machine) error {
	m.kernel = d.cfg.Kernel
	named, configured := d.cfg.Kernels[m.KernelProfile]
	switch {
	case m.KernelImage == "" && m.KernelProfile == "":
		return nil
	case m.KernelImage == "" && !configured:
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main kernel_profile: there is no kernel %q configured on this host", m.KernelProfile)
	case m.KernelImage == "":
		m.kernel = named
		return nil
	}
	if err := d.checkKernel(m.KernelImage); err != nil {
		return err
	}
	if m.KernelImage != m.kernel.Image { // its modules are another kernel's
		m.kernel = Kernel{Image: m.KernelImage, Modules: named.Modules}
	}
	return nil
}

// checkKernel judges a path that an extension wants booted: the guest gets to see what is there.
func (d *Driver) checkKernel(path string) error {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid("kernel_image", "%q is no absolute, clean path", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main kernel_image %s: %w", path, err)
	}
	for _, dir := range d.hide {
		if rel, err := filepath.Rel(dir, real); err == nil && filepath.IsLocal(rel) {
			return invalid("kernel_image", "%s lies in a directory of the gateway's", path)
		}
	}
	if info, err := os.Stat(real); err != nil || !info.Mode().IsRegular() {
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main kernel_image: %s is no file that can be booted", path)
	}
	return nil
}

// chooseDevices judges the host's devices that the machine is to have. Each is passed once, however often it is named.
func (d *Driver) chooseDevices(m *machine) error {
	m.devices = slices.Clone(m.PCIDevices)
	if m.GPU != "" {
		m.devices = append(m.devices, m.GPU)
	}
	slices.Sort(m.devices)
	m.devices = slices.Compact(m.devices)
	for _, bdf := range m.devices {
		if !bdfForm.MatchString(bdf) {
			return invalid("pci_devices", "%q is no address of a PCI device, for example 0000:01:00.0", bdf)
		}
		if why := d.missing[featurePCI]; why != "" {
			return fault.New(fault.FailedPrecondition, "LaunchPlan/main pci_devices: %s", why)
		}
		if err := d.checkDevice(bdf); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) device(bdf string) string { return filepath.Join(d.cfg.Sysfs, "bus/pci/devices", bdf) }

func (d *Driver) checkDevice(bdf string) error {
	if _, err := os.Stat(d.device(bdf)); err != nil {
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main pci_devices: the host has no device %s", bdf)
	}
	if _, err := os.Stat(filepath.Join(d.device(bdf), "iommu_group")); err != nil {
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main pci_devices: %s is in no IOMMU group; the host needs an IOMMU that is turned on", bdf)
	}
	if to, err := os.Readlink(filepath.Join(d.device(bdf), "driver")); err != nil || filepath.Base(to) != "vfio-pci" {
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main pci_devices: %s is not bound to vfio-pci", bdf)
	}
	return nil
}

// chooseBackend takes the first backend that has all that is needed, of those that will do.
func (m *machine) chooseBackend(missing map[string]string, requires []string) error {
	need := slices.Clone(m.RequiredFeatures)
	for _, implied := range []struct {
		feature string
		needed  bool
	}{{featureKernel, m.KernelImage != ""}, {featureDropins, len(m.dropins) > 0}, {featurePCI, len(m.devices) > 0}, {featureTAP, m.TAP != ""}} {
		if implied.needed {
			need = append(need, implied.feature)
		}
	}
	for _, r := range requires {
		if slices.ContainsFunc(backends, func(b backend) bool { return slices.Contains(b.features, r) }) {
			need = append(need, r)
		}
	}
	slices.Sort(need)
	need = slices.Compact(need)
	for _, f := range need {
		if why := missing[f]; why != "" {
			return fault.New(fault.FailedPrecondition, "the feature %q is required, and this host does not give it: %s", f, why)
		}
	}
	var tried []string
	for _, b := range backends {
		if m.Backend != "" && m.Backend != b.name || len(m.RequiredBackends) > 0 && !slices.Contains(m.RequiredBackends, b.name) {
			continue
		}
		lacks := slices.DeleteFunc(slices.Clone(need), func(f string) bool { return slices.Contains(b.features, f) })
		if len(lacks) == 0 {
			m.on = b
			return nil
		}
		tried = append(tried, fmt.Sprintf("%s has no %s", b.name, words(lacks)))
	}
	if len(tried) == 0 {
		return fault.New(fault.FailedPrecondition, "no machine will do: backend %q is asked for, of %q; there are microvm and q35", m.Backend, m.RequiredBackends)
	}
	return fault.New(fault.FailedPrecondition, "no machine has what is required: %s", strings.Join(tried, "; "))
}

// Resolve implements driver.Driver.
func (d *Driver) Resolve(_ context.Context, r *driver.ResolveRequest) error {
	for _, name := range r.Requires {
		if !slices.ContainsFunc(d.about.Features, func(f extension.Feature) bool { return f.Name == name }) {
			return fault.New(fault.FailedPrecondition, "the feature %q is required, and this host does not give it: %s", name, d.missing[name])
		}
	}
	m, err := d.judge(r.Identity, r.Plan, r.Workspace, r.Requires)
	if err != nil {
		return err
	}
	if known, err := d.load(r.Identity.ID); err == nil && known.Identity == r.Identity {
		return nil
	} else if _, err := os.Lstat(d.dir(r.Identity.ID)); err == nil {
		return fault.New(fault.Conflict, "%s is in the way: it bears no marks of this sandbox", d.dir(r.Identity.ID))
	}
	if m.address.IsValid() && d.cfg.Network == NetworkTAP {
		return d.linkInTheWay(r.Identity.ID)
	}
	return nil
}

package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// How machines are connected.
const (
	NetworkNone = "none" // not at all
	NetworkUser = "user" // each for itself: QEMU plays the network
	NetworkTAP  = "tap"  // to a bridge of the workspace, which has no address and leads nowhere else
)

func bridgeName(workspaceID string) string { return host.LinkName("sgb", workspaceID) }

// Ids are a driver's own, and a host may have several: its instance is a part of the name of what it makes.

func (d *Driver) tapName(sandboxID string) string {
	return host.LinkName("sgt", d.instance+" "+sandboxID)
}

func (d *Driver) marks(id, operation string) string {
	return "sandgate " + id + " " + operation + " " + d.instance
}

// ours reports whether marks are those of a sandbox, of whatever operation.
func (d *Driver) ours(marks, id string) bool {
	return strings.HasPrefix(marks, "sandgate "+id+" ") && strings.HasSuffix(marks, " "+d.instance)
}

func workspaceMarks(w sandbox.Workspace) string {
	return "sandgate workspace " + w.ID + " of " + w.Driver
}

// EnsureWorkspace implements driver.Driver.
func (d *Driver) EnsureWorkspace(_ context.Context, r *driver.WorkspaceRequest) error {
	for _, o := range r.Plan.Objects() {
		if o.Kind == kindNetwork && o.Name != workspace {
			return fault.New(fault.Invalid, "%s: a workspace has one network, %q", o.Ref(), workspace)
		}
	}
	n, err := networkOf(r.Plan)
	if err != nil || n.Subnet == "" {
		return err
	}
	if s, err := netip.ParsePrefix(n.Subnet); err != nil || !s.Addr().Is4() {
		return fault.New(fault.Invalid, "Network/%s subnet: %q is no subnet of IPv4, for example 10.80.1.0/24", workspace, n.Subnet)
	}
	switch d.cfg.Network {
	case NetworkNone:
		return fault.New(fault.FailedPrecondition, "machines have no network here: the driver is configured so")
	case NetworkTAP:
		return host.MakeBridge(bridgeName(r.Workspace.ID), workspaceMarks(r.Workspace))
	}
	return nil
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(_ context.Context, w sandbox.Workspace) error {
	// Also where none would be made now: the configuration may have been another one.
	return host.RemoveMarked(bridgeName(w.ID), workspaceMarks(w))
}

var linkForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)

// chooseNetwork judges what the plan says of the machine's network. While the workspace was never ensured, an address is
// judged by its form alone.
func (d *Driver) chooseNetwork(id sandbox.Identity, m *machine, ws *plan.Plan) error {
	if m.TAP != "" {
		if !linkForm.MatchString(m.TAP) {
			return invalid("tap_device", "%q is no name of a link", m.TAP)
		}
		if d.cfg.Network != NetworkTAP {
			return fault.New(fault.FailedPrecondition, "LaunchPlan/main tap_device: %s", d.missing[featureTAP])
		}
	}
	m.mac = host.Hardware(d.marks(id.ID, ""))
	if m.GuestMAC != "" {
		mac, err := net.ParseMAC(m.GuestMAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("guest_mac", "%q is no hardware address of one interface", m.GuestMAC)
		}
		m.mac = mac
	}
	if m.GuestIP != "" {
		n, err := networkOf(ws)
		if err != nil {
			return err
		}
		if err := m.place(n.Subnet, ws == nil); err != nil {
			return err
		}
	}
	return d.chooseGateway(m)
}

// place finds the machine's address and the subnet that it lies in: the workspace's, or else the one that the address
// itself names.
func (m *machine) place(subnet string, early bool) error {
	bare, bits, own := strings.Cut(m.GuestIP, "/")
	a, err := netip.ParseAddr(bare)
	if err != nil || !a.Is4() {
		return invalid("guest_ip", "%q is no address of IPv4, for example 10.80.1.2", m.GuestIP)
	}
	switch {
	case subnet == "" && own:
		subnet = a.String() + "/" + bits
	case subnet == "" && early:
		return nil
	case subnet == "":
		return invalid("guest_ip", "%s names no prefix, and the workspace has no network", m.GuestIP)
	}
	s, err := netip.ParsePrefix(subnet)
	if err != nil || !s.Contains(a) {
		return invalid("guest_ip", "%s does not lie in the workspace's subnet %s", a, subnet)
	}
	m.address, m.subnet = a, s.Masked()
	return nil
}

func (d *Driver) chooseGateway(m *machine) error {
	if m.HostIP != "" {
		a, err := netip.ParseAddr(m.HostIP)
		if err != nil || !a.Is4() || m.address.IsValid() && (!m.subnet.Contains(a) || a == m.address) {
			return invalid("host_ip", "%q is no other address of the machine's subnet", m.HostIP)
		}
	}
	switch {
	case m.GatewayPort == 0:
		return nil
	case m.GatewayPort < 1 || m.GatewayPort > 65535:
		return invalid("gateway_port", "%d is no port", m.GatewayPort)
	case m.HostIP == "":
		return invalid("gateway_port", "it needs a host_ip")
	case d.cfg.Network == NetworkUser && !d.cfg.Outbound:
		return fault.New(fault.FailedPrecondition, "LaunchPlan/main gateway_port: a machine reaches nothing outside of it; the driver is not configured with outbound")
	}
	return nil
}

// interfaceOf returns the machine's network as QEMU's options, as its guest is told, and a TAP that QEMU is to inherit.
func (d *Driver) interfaceOf(m *meta, w *machine) (options []string, to *guest.Network, tap *os.File, err error) {
	switch {
	case w.TAP != "":
		options = []string{"tap", "id=net", "ifname=" + w.TAP, "script=no", "downscript=no", "vhost=off"}
	case !w.address.IsValid() && !(d.cfg.Network == NetworkUser && d.cfg.Outbound):
		return nil, nil, nil, nil
	case d.cfg.Network == NetworkUser:
		options, to, err = d.userNetwork(w)
		return options, to, nil, err
	default:
		if tap, err = d.openTAP(m); err != nil {
			return nil, nil, nil, err
		}
		options = []string{"tap", "id=net", fmt.Sprintf("fd=%d", tapFD), "vhost=off"}
	}
	to = &guest.Network{MAC: w.mac.String(), Gateway: w.HostIP}
	if w.address.IsValid() {
		to.Addresses = []string{netip.PrefixFrom(w.address, w.subnet.Bits()).String()}
	}
	return options, to, tap, nil
}

// userNetwork is a network of QEMU's own, in which the machine has the address that it was given. Two further addresses
// of it are QEMU's: its way out, and its name server.
func (d *Driver) userNetwork(w *machine) ([]string, *guest.Network, error) {
	subnet, address := w.subnet, w.address
	if !address.IsValid() {
		subnet, address = netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("10.0.2.15")
	}
	var own []netip.Addr
	taken := []netip.Addr{subnet.Addr(), address}
	if w.HostIP != "" {
		own = append(own, netip.MustParseAddr(w.HostIP))
		taken = append(taken, own...)
	}
	for a := subnet.Addr().Next(); len(own) < 2; a = a.Next() {
		if !subnet.Contains(a) || !subnet.Contains(a.Next()) { // the last one means all of them
			return nil, nil, fault.New(fault.FailedPrecondition, "the subnet %s is too small: a machine's network needs three addresses", subnet)
		}
		if !slices.Contains(taken, a) {
			own = append(own, a)
		}
	}
	to := &guest.Network{MAC: w.mac.String(), Addresses: []string{netip.PrefixFrom(address, subnet.Bits()).String()}}
	restrict := "on"
	if d.cfg.Outbound {
		restrict, to.Gateway, to.Nameservers = "off", own[0].String(), []string{own[1].String()}
	}
	return []string{"user", "id=net", "ipv6=off", "net=" + subnet.String(), "host=" + own[0].String(), "dns=" + own[1].String(), "restrict=" + restrict}, to, nil
}

// openTAP makes the machine's end of the workspace's network: a TAP that bears the marks, on the bridge. It is there for
// as long as somebody has it open, and so goes with QEMU, however that ends.
func (d *Driver) openTAP(m *meta) (*os.File, error) {
	name, alias := d.tapName(m.Identity.ID), d.marks(m.Identity.ID, m.Operation)
	w := sandbox.Workspace{ID: m.Identity.WorkspaceID, Driver: m.Identity.Driver}
	// A bridge does not outlive the host's restart, and a workspace is not ensured again before a run is restored.
	if err := host.MakeBridge(bridgeName(w.ID), workspaceMarks(w)); err != nil {
		return nil, err
	}
	if err := d.linkInTheWay(m.Identity.ID); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, host.Classify(err, "make the sandbox's TAP")
	}
	f := os.NewFile(uintptr(fd), "tap")
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		err = join(name, alias, bridgeName(w.ID))
	}
	if err != nil {
		return nil, errors.Join(host.Classify(err, "make the sandbox's TAP"), f.Close())
	}
	return f, nil
}

func join(name, alias, bridge string) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(link, br), host.Dress(name, alias))
}

// linkInTheWay returns an error when the name of a sandbox's TAP is taken. Of the sandbox's own nothing runs.
func (d *Driver) linkInTheWay(id string) error {
	link, err := netlink.LinkByName(d.tapName(id))
	if err != nil || d.ours(link.Attrs().Alias, id) {
		return nil // whoever makes it looks again
	}
	return fault.New(fault.Conflict, "there is a link %s that is not this sandbox's: its alias is %q", link.Attrs().Name, link.Attrs().Alias)
}

// probeTAP says why there can be no TAP on this host, or "".
func probeTAP() string {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Sprintf("a TAP cannot be made: /dev/net/tun: %v", err)
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq("")
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r) // of a name that the kernel chooses; it goes when this is closed
	}
	if err != nil {
		return fmt.Sprintf("a TAP cannot be made: %v", err)
	}
	return ""
}

// probePCI says why no device of the host can be passed on, or "".
func (d *Driver) probePCI() string {
	if !d.cfg.PCI {
		return "the driver is not configured with pci_passthrough"
	}
	if groups, err := os.ReadDir(filepath.Join(d.cfg.Sysfs, "kernel/iommu_groups")); err != nil || len(groups) == 0 {
		return "the host has no IOMMU that is turned on"
	}
	return ""
}

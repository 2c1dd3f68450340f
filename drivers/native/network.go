package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A workspace's network is a bridge without an address: sandboxes reach each other across it, and nothing else,
// neither the host nor another workspace. A sandbox has one end of a pair of links, whose other end is on the bridge
// and bears the marks as its alias.
//
// The kernel takes an alias only of a link that is there already. So that there is no moment without a mark, a link's
// hardware address, which comes with the link, is derived from the alias that it is going to have.

func short(prefix, id string) string {
	sum := sha256.Sum256([]byte(id))
	return prefix + hex.EncodeToString(sum[:])[:11] // a link's name has at most 15 bytes
}

func bridgeName(workspaceID string) string { return short("sgb", workspaceID) }

func linkName(sandboxID string) string { return short("sgv", sandboxID) }

func workspaceMarks(w sandbox.Workspace) string {
	return "sandgate workspace " + w.ID + " of " + w.Driver
}

// EnsureWorkspace implements driver.Driver.
func (d *Driver) EnsureWorkspace(_ context.Context, r *driver.WorkspaceRequest) error {
	n := networkOf(r.Plan)
	for _, o := range r.Plan.Objects() {
		if o.Kind == kindNetwork && o.Name != workspace {
			return fault.New(fault.Invalid, "%s: a workspace has one network, %q", o.Ref(), workspace)
		}
	}
	if n.Subnet == "" {
		return nil
	}
	if !d.host.network {
		return fault.New(fault.FailedPrecondition, "this host gives workspaces no network: %s", d.about.Missing["network.subnet"])
	}
	if _, err := netip.ParsePrefix(n.Subnet); err != nil {
		return fault.New(fault.Invalid, "Network/%s subnet: %q is no subnet, for example 10.80.1.0/24", workspace, n.Subnet)
	}
	return makeBridge(bridgeName(r.Workspace.ID), workspaceMarks(r.Workspace))
}

// bridgeOf brings the bridge of a sandbox's workspace back where it is gone. It does not outlive the host's reboot, and
// a workspace that is ensured is not ensured again before a run is restored. It has no settings, so nothing is lost.
func bridgeOf(m *meta) error {
	if m.Bridge == "" {
		return nil
	}
	return makeBridge(m.Bridge, workspaceMarks(sandbox.Workspace{ID: m.Identity.WorkspaceID, Driver: m.Identity.Driver}))
}

func makeBridge(name, alias string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case err == nil && !bears(link, alias):
		return fault.New(fault.Conflict, "there is a link %s that is not this workspace's: its alias is %q", name, link.Attrs().Alias)
	case err != nil && !notFound(err):
		return fmt.Errorf("look for the bridge %s: %w", name, err)
	case err != nil:
		err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes(name, alias)})
		if errors.Is(err, unix.EEXIST) { // several runs of a workspace begin at once
			return makeBridge(name, alias)
		}
		if err != nil {
			return fmt.Errorf("make the bridge %s: %w", name, err)
		}
	}
	if err := dress(name, alias); err != nil {
		return fmt.Errorf("make the bridge %s: %w", name, err)
	}
	return nil
}

func attributes(name, alias string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = name, hardware(alias)
	return a
}

// hardware derives a link's address, of the locally administered ones, from its alias.
func hardware(alias string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(alias))
	return append(net.HardwareAddr{sum[0]&^1 | 2}, sum[1:6]...)
}

// bears reports whether a link has the marks.
func bears(l netlink.Link, alias string) bool {
	a := l.Attrs()
	return a.Alias == alias || a.Alias == "" && bytes.Equal(a.HardwareAddr, hardware(alias))
}

// dress completes a link of ours on the host: its alias, no address of its own, up.
func dress(name, alias string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if link.Attrs().Alias != alias {
		if err := netlink.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("mark it: %w", err)
		}
	}
	// The host is no member of the network: without this it would have a link-local address there.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep the host off it: %w", err)
	}
	return netlink.LinkSetUp(link)
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(_ context.Context, w sandbox.Workspace) error {
	if !d.host.network {
		return nil
	}
	return removeMarked(bridgeName(w.ID), workspaceMarks(w))
}

// removeMarked removes a link that bears the marks.
func removeMarked(name, alias string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case err != nil && notFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for the link %s: %w", name, err)
	case !bears(link, alias):
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the link %s: %w", name, err)
	}
	return nil
}

// removeLink removes the host's end of a sandbox's link, where its namespace did not take it along.
func (d *Driver) removeLink(m *meta) error {
	if m.Bridge == "" || !d.host.network {
		return nil
	}
	return removeMarked(linkName(m.Identity.ID), marks(m.Identity.ID, m.Operation))
}

// linkInTheWay returns an error when the name of a sandbox's link is taken by one that is not the sandbox's.
func (d *Driver) linkInTheWay(id string) error {
	link, err := netlink.LinkByName(linkName(id))
	if err != nil || strings.HasPrefix(link.Attrs().Alias, marks(id, "")) {
		return nil // Create looks again
	}
	return fault.New(fault.Conflict, "there is a link %s that is not this sandbox's: its alias is %q", link.Attrs().Name, link.Attrs().Alias)
}

// connect joins a process, in a network namespace of its own, to a bridge.
func connect(id, bridge, address, alias string, pid int) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "the workspace's network is not there: %w", err)
	}
	name := linkName(id)
	if err := removeMarked(name, alias); err != nil { // of a run whose end took no time to clean up
		return err
	}
	attrs := attributes(name, alias)
	attrs.MasterIndex = br.Attrs().Index
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)})
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.Conflict, "there is a link %s that is not this sandbox's", name)
	}
	if err == nil {
		err = dress(name, alias)
	}
	if err != nil {
		return fmt.Errorf("connect to the workspace's network: %w", err)
	}
	return inNamespace(pid, func(h *netlink.Handle) error {
		eth, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD // nobody else has it, and it is used at once
		return errors.Join(h.AddrAdd(eth, addr), h.LinkSetUp(eth))
	})
}

func inNamespace(pid int, fn func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("enter the sandbox's network: %w", err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the sandbox's network: %w", err)
	}
	defer h.Close()
	if err := fn(h); err != nil {
		return fmt.Errorf("set up the sandbox's network: %w", err)
	}
	return nil
}

// loopback brings the loopback link of this namespace up.
func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// probeNetwork tries, in a namespace that is thrown away, whether this process may make bridges and pairs of links.
func probeNetwork() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread is in another namespace from here on, and ends with the goroutine
		done <- func() error {
			ns, err := netns.New()
			if err != nil {
				return fmt.Errorf("a network namespace cannot be made: %w", err)
			}
			defer func() { _ = ns.Close() }()
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sgprobe"}}); err != nil {
				return fmt.Errorf("a bridge cannot be made: %w", err)
			}
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "sgprobe0"}, PeerName: "sgprobe1"}); err != nil {
				return fmt.Errorf("a pair of links cannot be made: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

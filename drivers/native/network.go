package native

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A workspace's network is a bridge without an address: sandboxes reach each other across it, and nothing else,
// neither the host nor another workspace. A sandbox has one end of a pair of links, whose other end is on the bridge
// and bears the marks as its alias.
func bridgeName(workspaceID string) string { return host.LinkName("sgb", workspaceID) }

func linkName(sandboxID string) string { return host.LinkName("sgv", sandboxID) }

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
	return host.MakeBridge(bridgeName(r.Workspace.ID), workspaceMarks(r.Workspace))
}

// bridgeOf brings the bridge of a sandbox's workspace back where it is gone. It does not outlive the host's reboot, and
// a workspace that is ensured is not ensured again before a run is restored. It has no settings, so nothing is lost.
func bridgeOf(m *meta) error {
	if m.Bridge == "" {
		return nil
	}
	return host.MakeBridge(m.Bridge, workspaceMarks(sandbox.Workspace{ID: m.Identity.WorkspaceID, Driver: m.Identity.Driver}))
}

// DeleteWorkspace implements driver.Driver.
func (d *Driver) DeleteWorkspace(_ context.Context, w sandbox.Workspace) error {
	if !d.host.network {
		return nil
	}
	return host.RemoveMarked(bridgeName(w.ID), workspaceMarks(w))
}

// removeLink removes the host's end of a sandbox's link, where its namespace did not take it along.
func (d *Driver) removeLink(m *meta) error {
	if m.Bridge == "" || !d.host.network {
		return nil
	}
	return host.RemoveMarked(linkName(m.Identity.ID), marks(m.Identity.ID, m.Operation))
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
	if err := host.RemoveMarked(name, alias); err != nil { // of a run whose end took no time to clean up
		return err
	}
	attrs := host.Attributes(name, alias)
	attrs.MasterIndex = br.Attrs().Index
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)})
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.Conflict, "there is a link %s that is not this sandbox's", name)
	}
	if err == nil {
		err = host.Dress(name, alias)
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

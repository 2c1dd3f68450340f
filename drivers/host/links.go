package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// The kernel takes an alias, which is the mark of a link, only of one that is there already. So that there is no moment
// without a mark, a link's hardware address, which comes with the link, is derived from the alias that it is going to have.

// LinkName returns a name for the link of something with an id: at most 15 bytes, which is what the kernel takes.
func LinkName(prefix, id string) string {
	sum := sha256.Sum256([]byte(id))
	return prefix + hex.EncodeToString(sum[:])[:11]
}

// MakeBridge makes a bridge that bears the alias, where there is none yet: without an address, up.
func MakeBridge(name, alias string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case err == nil && !Bears(link, alias):
		return fault.New(fault.Conflict, "there is a link %s that is not this workspace's: its alias is %q", name, link.Attrs().Alias)
	case err != nil && !NotFound(err):
		return fmt.Errorf("look for the bridge %s: %w", name, err)
	case err != nil:
		err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: Attributes(name, alias)})
		if errors.Is(err, unix.EEXIST) { // several runs of a workspace begin at once
			return MakeBridge(name, alias)
		}
		if err != nil {
			return fmt.Errorf("make the bridge %s: %w", name, err)
		}
	}
	if err := Dress(name, alias); err != nil {
		return fmt.Errorf("make the bridge %s: %w", name, err)
	}
	return nil
}

// Attributes are what a new link needs to bear an alias from its first moment.
func Attributes(name, alias string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = name, Hardware(alias)
	return a
}

// Hardware derives a link's address, of the locally administered ones, from its alias.
func Hardware(alias string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(alias))
	return append(net.HardwareAddr{sum[0]&^1 | 2}, sum[1:6]...)
}

// Bears reports whether a link has the marks.
func Bears(l netlink.Link, alias string) bool {
	a := l.Attrs()
	return a.Alias == alias || a.Alias == "" && bytes.Equal(a.HardwareAddr, Hardware(alias))
}

// Dress completes a link of ours on the host: its alias, no address of its own, up.
func Dress(name, alias string) error {
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
	// And without this it would take what a member sends to an address of the host's: a link that has none itself takes nothing
	// then, since the way back leads elsewhere.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("1"), 0); err != nil {
		return fmt.Errorf("keep what is sent off the host: %w", err)
	}
	return netlink.LinkSetUp(link)
}

// NotFound reports whether err says that there is no such link.
func NotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// RemoveMarked removes a link that bears the marks.
func RemoveMarked(name, alias string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case err != nil && NotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for the link %s: %w", name, err)
	case !Bears(link, alias):
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the link %s: %w", name, err)
	}
	return nil
}

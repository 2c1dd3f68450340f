package main

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

func addresses(c *guest.Config) []string {
	if c.Network == nil {
		return nil
	}
	return c.Network.Addresses
}

// network names the host, and brings its interfaces up.
func network(c *guest.Config) error {
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("the loopback interface: %w", err)
	}
	if c.Network == nil {
		return nil
	}
	link, err := linkOf(c.Network.MAC)
	if err != nil {
		return err
	}
	for _, a := range c.Network.Addresses {
		addr, err := netlink.ParseAddr(a)
		if err == nil {
			addr.Flags |= unix.IFA_F_NODAD // whose it is was decided outside
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			return fmt.Errorf("the address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", link.Attrs().Name, err)
	}
	if c.Network.Gateway == "" {
		return nil
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(c.Network.Gateway)}); err != nil {
		return fmt.Errorf("the route by %s: %w", c.Network.Gateway, err)
	}
	return nil
}

// linkOf waits for the interface that has a hardware address; without one, for any that is no loopback.
func linkOf(mac string) (link netlink.Link, err error) {
	there := appear(func() bool {
		var links []netlink.Link
		links, err = netlink.LinkList()
		i := slices.IndexFunc(links, func(l netlink.Link) bool {
			a := l.Attrs()
			return a.HardwareAddr.String() == mac || mac == "" && a.Flags&net.FlagLoopback == 0
		})
		if i >= 0 {
			link = links[i]
		}
		return i >= 0 || err != nil
	})
	if !there {
		err = fmt.Errorf("there is no network interface %s", mac)
	}
	return link, err
}

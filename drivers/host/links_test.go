package host

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A member of a workspace's network reaches no address of the host's, though the host would answer for all of them on every
// link.
func TestABridgeTakesNothingForTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user makes no bridges")
	}
	alias := "sandgate workspace " + uuid.NewString() + " of test"
	bridge, end := LinkName("sgb", alias), LinkName("sgv", alias)
	if err := MakeBridge(bridge, alias); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := RemoveMarked(bridge, alias); err != nil {
			t.Error(err)
		}
	}()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 203, 99, 1), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(lo, addr); err != nil { // an address of the host's that lies in the members' subnet
		t.Fatal(err)
	}
	defer func() { _ = netlink.AddrDel(lo, addr) }()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: addr.IP})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	sent := make(chan error, 1)
	go func() { sent <- sendAs(bridge, end, alias, socket.LocalAddr().String()) }()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := socket.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := socket.ReadFrom(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host has %d bytes from %v, %v", n, from, err)
	}
}

// sendAs sends something from a member of a bridge, in a namespace that goes with the thread.
func sendAs(bridge, end, alias, to string) error {
	runtime.LockOSThread() // never let go: the thread is in another namespace from here on, and ends with the goroutine
	host, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	own, err := netns.New()
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	outside, err := netlink.NewHandleAt(host)
	if err != nil {
		return err
	}
	defer outside.Close()
	br, err := outside.LinkByName(bridge)
	if err != nil {
		return err
	}
	attrs := Attributes(end, alias)
	attrs.MasterIndex = br.Attrs().Index
	if err := outside.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(own)}); err != nil {
		return err
	}
	link, err := outside.LinkByName(end)
	if err != nil {
		return err
	}
	inside, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr("10.203.99.2/24")
	if err != nil {
		return err
	}
	if err := errors.Join(outside.LinkSetUp(link), netlink.AddrAdd(inside, address), netlink.LinkSetUp(inside)); err != nil {
		return err
	}
	conn, err := net.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for range 20 { // until its neighbour would have been found
		if _, err := conn.Write([]byte("to the host")); err != nil {
			return nil // it was not found
		}
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // there is nothing to be told by
	}
	return nil
}

// Command ipam is an extension that gives addresses: to a workspace a subnet of a pool, to a sandbox an address of
// its workspace's subnet. Its leases are durable and its own; README.md says what it promises.
package main

import "github.com/sandgate/sandgate/plugin"

func main() {
	x := &ipam{}
	defer x.close()
	_ = plugin.Serve(x) // it has said what was wrong
}

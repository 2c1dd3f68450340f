// Command tenant-namespace is an extension that gives a tenant's sandboxes what is the tenant's: labels, limits, and
// in the workspace the objects that they share. It holds nothing. README.md is its reference.
package main

import "github.com/sandgate/sandgate/plugin"

func main() {
	_ = plugin.Serve(&tenants{}) // it has said what was wrong
}

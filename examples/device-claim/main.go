// Command device-claim is an extension that gives every sandbox devices of its own, by a claim of Kubernetes' dynamic
// resource allocation. It holds nothing and has no credentials of the cluster: the claim is part of the plan, which the
// driver makes and takes away. README.md is its reference.
package main

import "github.com/sandgate/sandgate/plugin"

func main() {
	_ = plugin.Serve(&claims{}) // it has said what was wrong
}

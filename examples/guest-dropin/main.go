// Command guest-dropin is an extension that has programs of the operator's run in every virtual machine before its
// command: drop-ins of the machine's first process. It requires a driver that has such a place. README.md is its
// reference.
package main

import "github.com/sandgate/sandgate/plugin"

func main() {
	_ = plugin.Serve(&dropIns{}) // it has said what was wrong
}

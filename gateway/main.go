// Command sandgate is the gateway daemon and its command line.
package main

import (
	"os"

	"github.com/sandgate/sandgate/drivers/native"
	"github.com/sandgate/sandgate/gateway/internal/cli"
)

func main() {
	// What holds a sandbox is this program too. It branches off before anything else is set up, to start fast.
	if len(os.Args) > 2 && os.Args[1] == cli.NativeShim {
		os.Exit(native.ShimMain(os.Args[2:]))
	}
	os.Exit(cli.Main(cli.OSEnv()))
}

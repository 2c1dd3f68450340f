// Command cluster starts a Kubernetes control plane of test/kubetest for a script: it prints the administrator's kubeconfig
// when it is ready, and ends with its standard input, and the plane with it.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/sandgate/sandgate/test/kubetest"
)

func main() {
	c, err := kubetest.Start(kubetest.Beta)
	if err == nil {
		fmt.Println(c.Admin)
		_, _ = io.Copy(io.Discard, os.Stdin) // until nobody is there any more
		err = c.Stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

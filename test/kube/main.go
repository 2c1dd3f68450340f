// Command kube is the parts of a Kubernetes control plane in one program: etcd, kube-apiserver, kube-controller-manager,
// kubectl, and a stand-in for what cannot run here, as "kube NAME args...". One program, because what they share is then
// compiled, linked and kept once.
package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"github.com/sandgate/sandgate/test/kube/standin"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kube etcd|kube-apiserver|kube-controller-manager|kubectl|stand-in args...")
		os.Exit(2)
	}
	os.Args = os.Args[1:]
	endWithLifeline()
	var command *cobra.Command
	switch os.Args[0] {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllers.NewControllerManagerCommand()
	case "kubectl":
		command = kubectl.NewDefaultKubectlCommand()
	case "stand-in":
		if err := standin.Main(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	default:
		fmt.Fprintf(os.Stderr, "kube: there is no program %q in it\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

// endWithLifeline ends this process as soon as the other end of the pipe on descriptor LIFELINE_FD is closed. The
// kernel closes it however the process that holds it ends, so that a test that is killed leaves no server behind.
func endWithLifeline() {
	fd, err := strconv.Atoi(os.Getenv("LIFELINE_FD"))
	if err != nil {
		return // nobody holds one: kubectl, or a server started by hand
	}
	pipe := os.NewFile(uintptr(fd), "lifeline")
	go func() {
		_, _ = pipe.Read(make([]byte, 1))
		os.Exit(3)
	}()
}

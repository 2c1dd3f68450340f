// Package standin plays what no control plane of the tests has: the controller of Sandbox resources
// (kubernetes-sigs/agent-sandbox), and the scheduler and kubelet that would run their pods. It does what those are seen to
// do and nothing else: nothing runs here. Two identities tell the API server, and its audit, which of them it was.
//
// Of all commands it knows one: "/stand-in/exit CODE" ends a moment after it was ready.
//
// Faults are annotations, of the Sandbox or Pod that they are to befall, or of its Namespace for all in it:
//
//	stand-in/ignore          the controller does nothing with the Sandbox
//	stand-in/slow            how long it takes the controller to look at a change: "2s"
//	stand-in/meddle          a field manager whose fields another client removes while the Sandbox is suspended
//	stand-in/unschedulable   why no node takes the Pod
//	stand-in/image-pull      why its image cannot be pulled
//	stand-in/never-ready     its containers run, and are never ready
//	stand-in/exit            its containers end with this code; also later, when the annotation is set on a Pod that runs
//	stand-in/stuck           its deletion does not come to an end until the annotation is gone
package standin

import (
	"context"
	"flag"
	"os/signal"
	"syscall"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Main runs the stand-in until it is ended.
func Main(args []string) error {
	flags := flag.NewFlagSet("stand-in", flag.ContinueOnError)
	controllerAs := flags.String("controller", "", "the kubeconfig of the Sandbox controller")
	kubeletAs := flags.String("kubelet", "", "the kubeconfig of the scheduler and kubelet")
	sandboxes := flags.String("sandboxes", "", "the version of the Sandbox resource; none: there are Pods alone")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return run(ctx, *controllerAs, *kubeletAs, *sandboxes)
}

func run(ctx context.Context, controllerAs, kubeletAs, version string) error {
	config, err := load(kubeletAs)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	k := newKubelet(client)
	if version == "" {
		return k.run(ctx)
	}
	if config, err = load(controllerAs); err != nil {
		return err
	}
	client, err = kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- k.run(ctx) }()
	go func() { ended <- newController(client, objects, version).run(ctx) }()
	return <-ended
}

func load(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err == nil {
		config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	}
	return config, err
}

// Package kubernetes runs sandboxes in a Kubernetes cluster: each as a Sandbox resource of agents.x-k8s.io, whose
// controller makes its pod, or, where that is not installed, as a plain Pod.
//
// The objects of a plan are real API objects. They are written with server-side apply, each owner's fields under a field
// manager of its own. Everything bears marks: labels, by which it is found, and annotations, which say it in full.
// DESIGN.md has the marks, the order of writes, and what is read from what.
package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
)

// The workspace modes.
const (
	Shared   = "shared"   // all sandboxes in one namespace, or where a plan places them
	Managed  = "managed"  // a namespace of the driver's for each workspace
	Operator = "operator" // each workspace is a namespace of somebody else's
)

// What runs a sandbox.
const (
	APIAuto     = "auto" // the newest that the cluster has
	APIV1Beta1  = "v1beta1"
	APIV1Alpha1 = "v1alpha1"
	APIPod      = "pod" // plain Pods
)

// Controller is who makes the pods of Sandboxes, as agent-sandbox is installed.
const Controller = "system:serviceaccount:agent-sandbox-system:agent-sandbox-controller"

// gracePeriod is how long a pod has to end that does not say.
const gracePeriod = 30 * time.Second

// Config is what the driver needs. The zero value of a field stands for its default.
type Config struct {
	Dir     string
	Logger  *slog.Logger
	Version string

	Kubeconfig  string // "": in the cluster, or as kubectl finds it
	Context     string // of the kubeconfig
	Impersonate string // the user in whose name everything is done
	GatewayID   string // tells the objects of several gateways apart
	Mode        string // Shared, Managed or Operator
	Namespace   string // of the sandboxes, in mode Shared
	API         string // APIAuto and so on

	// OperatorLabel is the label ("key" or "key=value") of the namespaces that workspaces may be, in mode Operator.
	OperatorLabel string
	// PlacementLabel is that of the existing namespaces in which a plan may place a sandbox, in mode Shared.
	PlacementLabel string

	DefaultImage     string
	ImagePullPolicy  string
	ImagePullSecrets []string
	Secrets          []string // those of Namespace that plans may copy, beside ImagePullSecrets
	ServiceAccount   string   // of the pods
	RuntimeClass     string   // of pods that ask for none
	StorageSize      string   // of the workspace volume, for example "2Gi"; "" for none
	StorageClass     string

	Controller  string        // the user that makes the pods of Sandboxes: policies are asked about pods in its name
	NoDryRun    bool          // do not ask the API server before anything is made
	StopTimeout time.Duration // how long a pod has to end
	Patience    time.Duration // how long a call waits for an API server that is away
}

func (c Config) withDefaults() Config {
	set := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	set(&c.GatewayID, "sandgate")
	set(&c.Namespace, "sandgate")
	set(&c.Mode, Shared)
	set(&c.API, APIAuto)
	set(&c.ServiceAccount, "default")
	set(&c.Controller, Controller)
	if c.StopTimeout == 0 {
		c.StopTimeout = gracePeriod
	}
	if c.Patience == 0 {
		c.Patience = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Driver implements driver.Driver.
type Driver struct {
	cfg      Config
	cluster  *cluster
	about    *driver.Description
	calls    *driver.Calls // those that change something, by sandbox or workspace
	verdicts judged
}

var _ driver.Driver = (*Driver)(nil)

// openPatience is how long the API server may take to say what it is.
const openPatience = 30 * time.Second

// Open opens the driver on a cluster.
func Open(cfg Config) (*Driver, error) {
	d := &Driver{cfg: cfg.withDefaults(), calls: driver.NewCalls()}
	ctx, cancel := context.WithTimeout(context.Background(), openPatience) // nobody's call
	defer cancel()
	var err error
	if d.cluster, err = connect(d.cfg); err == nil {
		err = d.cluster.probe(ctx, d.cfg)
	}
	if err == nil {
		d.about, err = d.describe(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open the kubernetes driver: %w", err)
	}
	return d, nil
}

// Describe implements driver.Driver.
func (d *Driver) Describe(context.Context) (*driver.Description, error) { return d.about, nil }

// pods reports whether sandboxes are plain Pods.
func (d *Driver) pods() bool { return d.cluster.api == APIPod }

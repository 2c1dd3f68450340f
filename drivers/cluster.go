package drivers

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/drivers/kubernetes"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

func kubernetesSchema() extension.ConfigSchema {
	text := func(name, value, doc string) extension.Attribute {
		return extension.Attribute{Name: name, Type: "string", Default: value, Description: doc}
	}
	one := func(a extension.Attribute, of ...any) extension.Attribute {
		a.Enum = of
		return a
	}
	return extension.ConfigSchema{Attributes: []extension.Attribute{
		text("kubeconfig", "", "the credentials; absent: those of the pod that the gateway runs in, or as kubectl finds them"),
		text("context", "", "of the kubeconfig; absent: its current one"),
		text("impersonate", "", "the user in whose name everything is done"),
		text("gateway_id", "sandgate", "tells the objects of several gateways in one cluster apart"),
		one(text("workspace_mode", kubernetes.Shared, "whether workspaces share a namespace, have one made for each, or are namespaces of somebody else's"),
			kubernetes.Shared, kubernetes.Managed, kubernetes.Operator),
		text("namespace", "sandgate", "of the sandboxes, in mode shared"),
		text("placement_label", "", "of the existing namespaces that a plan may place a sandbox in, in mode shared: \"key\" or \"key=value\""),
		text("operator_namespace_label", "", "of the namespaces that a workspace may be, in mode operator"),
		one(text("api", kubernetes.APIAuto, "what a sandbox is: a Sandbox of that version of agents.x-k8s.io, or a plain Pod; auto: the newest that the cluster has"),
			kubernetes.APIAuto, kubernetes.APIV1Beta1, kubernetes.APIV1Alpha1, kubernetes.APIPod),
		{Name: "dry_run", Type: "bool", Default: true, Description: "whether the API server is asked about a plan before anything is made"},
		text("default_image", "", "of a sandbox that names none"),
		one(text("image_pull_policy", "", "when the kubelet fetches an image; absent: the cluster's default"), "", "Always", "IfNotPresent", "Never"),
		{Name: "image_pull_secrets", Type: "list(string)", Description: "Secrets with the credentials of registries, in the sandboxes' namespace"},
		{Name: "secrets", Type: "list(string)", Description: "Secrets of the sandboxes' namespace that plans may name, besides those"},
		text("controller", kubernetes.Controller, "who makes the pods of Sandboxes, in whose name they are judged before, where the driver may impersonate it"),
		text("service_account_name", "default", "of the pods"),
		text("default_runtime_class_name", "", "of pods that ask for none"),
		text("workspace_default_storage_size", "", "of a volume for each sandbox's work, for example \"2Gi\"; absent: none"),
		text("workspace_storage_class", "", "of that volume; absent: the cluster's default"),
		text("stop_timeout", "30s", "how long a command has to end after SIGTERM"),
		text("api_patience", "30s", "how long a call waits for an API server that is away"),
	}}
}

func openKubernetes(c Config) (driver.Driver, error) {
	var s struct {
		Kubeconfig             string   `json:"kubeconfig"`
		Context                string   `json:"context"`
		Impersonate            string   `json:"impersonate"`
		GatewayID              string   `json:"gateway_id"`
		WorkspaceMode          string   `json:"workspace_mode"`
		Namespace              string   `json:"namespace"`
		PlacementLabel         string   `json:"placement_label"`
		OperatorNamespaceLabel string   `json:"operator_namespace_label"`
		API                    string   `json:"api"`
		DryRun                 bool     `json:"dry_run"`
		DefaultImage           string   `json:"default_image"`
		ImagePullPolicy        string   `json:"image_pull_policy"`
		ImagePullSecrets       []string `json:"image_pull_secrets"`
		Secrets                []string `json:"secrets"`
		Controller             string   `json:"controller"`
		ServiceAccountName     string   `json:"service_account_name"`
		RuntimeClass           string   `json:"default_runtime_class_name"`
		StorageSize            string   `json:"workspace_default_storage_size"`
		StorageClass           string   `json:"workspace_storage_class"`
		StopTimeout            string   `json:"stop_timeout"`
		APIPatience            string   `json:"api_patience"`
	}
	if err := json.Unmarshal(c.Setting, &s); err != nil {
		return nil, fmt.Errorf("driver %q: %w", c.Name, err)
	}
	stop, err := c.duration("stop_timeout", s.StopTimeout)
	if err != nil {
		return nil, err
	}
	patience, err := c.duration("api_patience", s.APIPatience)
	if err != nil {
		return nil, err
	}
	return kubernetes.Open(kubernetes.Config{Dir: c.Dir, Logger: c.Logger, Version: c.Version, Kubeconfig: s.Kubeconfig, Context: s.Context,
		Impersonate: s.Impersonate, GatewayID: s.GatewayID, Mode: s.WorkspaceMode, Namespace: s.Namespace, API: s.API,
		OperatorLabel: s.OperatorNamespaceLabel, PlacementLabel: s.PlacementLabel, DefaultImage: s.DefaultImage,
		ImagePullPolicy: s.ImagePullPolicy, ImagePullSecrets: s.ImagePullSecrets, Secrets: s.Secrets, Controller: s.Controller, ServiceAccount: s.ServiceAccountName,
		RuntimeClass: s.RuntimeClass, StorageSize: s.StorageSize, StorageClass: s.StorageClass, NoDryRun: !s.DryRun,
		StopTimeout: stop, Patience: patience})
}

// duration reads a setting that is a positive duration.
func (c Config) duration(name, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fault.New(fault.Invalid, "driver %q: %s %q is no duration, for example \"10s\"", c.Name, name, text).
			With(fault.Diagnostic{Path: name, Summary: "is no duration"})
	}
	return d, nil
}

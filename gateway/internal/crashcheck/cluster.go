package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// The marks of what the Kubernetes driver makes.
const (
	clusterGateway   = "openshell.ai/gateway-id"
	clusterSandbox   = "openshell.ai/sandbox-id"
	clusterOperation = "sandgate.dev/operation"
	clusterWorkspace = "sandgate.dev/workspace-id"
	clusterRun       = "sandgate.dev/run"
	clusterLease     = "extensions.sandgate.dev/address"
)

// thing is an API object, as far as it is judged.
type thing struct {
	Metadata struct {
		Name                string
		Annotations, Labels map[string]string
		DeletionTimestamp   string
	}
	Spec struct{ OperatingMode string }
}

// things are where the API server lists what the driver makes besides Sandboxes and pods.
var things = []string{"/api/v1/secrets", "/api/v1/configmaps", "/api/v1/resourcequotas", "/api/v1/limitranges", "/api/v1/serviceaccounts",
	"/api/v1/services", "/api/v1/namespaces", "/api/v1/persistentvolumeclaims", "/apis/networking.k8s.io/v1/networkpolicies",
	"/apis/resource.k8s.io/v1/resourceclaims"}

// judgeCluster compares what a cluster has with the ledger: a Sandbox for each sandbox, which bears its marks and was told
// to run or not, a pod for each that runs, with the lease that is its, and nothing that is nobody's.
func (s site) judgeCluster(l *ledger, leases map[string]lease, r *report) {
	pods := map[string][]thing{}
	for _, p := range s.things("/api/v1/pods", r) {
		id := p.Metadata.Annotations[clusterSandbox]
		pods[id] = append(pods[id], p)
	}
	count := map[string]int{}
	for _, box := range s.things("/apis/agents.x-k8s.io/v1beta1/sandboxes", r) {
		id := box.Metadata.Annotations[clusterSandbox]
		sb, ok := l.sandboxes[id]
		count[id]++
		switch {
		case !ok || sb.Operation != box.Metadata.Annotations[clusterOperation]:
			r.add("nobody's Sandbox: %s %v", box.Metadata.Name, box.Metadata.Annotations)
		case sb.runs() != (box.Spec.OperatingMode == "Running"):
			r.add("sandbox %s is %s, and its Sandbox %s", id, sb.State, box.Spec.OperatingMode)
		case sb.runs() && box.Metadata.Annotations[clusterRun] != strconv.Itoa(sb.Run.Number):
			r.add("sandbox %s is in run %d, and its Sandbox in %s", id, sb.Run.Number, box.Metadata.Annotations[clusterRun])
		}
	}
	for id, sb := range l.sandboxes {
		if count[id] != 1 {
			r.add("sandbox %s has %d Sandboxes", id, count[id])
		}
		if want := map[bool]int{true: 1}[sb.runs()]; len(pods[id]) != want {
			r.add("sandbox %s has %d pods, want %d", id, len(pods[id]), want)
		}
	}
	for id, all := range pods {
		if _, ok := l.sandboxes[id]; !ok {
			r.add("nobody's pod: %s", all[0].Metadata.Name)
		}
		for _, x := range leases {
			if x.Sandbox == id && x.Prefix != all[0].Metadata.Annotations[clusterLease] {
				r.add("the pod of sandbox %s has the lease %q, want %s", id, all[0].Metadata.Annotations[clusterLease], x.Prefix)
			}
		}
	}
	for _, path := range things {
		for _, o := range s.things(path, r) {
			id, ws := o.Metadata.Annotations[clusterSandbox], o.Metadata.Annotations[clusterWorkspace]
			if _, ok := l.sandboxes[id]; id != "" && !ok || l.workspaces[ws].ID == "" {
				r.add("nobody's: %s of %s", o.Metadata.Name, path)
			}
		}
	}
}

// things lists what the site's gateway has made.
func (s site) things(path string, r *report) []thing {
	var list struct{ Items []thing }
	resp, err := http.Get(s.cluster + path + "?labelSelector=" + url.QueryEscape(clusterGateway+"="+s.driver))
	if err == nil {
		var raw []byte
		raw, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s: %s", path, resp.Status, raw)
		}
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
	}
	if err != nil {
		r.add("ask the cluster: %v", err)
	}
	return list.Items
}

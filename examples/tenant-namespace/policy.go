package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// config is the extension's block of the configuration: what tenants get, by glob over workspaces.
type config struct {
	Tenants map[string]tenantConfig `json:"tenant" config:"block" doc:"what the workspaces that fit the glob get"`
}

type tenantConfig struct {
	Labels      map[string]string `json:"labels" config:"optional"`
	Annotations map[string]string `json:"annotations" config:"optional"`
	Network     bool              `json:"network" config:"optional"`
	Namespace   namespaceConfig   `json:"namespace" config:"block" doc:"what the tenant's namespaces get, in a cluster"`
	Images      []string          `json:"images" config:"optional"`
	LabelKeys   []string          `json:"label_keys" config:"optional"`
	Require     []string          `json:"require" config:"optional"`
	Limits      amounts           `json:"limits" config:"block"`
	Defaults    amounts           `json:"defaults" config:"block"`
}

// namespaceConfig is what a tenant's namespaces get where the driver has namespaces.
type namespaceConfig struct {
	Own    bool              `json:"own" config:"optional" doc:"a namespace for each workspace, where workspaces share one"`
	Labels map[string]string `json:"labels" config:"optional" doc:"of the namespace"`
	Quota  map[string]string `json:"quota" config:"optional" doc:"what all sandboxes of a workspace may use together, as a ResourceQuota has it"`
	Deny   bool              `json:"deny_traffic" config:"optional" doc:"a NetworkPolicy that denies what no other one allows"`
}

// amounts is a block of resources as an operator writes it.
type amounts struct {
	CPU    float64 `json:"cpu" config:"optional" min:"0" max:"1000000"`
	Memory string  `json:"memory" config:"optional"`
	PIDs   int64   `json:"pids" config:"optional" min:"0"`
}

// tenant is what sandboxes of the workspaces that fit its name get, checked.
type tenant struct {
	name        string // the glob
	labels      map[string]string
	annotations map[string]string
	network     bool
	namespace   namespace
	images      []string
	labelKeys   []string
	require     []string
	limits      sandbox.Resources // zero: none
	defaults    sandbox.Resources // what a sandbox gets that does not ask
}

// policy is every tenant, closest first.
type policy []*tenant

// of returns the tenant that a workspace belongs to, or nil.
func (p policy) of(workspace string) *tenant {
	for _, t := range p {
		if match(t.name, workspace) {
			return t
		}
	}
	return nil
}

// check turns the block into a policy, and says everything that is wrong with it.
func (c *config) check() (policy, []fault.Diagnostic) {
	var out policy
	var wrong []fault.Diagnostic
	for _, name := range slices.SortedFunc(maps.Keys(c.Tenants), closer) {
		t, bad := c.Tenants[name].check(name)
		out, wrong = append(out, t), append(wrong, bad...)
	}
	if len(out) == 0 {
		wrong = append(wrong, fault.Diagnostic{Path: "tenant", Summary: "no tenant is configured",
			Detail: `Every sandbox would be denied. A block tenant "*" {} is for all workspaces that no other one names.`})
	}
	return out, wrong
}

func (c tenantConfig) check(name string) (*tenant, []fault.Diagnostic) {
	t := &tenant{name: name, labels: c.Labels, annotations: c.Annotations, network: c.Network,
		images: c.Images, labelKeys: c.LabelKeys, require: c.Require}
	var wrong []fault.Diagnostic
	at := "tenant." + name
	t.limits, wrong = c.Limits.check(at+".limits", wrong)
	t.defaults, wrong = c.Defaults.check(at+".defaults", wrong)
	t.namespace, wrong = c.Namespace.check(at+".namespace", wrong)
	for _, r := range resources {
		d, max := r.of(t.defaults), r.of(t.limits)
		if d == 0 {
			r.set(&t.defaults, max)
		} else if max > 0 && d > max {
			wrong = append(wrong, fault.Diagnostic{Path: at + ".defaults." + r.name,
				Summary: fmt.Sprintf("%s is more than the limit of %s", r.text(d), r.text(max))})
		}
	}
	return t, wrong
}

func (a amounts) check(at string, wrong []fault.Diagnostic) (sandbox.Resources, []fault.Diagnostic) {
	out := sandbox.Resources{MilliCPU: int64(math.Round(a.CPU * 1000)), PIDs: a.PIDs}
	if a.CPU < 0 || a.CPU > 0 && out.MilliCPU == 0 || a.CPU > 1e6 {
		wrong = append(wrong, fault.Diagnostic{Path: at + ".cpu", Summary: fmt.Sprintf("%v is no number of processors", a.CPU),
			Detail: "Write processors, in steps of a thousandth: 0.5, 2."})
	}
	if a.PIDs < 0 {
		wrong = append(wrong, fault.Diagnostic{Path: at + ".pids", Summary: "is negative"})
	}
	if a.Memory != "" {
		var err error
		if out.Memory, err = parseBytes(a.Memory); err != nil {
			wrong = append(wrong, fault.Diagnostic{Path: at + ".memory", Summary: err.Error(),
				Detail: `Write bytes, or a number with KiB, MiB, GiB or TiB: "512MiB".`})
		}
	}
	return out, wrong
}

// resource is one of the things that a sandbox may use.
type resource struct {
	name    string // in the configuration, and after "limits." the feature by which it is limited
	of      func(sandbox.Resources) int64
	set     func(*sandbox.Resources, int64)
	text    func(int64) string
	request string // what the request calls it
}

var resources = []resource{
	{"cpu", func(r sandbox.Resources) int64 { return r.MilliCPU }, func(r *sandbox.Resources, n int64) { r.MilliCPU = n },
		func(n int64) string { return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64) + " processors" }, "resources.cpu"},
	{"memory", func(r sandbox.Resources) int64 { return r.Memory }, func(r *sandbox.Resources, n int64) { r.Memory = n },
		formatBytes, "resources.memory"},
	{"pids", func(r sandbox.Resources) int64 { return r.PIDs }, func(r *sandbox.Resources, n int64) { r.PIDs = n },
		func(n int64) string { return strconv.FormatInt(n, 10) + " processes" }, "resources.pids"},
}

var units = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func parseBytes(text string) (int64, error) {
	number, size := text, int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			number, size = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/size {
		return 0, fmt.Errorf("%q is no amount of memory", text)
	}
	return n * size, nil
}

func formatBytes(n int64) string {
	for _, u := range units {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " bytes"
}

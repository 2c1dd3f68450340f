package kubernetes

import (
	"context"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// The kinds of the driver's plans are the API's own. These are the ones that it knows more of than their names.
const (
	kindSandbox          = "Sandbox"
	kindPodTemplate      = "PodTemplate"
	kindNamespace        = "Namespace"
	kindResourceQuota    = "ResourceQuota"
	kindLimitRange       = "LimitRange"
	kindServiceAccount   = "ServiceAccount"
	kindSecret           = "Secret"
	kindConfigMap        = "ConfigMap"
	kindVolumeClaim      = "PersistentVolumeClaim"
	kindNetworkPolicy    = "NetworkPolicy"
	kindClaimTemplate    = "ResourceClaimTemplate"
	kindResourceClaim    = "ResourceClaim"
	kindService          = "Service"
	mainObject           = "main"      // the one Sandbox and the one PodTemplate of a sandbox
	workspaceObject      = "workspace" // the Namespace that is a workspace's own
	workspaceVolume      = "workspace" // what it keeps from run to run
	workspaceMount       = "/sandbox"
	tokenVolume          = "sandgate-token"
	tokenDir             = "/run/sandgate"
	tokenFile            = "token"
	podSpec              = "PodTemplate.template.spec"
	podMetadata          = "PodTemplate.template.metadata"
	featureNamespace     = "namespace"
	environmentOpenShell = "OPENSHELL_"
	environmentSandgate  = "SANDGATE_"
)

// reservedVolumes are OpenShell's and the driver's own.
var reservedVolumes = []string{"openshell-client-tls", "openshell-upstream-proxy-auth", "openshell-sa-token", "spiffe-workload-api",
	"openshell-supervisor-bin", "openshell-sidecar-state", "openshell-supervisor-tls", workspaceVolume, tokenVolume}

// protectedRoots are where nothing may be mounted into the agent, nor above.
var protectedRoots = []string{workspaceMount, tokenDir, "/opt/openshell", "/etc/openshell", "/etc/openshell-tls", "/run/openshell", "/run/openshell-sidecar",
	"/run/netns", "/var/run/netns", "/var/run/secrets/openshell", "/spiffe-workload-api", "/proc", "/sys", "/dev"}

// The phases in which something is open. What a pod is made of can be set at every start, since every run has a pod of
// its own; what lives as long as the sandbox, only until it is made.
var (
	whenPlanned  = []phase.Phase{phase.PreparePlan}
	untilCreate  = []phase.Phase{phase.PreparePlan, phase.BeforeCreate}
	everyRun     = []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart}
	ofWorkspaces = []phase.Phase{phase.EnsureWorkspace}
	ofBoth       = []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.EnsureWorkspace}
)

// points returns where extensions may change the plan.
func (d *Driver) points() []plan.Point {
	points := append(podPoints(), d.sandboxPoints()...)
	points = append(points, d.workspacePoints()...)
	for _, k := range []struct{ kind, feature, doc string }{
		{kindConfigMap, "config-map", "configuration that the pod mounts"},
		{kindSecret, "secret", "a copy of a Secret that the operator lets sandboxes have, by its name: no value is in a plan"},
		{kindServiceAccount, "service-account", "an account for the pod"},
		{kindVolumeClaim, "volume-claim", "a volume"},
		{kindNetworkPolicy, "network-policy", "what may talk to whom"},
		{kindClaimTemplate, "device-claim-template", "devices that each pod claims"},
		{kindResourceClaim, "device-claim", "devices that are claimed"},
		{kindService, "service", "a name in the cluster's network"},
	} {
		points = append(points, plan.Point{Pattern: plan.Pattern(k.kind), Phases: ofBoth, Except: marksOf(k.kind + ".metadata"), Feature: k.feature, Doc: k.doc})
	}
	return points
}

// marksOf are the keys under some metadata that are no extension's.
func marksOf(metadata string) []plan.Pattern {
	var out []plan.Pattern
	for _, key := range identityKeys {
		for _, m := range []string{".labels[", ".annotations["} {
			out = append(out, plan.Pattern(metadata+m+key+"]"))
		}
	}
	return out
}

func within(base string, names ...string) []plan.Pattern {
	out := make([]plan.Pattern, len(names))
	for i, name := range names {
		out[i] = plan.Pattern(base + "." + name)
	}
	return out
}

// outside keeps of the exceptions those that lie in a point.
func outside(point plan.Pattern, exceptions []plan.Pattern) []plan.Pattern {
	return slices.DeleteFunc(slices.Clone(exceptions), func(e plan.Pattern) bool { return !point.Covers(e) })
}

// podPoints are those of the pod. Of the agent, what it runs and as whom is closed.
func podPoints() []plan.Point {
	agent := podSpec + ".containers." + agentContainer
	var out []plan.Point
	for _, pt := range []plan.Point{
		{Pattern: podMetadata + ".labels", Overridable: true, Feature: "labels", Object: mainObject, Doc: "labels of the pod"},
		{Pattern: podMetadata + ".annotations", Overridable: true, Feature: "annotations", Object: mainObject, Doc: "annotations of the pod"},
		{Pattern: podSpec + ".nodeSelector", Overridable: true, Doc: "where it may run; one owner, as in the API"},
		{Pattern: podSpec + ".tolerations", Overridable: true, Doc: "the taints that it bears; one owner, as in the API"},
		{Pattern: podSpec + ".affinity", Doc: "near what it is to run"},
		{Pattern: podSpec + ".topologySpreadConstraints", Doc: "how its like are spread"},
		{Pattern: podSpec + ".priorityClassName", Overridable: true, Doc: "who goes first"},
		{Pattern: podSpec + ".runtimeClassName", Overridable: true, Doc: "what runs its containers"},
		{Pattern: podSpec + ".schedulerName", Doc: "who places it"},
		{Pattern: podSpec + ".schedulingGates", Doc: "what has to happen before it is placed"},
		{Pattern: podSpec + ".serviceAccountName", Doc: "its account"},
		{Pattern: podSpec + ".imagePullSecrets", Doc: "credentials of registries, by the names of Secrets"},
		{Pattern: podSpec + ".hostAliases", Doc: "names of hosts with their addresses"},
		{Pattern: podSpec + ".dnsPolicy", Doc: "whom it asks for names"},
		{Pattern: podSpec + ".dnsConfig", Doc: "whom it asks for names"},
		{Pattern: podSpec + ".resourceClaims", Doc: "the claims whose devices it gets"},
		{Pattern: podSpec + ".volumes", Except: within(podSpec+".volumes", reservedVolumes...), Doc: "volumes"},
		{Pattern: podSpec + ".initContainers", Doc: "what runs before the agent"},
		{Pattern: podSpec + ".containers", Except: []plan.Pattern{plan.Pattern(agent)}, Doc: "what runs beside the agent"},
		{Pattern: plan.Pattern(agent + ".env"), Overridable: true, Doc: "variables of the command"},
		{Pattern: plan.Pattern(agent + ".envFrom"), Doc: "variables out of ConfigMaps and Secrets; one owner, as in the API"},
		{Pattern: plan.Pattern(agent + ".resources"), Overridable: true, Doc: "what it may use, and the claims that are its own"},
		{Pattern: plan.Pattern(agent + ".volumeMounts"), Except: []plan.Pattern{agentMount(workspaceMount), agentMount(tokenDir)}, Doc: "where volumes are mounted"},
		{Pattern: plan.Pattern(agent + ".volumeDevices"), Doc: "where block volumes are"},
		{Pattern: plan.Pattern(agent + ".ports"), Doc: "the ports that it listens on"},
	} {
		pt.Phases = everyRun
		pt.Except = append(pt.Except, outside(pt.Pattern, marksOf(podMetadata))...)
		out = append(out, pt)
	}
	return append(out, plan.Point{Pattern: plan.Pattern(agent + ".image"), Phases: whenPlanned, Overridable: true, Feature: "image", Object: mainObject, Doc: "the image of the command"})
}

func agentMount(dir string) plan.Pattern {
	return plan.Pattern(podSpec + ".containers." + agentContainer + ".volumeMounts." + dir)
}

// sandboxPoints are those of the Sandbox resource itself. Plain Pods have of it what they can do without it.
func (d *Driver) sandboxPoints() []plan.Point {
	out := []plan.Point{
		{Pattern: "Sandbox.metadata.labels", Phases: untilCreate, Except: outside("Sandbox.metadata.labels", marksOf("Sandbox.metadata")), Doc: "labels of the Sandbox"},
		{Pattern: "Sandbox.metadata.annotations", Phases: untilCreate, Except: outside("Sandbox.metadata.annotations", marksOf("Sandbox.metadata")), Doc: "annotations of the Sandbox"},
	}
	if d.places() {
		out = append(out, plan.Point{Pattern: "Sandbox.placement.namespace", Phases: whenPlanned, Feature: featureNamespace, Object: mainObject,
			Doc: "the namespace that it runs in: a Namespace of its workspace's plan, or one that the operator lets it use"})
	}
	if d.pods() {
		return out
	}
	return append(out,
		plan.Point{Pattern: "Sandbox.metadata.finalizers", Phases: untilCreate, Doc: "what has to happen before it is gone; somebody in the cluster has to take them off"},
		plan.Point{Pattern: "Sandbox.metadata.ownerReferences", Phases: untilCreate, Doc: "objects with which it goes"},
		plan.Point{Pattern: "Sandbox.spec.service", Phases: untilCreate, Doc: "whether it has a Service of its own"},
		plan.Point{Pattern: "Sandbox.spec.shutdownTime", Phases: untilCreate, Overridable: true, Doc: "when its controller ends it"},
		plan.Point{Pattern: "Sandbox.spec.shutdownPolicy", Phases: untilCreate, Overridable: true, Doc: "what is left of it then"},
		plan.Point{Pattern: "Sandbox.spec.volumeClaimTemplates", Phases: untilCreate, Doc: "the volumes that live as long as it does; one owner, as in the API"})
}

// workspacePoints are those of what only workspaces have. A namespace that somebody else made is not an extension's to change.
func (d *Driver) workspacePoints() []plan.Point {
	var out []plan.Point
	switch {
	case d.places():
		out = append(out, plan.Point{Pattern: kindNamespace, Phases: ofWorkspaces, Except: marksOf("Namespace.metadata"),
			Feature: "workspace-namespace", Object: workspaceObject, Doc: "a namespace for the workspace"})
	case d.cfg.Mode == Managed:
		for _, m := range []plan.Pattern{"Namespace.metadata.labels", "Namespace.metadata.annotations"} {
			out = append(out, plan.Point{Pattern: m, Phases: ofWorkspaces, Except: outside(m, marksOf("Namespace.metadata")),
				Feature: "workspace-" + string(m[strings.LastIndex(string(m), ".")+1:]), Object: workspaceObject, Doc: "of the workspace's namespace"})
		}
	}
	return append(out,
		plan.Point{Pattern: kindResourceQuota, Phases: ofWorkspaces, Except: marksOf("ResourceQuota.metadata"), Feature: "quota", Doc: "what the workspace may use"},
		plan.Point{Pattern: kindLimitRange, Phases: ofWorkspaces, Except: marksOf("LimitRange.metadata"), Feature: "limit-range", Doc: "what its pods use where they do not say"})
}

// places reports whether a plan says where a sandbox is: it has to be found there, so the driver has to look everywhere.
func (d *Driver) places() bool { return d.cfg.Mode == Shared && d.cluster.wide }

// describe says what the driver is and offers.
func (d *Driver) describe(context.Context) (*driver.Description, error) {
	all, err := planKinds()
	if err != nil {
		return nil, err
	}
	about := &driver.Description{Type: "kubernetes", Version: d.cluster.version, Instance: d.cluster.instance, DefaultImage: d.cfg.DefaultImage,
		Kinds: slices.Clone(all), Points: d.points(), Missing: map[string]string{}}
	about.Kinds = slices.DeleteFunc(about.Kinds, func(k plan.Kind) bool { return d.cluster.absent[k.Name] })
	about.Points = slices.DeleteFunc(about.Points, func(pt plan.Point) bool {
		gone := d.cluster.absent[pt.Pattern.Kind()]
		if gone && pt.Feature != "" {
			about.Missing[pt.Feature] = "the cluster does not serve the kind " + pt.Pattern.Kind()
		}
		return gone
	})
	for _, pt := range about.Points {
		if pt.Feature != "" {
			about.Features = append(about.Features, extension.Feature{Name: pt.Feature, Point: pt.Pattern, Object: pt.Object})
		}
	}
	owners := "field-managers" // who set what is in the cluster too
	if d.pods() {
		owners = "one-manager"
		about.Missing["sandbox-resource"] = "the cluster has no agents.x-k8s.io: sandboxes are plain Pods, whose fields have one manager; who set what is in the plan alone"
	}
	if d.cfg.Mode == Shared && !d.cluster.wide {
		about.Missing[featureNamespace] = "the account may not list pods and " + d.cluster.anchor().gvr.Resource + " in all namespaces, where a plan could place a sandbox"
	}
	if d.cfg.Mode != Shared {
		about.Missing[featureNamespace] = "a plan places a sandbox in mode shared only; in mode " + d.cfg.Mode + " its workspace says where it runs"
	}
	about.Features = append(about.Features, extension.Feature{Name: "restart"}, extension.Feature{Name: "logs"},
		extension.Feature{Name: "kubernetes", Attributes: map[string]string{"mode": d.cfg.Mode, "api": d.cluster.api, "ownership": owners}})
	return about, nil
}

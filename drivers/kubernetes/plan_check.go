package kubernetes

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// checkSandbox judges what the schema and the points leave open in a sandbox's plan, without asking the cluster.
func (d *Driver) checkSandbox(p *plan.Plan) error {
	for _, o := range p.Objects() {
		if (o.Kind == kindSandbox || o.Kind == kindPodTemplate) && o.Name != mainObject {
			return fault.New(fault.Invalid, "%s: a sandbox has one %s, %q", o.Ref(), o.Kind, mainObject)
		}
	}
	o, _ := p.Object(kindPodTemplate, mainObject)
	spec, _, _ := unstructured.NestedMap(o.Fields, "template", "spec")
	agent := named(items(spec, "containers"), agentContainer)
	if agent == nil || agent["image"] == nil {
		return fault.New(fault.Invalid, "PodTemplate/main: its container %q has no image", agentContainer).With(fault.Diagnostic{Path: "image", Summary: "is missing"})
	}
	if err := d.checkVolumes(p, spec); err != nil {
		return err
	}
	for _, owner := range p.Owners(kindPodTemplate, mainObject) {
		if owner == plan.OwnerGateway || owner == plan.OwnerRequest || owner == plan.OwnerDriver {
			continue
		}
		if err := checkPodPart(owner, p.Part(kindPodTemplate, mainObject, owner)); err != nil {
			return err
		}
	}
	return nil
}

// checkVolumes sees to it that what is mounted at the workspace is there. The list of claim templates has one owner: who
// writes it writes all of it.
func (d *Driver) checkVolumes(p *plan.Plan, spec map[string]any) error {
	agent := named(items(spec, "containers"), agentContainer)
	if named(items(spec, "volumes"), workspaceVolume) != nil || named(items(agent, "volumeMounts"), workspaceVolume) == nil {
		return nil
	}
	o, _ := p.Object(kindSandbox, mainObject)
	own, _, _ := unstructured.NestedMap(o.Fields, "spec")
	for _, t := range items(own, "volumeClaimTemplates") {
		if meta, _ := t["metadata"].(map[string]any); meta["name"] == workspaceVolume {
			return nil
		}
	}
	return fault.New(fault.Invalid, "Sandbox/main spec.volumeClaimTemplates has no %q, which the agent mounts: whoever sets the list sets it whole", workspaceVolume)
}

// checkPodPart judges what one extension sets of the pod.
func checkPodPart(owner plan.Owner, part plan.Object) error {
	refuse := func(place, why string) error {
		return fault.New(fault.Denied, "%s contributes %s: %s", owner, place, why).With(fault.Diagnostic{Path: place, Summary: why})
	}
	spec, _, _ := unstructured.NestedMap(part.Fields, "template", "spec")
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range items(spec, list) {
			name, _ := c["name"].(string)
			place := podSpec + "." + list + "." + name
			for _, m := range items(c, "volumeMounts") {
				volume, _ := m["name"].(string)
				target, _ := m["mountPath"].(string)
				if volume != workspaceVolume && slices.Contains(reservedVolumes, volume) {
					return refuse(place+".volumeMounts["+target+"]", "the volume "+volume+" is reserved")
				}
				if why := refuseMount(target, false); list == "containers" && name == agentContainer && why != "" {
					return refuse(place+".volumeMounts["+target+"]", why)
				}
			}
			for _, e := range items(c, "env") {
				key, _ := e["name"].(string)
				if name == agentContainer && list == "containers" && (strings.HasPrefix(key, environmentOpenShell) || strings.HasPrefix(key, environmentSandgate)) {
					return refuse(place+".env."+key, "variables of this name are the driver's")
				}
			}
		}
	}
	return nil
}

func named(list []map[string]any, name string) map[string]any {
	for _, m := range list {
		if m["name"] == name {
			return m
		}
	}
	return nil
}

// checkOther judges an object beside the sandbox.
func (d *Driver) checkOther(o plan.Object) error {
	if err := checkName(o); err != nil {
		return err
	}
	res, ok := d.cluster.resourceOf(o.Kind)
	if !ok {
		return fault.New(fault.Internal, "%s is no kind of this driver", o.Ref())
	}
	said := func(want string, path ...string) error {
		if got, there, _ := unstructured.NestedString(o.Fields, path...); there && got != want {
			return fault.New(fault.Invalid, "%s has %s %q, and it is %q: leave it out", o.Ref(), strings.Join(path, "."), got, want)
		}
		return nil
	}
	version, kind := res.gvk.ToAPIVersionAndKind()
	for _, err := range []error{said(version, "apiVersion"), said(kind, "kind"), said(o.Name, "metadata", "name")} {
		if err != nil {
			return err
		}
	}
	if o.Kind != kindSecret {
		return nil
	}
	source, _ := o.Fields["source"].(string)
	if !slices.Contains(d.cfg.ImagePullSecrets, source) && !slices.Contains(d.cfg.Secrets, source) {
		return fault.New(fault.Denied, "%s is to be a copy of the Secret %q, which is neither in image_pull_secrets nor in secrets of the driver's config", o.Ref(), source)
	}
	return nil
}

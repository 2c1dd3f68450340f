package kubernetes

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// checkSandbox judges what the schema and the points leave open in a sandbox's plan, without asking the cluster.
func (d *Driver) checkSandbox(p, ws *plan.Plan) error {
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
	for _, o := range p.Objects() {
		for _, owner := range p.Owners(o.Kind, o.Name) {
			if owner == plan.OwnerGateway || owner == plan.OwnerRequest || owner == plan.OwnerDriver {
				continue
			}
			part := p.Part(o.Kind, o.Name, owner)
			if err := cmp.Or(checkMarks(owner, part), checkPodPart(owner, part), d.checkNames(owner, part, p, ws)); err != nil {
				return err
			}
		}
	}
	return nil
}

func refused(owner plan.Owner, place, why string) error {
	return fault.New(fault.Denied, "%s contributes %s: %s", owner, place, why).With(fault.Diagnostic{Path: place, Summary: why})
}

// checkMarks keeps from extensions what says whose an object is. The points except the marks that there are.
func checkMarks(owner plan.Owner, part plan.Object) error {
	for _, at := range [][]string{{"metadata"}, {"template", "metadata"}} {
		for _, list := range []string{"labels", "annotations"} {
			have, _, _ := unstructured.NestedMap(part.Fields, append(slices.Clone(at), list)...)
			for _, key := range sorted(have) {
				if isMark(key) {
					return refused(owner, part.Ref()+"."+strings.Join(at, ".")+"."+list+"["+key+"]", "keys of this kind are the driver's")
				}
			}
		}
	}
	return nil
}

// checkNames keeps from extensions what is in the namespace and not theirs to name: a Secret is one of the plan, or one that
// the operator lets sandboxes have; and where sandboxes of several workspaces live, a claim is none of another sandbox's.
func (d *Driver) checkNames(owner plan.Owner, part plan.Object, plans ...*plan.Plan) error {
	if part.Kind != kindPodTemplate && part.Kind != kindServiceAccount {
		return nil
	}
	planned := func(kind, name string) bool {
		return slices.ContainsFunc(plans, func(p *plan.Plan) bool { return p != nil && p.Creator(kind, name) != "" })
	}
	for _, ref := range references(part.Fields) {
		switch {
		case planned(ref.kind, ref.name):
		case ref.kind == kindSecret && !d.lends(ref.name):
			return refused(owner, part.Ref(), "the Secret "+ref.name+" is none of the plan, and neither in image_pull_secrets nor in secrets of the driver's config")
		case ref.kind == kindVolumeClaim && d.others(ref.name):
			return refused(owner, part.Ref(), "the claim "+ref.name+" has a name as those of sandboxes have")
		}
	}
	return nil
}

// lends reports whether the operator lets sandboxes have a Secret of the namespace.
func (d *Driver) lends(secret string) bool {
	return slices.Contains(d.cfg.ImagePullSecrets, secret) || slices.Contains(d.cfg.Secrets, secret)
}

// digested is how a name ends that was cut.
var digested = regexp.MustCompile(`-[0-9a-f]{16}$`)

// others reports whether a claim may be a sandbox's own, which in mode shared may be another workspace's.
func (d *Driver) others(claim string) bool {
	return d.cfg.Mode == Shared && (strings.Contains(claim, "--") || digested.MatchString(claim))
}

// reference is what a pod or an account names.
type reference struct{ kind, name string }

// references finds, anywhere in a tree, what names a Secret or a claim.
func references(tree any) []reference {
	var out []reference
	add := func(kind string, v any) {
		if name, ok := v.(string); ok {
			out = append(out, reference{kind, name})
		}
	}
	switch node := tree.(type) {
	case []any:
		for _, item := range node {
			out = append(out, references(item)...)
		}
	case map[string]any:
		for _, key := range sorted(node) {
			object, _ := node[key].(map[string]any)
			switch {
			case key == "secretName":
				add(kindSecret, node[key])
			case key == "claimName":
				add(kindVolumeClaim, node[key])
			case key == "secret" || strings.HasSuffix(strings.ToLower(key), "secretref") || key == "secretKeyRef":
				add(kindSecret, object["name"])
			case key == "imagePullSecrets" || key == "secrets":
				for _, s := range items(node, key) {
					add(kindSecret, s["name"])
				}
			}
			out = append(out, references(node[key])...)
		}
	}
	return out
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
	spec, _, _ := unstructured.NestedMap(part.Fields, "template", "spec")
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range items(spec, list) {
			name, _ := c["name"].(string)
			place := podSpec + "." + list + "." + name
			for _, m := range items(c, "volumeMounts") {
				volume, _ := m["name"].(string)
				target, _ := m["mountPath"].(string)
				if volume != workspaceVolume && slices.Contains(reservedVolumes, volume) {
					return refused(owner, place+".volumeMounts["+target+"]", "the volume "+volume+" is reserved")
				}
				if why := refuseMount(target, false); list == "containers" && name == agentContainer && why != "" {
					return refused(owner, place+".volumeMounts["+target+"]", why)
				}
			}
			for _, e := range items(c, "env") {
				key, _ := e["name"].(string)
				if name == agentContainer && list == "containers" && (strings.HasPrefix(key, environmentOpenShell) || strings.HasPrefix(key, environmentSandgate)) {
					return refused(owner, place+".env."+key, "variables of this name are the driver's")
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
	if !d.lends(source) {
		return fault.New(fault.Denied, "%s is to be a copy of the Secret %q, which is neither in image_pull_secrets nor in secrets of the driver's config", o.Ref(), source)
	}
	return nil
}

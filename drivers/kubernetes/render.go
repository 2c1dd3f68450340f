package kubernetes

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// render returns the API objects of a sandbox's plan, the one that is the sandbox first (the Sandbox, or the Pod where
// sandboxes are plain Pods), then the others in the order of resources. They have the marks, and no owner references.
func (d *Driver) render(id sandbox.Identity, operation string, p, ws *plan.Plan) ([]object, error) {
	if err := d.checkSandbox(p, ws); err != nil {
		return nil, err
	}
	r, err := d.sandboxRenderer(id, operation, p, ws)
	if err != nil {
		return nil, err
	}
	first, err := r.sandbox()
	if err != nil {
		return nil, err
	}
	rest, err := r.others()
	return append([]object{first}, rest...), err
}

// renderWorkspace returns the API objects of a workspace's plan in the order of resources, with its marks.
func (d *Driver) renderWorkspace(w sandbox.Workspace, p *plan.Plan) ([]object, error) {
	r := d.workspaceRenderer(w, p)
	r.labels, r.annotations = d.workspaceMarks(w)
	return r.others()
}

// renderer turns a plan into API objects.
type renderer struct {
	d                   *Driver
	plan                *plan.Plan
	ws                  *renderer         // of the workspace's plan, for a sandbox's; nil where there is none
	labels, annotations map[string]string // the marks
	scope               plan.Scope
	home                string              // the namespace of what does not say
	name                func(string) string // the real name of an object in home
	only                string              // a workspace's only Namespace, by its plan name
	workspace           string
	id                  sandbox.Identity
}

func (d *Driver) workspaceRenderer(w sandbox.Workspace, p *plan.Plan) *renderer {
	r := &renderer{d: d, plan: p, scope: plan.ScopeWorkspace, workspace: w.Name, home: d.workspaceNamespace(w.Name)}
	r.name = func(name string) string { return name }
	var own []string
	for _, o := range p.Objects() {
		if o.Kind == kindNamespace {
			own = append(own, o.Name)
		}
	}
	switch {
	case len(own) == 1:
		r.home = d.namespaceName(w.Name, own[0])
	case d.cfg.Mode == Shared:
		r.name = func(name string) string { // others live there too
			if strings.Contains(w.Name, "--") {
				return cut(w.Name+"--"+name, w.Name+"/"+name)
			}
			return fit(w.Name + "--" + name)
		}
	}
	return r
}

func (d *Driver) sandboxRenderer(id sandbox.Identity, operation string, p, ws *plan.Plan) (*renderer, error) {
	r := &renderer{d: d, plan: p, scope: plan.ScopeSandbox, workspace: id.Workspace, id: id}
	r.labels, r.annotations = d.marks(id, operation)
	r.name = func(name string) string { return d.sideName(id, name) }
	if ws != nil {
		r.ws = d.workspaceRenderer(sandbox.Workspace{ID: id.WorkspaceID, Driver: id.Driver, Name: id.Workspace}, ws)
	}
	placed := placement(p)
	if placed != "" && !d.places() {
		return nil, fault.New(fault.Invalid, "Sandbox/main has placement.namespace, which a sandbox has in mode shared only, where the driver may look in all namespaces")
	}
	r.home = cmp.Or(r.namespace(placed), d.workspaceNamespace(id.Workspace))
	return r, nil
}

// placement is where a plan wants the sandbox to be: a plan's name of a Namespace, or a real one; "" where it does not say.
func placement(p *plan.Plan) string {
	o, _ := p.Object(kindSandbox, mainObject)
	name, _, _ := unstructured.NestedString(o.Fields, "placement", "namespace")
	return name
}

// namespaceName is the real name of a Namespace of a workspace's plan.
func (d *Driver) namespaceName(workspace, planName string) string {
	name := "openshell-" + d.cfg.GatewayID + "-" + workspace
	if planName != workspaceObject {
		name += "--" + planName
	}
	if strings.Contains(workspace, "--") { // another workspace might make the same name
		return cut(name, workspace+"/"+planName)
	}
	return fit(name)
}

// namespace is the real name of a namespace that a plan names: one of the workspace's plan, or one that is there.
func (r *renderer) namespace(name string) string {
	of := r
	if r.scope == plan.ScopeSandbox {
		of = r.ws
	}
	if of == nil || name == "" {
		return name
	}
	if _, own := of.plan.Object(kindNamespace, name); own {
		return r.d.namespaceName(r.workspace, name)
	}
	return name
}

// place says where an object of the plan is in the cluster.
func (r *renderer) place(o plan.Object) (namespace, name string) {
	if o.Kind == kindNamespace {
		return "", r.d.namespaceName(r.workspace, o.Name)
	}
	said, _, _ := unstructured.NestedString(o.Fields, "metadata", "namespace")
	if ns := r.namespace(said); ns != "" && ns != r.home {
		return ns, o.Name
	}
	return r.home, r.name(o.Name)
}

// real is the real name of what a pod or an account in a namespace refers to: an object of the sandbox's plan, or of its
// workspace's, by the plan's name, or else one that is there.
func (r *renderer) real(namespace, kind, name string) string {
	for _, of := range []*renderer{r, r.ws} {
		if of == nil {
			continue
		}
		if o, ok := of.plan.Object(kind, name); ok {
			if ns, real := of.place(o); ns == namespace {
				return real
			}
		}
	}
	return name
}

// group is one owner as the cluster has it, and those of the plan that are it.
type group struct {
	name    string
	members []plan.Owner
}

// groups sorts the owners of some objects of the plan: who made the first one stands first.
func (r *renderer) groups(refs ...plan.Object) []group {
	own := group{name: driverOwner}
	var rest []group
	for _, o := range refs {
		for _, owner := range r.plan.Owners(o.Kind, o.Name) {
			switch owner {
			case plan.OwnerGateway, plan.OwnerRequest, plan.OwnerDriver:
				if !slices.Contains(own.members, owner) {
					own.members = append(own.members, owner)
				}
			default:
				if !slices.ContainsFunc(rest, func(g group) bool { return g.name == string(owner) }) {
					rest = append(rest, group{name: string(owner), members: []plan.Owner{owner}})
				}
			}
		}
	}
	if creator := string(r.plan.Creator(refs[0].Kind, refs[0].Name)); len(own.members) == 0 {
		slices.SortStableFunc(rest, func(a, b group) int { return boolInt(b.name == creator) - boolInt(a.name == creator) })
		return rest
	}
	return append([]group{own}, rest...)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func everybody(groups []group) []plan.Owner {
	var out []plan.Owner
	for _, g := range groups {
		out = append(out, g.members...)
	}
	return out
}

// others returns every object but the sandbox itself.
func (r *renderer) others() ([]object, error) {
	byKind := map[string][]plan.Object{}
	for _, o := range r.plan.Objects() {
		if o.Kind != kindSandbox && o.Kind != kindPodTemplate {
			byKind[o.Kind] = append(byKind[o.Kind], o)
		}
	}
	var out []object
	for _, res := range resources {
		for _, o := range byKind[res.gvk.Kind] {
			rendered, err := r.other(res, o)
			if err != nil {
				return nil, err
			}
			out = append(out, rendered)
		}
	}
	return out, nil
}

func (r *renderer) other(res resource, o plan.Object) (object, error) {
	if err := r.d.checkOther(o); err != nil {
		return object{}, err
	}
	out := object{GVK: res.gvk, Kind: o.Kind, PlanName: o.Name, Scope: r.scope}
	out.Namespace, out.Name = r.place(o)
	if r.scope == plan.ScopeSandbox && out.Namespace != r.home {
		return out, fault.New(fault.Invalid, "%s has metadata.namespace %q: an object of a sandbox is in the sandbox's namespace, %s", o.Ref(), out.Namespace, r.home)
	}
	if shared := r.scope == plan.ScopeWorkspace && r.d.cfg.Mode == Shared && out.Namespace == r.d.cfg.Namespace; shared && (o.Kind == kindResourceQuota || o.Kind == kindLimitRange) {
		return out, fault.New(fault.FailedPrecondition, "%s would bind every workspace in the namespace %s: it needs metadata.namespace, a Namespace of its workspace's own", o.Ref(), out.Namespace)
	}
	groups := r.groups(o)
	fields := func(owners []plan.Owner) map[string]any {
		part := r.plan.Part(o.Kind, o.Name, owners...).Fields
		if o.Kind == kindServiceAccount {
			r.accountRefs(out.Namespace, part)
		}
		if o.Kind == kindSecret {
			delete(part, "source")
		}
		return part
	}
	if o.Kind == kindSecret {
		out.Source, _ = o.Fields["source"].(string)
	}
	r.fill(&out, groups, fields)
	return out, nil
}

// sandbox returns the object that is the sandbox itself.
func (r *renderer) sandbox() (object, error) {
	main := plan.Object{Kind: kindSandbox, Name: mainObject}
	pod := plan.Object{Kind: kindPodTemplate, Name: mainObject}
	out := object{Kind: kindSandbox, PlanName: mainObject, Scope: r.scope, Namespace: r.home, Name: r.d.sandboxName(r.id)}
	if r.d.pods() {
		out.GVK = podResource.gvk
		groups := []group{{name: driverOwner, members: everybody(r.groups(pod))}} // whole, once, by one manager
		r.fill(&out, groups, func(owners []plan.Owner) map[string]any { return r.podOf(owners) })
		return out, nil
	}
	out.GVK = r.d.cluster.anchor().gvk
	r.fill(&out, r.groups(main, pod), func(owners []plan.Owner) map[string]any {
		part := r.plan.Part(kindSandbox, mainObject, owners...).Fields
		delete(part, "placement")
		if template := r.podOf(owners); len(template) > 0 {
			spec, _ := part["spec"].(map[string]any)
			if spec == nil {
				spec = map[string]any{}
				part["spec"] = spec
			}
			spec["podTemplate"] = template
		}
		return part
	})
	// The pod is made by somebody else, of the template: the mark goes with it.
	for _, of := range []*unstructured.Unstructured{out.Whole, out.Owners[0].Fields} {
		_ = unstructured.SetNestedField(of.Object, r.annotations[operationAnnotation], "spec", "podTemplate", "metadata", "annotations", operationAnnotation)
	}
	return out, nil
}

// podOf returns what owners set of the pod: its metadata and spec, with references by their real names.
func (r *renderer) podOf(owners []plan.Owner) map[string]any {
	part := r.plan.Part(kindPodTemplate, mainObject, owners...).Fields
	template, _ := part["template"].(map[string]any)
	if spec, ok := template["spec"].(map[string]any); ok {
		r.podRefs(r.home, spec)
	}
	return template
}

// fill completes an object out of the parts of its owners: the first one also sets the marks.
func (r *renderer) fill(out *object, groups []group, fields func([]plan.Owner) map[string]any) {
	head := func(part map[string]any, marked bool) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: part}
		if u.Object == nil {
			u.Object = map[string]any{}
		}
		meta, _ := u.Object["metadata"].(map[string]any)
		if meta == nil {
			meta = map[string]any{}
			u.Object["metadata"] = meta
		}
		delete(meta, "namespace")
		if meta["name"] = out.Name; out.Namespace != "" {
			meta["namespace"] = out.Namespace
		}
		if marked {
			addTo(meta, "labels", r.labels)
			addTo(meta, "annotations", r.annotations)
		}
		u.SetGroupVersionKind(out.GVK)
		return u
	}
	out.Whole = head(fields(everybody(groups)), true)
	for i, g := range groups {
		out.Owners = append(out.Owners, ownerFields{Owner: g.name, Fields: head(fields(g.members), i == 0)})
	}
}

// addTo adds marks to a map of some metadata.
func addTo(meta map[string]any, key string, marks map[string]string) {
	m, _ := meta[key].(map[string]any)
	if m == nil {
		m = map[string]any{}
		meta[key] = m
	}
	for k, v := range marks {
		m[k] = v
	}
}

// podRefs gives what a pod refers to by the names of the plan its real names.
func (r *renderer) podRefs(namespace string, spec map[string]any) {
	name := func(m map[string]any, field, kind string) {
		if s, ok := m[field].(string); ok {
			m[field] = r.real(namespace, kind, s)
		}
	}
	in := func(m map[string]any, object, field, kind string) {
		if o, ok := m[object].(map[string]any); ok {
			name(o, field, kind)
		}
	}
	name(spec, "serviceAccountName", kindServiceAccount)
	for _, s := range items(spec, "imagePullSecrets") {
		name(s, "name", kindSecret)
	}
	for _, c := range items(spec, "resourceClaims") {
		name(c, "resourceClaimName", kindResourceClaim)
		name(c, "resourceClaimTemplateName", kindClaimTemplate)
	}
	for _, v := range items(spec, "volumes") {
		in(v, "configMap", "name", kindConfigMap)
		in(v, "secret", "secretName", kindSecret)
		in(v, "persistentVolumeClaim", "claimName", kindVolumeClaim)
		if projected, ok := v["projected"].(map[string]any); ok {
			for _, s := range items(projected, "sources") {
				in(s, "configMap", "name", kindConfigMap)
				in(s, "secret", "name", kindSecret)
			}
		}
	}
	for _, c := range slices.Concat(items(spec, "initContainers"), items(spec, "containers")) {
		for _, e := range items(c, "envFrom") {
			in(e, "configMapRef", "name", kindConfigMap)
			in(e, "secretRef", "name", kindSecret)
		}
		for _, e := range items(c, "env") {
			if from, ok := e["valueFrom"].(map[string]any); ok {
				in(from, "configMapKeyRef", "name", kindConfigMap)
				in(from, "secretKeyRef", "name", kindSecret)
			}
		}
	}
}

func (r *renderer) accountRefs(namespace string, account map[string]any) {
	for _, list := range []string{"imagePullSecrets", "secrets"} {
		for _, s := range items(account, list) {
			if name, ok := s["name"].(string); ok {
				s["name"] = r.real(namespace, kindSecret, name)
			}
		}
	}
}

// items returns the objects of a list.
func items(m map[string]any, list string) []map[string]any {
	var out []map[string]any
	all, _ := m[list].([]any)
	for _, item := range all {
		if o, ok := item.(map[string]any); ok {
			out = append(out, o)
		}
	}
	return out
}

// checkName refuses the name of an object of a plan that its real name could not be made of.
func checkName(o plan.Object) error {
	why := validation.IsDNS1123Label(o.Name)
	switch {
	case strings.Contains(o.Name, "--"):
		why = []string{`it holds "--", which parts it from the name of the sandbox`}
	case o.Kind == kindSecret && o.Name == "token":
		why = []string{"it is that of the sandbox's token"}
	}
	if len(why) > 0 {
		return fault.New(fault.Invalid, "%s: its name cannot be a name in Kubernetes: %s", o.Ref(), why[0])
	}
	return nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

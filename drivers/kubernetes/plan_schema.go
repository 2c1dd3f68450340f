package kubernetes

import (
	"fmt"
	"slices"
	"sync"

	"go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
)

// apiKind is a kind whose schema is the API's.
type apiKind struct {
	object    runtime.Object
	scope     plan.Scope
	sensitive []string
}

var apiKinds = []apiKind{
	{object: &corev1.PodTemplate{}, scope: plan.ScopeSandbox,
		sensitive: []string{"template.spec.containers.*.env.*.value", "template.spec.initContainers.*.env.*.value"}},
	{object: &corev1.Namespace{}, scope: plan.ScopeWorkspace},
	{object: &corev1.ResourceQuota{}, scope: plan.ScopeWorkspace},
	{object: &corev1.LimitRange{}, scope: plan.ScopeWorkspace},
	{object: &corev1.ServiceAccount{}, scope: plan.ScopeAny},
	{object: &corev1.ConfigMap{}, scope: plan.ScopeAny, sensitive: []string{"data", "binaryData"}},
	{object: &corev1.PersistentVolumeClaim{}, scope: plan.ScopeAny},
	{object: &networkingv1.NetworkPolicy{}, scope: plan.ScopeAny},
	{object: &resourcev1.ResourceClaimTemplate{}, scope: plan.ScopeAny},
	{object: &resourcev1.ResourceClaim{}, scope: plan.ScopeAny},
	{object: &corev1.Service{}, scope: plan.ScopeAny},
}

// objectMeta is the API's type of metadata, in whose place the plan has its own.
const objectMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

// metaTypes are what an object of a plan says of itself. The name of a real object comes from the plan's name and the
// sandbox's; all else in the API's metadata is the server's or the driver's.
const metaTypes = `
- name: ` + objectMeta + `
  map:
    fields:
    - {name: name, type: {scalar: string}}
    - {name: namespace, type: {scalar: string}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
`

const secretTypes = `
- name: Secret
  map:
    fields:
    - {name: metadata, type: {namedType: ` + objectMeta + `}}
    - {name: source, type: {scalar: string}}
`

// sandboxTypes are the Sandbox resource's own fields, its pod template apart, and where it is to be.
const sandboxTypes = `
- name: Sandbox
  map:
    fields:
    - name: metadata
      type:
        map:
          fields:
          - {name: labels, type: {map: {elementType: {scalar: string}}}}
          - {name: annotations, type: {map: {elementType: {scalar: string}}}}
          - {name: finalizers, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
          - {name: ownerReferences, type: {list: {elementType: {namedType: io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference}, elementRelationship: associative, keys: [uid]}}}
    - {name: placement, type: {map: {fields: [{name: namespace, type: {scalar: string}}]}}}
    - name: spec
      type:
        map:
          fields:
          - {name: service, type: {scalar: boolean}}
          - {name: shutdownTime, type: {scalar: string}}
          - {name: shutdownPolicy, type: {scalar: string}}
          - {name: volumeClaimTemplates, type: {list: {elementType: {namedType: claim}, elementRelationship: atomic}}}
- name: claim
  map:
    fields:
    - {name: metadata, type: {namedType: ` + objectMeta + `}}
    - {name: spec, type: {namedType: io.k8s.api.core.v1.PersistentVolumeClaimSpec}}
`

// planKinds returns the kinds of the driver's plans. The schemas of the API's own are those that its client library merges
// by, written out, so that the plan merges as the API server does. They are written once: the library's schema is one for
// the whole process, and bears no readers beside those that it locks out.
var planKinds = sync.OnceValues(writeKinds)

func writeKinds() ([]plan.Kind, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, resourcev1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("the API's types: %w", err)
		}
	}
	converter := applyconfigurations.NewTypeConverter(scheme)
	var out []plan.Kind
	for _, k := range apiKinds {
		kind, err := k.compile(scheme, converter)
		if err != nil {
			return nil, err
		}
		out = append(out, kind)
	}
	claim, err := typeOf(scheme, converter, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return nil, err
	}
	types, err := parseTypes(sandboxTypes)
	if err != nil {
		return nil, err
	}
	sandbox, err := writeTypes(claim.schema, types, kindSandbox)
	if err != nil {
		return nil, err
	}
	return append(out, plan.Kind{Name: kindSandbox, Scope: plan.ScopeSandbox, Schema: sandbox},
		plan.Kind{Name: kindSecret, Scope: plan.ScopeAny, Schema: "types:" + metaTypes + secretTypes}), nil
}

// apiType is a type of the API, in the schema that has all of them.
type apiType struct {
	schema *smd.Schema
	name   string // in the schema
	kind   string
}

func typeOf(scheme *runtime.Scheme, converter managedfields.TypeConverter, object runtime.Object) (*apiType, error) {
	known, _, err := scheme.ObjectKinds(object)
	if err != nil {
		return nil, fault.New(fault.Internal, "a type of the API: %w", err)
	}
	object = object.DeepCopyObject()
	object.GetObjectKind().SetGroupVersionKind(known[0])
	typed, err := converter.ObjectToTyped(object)
	if err != nil {
		return nil, fault.New(fault.Internal, "the schema of %s: %w", known[0].Kind, err)
	}
	ref := typed.TypeRef()
	if ref.NamedType == nil {
		return nil, fault.New(fault.Internal, "the schema of %s has no name", known[0].Kind)
	}
	return &apiType{schema: typed.Schema(), name: *ref.NamedType, kind: known[0].Kind}, nil
}

// compile writes the schema of a kind: as in the API, without the status.
func (k apiKind) compile(scheme *runtime.Scheme, converter managedfields.TypeConverter) (plan.Kind, error) {
	t, err := typeOf(scheme, converter, k.object)
	if err != nil {
		return plan.Kind{}, err
	}
	def, ok := t.schema.FindNamedType(t.name)
	if !ok || def.Map == nil {
		return plan.Kind{}, fault.New(fault.Internal, "the schema of %s is no object's", t.kind)
	}
	fields := slices.DeleteFunc(slices.Clone(def.Map.Fields), func(f smd.StructField) bool { return f.Name == "status" })
	text, err := writeTypes(t.schema, []smd.TypeDef{{Name: t.kind, Atom: smd.Atom{Map: &smd.Map{Fields: fields}}}}, t.kind)
	return plan.Kind{Name: t.kind, Scope: k.scope, Schema: text, Sensitive: k.sensitive}, err
}

func parseTypes(text string) ([]smd.TypeDef, error) {
	var s smd.Schema
	if err := yaml.Unmarshal([]byte("types:"+text), &s); err != nil {
		return nil, fault.New(fault.Internal, "a schema of the driver's: %w", err)
	}
	return s.Types, nil
}

// writeTypes writes these types and all that they are made of. What is not among them is the API's.
func writeTypes(api *smd.Schema, own []smd.TypeDef, name string) (string, error) {
	meta, err := parseTypes(metaTypes)
	if err != nil {
		return "", err
	}
	w := &typeWriter{api: api, own: append(own, meta...), seen: map[string]bool{}}
	if err := w.named(name); err != nil {
		return "", err
	}
	text, err := yaml.Marshal(struct {
		Types []smd.TypeDef `yaml:"types"`
	}{w.out})
	if err != nil {
		return "", fault.New(fault.Internal, "write the schema of %s: %w", name, err)
	}
	return string(text), nil
}

type typeWriter struct {
	api  *smd.Schema
	own  []smd.TypeDef
	seen map[string]bool
	out  []smd.TypeDef
}

func (w *typeWriter) named(name string) error {
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	var def smd.TypeDef
	if i := slices.IndexFunc(w.own, func(t smd.TypeDef) bool { return t.Name == name }); i >= 0 {
		def = w.own[i]
	} else {
		found, ok := w.api.FindNamedType(name)
		if !ok {
			return fault.New(fault.Internal, "the API has no type %s", name)
		}
		def = found
	}
	w.out = append(w.out, def)
	return w.atom(def.Atom)
}

func (w *typeWriter) ref(r smd.TypeRef) error {
	if r.NamedType != nil {
		return w.named(*r.NamedType)
	}
	return w.atom(r.Inlined)
}

func (w *typeWriter) atom(a smd.Atom) error {
	if a.List != nil {
		if err := w.ref(a.List.ElementType); err != nil {
			return err
		}
	}
	if a.Map == nil {
		return nil
	}
	for _, f := range a.Map.Fields {
		if err := w.ref(f.Type); err != nil {
			return err
		}
	}
	return w.ref(a.Map.ElementType)
}

package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// Sandboxes is the Sandbox resource of a cluster's kind.
func (c *Cluster) Sandboxes() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "agents.x-k8s.io", Version: string(c.Kind), Resource: "sandboxes"}
}

type object = map[string]any

// installSandboxes defines the Sandbox resource. What is of Kubernetes in it, the pod's spec and the volume claims', is
// taken from the API server's own description, so that it has the merge keys of the real one.
//
// Where both versions are served, they are one schema but for the fields that only one has, and nothing converts
// between them: a Sandbox is to be used under the version that it was made under.
func (c *Cluster) installSandboxes(ctx context.Context) error {
	raw, err := c.client.Discovery().RESTClient().Get().AbsPath("/openapi/v3/api/v1").Do(ctx).Raw()
	if err != nil {
		return err
	}
	var doc struct {
		Components struct{ Schemas map[string]object }
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	core := inliner{doc.Components.Schemas}
	alpha := version(core, "v1alpha1", object{"replicas": object{"type": "integer", "minimum": 0, "maximum": 1, "default": 1}},
		object{"replicas": object{"type": "integer"}})
	alpha["subresources"].(object)["scale"] = object{"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}
	beta := version(core, "v1beta1", object{"operatingMode": object{"type": "string", "enum": []any{"Running", "Suspended"}, "default": "Running"}},
		object{"nodeName": object{"type": "string"}})
	versions := []any{alpha}
	if c.Kind == Beta {
		alpha["storage"], alpha["deprecated"] = false, true
		spec(beta)["x-kubernetes-validations"] = []any{object{
			"rule":    "has(self.volumeClaimTemplates) == has(oldSelf.volumeClaimTemplates) && (!has(self.volumeClaimTemplates) || self.volumeClaimTemplates == oldSelf.volumeClaimTemplates)",
			"message": "volumeClaimTemplates is immutable"}}
		versions = append(versions, beta)
	}
	crds, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return err
	}
	crd := &unstructured.Unstructured{Object: object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": "sandboxes.agents.x-k8s.io", "annotations": object{"api-approved.kubernetes.io": "unapproved, for tests"}},
		"spec": object{"group": "agents.x-k8s.io", "scope": "Namespaced", "versions": versions,
			"names": object{"kind": "Sandbox", "listKind": "SandboxList", "plural": "sandboxes", "singular": "sandbox"}},
	}}
	definitions := crds.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if _, err := definitions.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		return err
	}
	return c.until(ctx, "kube-apiserver", func() bool {
		_, err := crds.Resource(c.Sandboxes()).List(ctx, metav1.ListOptions{})
		return err == nil || !apierrors.IsNotFound(err)
	})
}

// version is a version of the resource, with the fields that it alone has.
func version(core inliner, name string, ofSpec, ofStatus object) object {
	text := object{"type": "string"}
	metadata := object{"type": "object", "properties": object{"labels": texts(), "annotations": texts()}}
	claimMetadata := object{"type": "object", "properties": object{"name": text, "labels": texts(), "annotations": texts()}}
	spec := object{
		"podTemplate": object{"type": "object", "required": []any{"spec"}, "properties": object{
			"metadata": metadata, "spec": core.of("io.k8s.api.core.v1.PodSpec")}},
		"volumeClaimTemplates": object{"type": "array", "x-kubernetes-list-type": "atomic", "items": object{"type": "object", "required": []any{"spec"},
			"properties": object{"metadata": claimMetadata, "spec": core.of("io.k8s.api.core.v1.PersistentVolumeClaimSpec")}}},
		"service":        object{"type": "boolean"},
		"shutdownTime":   object{"type": "string", "format": "date-time"},
		"shutdownPolicy": object{"type": "string", "enum": []any{"Delete", "Retain"}, "default": "Retain"},
	}
	condition := object{"type": "object", "required": []any{"type", "status", "lastTransitionTime", "reason", "message"}, "properties": object{
		"type": text, "status": object{"type": "string", "enum": []any{"True", "False", "Unknown"}}, "reason": text, "message": text,
		"lastTransitionTime": object{"type": "string", "format": "date-time"}, "observedGeneration": object{"type": "integer", "format": "int64"}}}
	status := object{
		"conditions": object{"type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": []any{"type"}},
		"selector":   text, "service": text, "serviceFQDN": text,
		"podIPs": object{"type": "array", "items": text},
	}
	maps.Copy(spec, ofSpec)
	maps.Copy(status, ofStatus)
	return object{"name": name, "served": true, "storage": true, "subresources": object{"status": object{}},
		"schema": object{"openAPIV3Schema": object{"type": "object", "required": []any{"spec"}, "properties": object{
			"spec": object{"type": "object", "required": []any{"podTemplate"}, "properties": spec}, "status": object{"type": "object", "properties": status}}}}}
}

func texts() object {
	return object{"type": "object", "additionalProperties": object{"type": "string"}}
}

// spec returns the schema of a version's spec.
func spec(version object) object {
	return version["schema"].(object)["openAPIV3Schema"].(object)["properties"].(object)["spec"].(object)
}

// inliner makes of schemas that refer to each other one that a CustomResourceDefinition may hold.
type inliner struct{ schemas map[string]object }

func (in inliner) of(name string) object {
	switch name[strings.LastIndex(name, ".")+1:] {
	case "Quantity", "IntOrString":
		return object{"x-kubernetes-int-or-string": true}
	case "ObjectMeta":
		return object{"type": "object", "properties": object{"labels": texts(), "annotations": texts()}}
	}
	s, ok := in.schemas[name]
	if !ok {
		panic(fmt.Sprintf("the API server does not describe %s", name))
	}
	return in.inline(s)
}

// inline keeps of a schema its types and how it merges, and leaves the texts out. A default stays where a merge key
// needs one.
func (in inliner) inline(s object) object {
	if all, ok := s["allOf"].([]any); ok {
		s = all[0].(object)
	}
	if ref, ok := s["$ref"].(string); ok {
		return in.of(ref[strings.LastIndex(ref, "/")+1:])
	}
	out := object{}
	for _, key := range []string{"type", "format", "required", "enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"} {
		if v, ok := s[key]; ok {
			out[key] = v
		}
	}
	if properties, ok := s["properties"].(object); ok {
		inlined := object{}
		for name, p := range properties {
			inlined[name] = in.inline(p.(object))
		}
		out["properties"] = inlined
	}
	if values, ok := s["additionalProperties"].(object); ok {
		out["additionalProperties"] = in.inline(values)
	}
	if items, ok := s["items"].(object); ok {
		out["items"] = in.inline(items)
		in.keyDefaults(out, items)
	}
	return out
}

// keyDefaults gives the merge keys of a list that its items need not have the defaults that the API gives them.
func (in inliner) keyDefaults(list, items object) {
	keys, _ := list["x-kubernetes-list-map-keys"].([]any)
	item := list["items"].(object)
	required, _ := item["required"].([]any)
	for _, key := range keys {
		if !slices.Contains(required, key) {
			item["properties"].(object)[key.(string)].(object)["default"] = in.defaultOf(items, key.(string))
		}
	}
}

func (in inliner) defaultOf(items object, key string) any {
	if all, ok := items["allOf"].([]any); ok {
		items = all[0].(object)
	}
	if ref, ok := items["$ref"].(string); ok {
		items = in.schemas[ref[strings.LastIndex(ref, "/")+1:]]
	}
	if d, ok := items["properties"].(object)[key].(object)["default"]; ok {
		return d
	}
	return ""
}

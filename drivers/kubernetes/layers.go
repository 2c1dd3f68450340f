package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// settings is the driver_config of a sandbox, in OpenShell's words.
type settings struct {
	Pod struct {
		NodeSelector      map[string]string   `json:"node_selector"`
		RuntimeClassName  string              `json:"runtime_class_name"`
		Tolerations       []corev1.Toleration `json:"tolerations"`
		PriorityClassName string              `json:"priority_class_name"`
	} `json:"pod"`
	Containers struct {
		Agent struct {
			Resources struct {
				Requests map[string]string `json:"requests"`
				Limits   map[string]string `json:"limits"`
			} `json:"resources"`
			VolumeMounts []volumeMount `json:"volume_mounts"`
		} `json:"agent"`
	} `json:"containers"`
	Volumes []claimedVolume `json:"volumes"`
}

type volumeMount struct {
	Name      string `json:"name"`
	MountPath string `json:"mount_path"`
	SubPath   string `json:"sub_path"`
	ReadOnly  *bool  `json:"read_only"`
}

type claimedVolume struct {
	Name  string `json:"name"`
	Claim struct {
		ClaimName string `json:"claim_name"`
		ReadOnly  *bool  `json:"read_only"`
	} `json:"persistent_volume_claim"`
}

// readOnly is so unless somebody says otherwise.
func readOnly(said *bool) bool { return said == nil || *said }

// wrong refuses one field of a request.
func wrong(field, format string, args ...any) error {
	f := fault.New(fault.Invalid, field+" "+format, args...)
	return f.With(fault.Diagnostic{Path: field, Summary: strings.TrimPrefix(f.Message, field+" ")})
}

func readSettings(raw json.RawMessage) (*settings, error) {
	s := &settings{}
	if len(raw) == 0 {
		return s, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) { // its text repeats the value
			return nil, wrong("driver_config", "has the key %s, which is not of the type %s", typ.Field, typ.Type)
		}
		return nil, wrong("driver_config", "cannot be read: %s; it has pod, containers and volumes", strings.TrimPrefix(err.Error(), "json: "))
	}
	return s, s.check()
}

func (s *settings) check() error {
	volumes := map[string]*claimedVolume{}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		switch {
		case slices.Contains(reservedVolumes, v.Name):
			return wrong("driver_config.volumes", "has %q, a name that is reserved", v.Name)
		case len(validation.IsDNS1123Label(v.Name)) > 0:
			return wrong("driver_config.volumes", "has %q, which is no name of a volume", v.Name)
		case volumes[v.Name] != nil:
			return wrong("driver_config.volumes", "has %q twice", v.Name)
		case v.Claim.ClaimName == "":
			return wrong("driver_config.volumes", "has %q without persistent_volume_claim.claim_name", v.Name)
		}
		volumes[v.Name] = v
	}
	paths := map[string]bool{}
	for _, m := range s.Containers.Agent.VolumeMounts {
		const field = "driver_config.containers.agent.volume_mounts"
		v := volumes[m.Name]
		switch {
		case v == nil:
			return wrong(field, "mounts %q, which is not in volumes", m.Name)
		case paths[m.MountPath]:
			return wrong(field, "has two mounts at %q", m.MountPath)
		case readOnly(v.Claim.ReadOnly) && !readOnly(m.ReadOnly):
			return wrong(field, "mounts %q to be written, whose claim is read-only", m.Name)
		}
		if why := refuseMount(m.MountPath, true); why != "" {
			return wrong(field, "has a mount at %q: %s", m.MountPath, why)
		}
		paths[m.MountPath] = true
	}
	return nil
}

// refuseMount says why nothing may be mounted there into the agent, or "". Below the workspace the request itself may.
func refuseMount(target string, request bool) string {
	if !path.IsAbs(target) || target != path.Clean(target) || target == "/" {
		return "it is an absolute path below the root"
	}
	for _, root := range protectedRoots {
		if root == workspaceMount && request && below(target, root) && target != root {
			continue
		}
		if below(target, root) || below(root, target) {
			return root + " is the driver's"
		}
	}
	return ""
}

// below reports whether p is dir or lies in it.
func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// Layers implements driver.Driver.
func (d *Driver) Layers(_ context.Context, r *driver.Request) ([]plan.Layer, error) {
	s, err := readSettings(r.Config)
	if err == nil {
		err = d.checkRequest(r, s)
	}
	if err != nil {
		return nil, err
	}
	id := r.Identity
	labels, annotations := d.marks(id, "")
	podAnnotations := table(annotations)
	podAnnotations[podSandboxAnnotation] = id.ID
	gateway := []plan.Object{
		{Kind: kindSandbox, Name: mainObject, Fields: map[string]any{"metadata": map[string]any{"labels": table(labels), "annotations": table(annotations)}}},
		podObject(map[string]any{"labels": table(labels), "annotations": podAnnotations},
			map[string]any{"containers": []any{map[string]any{"name": agentContainer, "env": environment(map[string]string{
				"SANDGATE_SANDBOX_ID": id.ID, "SANDGATE_SANDBOX_NAME": id.Name, "SANDGATE_WORKSPACE": id.Workspace})}}}),
	}
	request, err := requestObject(r, s)
	if err != nil {
		return nil, err
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: gateway},
		{Owner: plan.OwnerRequest, Objects: []plan.Object{request}},
		{Owner: plan.OwnerDriver, Objects: d.defaults(r, s)},
	}, nil
}

func podObject(metadata, spec map[string]any) plan.Object {
	template := map[string]any{}
	if len(metadata) > 0 {
		template["metadata"] = metadata
	}
	if len(spec) > 0 {
		template["spec"] = spec
	}
	return plan.Object{Kind: kindPodTemplate, Name: mainObject, Fields: map[string]any{"template": template}}
}

func (d *Driver) checkRequest(r *driver.Request, s *settings) error {
	spec := r.Spec
	switch {
	case spec.Image == "" && d.cfg.DefaultImage == "":
		return wrong("image", "is missing: the kubernetes driver needs one")
	case spec.Resources.PIDs > 0:
		return wrong("resources.pids", "cannot be set in Kubernetes: a node's kubelet limits the processes of a pod")
	}
	for _, v := range s.Volumes {
		if d.others(v.Claim.ClaimName) {
			return wrong("driver_config.volumes", "has %q with a claim whose name is as those of sandboxes are: another workspace's may be meant", v.Name)
		}
	}
	for key, value := range spec.Labels {
		if why := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...); len(why) > 0 {
			return wrong("labels."+key, "cannot be a label in Kubernetes: %s", why[0])
		}
	}
	for key := range spec.Environment {
		if len(validation.IsEnvVarName(key)) > 0 {
			return wrong("environment."+key, "cannot be a variable in Kubernetes")
		}
	}
	return nil
}

// requestObject returns what the caller asked for. Where labels or driver_config and the rest of the request speak of the
// same thing, the rest goes first.
func requestObject(r *driver.Request, s *settings) (plan.Object, error) {
	metadata, spec, agent := map[string]any{}, map[string]any{}, map[string]any{"name": agentContainer}
	set := func(m map[string]any, key string, value any, there bool) {
		if there {
			m[key] = value
		}
	}
	set(metadata, "labels", table(r.Spec.Labels), len(r.Spec.Labels) > 0)
	set(agent, "image", r.Spec.Image, r.Spec.Image != "")
	set(agent, "command", list(r.Spec.Command), len(r.Spec.Command) > 0)
	set(agent, "env", environment(r.Spec.Environment), len(r.Spec.Environment) > 0)
	resources, err := resourcesOf(r.Spec.Resources, s)
	if err != nil {
		return plan.Object{}, err
	}
	set(agent, "resources", resources, len(resources) > 0)
	var mounts []any
	for _, m := range s.Containers.Agent.VolumeMounts {
		mount := map[string]any{"name": m.Name, "mountPath": m.MountPath, "readOnly": readOnly(m.ReadOnly)}
		set(mount, "subPath", m.SubPath, m.SubPath != "")
		mounts = append(mounts, mount)
	}
	set(agent, "volumeMounts", mounts, len(mounts) > 0)
	var volumes []any
	for _, v := range s.Volumes {
		volumes = append(volumes, map[string]any{"name": v.Name, "persistentVolumeClaim": map[string]any{"claimName": v.Claim.ClaimName, "readOnly": readOnly(v.Claim.ReadOnly)}})
	}
	set(spec, "volumes", volumes, len(volumes) > 0)
	set(spec, "nodeSelector", table(s.Pod.NodeSelector), len(s.Pod.NodeSelector) > 0)
	set(spec, "runtimeClassName", s.Pod.RuntimeClassName, s.Pod.RuntimeClassName != "")
	set(spec, "priorityClassName", s.Pod.PriorityClassName, s.Pod.PriorityClassName != "")
	if len(s.Pod.Tolerations) > 0 {
		tolerations, err := tree[[]any](s.Pod.Tolerations)
		if err != nil {
			return plan.Object{}, err
		}
		spec["tolerations"] = tolerations
	}
	set(spec, "containers", []any{agent}, len(agent) > 1)
	return podObject(metadata, spec), nil
}

// resourcesOf returns the limits that were asked for, filled up with those of driver_config.
func resourcesOf(r sandbox.Resources, s *settings) (map[string]any, error) {
	limits, requests := map[string]any{}, map[string]any{}
	if r.MilliCPU > 0 {
		limits["cpu"] = apiresource.NewMilliQuantity(r.MilliCPU, apiresource.DecimalSI).String()
	}
	if r.Memory > 0 {
		limits["memory"] = apiresource.NewQuantity(r.Memory, apiresource.BinarySI).String()
	}
	for _, side := range []struct {
		field string
		from  map[string]string
		to    map[string]any
	}{{"limits", s.Containers.Agent.Resources.Limits, limits}, {"requests", s.Containers.Agent.Resources.Requests, requests}} {
		for name, quantity := range side.from {
			if _, err := apiresource.ParseQuantity(quantity); err != nil {
				return nil, wrong("driver_config.containers.agent.resources."+side.field+"."+name, "is %q, which is no quantity, for example 500m or 1Gi", quantity)
			}
			if _, there := side.to[name]; !there {
				side.to[name] = quantity
			}
		}
	}
	out := map[string]any{}
	if len(limits) > 0 {
		out["limits"] = limits
	}
	if len(requests) > 0 {
		out["requests"] = requests
	}
	return out, nil
}

// defaults is what the driver chooses: an agent that can run under the strictest Pod Security, and a volume for what it
// keeps.
func (d *Driver) defaults(r *driver.Request, s *settings) []plan.Object {
	agent := map[string]any{"name": agentContainer, "workingDir": workspaceMount,
		"securityContext": map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []any{"ALL"}}}}
	if d.cfg.DefaultImage != "" {
		agent["image"] = d.cfg.DefaultImage
	}
	if d.cfg.ImagePullPolicy != "" {
		agent["imagePullPolicy"] = d.cfg.ImagePullPolicy
	}
	spec := map[string]any{"restartPolicy": "Never", "automountServiceAccountToken": false, "serviceAccountName": d.cfg.ServiceAccount,
		"securityContext": map[string]any{"runAsNonRoot": true, "runAsUser": int64(sandboxUID), "runAsGroup": int64(sandboxUID), "fsGroup": int64(sandboxUID),
			"seccompProfile": map[string]any{"type": "RuntimeDefault"}}}
	if d.cfg.StopTimeout != gracePeriod {
		spec["terminationGracePeriodSeconds"] = int64((d.cfg.StopTimeout + time.Second - 1) / time.Second)
	}
	if d.cfg.RuntimeClass != "" {
		spec["runtimeClassName"] = d.cfg.RuntimeClass
	}
	var secrets []any
	for _, name := range d.cfg.ImagePullSecrets {
		secrets = append(secrets, map[string]any{"name": name})
	}
	if len(secrets) > 0 {
		spec["imagePullSecrets"] = secrets
	}
	var mounts, volumes []any
	objects := []plan.Object{}
	ownWorkspace := slices.ContainsFunc(s.Containers.Agent.VolumeMounts, func(m volumeMount) bool { return below(m.MountPath, workspaceMount) })
	if !ownWorkspace {
		mounts = append(mounts, map[string]any{"name": workspaceVolume, "mountPath": workspaceMount})
		more, volume := d.workspaceVolume()
		objects = append(objects, more...)
		if volume != nil {
			volumes = append(volumes, volume)
		}
	}
	if len(r.Spec.Token) > 0 {
		mounts = append(mounts, map[string]any{"name": tokenVolume, "mountPath": tokenDir, "readOnly": true})
		volumes = append(volumes, map[string]any{"name": tokenVolume, "secret": map[string]any{"secretName": d.tokenSecret(r.Identity), "defaultMode": int64(0o440),
			"items": []any{map[string]any{"key": tokenKey, "path": tokenFile}}}})
	}
	if len(mounts) > 0 {
		agent["volumeMounts"] = mounts
	}
	if len(volumes) > 0 {
		spec["volumes"] = volumes
	}
	spec["containers"] = []any{agent}
	return append(objects, podObject(nil, spec))
}

// sandboxUID is the user and group that a sandbox runs as.
const sandboxUID = 1000

// workspaceVolume returns what keeps /sandbox from run to run: a claim template of the Sandbox, whose volume its
// controller adds to the pod; a claim beside a plain Pod; or, where no storage is configured, nothing that outlives a run.
func (d *Driver) workspaceVolume() (objects []plan.Object, volume map[string]any) {
	if d.cfg.StorageSize == "" {
		return nil, map[string]any{"name": workspaceVolume, "emptyDir": map[string]any{}}
	}
	claim := map[string]any{"accessModes": []any{string(corev1.ReadWriteOnce)},
		"resources": map[string]any{"requests": map[string]any{"storage": d.cfg.StorageSize}}}
	if d.cfg.StorageClass != "" {
		claim["storageClassName"] = d.cfg.StorageClass
	}
	if d.pods() {
		return []plan.Object{{Kind: kindVolumeClaim, Name: workspaceVolume, Fields: map[string]any{"spec": claim}}},
			map[string]any{"name": workspaceVolume, "persistentVolumeClaim": map[string]any{"claimName": workspaceVolume}}
	}
	templates := []any{map[string]any{"metadata": map[string]any{"name": workspaceVolume}, "spec": claim}}
	return []plan.Object{{Kind: kindSandbox, Name: mainObject, Fields: map[string]any{"spec": map[string]any{"volumeClaimTemplates": templates}}}}, nil
}

// WorkspaceLayers implements driver.Driver. In mode managed a workspace has a namespace with the account and the
// credentials that its pods need; elsewhere it has nothing until somebody contributes it.
func (d *Driver) WorkspaceLayers(_ context.Context, w sandbox.Workspace) ([]plan.Layer, error) {
	if d.cfg.Mode != Managed {
		return []plan.Layer{{Owner: plan.OwnerDriver}}, nil
	}
	labels, annotations := d.workspaceMarks(w)
	var objects []plan.Object
	if d.cfg.ServiceAccount != metav1.NamespaceDefault {
		objects = append(objects, plan.Object{Kind: kindServiceAccount, Name: d.cfg.ServiceAccount, Fields: map[string]any{"automountServiceAccountToken": false}})
	}
	for _, name := range d.cfg.ImagePullSecrets {
		objects = append(objects, plan.Object{Kind: kindSecret, Name: name, Fields: map[string]any{"source": name}})
	}
	return []plan.Layer{
		{Owner: plan.OwnerGateway, Objects: []plan.Object{{Kind: kindNamespace, Name: workspaceObject,
			Fields: map[string]any{"metadata": map[string]any{"labels": table(labels), "annotations": table(annotations)}}}}},
		{Owner: plan.OwnerDriver, Objects: objects},
	}, nil
}

// environment is a pod's list of variables, by name.
func environment(m map[string]string) []any {
	var out []any
	for _, k := range sorted(m) {
		out = append(out, map[string]any{"name": k, "value": m[k]})
	}
	return out
}

func list(s []string) []any {
	out := make([]any, len(s))
	for i, v := range s {
		out[i] = v
	}
	return out
}

func table(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// tree makes a JSON tree of one of the API's types.
func tree[T any](v any) (T, error) {
	var out T
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return out, fault.New(fault.Internal, "write a value of the API: %w", err)
	}
	return out, nil
}

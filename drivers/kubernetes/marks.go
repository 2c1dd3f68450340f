package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sandgate/sandgate/shared/sandbox"
)

// The marks that OpenShell's own tools know. A value that cannot be a label stands in it by digest; the annotation of the
// same key has it in full.
const (
	managedByLabel = "openshell.ai/managed-by"
	gatewayLabel   = "openshell.ai/gateway-id"
	sandboxLabel   = "openshell.ai/sandbox-id"
	nameLabel      = "openshell.ai/sandbox-name"
	workspaceLabel = "openshell.ai/sandbox-workspace"

	// podSandboxAnnotation is on pods, and tells an OpenShell gateway whose token it is.
	podSandboxAnnotation = "openshell.io/sandbox-id"
)

// The marks that are the driver's own.
const (
	workspaceIDLabel    = "sandgate.dev/workspace-id" // label and annotation
	driverAnnotation    = "sandgate.dev/driver"
	operationAnnotation = "sandgate.dev/operation"
	runAnnotation       = "sandgate.dev/run"     // the run that was begun last
	stoppedAnnotation   = "sandgate.dev/stopped" // the run that Stop ended
	podAnnotation       = "sandgate.dev/pod"     // "run/uid" of the pod that the run has
	lostAnnotation      = "sandgate.dev/lost"    // the run whose pod somebody else has taken away
	exitedAnnotation    = "sandgate.dev/exited"  // the run that ended by itself
	exitAnnotation      = "sandgate.dev/exit"    // how a run's pod had ended: "137 OOMKilled"
	objectsAnnotation   = "sandgate.dev/objects" // what the plan has besides, "Kind/name" by the real name, with commas
)

// identityKeys are all of them: no extension sets one.
var identityKeys = []string{managedByLabel, gatewayLabel, sandboxLabel, nameLabel, workspaceLabel, podSandboxAnnotation, workspaceIDLabel,
	driverAnnotation, operationAnnotation, runAnnotation, stoppedAnnotation, exitedAnnotation, exitAnnotation, objectsAnnotation, podAnnotation, lostAnnotation}

// isMark reports whether a label or annotation is OpenShell's, or the driver's, of which there may be more one day. An
// extension's are of extensions.sandgate.dev.
func isMark(key string) bool {
	return strings.HasPrefix(key, "openshell.ai/") || strings.HasPrefix(key, "sandgate.dev/") || slices.Contains(identityKeys, key)
}

const managedBy = "openshell"

// marks of everything that is made for a sandbox. Operation is "" where it is not known yet.
func (d *Driver) marks(id sandbox.Identity, operation string) (labels, annotations map[string]string) {
	labels, annotations = d.workspaceMarks(sandbox.Workspace{ID: id.WorkspaceID, Driver: id.Driver, Name: id.Workspace})
	maps.Copy(labels, map[string]string{sandboxLabel: labelValue(id.ID), nameLabel: labelValue(id.Name)})
	maps.Copy(annotations, map[string]string{sandboxLabel: id.ID, nameLabel: id.Name})
	if operation != "" {
		annotations[operationAnnotation] = operation
	}
	return labels, annotations
}

// workspaceMarks are those of everything that is made for a workspace.
func (d *Driver) workspaceMarks(w sandbox.Workspace) (labels, annotations map[string]string) {
	labels = map[string]string{managedByLabel: managedBy, gatewayLabel: d.cfg.GatewayID,
		workspaceLabel: labelValue(w.Name), workspaceIDLabel: labelValue(w.ID)}
	annotations = map[string]string{workspaceLabel: w.Name, workspaceIDLabel: w.ID, driverAnnotation: w.Driver}
	return labels, annotations
}

// ours selects what this gateway's drivers have made, and with id "" of every sandbox.
func (d *Driver) ours(id string) string {
	set := labels.Set{managedByLabel: managedBy, gatewayLabel: d.cfg.GatewayID}
	if id != "" {
		set[sandboxLabel] = labelValue(id)
	}
	return set.String()
}

// identity reads the marks.
func identity(o metav1.Object) sandbox.Identity {
	a := o.GetAnnotations()
	return sandbox.Identity{ID: a[sandboxLabel], Driver: a[driverAnnotation], Workspace: a[workspaceLabel],
		WorkspaceID: a[workspaceIDLabel], Name: a[nameLabel]}
}

// bears reports whether an object is the sandbox's, of the operation.
func (d *Driver) bears(o metav1.Object, id sandbox.Identity, operation string) bool {
	return d.isOurs(o) && o.GetAnnotations()[sandboxLabel] == id.ID && o.GetAnnotations()[operationAnnotation] == operation
}

// isOurs reports whether an object was made for a sandbox of this gateway.
func (d *Driver) isOurs(o metav1.Object) bool {
	l := o.GetLabels()
	return l[managedByLabel] == managedBy && l[gatewayLabel] == d.cfg.GatewayID && o.GetAnnotations()[operationAnnotation] != ""
}

// number reads an annotation that is one; 0 where there is none.
func number(o metav1.Object, key string) int {
	n, _ := strconv.Atoi(o.GetAnnotations()[key])
	return n
}

// maxLabel is how long a label's value or the name of a namespace or pod may be.
const maxLabel = 63

var labelForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// labelValue is a text as a label can have it.
func labelValue(s string) string {
	if len(s) <= maxLabel && labelForm.MatchString(s) {
		return s
	}
	return "sha-" + digest(s)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// fit shortens a name to a DNS label, and then ends it with what no other has.
func fit(name string) string {
	if len(name) <= maxLabel {
		return name
	}
	return cut(name, name)
}

// cut is a name with the digest of what it stands for.
func cut(name, of string) string {
	return strings.TrimRight(name[:min(len(name), maxLabel-17)], "-.") + "-" + digest(of)
}

// sandboxName is the real name of a sandbox's Sandbox and Pod.
func (d *Driver) sandboxName(id sandbox.Identity) string {
	if d.cfg.Mode != Shared {
		return fit(id.Name)
	}
	name := id.Workspace + "--" + id.Name
	if strings.Contains(id.Workspace, "--") || strings.Contains(id.Name, "--") { // another pair might make the same name
		return cut(name, id.Workspace+"/"+id.Name)
	}
	return fit(name)
}

// sideName is the real name of an object of a sandbox's plan, beside the sandbox itself. No name of a plan holds "--", so
// that no two pairs make one name.
func (d *Driver) sideName(id sandbox.Identity, planName string) string {
	return fit(d.sandboxName(id) + "--" + planName)
}

// tokenSecret is the Secret that holds a sandbox's token.
func (d *Driver) tokenSecret(id sandbox.Identity) string { return d.sideName(id, "token") }

// tokenKey is the token's file in it.
const tokenKey = "sandbox.jwt"

// workspaceNamespace is the namespace of a workspace's sandboxes that are not placed elsewhere.
func (d *Driver) workspaceNamespace(workspace string) string {
	switch d.cfg.Mode {
	case Managed:
		return d.namespaceName(workspace, workspaceObject)
	case Operator:
		return workspace
	}
	return d.cfg.Namespace
}

package kubetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// makeSandbox applies a Sandbox with a label, and annotations of its own and of its pod.
func makeSandbox(t *testing.T, c *Cluster, ns, name, annotations, ofPod, more string, command ...string) {
	t.Helper()
	y := fmt.Sprintf(`{apiVersion: agents.x-k8s.io/%s, kind: Sandbox, metadata: {name: %s, annotations: {%s}}, spec: {service: true, %s
		podTemplate: {metadata: {labels: {a: x}, annotations: {%s}}, spec: {restartPolicy: Never, containers: [{name: agent, image: busybox, command: [%s]}]}}}}`,
		c.Kind, name, annotations, more, ofPod, strings.Join(command, ", "))
	if _, err := c.TryKubectl(y, "apply", "--server-side", "-n", ns, "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// conditions are those of a Sandbox, as "Ready=False PodFailed", if they are of its latest generation.
func conditions(t *testing.T, c *Cluster, ns, name string) string {
	t.Helper()
	var s struct {
		Metadata metav1.ObjectMeta
		Status   struct{ Conditions []metav1.Condition }
	}
	if err := json.Unmarshal([]byte(c.Kubectl(t, "get", "sandbox", name, "-n", ns, "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, one := range s.Status.Conditions {
		if one.ObservedGeneration == s.Metadata.Generation {
			all = append(all, fmt.Sprintf("%s=%s %s", one.Type, one.Status, one.Reason))
		}
	}
	return strings.Join(all, ", ")
}

func wantConditions(t *testing.T, c *Cluster, ns, name string, want ...string) {
	t.Helper()
	last := ""
	eventually(t, fmt.Sprintf("%s has %q", name, want), func() bool {
		last = conditions(t, c, ns, name)
		for _, w := range want {
			if !strings.Contains(last, w) {
				return false
			}
		}
		return true
	})
}

func TestTheStandInLivesASandbox(t *testing.T) {
	for _, k := range []Kind{Beta, Alpha} {
		t.Run(string(k), func(t *testing.T) {
			c := Use(t, k)
			ns := c.Namespace(t, nil)
			before := c.Inventory(t, ns)
			makeSandbox(t, c, ns, "one", "", "", "")
			wantConditions(t, c, ns, "one", "Ready=True DependenciesReady", "Suspended=False NotSuspended", "PodScheduled=True")
			got := c.Kubectl(t, "get", "pod,service", "-n", ns, "-o", "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.ownerReferences[*].kind} {.metadata.ownerReferences[*].controller} {.metadata.labels}{\"\\n\"}{end}")
			if want := "Pod one Sandbox true {\"a\":\"x\",\"agents.x-k8s.io/sandbox-name-hash\":\"ba2719ef\"}\nService one Sandbox true {\"agents.x-k8s.io/sandbox-name-hash\":\"ba2719ef\"}\n"; got != want {
				t.Errorf("it made\n%s want\n%s", got, want)
			}
			off, on := `{"spec":{"operatingMode":"Suspended"}}`, `{"spec":{"operatingMode":"Running"}}`
			if k == Alpha {
				off, on = `{"spec":{"replicas":0}}`, `{"spec":{"replicas":1}}`
			}
			c.Kubectl(t, "patch", "sandbox", "one", "-n", ns, "--type=merge", "-p", off)
			wantConditions(t, c, ns, "one", "Ready=False SandboxSuspended", "Suspended=True PodTerminated")
			if pods := c.Kubectl(t, "get", "pods", "-n", ns, "-o", "name"); pods != "" {
				t.Errorf("a suspended sandbox has %s", pods)
			}
			c.Kubectl(t, "patch", "sandbox", "one", "-n", ns, "--type=merge", "-p", on)
			wantConditions(t, c, ns, "one", "Ready=True DependenciesReady")
			c.Kubectl(t, "annotate", "pod", "one", "-n", ns, "stand-in/exit=3")
			wantConditions(t, c, ns, "one", "Ready=False PodFailed", "Finished=True PodFailed")
			c.Kubectl(t, "delete", "sandbox", "one", "-n", ns)
			eventually(t, "nothing is left", func() bool { return fmt.Sprint(c.Inventory(t, ns)) == fmt.Sprint(before) })
		})
	}
}

func TestFaultsOfTheStandIn(t *testing.T) {
	c := Use(t, Beta)
	for _, fault := range []struct {
		name, sandbox, pod, command string
		want, event                 string
	}{
		{name: "unschedulable", pod: "stand-in/unschedulable: no node has a gpu", want: "PodScheduled=False Unschedulable", event: "FailedScheduling no node has a gpu"},
		{name: "image", pod: "stand-in/image-pull: no such image", want: "Ready=False DependenciesNotReady", event: "Failed Failed to pull image: no such image"},
		{name: "never-ready", pod: "stand-in/never-ready: the probe fails", want: "Ready=False DependenciesNotReady", event: "Unhealthy the probe fails"},
		{name: "exit-0", pod: `stand-in/exit: "0"`, want: "Finished=True PodSucceeded"},
		{name: "exit-7", pod: `stand-in/exit: "7"`, want: "Finished=True PodFailed"},
		{name: "command", command: "/stand-in/exit, \"3\"", want: "Finished=True PodFailed"},
		{name: "slow", sandbox: "stand-in/slow: 1s", want: "Ready=True DependenciesReady"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			ns := c.Namespace(t, nil)
			makeSandbox(t, c, ns, fault.name, fault.sandbox, fault.pod, "", fault.command)
			wantConditions(t, c, ns, fault.name, fault.want)
			eventually(t, "there is an event "+fault.event, func() bool {
				return strings.Contains(c.Kubectl(t, "get", "events", "-n", ns, "-o", "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}"), fault.event)
			})
		})
	}
}

func TestAFaultOfANamespaceEndsWithItsAnnotation(t *testing.T) {
	c := Use(t, Beta)
	ns := c.Namespace(t, nil)
	c.Kubectl(t, "annotate", "namespace", ns, "stand-in/ignore=yes")
	other := c.Namespace(t, nil)
	makeSandbox(t, c, other, "seen", "", "", "") // after the annotation, which the stand-in then knows
	wantConditions(t, c, other, "seen", "Ready=True")
	makeSandbox(t, c, ns, "one", "", "", "")
	makeSandbox(t, c, other, "later", "", "", "")
	wantConditions(t, c, other, "later", "Ready=True")
	if got := conditions(t, c, ns, "one"); got != "" {
		t.Errorf("an ignored sandbox has %s", got)
	}
	c.Kubectl(t, "annotate", "namespace", ns, "stand-in/ignore-", "stand-in/stuck=yes")
	wantConditions(t, c, ns, "one", "Ready=True")
	c.Kubectl(t, "delete", "sandbox", "one", "-n", ns, "--wait=false")
	eventually(t, "the pod is being deleted", func() bool {
		return c.Kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={.items[*].metadata.deletionTimestamp}") != ""
	})
	c.Kubectl(t, "annotate", "namespace", ns, "stand-in/stuck-")
	eventually(t, "the pod is gone", func() bool { return c.Kubectl(t, "get", "pods", "-n", ns, "-o", "name") == "" })
}

func TestAnotherClientTakesFieldsAway(t *testing.T) {
	c := Use(t, Beta)
	ns := c.Namespace(t, nil)
	makeSandbox(t, c, ns, "one", "stand-in/meddle: ipam", "b: two", "operatingMode: Suspended,")
	_, err := c.TryKubectl(`{apiVersion: agents.x-k8s.io/v1beta1, kind: Sandbox, metadata: {name: one}, spec: {podTemplate: {metadata: {annotations: {address: ten}}, spec: {}}}}`,
		"apply", "--server-side", "--field-manager=ipam", "-n", ns, "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the annotation is taken away", func() bool {
		return c.Kubectl(t, "get", "sandbox", "one", "-n", ns, "-o", "jsonpath={.spec.podTemplate.metadata.annotations.address}") == ""
	})
	wantConditions(t, c, ns, "one", "Suspended=True")
}

func TestAPodWaitsForItsClaim(t *testing.T) {
	c := Use(t, Plain)
	ns := c.Namespace(t, nil)
	apply := func(y string) {
		t.Helper()
		if _, err := c.TryKubectl(y, "apply", "-n", ns, "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	phase := func() string { return c.Kubectl(t, "get", "pod", "one", "-n", ns, "-o", "jsonpath={.status.phase}") }
	apply(`{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {resourceClaims: [{name: gpu, resourceClaimName: gpu}], containers: [
		{name: agent, image: busybox, resources: {claims: [{name: gpu}]}}]}}`)
	eventually(t, "an event says what is missing", func() bool {
		return strings.Contains(c.Kubectl(t, "get", "events", "-n", ns, "-o", "jsonpath={.items[*].message}"), `resourceclaim "gpu" not found`)
	})
	if got := phase(); got != "Pending" {
		t.Errorf("without its claim it is %s", got)
	}
	apply(`{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {name: gpu}, spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.example.com}}]}}}`)
	eventually(t, "it runs", func() bool { return phase() == "Running" })
	c.Kubectl(t, "delete", "pod", "one", "-n", ns)
}

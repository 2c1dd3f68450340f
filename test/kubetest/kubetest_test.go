package kubetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const victim = "KUBETEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victim) != "" {
		beVictim()
	}
	os.Exit(Main(m))
}

// sandbox is a Sandbox of one owner's fields.
func sandbox(c *Cluster, spec string) string {
	return "apiVersion: agents.x-k8s.io/" + string(c.Kind) + "\nkind: Sandbox\nmetadata: {name: one}\nspec: " + spec
}

func TestSandboxesMergeAsTheRealOnesDo(t *testing.T) {
	for _, k := range []Kind{Beta, Alpha} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			c := Use(t, k)
			ns := c.Namespace(t, nil)
			apply := func(manager, spec string) error {
				_, err := c.TryKubectl(sandbox(c, spec), "apply", "--server-side", "--field-manager="+manager, "-n", ns, "-f", "-")
				return err
			}
			for _, step := range []struct{ what, manager, spec, refused string }{
				{what: "a whole sandbox", manager: "driver", spec: `{podTemplate: {metadata: {labels: {a: x}}, spec: {nodeSelector: {disk: ssd}, containers: [
					{name: agent, image: busybox, ports: [{containerPort: 80}], env: [{name: A, value: "1"}], resources: {limits: {cpu: "1"}}}]}}}`},
				{what: "what has a key merges", manager: "other", spec: `{podTemplate: {metadata: {labels: {b: z}}, spec: {
					resourceClaims: [{name: gpu, resourceClaimName: gpu}],
					containers: [{name: agent, ports: [{containerPort: 81}], env: [{name: B, value: "2"}], resources: {claims: [{name: gpu}]}}]}}}`},
				{what: "a field of another", manager: "other", spec: `{podTemplate: {spec: {containers: [{name: agent, image: alpine}]}}}`,
					refused: `conflict with "driver"`},
				{what: "what is atomic has one owner", manager: "other", spec: `{podTemplate: {spec: {nodeSelector: {zone: a}, containers: [{name: agent}]}}}`,
					refused: `conflict with "driver"`},
				{what: "a field that there is not", manager: "other", spec: `{podTemplate: {spec: {nonsense: 1, containers: [{name: agent}]}}}`,
					refused: "nonsense"},
			} {
				err := apply(step.manager, step.spec)
				if (err != nil) != (step.refused != "") || err != nil && !strings.Contains(err.Error(), step.refused) {
					t.Errorf("%s: %v, want %q", step.what, err, step.refused)
				}
			}
			got := c.Kubectl(t, "get", "sandbox", "one", "-n", ns, "-o", "jsonpath={.spec.podTemplate.spec.containers[*].env[*].name} {.spec.podTemplate.spec.nodeSelector}")
			if want := `A B {"disk":"ssd"}`; got != want {
				t.Errorf("the sandbox has %s, want %s", got, want)
			}
		})
	}
}

func TestVolumeClaimTemplatesStayAsTheyAre(t *testing.T) {
	c := Use(t, Beta)
	ns := c.Namespace(t, nil)
	with := func(size string) string {
		return sandbox(c, `{podTemplate: {spec: {containers: [{name: agent, image: busybox}]}}, volumeClaimTemplates: [
			{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: `+size+`}}}}]}`)
	}
	if _, err := c.TryKubectl(with("1Gi"), "apply", "--server-side", "-n", ns, "-f", "-"); err != nil {
		t.Fatal(err)
	}
	_, err := c.TryKubectl(with("2Gi"), "apply", "--server-side", "-n", ns, "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "volumeClaimTemplates is immutable") {
		t.Errorf("a larger claim: %v", err)
	}
}

func TestAUserMayDoWhatRolesAllow(t *testing.T) {
	c := Use(t, Plain)
	ns := c.Namespace(t, nil)
	as := "--kubeconfig=" + c.Kubeconfig(t, "somebody", "team")
	if _, err := c.TryKubectl("", as, "get", "pods", "-n", ns); err == nil || !strings.Contains(err.Error(), `User "somebody" cannot list resource "pods"`) {
		t.Errorf("without a role: %v", err)
	}
	c.Kubectl(t, "create", "rolebinding", "viewers", "--clusterrole=view", "--group=team", "-n", ns)
	eventually(t, "the role allows it", func() bool { // it reaches the authorizer in a moment
		_, err := c.TryKubectl("", as, "get", "pods", "-n", ns)
		return err == nil
	})
	eventually(t, "the audit has both", func() bool {
		codes := map[int]bool{}
		for _, call := range c.Calls(t, "somebody") {
			if call.Resource == "pods" && call.Verb == "list" && call.Namespace == ns {
				codes[call.Code] = true
			}
		}
		return codes[403] && codes[200]
	})
}

func TestTheAPIServerComesBackWhereItWas(t *testing.T) {
	c := New(t, Plain)
	ns := c.Namespace(t, nil)
	before := c.Inventory(t, ns)
	c.KillAPIServer()
	if _, err := c.Client().CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{}); err == nil {
		t.Fatal("it answers after it was killed")
	}
	if err := c.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	if after := c.Inventory(t, ns); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("after a restart it has %q, before %q", after, before)
	}
}

// beVictim starts a cluster, says where it is and which processes it has, and waits to be killed.
func beVictim() {
	c, err := Start(Beta)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(c.dir)
	for _, s := range c.servers {
		fmt.Println(s.cmd.Process.Pid)
	}
	fmt.Println("end")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestNothingOutlivesTheTests(t *testing.T) {
	Need(t)
	me, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, me)
	cmd.Env = append(os.Environ(), victim+"=yes")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "end"; {
		said = append(said, lines.Text())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if len(said) < 4 {
		t.Fatalf("it said %q", said)
	}
	for _, pid := range said[1:] {
		var n int
		if _, err := fmt.Sscan(pid, &n); err != nil {
			t.Fatal(err)
		}
		eventually(t, "process "+pid+" ends", func() bool { return ended(n) })
	}
	eventually(t, said[0]+" is removed", func() bool { _, err := os.Stat(said[0]); return os.IsNotExist(err) })
}

// ended says whether a process is none any more, or one that only waits for its parent.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ") || unix.Kill(pid, 0) != nil
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not come to be that %s", what)
		case <-tick.C:
		}
	}
}

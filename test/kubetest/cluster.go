package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Config returns the administrator's way to the API server.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns the administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// ConfigOf reads a kubeconfig, without a limit to the rate of calls, and without warnings.
func (c *Cluster) ConfigOf(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err == nil {
		config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	}
	return config, err
}

// Kubeconfig returns the kubeconfig of a user, by a client certificate. Without a role of RBAC that user may do nothing.
func (c *Cluster) Kubeconfig(tb testing.TB, user string, groups ...string) string {
	tb.Helper()
	path, err := c.kubeconfig(user, groups...)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func (c *Cluster) kubeconfig(user string, groups ...string) (string, error) {
	file := c.path(strings.ReplaceAll(user, "/", "_"))
	if err := c.ca.issue(file, user, groups...); err != nil {
		return "", err
	}
	config := api.NewConfig()
	config.Clusters["test"] = &api.Cluster{Server: c.Host, CertificateAuthority: c.path("ca.crt")}
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificate: file + ".crt", ClientKey: file + ".key"}
	config.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: user}
	config.CurrentContext = "test"
	return file + ".kubeconfig", clientcmd.WriteToFile(*config, file+".kubeconfig")
}

// Kubectl runs kubectl as the administrator, and returns what it prints.
func (c *Cluster) Kubectl(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := c.TryKubectl("", args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// TryKubectl runs kubectl on an input as the administrator, or as whom --kubeconfig names.
func (c *Cluster) TryKubectl(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, append([]string{"kubectl"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "KUBECONFIG=" + c.Admin}
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("kubectl %s: %s", strings.Join(args, " "), bytes.TrimSpace(exit.Stderr))
	}
	return string(out), err
}

// Namespace makes a namespace in which pods may be made, and deletes it when the test ends, without waiting for that: it
// takes 5 s.
func (c *Cluster) Namespace(tb testing.TB, labels map[string]string) string {
	tb.Helper()
	c.mu.Lock()
	c.namespace++
	name := fmt.Sprintf("test-%d", c.namespace)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		err := c.client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			tb.Error(err)
		}
	})
	if err := c.until(ctx, "kube-controller-manager", func() bool { return c.hasServiceAccount(ctx, name) }); err != nil {
		tb.Fatal(err)
	}
	return name
}

func (c *Cluster) hasServiceAccount(ctx context.Context, namespace string) bool {
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
	return err == nil
}

// Inventory lists all that is stored, events and leases left out: "resource.group namespace/name uid", sorted. Without
// namespaces it is of the whole cluster.
func (c *Cluster) Inventory(tb testing.TB, namespaces ...string) []string {
	tb.Helper()
	client, err := metadata.NewForConfig(c.config)
	if err != nil {
		tb.Fatal(err)
	}
	lists, err := discovery.ServerPreferredResources(c.client.Discovery())
	if err != nil {
		tb.Fatal(err)
	}
	var all []string
	for _, list := range lists {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			tb.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") || r.Name == "events" || r.Name == "leases" {
				continue
			}
			found, err := client.Resource(group.WithResource(r.Name)).List(tb.Context(), metav1.ListOptions{})
			if err != nil {
				tb.Fatalf("list %s: %v", r.Name, err)
			}
			for _, o := range found.Items {
				if len(namespaces) == 0 || slices.Contains(namespaces, o.Namespace) || r.Name == "namespaces" && slices.Contains(namespaces, o.Name) {
					all = append(all, fmt.Sprintf("%s %s/%s %s", group.WithResource(r.Name).GroupResource(), o.Namespace, o.Name, o.UID))
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// Call is a request that the API server has answered.
type Call struct {
	User      string
	As        string // whom the user has impersonated
	Verb      string // get, list, watch, create, update, patch, delete, deletecollection
	Group     string
	Resource  string // with its subresource: pods/status
	Namespace string
	Name      string
	DryRun    bool
	Code      int
	At        time.Time
}

// Calls returns the requests of a user that the API server's audit log has, oldest first.
func (c *Cluster) Calls(tb testing.TB, user string) []Call {
	tb.Helper()
	raw, err := os.ReadFile(c.path("audit.log"))
	if err != nil {
		tb.Fatal(err)
	}
	var calls []Call
	seen := map[string]bool{}
	for line := range bytes.Lines(raw) {
		var e struct {
			AuditID                string
			Verb                   string
			RequestURI             string
			User, ImpersonatedUser struct{ Username string }
			ObjectRef              struct{ Resource, Subresource, Namespace, Name, APIGroup string }
			ResponseStatus         struct{ Code int }
			StageTimestamp         time.Time
		}
		if json.Unmarshal(line, &e) != nil { // the last line, when it is half written
			continue
		}
		if e.User.Username != user || seen[e.AuditID] { // a watch is there twice: when it begins, and when it ends
			continue
		}
		seen[e.AuditID] = true
		call := Call{User: e.User.Username, As: e.ImpersonatedUser.Username, Verb: e.Verb, Group: e.ObjectRef.APIGroup, Resource: e.ObjectRef.Resource,
			Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name, DryRun: strings.Contains(e.RequestURI, "dryRun="), Code: e.ResponseStatus.Code, At: e.StageTimestamp}
		if e.ObjectRef.Subresource != "" {
			call.Resource += "/" + e.ObjectRef.Subresource
		}
		calls = append(calls, call)
	}
	return calls
}

package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Config returns the administrator's way to the API server.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns the administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Dynamic returns the administrator's client for objects of any kind.
func (c *Cluster) Dynamic() dynamic.Interface { return c.dynamic }

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

// Put writes objects as somebody else would, with an apply that takes over what is there: those that say no namespace into
// the one that is given.
func (c *Cluster) Put(tb testing.TB, namespace, manifest string) {
	tb.Helper()
	kinds, err := c.resources()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	for all := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), 4096); ; {
		o := &unstructured.Unstructured{}
		if err := all.Decode(o); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			tb.Fatalf("%v in %s", err, manifest)
		}
		gvk := o.GroupVersionKind()
		at := slices.IndexFunc(kinds, func(r metav1.APIResource) bool {
			return r.Group == gvk.Group && r.Kind == gvk.Kind
		})
		if at < 0 {
			tb.Fatalf("the cluster has no %s", gvk)
		}
		if kinds[at].Namespaced && o.GetNamespace() == "" {
			o.SetNamespace(namespace)
		}
		to := c.dynamic.Resource(gvk.GroupVersion().WithResource(kinds[at].Name)).Namespace(o.GetNamespace())
		if _, err := to.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "somebody", Force: true}); err != nil {
			tb.Fatal(err)
		}
	}
}

// May reports whether RBAC lets a user do something in a namespace.
func (c *Cluster) May(tb testing.TB, user, verb, resource, namespace string) bool {
	tb.Helper()
	r, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(tb.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: resource, Namespace: namespace}}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return r.Status.Allowed
}

// Namespace makes a namespace in which pods may be made. It goes with the cluster: to delete one takes the servers a
// hundred calls.
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
	if err := c.until(ctx, "kube-controller-manager", func() bool { return c.hasServiceAccount(ctx, name) }); err != nil {
		tb.Fatal(err)
	}
	return name
}

func (c *Cluster) hasServiceAccount(ctx context.Context, namespace string) bool {
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
	return err == nil
}

// resources are the kinds of objects that the cluster has, each in the version that it prefers. They stay the same.
func (c *Cluster) resources() ([]metav1.APIResource, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds != nil {
		return c.kinds, nil
	}
	lists, err := discovery.ServerPreferredResources(c.client.Discovery())
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			r.Group, r.Version = group.Group, group.Version
			c.kinds = append(c.kinds, r)
		}
	}
	return c.kinds, nil
}

// Inventory lists all that is stored, events and leases left out: "resource.group namespace/name uid", sorted. Without
// namespaces it is of the whole cluster.
func (c *Cluster) Inventory(tb testing.TB, namespaces ...string) []string {
	tb.Helper()
	kinds, err := c.resources()
	if err != nil {
		tb.Fatal(err)
	}
	in := slices.Compact(slices.Sorted(slices.Values(namespaces)))
	if len(in) == 0 {
		in = []string{""}
	}
	var all []string
	for _, r := range kinds {
		own := r.Name == "namespaces" && len(namespaces) > 0
		if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") || r.Name == "events" || r.Name == "leases" ||
			!r.Namespaced && len(namespaces) > 0 && !own {
			continue
		}
		gvr := schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Name}
		for _, ns := range in {
			opts := metav1.ListOptions{}
			if own {
				ns, opts.FieldSelector = "", "metadata.name="+ns
			}
			found, err := c.metadata.Resource(gvr).Namespace(ns).List(tb.Context(), opts)
			if err != nil {
				tb.Fatalf("list %s: %v", r.Name, err)
			}
			for _, o := range found.Items {
				all = append(all, fmt.Sprintf("%s %s/%s %s", gvr.GroupResource(), o.Namespace, o.Name, o.UID))
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

// Audit returns the API server's audit log: who has asked for what, and what it was answered, without the objects.
func (c *Cluster) Audit(tb testing.TB) []byte {
	tb.Helper()
	raw, err := os.ReadFile(c.path("audit.log"))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// Calls returns the requests of a user that the API server's audit log has, oldest first.
func (c *Cluster) Calls(tb testing.TB, user string) []Call {
	tb.Helper()
	var calls []Call
	seen := map[string]bool{}
	for line := range bytes.Lines(c.Audit(tb)) {
		if !bytes.Contains(line, []byte(user)) { // most are not, and the log is long
			continue
		}
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

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sandgate/sandgate/shared/fault"
)

// cluster is the API server, as the driver's account sees it.
type cluster struct {
	http     *http.Client
	dynamic  dynamic.Interface
	typed    kubernetes.Interface
	config   *rest.Config
	maker    dynamic.Interface // speaks for who makes the pods; nil: the driver may not
	patience time.Duration

	events   bool   // it may watch events
	api      string // APIV1Beta1, APIV1Alpha1 or APIPod
	version  string
	instance string            // the cluster's id
	wide     bool              // the account may look at the sandboxes of every namespace
	writes   map[resource]bool // what it may make and remove besides
	absent   map[string]bool   // kinds that the cluster does not have
}

// The client's own limits would let 5 requests a second pass. The server has better ones (priority and fairness).
const (
	clientQPS   = 1000
	clientBurst = 2000
)

// connect makes the clients; it asks nothing of the server.
func connect(cfg Config) (*cluster, error) {
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = clientQPS, clientBurst
	rc.UserAgent = "sandgate/" + cfg.Version
	rc.WarningHandler = rest.NoWarnings{}
	if cfg.Impersonate != "" {
		rc.Impersonate = rest.ImpersonationConfig{UserName: cfg.Impersonate}
	}
	c := &cluster{patience: cfg.Patience, config: rc}
	if c.http, err = rest.HTTPClientFor(rc); err == nil {
		c.dynamic, err = dynamic.NewForConfigAndClient(rc, c.http)
	}
	if err == nil {
		c.typed, err = kubernetes.NewForConfigAndClient(rc, c.http)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "the credentials of the cluster cannot be used: %w", err)
	}
	return c, nil
}

// restConfig finds the credentials: the kubeconfig that is named, the pod's own, or kubectl's.
func restConfig(cfg Config) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if cfg.Kubeconfig != "" {
		if _, err := os.Stat(cfg.Kubeconfig); err != nil {
			return nil, fault.New(fault.Invalid, "kubeconfig: %w", err).With(fault.Diagnostic{Path: "kubeconfig", Summary: "cannot be read"})
		}
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig}
	} else if rc, err := rest.InClusterConfig(); err == nil && cfg.Context == "" {
		return rc, nil
	}
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fault.New(fault.Invalid, "kubeconfig: %w", err).With(fault.Diagnostic{Path: "kubeconfig", Summary: "cannot be used"})
	}
	return rc, nil
}

// probe asks the server what it is, and what the driver may do there.
func (c *cluster) probe(ctx context.Context, cfg Config) error {
	about, err := c.typed.Discovery().ServerVersion()
	if err != nil {
		return failed("ask", "the API server for its version", err)
	}
	c.version = about.GitVersion
	if c.api, err = c.findAPI(ctx, cfg); err != nil {
		return err
	}
	if err := c.rights(ctx, cfg); err != nil {
		return err
	}
	if c.instance, err = c.identify(ctx, cfg); err != nil {
		return err
	}
	return c.findMaker(ctx, cfg)
}

// identify names the cluster and what of it the driver looks at: under another name, that a sandbox is not found proves
// nothing. A namespace keeps its uid as long as it lives, and kube-system is in every cluster.
func (c *cluster) identify(ctx context.Context, cfg Config) (string, error) {
	ns, err := c.typed.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	if apierrors.IsForbidden(err) && cfg.Mode == Shared {
		ns, err = c.typed.CoreV1().Namespaces().Get(ctx, cfg.Namespace, metav1.GetOptions{})
	}
	if err != nil {
		return "", failed("get", "namespace kube-system, by which the cluster is known", err)
	}
	where := cfg.Namespace
	if c.wide {
		where = "*"
	}
	return strings.Join([]string{string(ns.UID), cfg.GatewayID, cfg.Mode, where}, "/"), nil
}

// same checks that the cluster behind the address is still the one that was there when the driver was opened.
func (c *cluster) same(ctx context.Context, cfg Config) error {
	now, err := c.identify(ctx, cfg)
	if err == nil && now != c.instance {
		return fault.New(fault.Unavailable, "kubernetes: behind the address is another cluster, %s: it was %s", now, c.instance)
	}
	return err
}

// rights asks what the cluster serves, and what of it the account may use: in all namespaces, or else in the one of the
// sandboxes.
func (c *cluster) rights(ctx context.Context, cfg Config) error {
	var err error
	if c.wide, err = c.mayAll(ctx, "", c.anchor(), "list"); err != nil {
		return err
	}
	if pods, err := c.mayAll(ctx, "", podResource, "list"); err != nil {
		return err
	} else if !pods {
		c.wide = false
	}
	namespace := cfg.Namespace
	switch {
	case c.wide:
		namespace = ""
	case cfg.Mode != Shared:
		return fault.New(fault.FailedPrecondition, "the account may not list pods and %s in all namespaces, which mode %q needs", c.anchor().gvr.Resource, cfg.Mode)
	}
	if c.events, err = c.may(ctx, "watch", eventResource, namespace); err != nil {
		return err
	}
	if err := c.served(); err != nil {
		return err
	}
	var mu sync.Mutex
	c.writes = map[resource]bool{}
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range append(slices.Clone(resources), podResource) {
		if c.absent[r.gvk.Kind] || !r.namespaced && !c.wide {
			continue
		}
		g.Go(func() error {
			ok, err := c.mayRemove(ctx, r, namespace)
			mu.Lock()
			defer mu.Unlock()
			c.writes[r] = ok
			return err
		})
	}
	return g.Wait()
}

// served asks which kinds the cluster does not have.
func (c *cluster) served() error {
	c.absent = map[string]bool{}
	have := map[string]bool{}
	for _, r := range resources {
		version := r.gvr.GroupVersion().String()
		if r.gvr.Group == "" {
			continue // every cluster has them
		}
		if !have[version] {
			all, err := c.typed.Discovery().ServerResourcesForGroupVersion(version)
			if err != nil && !apierrors.IsNotFound(err) {
				return failed("ask", "the API server for "+version, err)
			}
			have[version] = true
			if err == nil {
				for _, one := range all.APIResources {
					have[version+"/"+one.Name] = true
				}
			}
		}
		if !have[version+"/"+r.gvr.Resource] {
			c.absent[r.gvk.Kind] = true
		}
	}
	return nil
}

// mayRemove reports whether the account may find and remove what there is of a kind. What it may make it has to.
func (c *cluster) mayRemove(ctx context.Context, r resource, namespace string) (bool, error) {
	ok, err := c.mayAll(ctx, namespace, r, "list", "delete")
	if ok || err != nil || r == podResource {
		return ok, err
	}
	if makes, err := c.may(ctx, "patch", r, namespace); err != nil || !makes {
		return false, err
	}
	return false, fault.New(fault.FailedPrecondition, "the account may patch %s, and not list and delete them: what it makes it could not remove", r.gvr.Resource)
}

func (c *cluster) mayAll(ctx context.Context, namespace string, r resource, verbs ...string) (bool, error) {
	for _, v := range verbs {
		if ok, err := c.may(ctx, v, r, namespace); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// kindsIn are those of which there may be objects of the driver's in a namespace: the account may have rights there that it
// has not everywhere.
func (c *cluster) kindsIn(ctx context.Context, namespace string) ([]resource, error) {
	var out []resource
	for _, r := range resources {
		if !r.namespaced || c.absent[r.gvk.Kind] {
			continue
		}
		ok := c.writes[r]
		if !ok && c.wide && namespace != "" {
			var err error
			if ok, err = c.mayRemove(ctx, r, namespace); err != nil {
				return nil, err
			}
		}
		if ok {
			out = append(out, r)
		}
	}
	return out, nil
}

// findAPI decides what a sandbox is made of.
func (c *cluster) findAPI(ctx context.Context, cfg Config) (string, error) {
	if cfg.API == APIPod {
		return APIPod, nil
	}
	for _, version := range []string{APIV1Beta1, APIV1Alpha1} {
		if cfg.API != APIAuto && cfg.API != version {
			continue
		}
		all, err := c.typed.Discovery().ServerResourcesForGroupVersion(sandboxGroup + "/" + version)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", failed("ask", "the API server for "+sandboxGroup, err)
		}
		for _, r := range all.APIResources {
			if r.Name == "sandboxes" {
				return version, nil
			}
		}
	}
	if cfg.API != APIAuto {
		return "", fault.New(fault.FailedPrecondition, "the cluster has no %s/%s: install agent-sandbox, or set api = \"pod\"", sandboxGroup, cfg.API).
			With(fault.Diagnostic{Path: "api", Summary: "the cluster has none"})
	}
	return APIPod, nil
}

// may asks whether the account has a right; namespace "" is all of them.
func (c *cluster) may(ctx context.Context, verb string, on resource, namespace string) (bool, error) {
	r, err := c.typed.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: verb, Group: on.gvr.Group, Resource: on.gvr.Resource, Namespace: namespace}}}, metav1.CreateOptions{})
	if err != nil {
		return false, failed("ask", "what the account may do", err)
	}
	return r.Status.Allowed, nil
}

func (c *cluster) close() { c.http.CloseIdleConnections() }

// failed turns what the API server or the way to it says into a fault.
func failed(call, object string, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(codeOf(err), "kubernetes: %s %s: %w", call, object, err)
}

// codeOf sorts errors by what can be done about them. What the server has answered is not in doubt.
func codeOf(err error) fault.Code {
	var status apierrors.APIStatus
	switch {
	case errors.Is(err, context.Canceled):
		return fault.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return fault.DeadlineExceeded
	case !errors.As(err, &status), unready(err):
		return fault.Unavailable
	case apierrors.IsNotFound(err):
		return fault.NotFound
	case apierrors.IsAlreadyExists(err):
		return fault.AlreadyExists
	case apierrors.IsConflict(err):
		return fault.Conflict
	case apierrors.IsForbidden(err) && exceedsQuota(err):
		return fault.ResourceExhausted
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.IsMethodNotSupported(err):
		return fault.FailedPrecondition
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return fault.Invalid
	}
	return fault.FailedPrecondition
}

// exceedsQuota tells a quota's refusal from a missing right: both are Forbidden.
func exceedsQuota(err error) bool { return strings.Contains(err.Error(), "exceeded quota") }

// unready reports whether a server has answered that it cannot answer now.
func unready(err error) bool {
	return apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsTimeout(err) || apierrors.IsInternalError(err) && !apierrors.IsInvalid(err)
}

// String is for messages.
func (c *cluster) String() string { return fmt.Sprintf("Kubernetes %s", c.version) }

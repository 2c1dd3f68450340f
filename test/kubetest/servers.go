package kubetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Cluster is a control plane that runs.
type Cluster struct {
	Kind Kind
	// Host is where the API server listens. It is the same after a restart.
	Host string
	// Admin is the kubeconfig of an administrator whom RBAC allows everything.
	Admin string

	dir       string
	program   string
	ca        *authority
	port      *os.File // holds the port, so that nobody else gets it while the API server is down
	lifeline  *os.File // the servers end when its other end, which is ours, is closed
	held      *os.File
	keeper    *exec.Cmd
	mu        sync.Mutex
	servers   map[string]*server
	client    *kubernetes.Clientset
	dynamic   dynamic.Interface
	metadata  metadata.Interface
	config    *rest.Config
	kinds     []metav1.APIResource // nil: not asked for yet
	namespace int
}

type server struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// patience is how long a start may take on a machine that has much else to do.
const patience = 2 * time.Minute

// Start starts a control plane. Whoever starts one stops it; one that is not stopped ends with this process.
func Start(k Kind) (*Cluster, error) {
	program, err := program()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kt-") // short: a socket's path is
	if err != nil {
		return nil, err
	}
	c := &Cluster{Kind: k, dir: dir, program: program, servers: map[string]*server{}}
	if err := c.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start a %s cluster: %w%s", k, err, c.logs()), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.run("etcd", c.etcd()...); err != nil {
		return err
	}
	err := c.until(ctx, "etcd", func() bool { _, err := os.Stat(c.path("etcd.sock")); return err == nil })
	if err == nil {
		err = c.startAPIServer(ctx)
	}
	// The garbage collector looks for new resources every 30 s only: those of sandboxes are there before it starts.
	if err == nil && c.Kind != Plain {
		err = c.installSandboxes(ctx)
	}
	if err == nil {
		err = c.run("kube-controller-manager", c.controllerManager()...)
	}
	if err == nil {
		err = c.StartStandIn()
	}
	if err == nil {
		err = c.until(ctx, "kube-controller-manager", func() bool { return c.hasServiceAccount(ctx, "default") })
	}
	return err
}

// prepare makes what the servers read: certificates, kubeconfigs, the audit policy, the port, the lifeline.
func (c *Cluster) prepare() (err error) {
	if c.lifeline, c.held, err = os.Pipe(); err != nil {
		return err
	}
	// The files go as the servers do, whatever happens to this process.
	c.keeper = exec.Command("sh", "-c", `trap '' INT TERM; read -r _; sleep 1; rm -rf "$1"`, "keeper", c.dir)
	c.keeper.Stdin = c.lifeline
	if err := c.keeper.Start(); err != nil {
		return err
	}
	var port int
	if c.port, port, err = holdPort(); err != nil {
		return err
	}
	c.Host = fmt.Sprintf("https://127.0.0.1:%d", port)
	if c.ca, err = newAuthority(c.path("ca.crt")); err != nil {
		return err
	}
	if err := errors.Join(c.ca.issue(c.path("server"), "kube-apiserver"), c.ca.issue(c.path("accounts"), "accounts"),
		os.WriteFile(c.path("audit.yaml"), []byte(auditPolicy), 0o600)); err != nil {
		return err
	}
	for user, groups := range map[string][]string{"administrator": {"system:masters"}, "system:kube-controller-manager": nil,
		SandboxController: {"system:masters"}, kubelet: {"system:masters"}} {
		if _, err := c.kubeconfig(user, groups...); err != nil {
			return err
		}
	}
	c.Admin = c.path("administrator.kubeconfig")
	if c.config, err = c.ConfigOf(c.Admin); err != nil {
		return err
	}
	if c.client, err = kubernetes.NewForConfig(c.config); err == nil {
		c.dynamic, err = dynamic.NewForConfig(c.config)
	}
	if err == nil {
		c.metadata, err = metadata.NewForConfig(c.config)
	}
	return err
}

// holdPort binds a free port of loopback without listening on it. The API server joins it, and again after a restart.
func holdPort() (*os.File, int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "port")
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	at, nameErr := unix.Getsockname(fd)
	if err := errors.Join(err, nameErr); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, at.(*unix.SockaddrInet4).Port, nil
}

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver", "system:kube-controller-manager", "system:node:stand-in"]
- level: None
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
`

func (c *Cluster) etcd() []string {
	clients, peers := "unix://"+c.path("etcd.sock"), "unix://"+c.path("peer.sock")
	return []string{"--name=test", "--data-dir=" + c.path("etcd"), "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls=" + clients, "--advertise-client-urls=" + clients,
		"--listen-peer-urls=" + peers, "--initial-advertise-peer-urls=" + peers, "--initial-cluster=test=" + peers}
}

func (c *Cluster) apiServer() []string {
	_, port, _ := strings.Cut(strings.TrimPrefix(c.Host, "https://"), ":")
	return []string{"--etcd-servers=unix://" + c.path("etcd.sock"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + port, "--permit-port-sharing=true",
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
		"--tls-cert-file=" + c.path("server.crt"), "--tls-private-key-file=" + c.path("server.key"), "--client-ca-file=" + c.path("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.path("accounts.key"),
		"--service-account-signing-key-file=" + c.path("accounts.key"), "--allow-privileged=true", "--profiling=false",
		"--audit-policy-file=" + c.path("audit.yaml"), "--audit-log-path=" + c.path("audit.log")}
}

// controllers are those whose work a driver meets: what a namespace gets and leaves behind, what owners take along,
// quota, claims, and the finalizer of a volume claim.
var controllers = []string{"namespace-controller", "garbage-collector-controller", "serviceaccount-controller",
	"root-ca-certificate-publisher-controller", "clusterrole-aggregation-controller", "resourcequota-controller",
	"resourceclaim-controller", "persistentvolumeclaim-protection-controller", "validatingadmissionpolicy-status-controller"}

func (c *Cluster) controllerManager() []string {
	return []string{"--kubeconfig=" + c.path("system:kube-controller-manager.kubeconfig"), "--controllers=" + strings.Join(controllers, ","),
		"--use-service-account-credentials=true", "--root-ca-file=" + c.path("ca.crt"),
		"--service-account-private-key-file=" + c.path("accounts.key"), "--leader-elect=false", "--secure-port=0",
		"--kube-api-qps=1000", "--kube-api-burst=2000"} // with its own slow limits it needs a second more to start
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// run starts one of the program's servers, which ends with this process.
func (c *Cluster) run(name string, args ...string) error {
	log, err := os.OpenFile(c.path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	s := &server{cmd: exec.Command(c.program, append([]string{name}, args...)...), done: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = c.dir, log, log
	s.cmd.ExtraFiles = []*os.File{c.lifeline}
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + c.dir, "LIFELINE_FD=3", "GOGC=400"} // there is memory, and little of processors
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // how it ended is in its log
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[name] = s
	return nil
}

// kill ends a server as a crash would, and returns when it has ended.
func (c *Cluster) kill(name string) {
	c.mu.Lock()
	s := c.servers[name]
	delete(c.servers, name)
	c.mu.Unlock()
	if s != nil {
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// until waits until a server does what it is started for.
func (c *Cluster) until(ctx context.Context, name string, ok func() bool) error {
	c.mu.Lock()
	s := c.servers[name]
	c.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-s.done:
			return fmt.Errorf("%s has ended", name)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// KillAPIServer ends the API server as a crash would. What it has stored stays.
func (c *Cluster) KillAPIServer() { c.kill("kube-apiserver") }

// StartAPIServer starts the API server again, where it was, and returns when it is ready.
func (c *Cluster) StartAPIServer() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.startAPIServer(ctx)
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	if err := c.run("kube-apiserver", c.apiServer()...); err != nil {
		return err
	}
	return c.until(ctx, "kube-apiserver", func() bool {
		return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(5*time.Second).Do(ctx).Error() == nil
	})
}

// SandboxController is who makes the pods of Sandboxes. Policies that judge the user judge it.
const SandboxController = "system:serviceaccount:agent-sandbox-system:agent-sandbox-controller"

const kubelet = "system:node:stand-in"

// KillStandIn ends the Sandbox controller and the kubelet as a crash would.
func (c *Cluster) KillStandIn() { c.kill("stand-in") }

// StartStandIn starts them, again.
func (c *Cluster) StartStandIn() error {
	args := []string{"-kubelet=" + c.path(kubelet+".kubeconfig")}
	if c.Kind != Plain {
		args = append(args, "-controller="+c.path(SandboxController+".kubeconfig"), "-sandboxes="+string(c.Kind))
	}
	return c.run("stand-in", args...)
}

// Stop ends the servers, and removes what they have stored: it is worth no graceful end.
func (c *Cluster) Stop() error {
	for _, name := range []string{"stand-in", "kube-controller-manager", "kube-apiserver", "etcd"} {
		c.kill(name)
	}
	if c.keeper != nil && c.keeper.Process != nil {
		_ = c.keeper.Process.Kill()
		_ = c.keeper.Wait() // it was killed
	}
	for _, f := range []*os.File{c.held, c.lifeline, c.port} {
		if f != nil {
			_ = f.Close()
		}
	}
	return os.RemoveAll(c.dir)
}

// logs returns the last lines of what the servers said.
func (c *Cluster) logs() string {
	var all strings.Builder
	paths, _ := filepath.Glob(c.path("*.log"))
	for _, path := range paths {
		if filepath.Base(path) == "audit.log" {
			continue
		}
		raw, _ := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		fmt.Fprintf(&all, "\n%s:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	return all.String()
}

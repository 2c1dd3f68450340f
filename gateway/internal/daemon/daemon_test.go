package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/drivers/native"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/supervisor/rogue"
	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/test/kubetest"

	"golang.org/x/sys/unix"
)

// The test binary is the shim of the native driver and the extensions too, by its first argument.
const (
	shimSwitch   = "native-shim"
	keeperSwitch = "keeper"
	newerState   = "newer-state" // as an argument: the keeper reads and writes the second version of its state only
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == shimSwitch {
		unix.Exit(native.ShimMain(os.Args[2:])) // os.Exit of a program with the race detector takes a second
	}
	if filepath.Base(os.Args[0]) == "driver" { // a copy of it: a driver block has no arguments
		_ = plugin.ServeDriver(nativePlugin{}) // it has said what was wrong
		unix.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == keeperSwitch {
		_ = plugin.Serve(&keeper{dir: os.Args[2], requires: os.Args[3:]}) // it has said what was wrong
		unix.Exit(0)
	}
	if len(os.Args) > 3 && os.Args[1] == recorderSwitch {
		_ = plugin.Serve(newRecorder(os.Args[2:])) // it has said what was wrong
		unix.Exit(0)
	}
	if len(os.Args) > 3 && os.Args[1] == heldSwitch {
		unix.Exit(native.ShimMain(os.Args[3:]))
	}
	if mode := os.Getenv(rogue.Mode); mode != "" {
		rogue.Main(mode)
		unix.Exit(0)
	}
	if crashMain(os.Args) {
		unix.Exit(0)
	}
	code := enginetest.Main(m)
	if err := kubetest.StopAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	for _, dir := range []string{examplesDir, programsDir, boots.dir} {
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// keeper is an extension that holds a file for each sandbox, and writes down everything that it is told.
type keeper struct {
	dir      string
	requires []string
	mu       sync.Mutex
}

type keeperConfig struct {
	Tag   string `json:"tag" default:"none"`
	Token string `json:"token" config:"optional,sensitive"`
}

func (k *keeper) Info() plugin.Info {
	version, requires := 1, k.requires
	if slices.Contains(requires, newerState) {
		version, requires = 2, nil
	}
	return plugin.Info{Name: "keeper", Version: "1.0.0", Requires: requires, Uses: []string{"labels", "image", "environment"}, Config: &keeperConfig{},
		StateReads: []int{version}, StateWrites: version}
}

// Configure implements plugin.Configurer. It is an indiscreet program: it quotes what it does not like.
func (k *keeper) Configure(_ context.Context, c *plugin.Config) error {
	cfg := c.Value.(*keeperConfig)
	if cfg.Tag == "refuse" {
		c.Invalid("token", "I do not like "+cfg.Token, "Not at all: "+cfg.Token)
	}
	if cfg.Tag == "fail" {
		return errors.New("no way to use " + cfg.Token)
	}
	return nil
}

// dump keeps all that a call carries, for the tests to look through.
func (k *keeper) dump(ctx context.Context, r *plugin.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(k.dir, "dump"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	raw, _ := json.Marshal(map[string]any{"phase": r.Phase(), "plan": r.Plan(), "workspace": r.WorkspacePlan(), "labels": r.Labels(), "image": r.Image(), "held": r.Held(),
		"key": r.Key(), "pid": os.Getpid(),
		"span": trace.SpanContextFromContext(ctx).SpanID()})
	_, _ = f.Write(append(raw, '\n'))
}

func (k *keeper) PreparePlan(ctx context.Context, r *plugin.Request, p *plugin.Plan) error {
	k.dump(ctx, r)
	if image, ok := r.Labels()["image"]; ok {
		f, _ := r.Feature("image")
		if f.Point.Kind() == "PodTemplate" { // there it is in an item of a list
			return p.Contribute(f.Point.Kind(), f.Object, corev1.PodTemplate{Template: corev1.PodTemplateSpec{
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: image}}}}})
		}
		return p.Set(f, image)
	}
	if v, ok := r.Labels()["password"]; ok {
		f, _ := r.Feature("environment")
		return p.Set(f, map[string]string{"PASSWORD": v})
	}
	return nil
}

func (k *keeper) file(r *plugin.Request) string { return filepath.Join(k.dir, "held-"+r.SubjectID()) }

func (k *keeper) BeforeCreate(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	k.dump(ctx, r)
	if gate := r.Labels()["gate"]; gate != "" {
		if !filepath.IsAbs(gate) { // not every driver's labels can be paths
			gate = filepath.Join(k.dir, gate)
		}
		f, err := os.OpenFile(gate, os.O_RDONLY, 0) // a FIFO: until somebody opens it for writing
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	s.Hold("file", r.SubjectID(), "")
	return errors.Join(os.WriteFile(k.file(r), nil, 0o600), s.SetState(1, "state of "+r.SubjectID()))
}

func (k *keeper) release(ctx context.Context, r *plugin.Request) error {
	k.dump(ctx, r)
	if err := os.Remove(k.file(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (k *keeper) AfterDelete(ctx context.Context, r *plugin.Request) error { return k.release(ctx, r) }
func (k *keeper) OnCreateFailed(ctx context.Context, r *plugin.Request) error {
	return k.release(ctx, r)
}

// site is a gateway on a directory of its own.
type site struct {
	t    *testing.T
	dir  string
	logs bytes.Buffer
	d    *Daemon
	done chan error
	stop context.CancelFunc
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "sgd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(os.RemoveAll(dir), os.RemoveAll(mustRuntimeDir(t, dir+"/data"))) })
	return &site{t: t, dir: dir}
}

const driverBlocks = `
driver "native" {}
driver "acme" {
  base = "native"
  %s
}
`

// write writes the configuration; binds stand in the composed driver's block.
func (s *site) write(extensions, binds string) string {
	s.t.Helper()
	text := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen   = \"unix://%s/gw.sock\"\n}\n", s.dir+"/data", s.dir) + extensions + fmt.Sprintf(driverBlocks, binds)
	path := filepath.Join(s.dir, "site.hcl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// edit changes the configuration that was written.
func (s *site) edit(from, to string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "site.hcl")
	raw, err := os.ReadFile(path)
	if err == nil && !strings.Contains(string(raw), from) {
		err = fmt.Errorf("there is no %q in it", from)
	}
	if err == nil {
		err = os.WriteFile(path, []byte(strings.Replace(string(raw), from, to, 1)), 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func self(t *testing.T) string {
	t.Helper()
	p, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// keeperBlock configures the keeper.
func (s *site) keeperBlock(config string) string {
	return fmt.Sprintf("extension \"keeper\" {\n  command = %q\n  args    = [%q, %q]\n  paths {\n    write = [%q]\n  }\n  config {\n%s\n  }\n}\n", self(s.t), keeperSwitch, s.dir, s.dir, config)
}

func (s *site) options() Options {
	return Options{Paths: []string{filepath.Join(s.dir, "site.hcl")}, Dev: true, Version: "test", Shim: []string{self(s.t), shimSwitch},
		Logger: slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

func (s *site) start() {
	s.t.Helper()
	s.startWith(func(*Options) {})
}

func (s *site) startWith(change func(*Options)) {
	s.t.Helper()
	ready := make(chan struct{})
	opts := s.options()
	change(&opts)
	opts.Ready = func(string) { close(ready) }
	d, f, err := New(s.t.Context(), opts)
	if err != nil || d == nil {
		s.t.Fatalf("%v %s", err, f)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.d, s.done, s.stop = d, make(chan error, 1), cancel
	go func() { s.done <- d.Run(ctx) }()
	select {
	case <-ready:
	case err := <-s.done:
		s.t.Fatalf("the gateway does not serve: %v", err)
	}
}

func (s *site) end() {
	s.t.Helper()
	s.stop()
	if err := <-s.done; err != nil {
		s.t.Errorf("the gateway ended with %v", err)
	}
}

func (s *site) create(name string, spec sandbox.Spec) (sandbox.Identity, error) {
	s.t.Helper()
	spec.Command = []string{"/bin/sleep", "600"}
	h, id, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Name: name, Spec: spec})
	if err != nil {
		return id, err
	}
	_, err = h.Wait(s.t.Context())
	return id, err
}

func (s *site) remove(id string) {
	s.t.Helper()
	h, err := s.d.engine.DeleteSandbox(id, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.until("the sandbox is deleted", func() bool {
		sb, err := s.d.engine.Find(engine.Ref{IDOrName: id})
		return err == nil && sb.State == sandbox.Deleted
	})
}

// until waits for something that the engine publishes.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(20 * time.Millisecond) // for what no change of a record tells of
	defer look.Stop()
	for {
		changed := s.d.engine.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-look.C:
		case <-limit.C:
			s.t.Fatalf("it does not come to this: %s", what)
		}
	}
}

func (s *site) held() int {
	files, _ := filepath.Glob(filepath.Join(s.dir, "held-*"))
	return len(files)
}

const keeperBind = `bind "keeper" {
    grant { mutate = ["Process.labels", "Process.image"] }
  }`

// An extension that a new configuration drops while a sandbox holds something of it, and the gateway is restarted
// after that, even without its program and with another setting of the driver: the stored generation releases.
func TestADroppedExtensionStillReleases(t *testing.T) {
	s := newSite(t)
	program := filepath.Join(s.dir, "keeper")
	raw, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	s.write(strings.ReplaceAll(s.keeperBlock(""), self(t), program), keeperBind)
	s.start()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	s.write("", "")
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	sb, err := s.d.engine.Find(engine.Ref{IDOrName: id.ID})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.d.engine.Retiring(sb); len(got) != 1 || got[0] != "keeper" {
		t.Errorf("retiring: %v", got)
	}
	s.end()
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	s.edit(`driver "native" {}`, "driver \"native\" {\n  config { stop_timeout = \"3s\" }\n}")
	s.start()
	if s.held() != 1 {
		t.Fatalf("%d files are held, want 1", s.held())
	}
	s.remove(id.ID)
	if s.held() != 0 {
		t.Error("what the dropped extension held is held still")
	}
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Fatalf("a reload under the driver's new setting: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "data/programs/*")); len(left) > 0 {
		t.Errorf("copies of programs that nothing refers to: %v", left)
	}
	s.end()
}

// A secret is in nothing that is written, and in nothing that an extension without a grant is told.
func TestSecretsStayWithTheDriver(t *testing.T) {
	s := newSite(t)
	secrets := make([]string, 3) // put together here, since the gateway keeps a copy of this program
	for i, of := range []string{"environment", "token", "config"} {
		secrets[i] = strings.Join([]string{"secret", "of", of}, "-")
	}
	s.write(s.keeperBlock(fmt.Sprintf("    token = %q", secrets[2])), keeperBind)
	s.start()
	spec := sandbox.Spec{Environment: map[string]string{"PASSWORD": secrets[0]}, Token: []byte(secrets[1])}
	preview, err := s.d.engine.Preview(t.Context(), engine.CreateRequest{Driver: "acme", Name: "p", Spec: sandbox.Spec{Command: []string{"x"}, Environment: spec.Environment, Token: spec.Token}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.create("one", spec)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := json.Marshal(preview.Plan.Fields())
	if err != nil {
		t.Fatal(err)
	}
	audit, err := s.d.engine.Audit(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	said, err := json.Marshal(audit)
	if err != nil {
		t.Fatal(err)
	}
	look := func(where string, b []byte) {
		t.Helper()
		for _, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %q", where, secret)
			}
		}
	}
	look("the preview", shown)
	look("the audit", said)
	files := func() {
		t.Helper()
		err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, "site.hcl") {
				return nil // what is being removed meanwhile holds nothing
			}
			raw, err := os.ReadFile(path)
			look(path, raw)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	files()
	if b, err := os.ReadFile(filepath.Join(s.dir, "dump")); err != nil || !bytes.Contains(b, []byte(phase.BeforeCreate)) {
		t.Errorf("the extension has told nothing: %v", err)
	}
	s.remove(id.ID)
	s.end()
	files()
	look("the log", s.logs.Bytes())
}

// What is required and not there is found before the gateway is ready, at the line of the bind.
func TestARequiredFeatureThatIsMissingIsShownAtTheBind(t *testing.T) {
	s := newSite(t)
	block := strings.Replace(s.keeperBlock(""), fmt.Sprintf("%q]", s.dir), fmt.Sprintf("%q, \"guest-init-dropins\"]", s.dir), 1)
	s.write(block, "bind \"keeper\" {\n    grant { mutate = [\"Process.labels\", \"Container\"] }\n    phase \"after_stop\" {}\n  }")
	check := func(name string, f *config.Findings, err error) {
		t.Helper()
		var out bytes.Buffer
		if err != nil || f == nil || f.Render(&out) != nil || !f.HasErrors() {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []string{"site.hcl line 19", `bind "keeper"`, "Container", "after_stop", "guest-init-dropins"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s does not say %q:\n%s", name, want, out.String())
			}
		}
	}
	f, err := Check(t.Context(), s.options())
	check("validate --launch", f, err)
	d, f, err := New(t.Context(), s.options())
	if d != nil {
		t.Error("there is a daemon")
	}
	check("the start", f, err)
}

// The image that the caller wrote is replaced with override, and is a conflict without.
func TestAnImageIsReplacedOnlyWithOverride(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	s.start()
	spec := sandbox.Spec{Image: "alpine", Labels: map[string]string{"image": "mirror/alpine"}}
	_, err := s.create("one", spec)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "request") || !strings.Contains(err.Error(), "keeper") {
		t.Errorf("without override: %v", err)
	}
	s.write(s.keeperBlock(""), "bind \"keeper\" {\n    grant {\n      mutate   = [\"Process.labels\", \"Process.image\"]\n      override = [\"Process.image\"]\n    }\n  }")
	if _, err := s.d.Reload(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	id, err := s.create("one", spec)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.d.engine.PlanOf(id.ID)
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := p.Object("Process", "main"); o.Fields["image"] != "mirror/alpine" {
		t.Errorf("image is %v", o.Fields["image"])
	}
	s.remove(id.ID)
	s.end()
}

// A bad configuration changes nothing.
func TestABadReloadChangesNothing(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	s.start()
	before := s.d.catalog.current().ID
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"broken":             "driver",
		"the driver is gone": fmt.Sprintf("gateway {\n  data_dir = %q\n}\ndriver \"native\" {}\n", s.dir+"/data"),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, "site.hcl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.d.Reload(t.Context(), "test"); err == nil {
			t.Errorf("%s: it was loaded", name)
		}
	}
	if now := s.d.catalog.current().ID; now != before {
		t.Error("another configuration is in force")
	}
	if _, err := s.create("two", sandbox.Spec{}); err != nil {
		t.Errorf("a create after that: %v", err)
	}
	s.remove(id.ID)
	two, err := s.d.engine.Find(engine.Ref{IDOrName: "two"})
	if err != nil {
		t.Fatal(err)
	}
	s.remove(two.ID)
	s.end()
}

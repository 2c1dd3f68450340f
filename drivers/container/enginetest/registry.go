package enginetest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// registryAddress is where a registry is in the network of an engine, which nobody else has.
const registryAddress = "127.0.0.1:5000"

// registry serves one image over plain HTTP, to an engine alone.
type registry struct {
	mu       sync.Mutex
	manifest []byte
	blobs    map[string][]byte
	fetched  int // how often the manifest was asked for
}

const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	configType   = "application/vnd.docker.container.image.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// put makes the image anew, with a variable by which it differs from others.
func (g *registry) put(version string) error {
	rootfs, err := busybox()
	if err != nil {
		return err
	}
	layer, err := io.ReadAll(rootfs)
	if err != nil {
		return err
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err = z.Write(layer)
	if err = errors.Join(err, z.Close()); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin", "VERSION=" + version}}, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}}})
	if err != nil {
		return err
	}
	of := func(typ string, b []byte) map[string]any {
		return map[string]any{"mediaType": typ, "size": len(b), "digest": digest(b)}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blobs = map[string][]byte{digest(config): config, digest(zipped.Bytes()): zipped.Bytes()}
	g.manifest, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": of(configType, config),
		"layers": []any{of(layerType, zipped.Bytes())}})
	return err
}

func (g *registry) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fetched
}

// ServeHTTP implements http.Handler.
func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	body, typ := []byte("{}"), "application/json"
	if r.URL.Path != "/v2/" {
		name, kind, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/test/")
		switch kind, what := path.Split(kind); {
		case name == "sandgate" && kind == "manifests/":
			g.fetched++
			body, typ = g.manifest, manifestType
			w.Header().Set("Docker-Content-Digest", digest(body))
		case kind == "blobs/" && g.blobs[what] != nil:
			body, typ = g.blobs[what], "application/octet-stream"
		default:
			w.Header().Set("Content-Type", typ)
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
			return
		}
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// serve serves the registry in the engine's own network until the test ends.
func (g *registry) serve(t *testing.T, e *Engine) {
	t.Helper()
	l, err := e.listen()
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: g} //nolint:gosec // of tests alone
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// listen listens where only the engine can get: in its network.
func (e *Engine) listen() (l net.Listener, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return nil, err
	}
	its, err := netns.GetFromPid(e.cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	if err = netns.Set(its); err == nil {
		l, err = net.Listen("tcp", registryAddress)
		err = errors.Join(err, netns.Set(own))
	}
	return l, errors.Join(err, own.Close(), its.Close())
}

// Images makes sandboxes of images that are fetched, by each policy.
func Images(t *testing.T, e *Engine, open func(dir, socket, policy string) (driver.Driver, error)) {
	t.Helper()
	g := &registry{}
	g.serve(t, e)
	reference := registryAddress + "/sandgate/test:1"
	create := func(policy, image string) (version string, err error) {
		r := newRig(t, e, func(dir, socket string) (driver.Driver, error) { return open(dir, socket, policy) })
		r.must("EnsureWorkspace", r.ensure())
		s := r.sandboxOf("one", image, sleeps)
		if err = s.make(); err == nil {
			version = r.versionOf(s.until(driver.Ready).Objects[0].Name)
		}
		r.must("Delete", s.delete())
		r.must("DeleteWorkspace", r.d.DeleteWorkspace(r.Context(), r.ws))
		return version, err
	}
	check := func(what, policy, want string, fetches bool) {
		t.Helper()
		before := g.count()
		got, err := create(policy, reference)
		if err != nil || got != want || (g.count() > before) != fetches {
			t.Errorf("%s: version %q, %v, fetched %t; want version %q, fetched %t", what, got, err, g.count() > before, want, fetches)
		}
	}
	if err := g.put("1"); err != nil {
		t.Fatal(err)
	}
	quiet, err := e.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	for policy, image := range map[string]string{"never": reference, "missing": registryAddress + "/nobody/test:1", "always": registryAddress + "/nobody/test:1"} {
		_, err := create(policy, image)
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), image) {
			t.Errorf("%s, an image that is not there: %v (%s); want failed_precondition that names it", policy, err, fault.CodeOf(err))
		}
		t.Logf("%s: %v", policy, err)
	}
	check("missing, the image is not there", "missing", "1", true)
	if err := g.put("2"); err != nil {
		t.Fatal(err)
	}
	check("missing, an older image is there", "missing", "1", false)
	check("always", "always", "2", true)
	check("never, the image is there", "never", "2", false)
	now, err := e.Inventory()
	if err != nil || strings.Join(now, ",") != strings.Join(quiet, ",") {
		t.Errorf("left: %v, %v", now, err)
	}
	if err := e.Call(http.MethodDelete, "/v1.40/images/"+url.PathEscape(reference)+"?force=1", nil, nil); err != nil {
		t.Error(err)
	}
}

// versionOf returns the variable of the image that a container was made from.
func (r *rig) versionOf(name string) string {
	r.Helper()
	var c struct {
		Config struct{ Env []string }
	}
	r.must("inspect", r.e.Call(http.MethodGet, "/v1.40/containers/"+name+"/json", nil, &c))
	for _, v := range c.Config.Env {
		if version, ok := strings.CutPrefix(v, "VERSION="); ok {
			return version
		}
	}
	return ""
}

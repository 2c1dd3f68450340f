// Package enginetest gives tests real container engines, each of its own: scripts/engine.sh runs them away from the
// host's. An engine is started when the first test asks for it, and ends with the test program.
package enginetest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Kind is what scripts/engine.sh calls an engine.
type Kind string

// The engines.
const (
	Docker   Kind = "docker"
	Podman   Kind = "podman"
	Rootless Kind = "rootless" // Podman of an ordinary user
)

// Image is in every engine: busybox, of which nothing is set but the path.
const Image = "localhost/sandgate-test:1"

// Engine is an engine that runs.
type Engine struct {
	Kind   Kind
	Socket string

	cmd     *exec.Cmd
	orders  io.WriteCloser
	answers *bufio.Scanner
	before  []string

	mu sync.Mutex // one order at a time
}

// Missing says what an engine needs that is not here; "" where it can run.
func Missing(k Kind) string {
	if os.Geteuid() != 0 {
		if k != Rootless {
			return "only root can give the engine a place of its own"
		}
		if why := missingForUser(); why != "" {
			return why
		}
	}
	programs := []string{"unshare", "catatonit", "podman", "runc", "busybox"}
	switch k {
	case Docker:
		programs[2] = "dockerd"
	case Rootless:
		programs = append(programs, "newuidmap", "slirp4netns", "setpriv")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed; scripts/install-packages.sh does that"
		}
	}
	return ""
}

// missingForUser says what an ordinary user lacks for Podman.
func missingForUser() string {
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		return "this user may not open /dev/net/tun, which the network of rootless Podman needs"
	}
	me, err := user.Current()
	if err != nil {
		return err.Error()
	}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		ids, _ := os.ReadFile(path)
		if !strings.Contains("\n"+string(ids), "\n"+me.Username+":") {
			return me.Username + " has no ids in " + path
		}
	}
	return ""
}

var shared struct {
	sync.Mutex
	engines map[Kind]*Engine
}

// Need leaves the test out where the engine cannot run, and says why: as root in CI that is a failure.
func Need(tb testing.TB, k Kind) {
	tb.Helper()
	if why := Missing(k); why != "" {
		if os.Geteuid() == 0 && os.Getenv("CI") == "true" {
			tb.Fatalf("%s: %s", k, why)
		}
		tb.Skipf("left out: %s: %s", k, why)
	}
}

// Use returns the test program's engine of the kind, which it needs.
func Use(tb testing.TB, k Kind) *Engine {
	tb.Helper()
	Need(tb, k)
	shared.Lock()
	defer shared.Unlock()
	if e := shared.engines[k]; e != nil {
		return e
	}
	e, err := Start(k)
	if err != nil {
		tb.Fatal(err)
	}
	if shared.engines == nil {
		shared.engines = map[Kind]*Engine{}
	}
	shared.engines[k] = e
	return e
}

// Main runs the tests, ends the engines that they used, and fails where the tests have left something in one.
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	for _, e := range shared.engines {
		if left, err := e.left(); err != nil || len(left) > 0 {
			fmt.Fprintf(os.Stderr, "the tests have left in %s: %s %v\n", e.Kind, strings.Join(left, ", "), err)
			code = max(code, 1)
		}
		if err := e.End(); err != nil {
			fmt.Fprintf(os.Stderr, "end %s: %v\n", e.Kind, err)
			code = max(code, 1)
		}
	}
	return code
}

// Start runs an engine with the image in it. Whoever starts one ends it.
func Start(k Kind) (*Engine, error) {
	script, err := script()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sg-") // short: a socket's path is
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	e := &Engine{Kind: k, Socket: filepath.Join(dir, "sock"), cmd: exec.Command(script, string(k), dir)}
	e.cmd.Stderr = os.Stderr
	if e.orders, err = e.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.answers = bufio.NewScanner(out)
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	err = e.answer()
	if err == nil {
		err = e.load()
	}
	if err == nil {
		e.before, err = e.Inventory()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", k, err), e.End())
	}
	return e, nil
}

// script finds scripts/engine.sh from a package's directory.
func script() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "scripts/engine.sh"), nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.Join(errors.New("scripts/engine.sh is not above this directory"), err)
}

// Order gives the engine one of the orders that scripts/engine.sh knows, and waits until it is carried out.
func (e *Engine) Order(word string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := fmt.Fprintln(e.orders, word); err != nil {
		return err
	}
	return e.answer()
}

func (e *Engine) answer() error {
	if !e.answers.Scan() {
		return errors.Join(errors.New("the engine's script has ended"), e.answers.Err())
	}
	if got := e.answers.Text(); got != "ok" {
		return errors.New(got)
	}
	return nil
}

// End ends the engine and everything in it.
func (e *Engine) End() error { return errors.Join(e.orders.Close(), e.cmd.Wait()) }

// HTTP returns a client that speaks with the engine whatever the host of the address is.
func (e *Engine) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
	}}}
}

// Call makes one call of the engine's Docker API, which both engines have, and returns what it says.
func (e *Engine) Call(method, path string, body io.Reader, out any) error {
	req, err := http.NewRequest(method, "http://engine"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	if out != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.HTTP().Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// Inventory lists the containers, networks and volumes of the engine, sorted.
func (e *Engine) Inventory() ([]string, error) {
	var containers []struct{ Names []string }
	var networks []struct{ Name string }
	var volumes struct{ Volumes []struct{ Name string } }
	err := errors.Join(e.Call("GET", "/v1.40/containers/json?all=1", nil, &containers), e.Call("GET", "/v1.40/networks", nil, &networks),
		e.Call("GET", "/v1.40/volumes", nil, &volumes))
	var out []string
	for _, c := range containers {
		out = append(out, "container "+strings.Join(c.Names, ","))
	}
	for _, n := range networks {
		out = append(out, "network "+n.Name)
	}
	for _, v := range volumes.Volumes {
		out = append(out, "volume "+v.Name)
	}
	slices.Sort(out)
	return out, err
}

// left returns what is there and was not when the engine had started.
func (e *Engine) left() ([]string, error) {
	now, err := e.Inventory()
	return slices.DeleteFunc(now, func(s string) bool { return slices.Contains(e.before, s) }), err
}

// load makes the image of the host's busybox, which is static.
func (e *Engine) load() error {
	rootfs, err := busybox()
	if err != nil {
		return err
	}
	if e.Kind == Docker {
		return e.Call("POST", "/v1.40/images/create?fromSrc=-&repo=localhost/sandgate-test&tag=1&changes=ENV+PATH%3D/bin", rootfs, nil)
	}
	return e.Call("POST", "/v4.0.0/libpod/images/import?reference="+Image+"&changes=ENV+PATH%3D/bin", rootfs, nil)
}

// busybox returns a root file system as a tar.
func busybox() (io.Reader, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "root/", "run/", "sys/", "tmp/"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}))
	}
	err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}))
	_, wrote := w.Write(program)
	err = errors.Join(err, wrote)
	for _, name := range strings.Fields("sh cat sleep ip env id ls mv mkfifo test true false wc mount ps hostname dd") {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}))
	}
	return &out, errors.Join(err, w.Close())
}

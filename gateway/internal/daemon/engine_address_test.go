package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
)

// What ipam has leased is what the container has, seen from within: the programs are those that native is used with.
func TestTheLeasedAddressIsTheContainersOwn(t *testing.T) {
	for i, k := range []enginetest.Kind{enginetest.Docker, enginetest.Podman} {
		t.Run(string(k), func(t *testing.T) {
			w := newWreck(t, k, 20+i)
			w.up()
			w.must(w.words("create", w.id())...)
			w.must("settle")
			said := inContainer(t, w.engine, w.id(), "ip", "-4", "-o", "addr")
			have := regexp.MustCompile(fmt.Sprintf(`inet (10\.%d\.\d+\.\d+)/24`, 110+i)).FindStringSubmatch(said)
			leases, err := exec.Command("cat", glob(t, filepath.Join(w.dir, "leases", "*"))...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, leases)
			}
			if have == nil || !strings.Contains(string(leases), have[1]) {
				t.Errorf("in the container: %s\nleased: %s", said, leases)
			}
			w.must("delete", w.id())
			w.must("delete-workspace", w.name)
			w.must("settle")
			w.finish()
		})
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	var files []string
	paths, err := filepath.Glob(pattern)
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			files = append(files, p)
		}
	}
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v %v", pattern, paths, err)
	}
	return files
}

// inContainer runs a program in the sandbox's container and returns what it has printed.
func inContainer(t *testing.T, e *enginetest.Engine, sandbox string, command ...string) string {
	t.Helper()
	filters, err := json.Marshal(map[string][]string{"label": {"sandgate.dev/sandbox=" + sandbox}})
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ ID string }
	if err := e.Call("GET", "/v1.40/containers/json?filters="+url.QueryEscape(string(filters)), nil, &list); err != nil || len(list) != 1 {
		t.Fatalf("containers of %s: %v %v", sandbox, list, err)
	}
	body, err := json.Marshal(map[string]any{"Cmd": command, "AttachStdout": true, "AttachStderr": true, "Tty": true})
	if err != nil {
		t.Fatal(err)
	}
	var made struct{ ID string }
	if err := e.Call("POST", "/v1.40/containers/"+list[0].ID+"/exec", strings.NewReader(string(body)), &made); err != nil {
		t.Fatal(err)
	}
	resp, err := e.HTTP().Post("http://engine/v1.40/exec/"+made.ID+"/start", "application/json", strings.NewReader(`{"Tty": true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("exec: %s %v: %s", resp.Status, err, said)
	}
	return string(said)
}

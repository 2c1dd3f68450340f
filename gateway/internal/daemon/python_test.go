package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// python is Debian's, which has grpcio as a package.
const python = "/usr/bin/python3"

// pythonBlock copies the example to where nobody else may write, and configures it.
func (s *site) pythonBlock() string {
	s.t.Helper()
	if out, err := exec.Command(python, "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		if os.Geteuid() == 0 && os.Getenv("CI") != "" {
			s.t.Fatalf("%s", out)
		}
		s.t.Skip("python3-grpcio and python3-protobuf are not installed; scripts/install-packages.sh does, as root")
	}
	dir := filepath.Join(s.dir, "python")
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{"labels.py", "sandgate_extension.py", "extension_pb2.py"} {
		text, err := os.ReadFile(filepath.Join("../../../examples/python-labels", name))
		if err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return fmt.Sprintf(`extension "python-labels" {
  command     = "%[1]s/labels.py"
  interpreter = %[2]q
  files       = ["%[1]s/sandgate_extension.py", "%[1]s/extension_pb2.py"]
  paths {
    write = ["%[1]s/register"]
  }
  config {
    register  = "%[1]s/register"
    labels    = { made-by = "python" }
    forbidden = ["made-by"]
  }
}
`, dir, python)
}

// An extension in Python stands in the chain beside one in Go: it is negotiated, contributes, refuses, holds, is
// killed and started again, and releases.
func TestAnExtensionInPythonStandsInTheChain(t *testing.T) {
	s := newSite(t)
	s.write(s.keeperBlock("")+s.pythonBlock(), keeperBind+`
  bind "python-labels" {
    grant { mutate = ["Process.labels"] }
  }`)
	s.start()
	registered := func() int {
		files, _ := filepath.Glob(filepath.Join(s.dir, "python/register/*"))
		return len(files)
	}
	preview, err := s.d.engine.Preview(t.Context(), engine.CreateRequest{Driver: "acme", Name: "p", Spec: sandbox.Spec{Command: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	owner := ""
	for _, f := range preview.Plan.Fields() {
		if strings.Contains(f.Path, "made-by") {
			owner = string(f.Owner)
		}
	}
	if owner != "python-labels" || registered() != 0 {
		t.Errorf("the label is %q's, and a preview registers %d", owner, registered())
	}
	if _, err := s.create("refused", sandbox.Spec{Labels: map[string]string{"made-by": "hand"}}); err == nil || !strings.Contains(err.Error(), "python-labels") {
		t.Errorf("a forbidden label: %v", err)
	}
	one, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if s.held() != 1 || registered() != 1 {
		t.Errorf("held %d, registered %d", s.held(), registered())
	}
	process, err := os.FindProcess(s.d.catalog.current().extensions["python-labels"].handle.Status().PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	two, err := s.create("two", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	s.remove(one.ID)
	s.remove(two.ID)
	if s.held() != 0 || registered() != 0 {
		t.Errorf("after the deletes: held %d, registered %d", s.held(), registered())
	}
	s.end()
}

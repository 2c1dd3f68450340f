package sandgate

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sandgate/sandgate/"

// rules says which packages of ours a package may import. A name covers what is below it. The first rule that fits a
// package is its rule.
var rules = []struct {
	of  string
	may []string
}{
	{"shared/fault", nil},
	{"shared/proto", []string{"shared/proto"}},
	{"shared", []string{"shared"}},
	{"plugin", []string{"shared", "plugin"}},
	{"drivers/host", []string{"shared"}},
	{"drivers/native", []string{"shared", "drivers/host"}},
	{"drivers/vm/internal/guest", nil}, // it is in every machine: nothing that grpc comes with
	{"drivers/vm/guest-init", []string{"drivers/vm/internal/guest"}},
	{"drivers/vm", []string{"shared", "drivers/host", "drivers/vm"}},
	{"drivers/container", []string{"shared", "drivers/container"}},
	{"drivers/docker", []string{"shared", "drivers/container"}},
	{"drivers/podman", []string{"shared", "drivers/container"}},
	{"drivers/compose", []string{"shared"}},
	{"drivers/kubernetes", []string{"shared"}},
	{"drivers/remote", []string{"shared"}},
	{"drivers", []string{"shared", "drivers"}},
	{"examples", []string{"shared", "plugin", "examples"}},
	{"test", []string{"test"}},
	{"gateway/internal/journal", []string{"shared/fault", "gateway/internal/journal"}},
	{"gateway/internal/config", []string{"shared"}},
	{"gateway/internal/pipeline", []string{"shared"}},
	{"gateway/internal/telemetry", []string{"shared", "gateway/internal/journal", "gateway/internal/pipeline"}},
	{"gateway/internal/engine", []string{"shared", "gateway/internal/journal", "gateway/internal/pipeline"}},
	{"gateway/internal/supervisor", []string{"shared", "plugin", "gateway/internal/pipeline"}},
	{"gateway/internal/bench/noop", []string{"plugin"}},
	{"gateway/internal/bench", nil},
	{"gateway/internal/crashcheck", nil},
	{"gateway/internal/api/openshelltest", []string{"shared/proto"}},
	{"gateway/internal/api", []string{"shared", "gateway/internal/engine", "gateway/internal/pipeline"}},
	{"gateway/internal/daemon", []string{"shared", "drivers", "gateway/internal"}},
	{"gateway/internal/cli", []string{"shared", "gateway/internal/daemon", "gateway/internal/config", "gateway/internal/scaffold", "plugin/plugintest/conformance"}},
	{"gateway/internal/scaffold", []string{"examples/python-labels", "shared/fault"}},
	{"gateway", []string{"drivers/native", "gateway/internal/cli"}},
}

func within(pkg string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return pkg == n || strings.HasPrefix(pkg, n+"/") })
}

type pkg struct {
	ImportPath                         string
	Name                               string
	Doc                                string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		of := strings.TrimPrefix(p.ImportPath, module)
		i := slices.IndexFunc(rules, func(r struct {
			of  string
			may []string
		}) bool {
			return within(of, []string{r.of})
		})
		if i < 0 {
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			if ok && ours != of && !within(ours, rules[i].may) {
				t.Errorf("%s imports %s; it may import %s", of, ours, strings.Join(rules[i].may, ", "))
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && !strings.Contains(p.ImportPath, "/proto/") {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
	for _, dir := range []string{"engine", "pipeline", "supervisor", "journal"} {
		if _, err := os.Stat(filepath.Join("gateway/internal", dir, "DESIGN.md")); err != nil {
			t.Error(err)
		}
	}
}

// eachFile parses every hand-written Go file.
func eachFile(t *testing.T, fn func(path string, set *token.FileSet, f *ast.File)) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return err
		}
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err == nil {
			fn(path, set, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mains are the programs that end themselves with a code: the gateway, and what tests run apart.
var mains = []string{"gateway/main.go", "test/kube/main.go", "test/cluster/main.go"}

func TestHouseRules(t *testing.T) {
	eachFile(t, func(path string, set *token.FileSet, f *ast.File) {
		test := strings.HasSuffix(path, "_test.go")
		ast.Inspect(f, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.FuncDecl:
				if x.Recv == nil && x.Name.Name == "init" {
					t.Errorf("%s: func init; wire by a table that can be read", set.Position(x.Pos()))
				}
			case *ast.SelectorExpr:
				call := selector(x)
				switch {
				case call == "os.Exit" && !slices.Contains(mains, path) && !test, strings.HasPrefix(call, "log.Fatal"):
					t.Errorf("%s: %s; only a main.go of %s ends the process", set.Position(x.Pos()), call, strings.Join(mains, ", "))
				case !test && (call == "status.Error" || call == "status.Errorf") && !strings.HasPrefix(path, "shared/fault/"):
					t.Errorf("%s: %s; only package fault makes a status", set.Position(x.Pos()), call)
				}
			case *ast.InterfaceType:
				if n := x.Methods.NumFields(); n > 6 && path != "shared/driver/driver.go" {
					t.Errorf("%s: an interface of %d methods; at most 6", set.Position(x.Pos()), n)
				}
			}
			return true
		})
	})
}

func selector(x *ast.SelectorExpr) string {
	if id, ok := x.X.(*ast.Ident); ok {
		return id.Name + "." + x.Sel.Name
	}
	return ""
}

// TestSizes reports what is long; a thing that reads better long may be long.
func TestSizes(t *testing.T) {
	eachFile(t, func(path string, set *token.FileSet, f *ast.File) {
		if n := set.Position(f.End()).Line; n > 500 {
			t.Logf("%s: %d lines", path, n)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && !strings.HasSuffix(path, "_test.go") {
				if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line; n > 60 {
					t.Logf("%s: %s has %d lines", path, fn.Name.Name, n)
				}
			}
		}
	})
}

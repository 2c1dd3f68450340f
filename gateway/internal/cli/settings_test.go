package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// setting is one config block that is wrong. What the schema of the extension tells is told by every way to check a
// configuration, the same to the byte; what only the extension itself can tell needs it to be started.
type setting struct {
	name, extension, block string
	itself                 bool // the extension finds it
}

const pool = "pool \"a\" {\n  cidr = \"10.0.0.0/8\"\n"

var brokenSettings = []setting{
	{"a required attribute is missing", "ipam", pool + "}", false},
	{"a required attribute of a block is missing", "ipam", "store = \"/s\"\npool \"a\" {\n}", false},
	{"an unknown attribute", "ipam", "store = \"/s\"\nsotre = \"/t\"\n" + pool + "}", false},
	{"an unknown attribute of a block", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefx = 24\n}", false},
	{"an unknown block", "ipam", "store = \"/s\"\npol \"a\" {\n  cidr = \"10.0.0.0/8\"\n}", false},
	{"a block within a block that has none", "ipam", "store = \"/s\"\n" + pool + "  reserve {\n  }\n}", false},
	{"a block without its label", "ipam", "store = \"/s\"\npool {\n  cidr = \"10.0.0.0/8\"\n}", false},
	{"a block with a label too many", "ipam", "store = \"/s\"\npool \"a\" \"b\" {\n  cidr = \"10.0.0.0/8\"\n}", false},
	{"the same block twice", "ipam", "store = \"/s\"\n" + pool + "}\n" + pool + "}", false},
	{"an attribute where a block belongs", "ipam", "store = \"/s\"\npool = \"a\"", false},
	{"a block where an attribute belongs", "ipam", "store {\n}\n" + pool + "}", false},
	{"a list for a string", "ipam", "store = [\"/s\"]\n" + pool + "}", false},
	{"a map for a string", "ipam", "store = { a = \"/s\" }\n" + pool + "}", false},
	{"null for a required string", "ipam", "store = null\n" + pool + "}", false},
	{"a word for a number", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = \"big\"\n}", false},
	{"a boolean for a number", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = true\n}", false},
	{"a list for a number", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = [24]\n}", false},
	{"a fraction for an integer", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = 24.5\n}", false},
	{"a number that is too great", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = 127\n}", false},
	{"a number that is too small", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = 0\n}", false},
	{"a string for a list", "ipam", "store = \"/s\"\n" + pool + "  reserved = \"10.0.0.0/24\"\n}", false},
	{"a map within a list of strings", "ipam", "store = \"/s\"\n" + pool + "  reserved = [\"10.0.0.1\", { a = 1 }]\n}", false},
	{"a list within a list of strings", "ipam", "store = \"/s\"\n" + pool + "  workspaces = [[\"*\"]]\n}", false},
	{"null within a list", "ipam", "store = \"/s\"\n" + pool + "  workspaces = [null]\n}", false},
	{"an unknown variable", "ipam", "store = dir\n" + pool + "}", false},
	{"an unknown function", "ipam", "store = file(\"/s\")\n" + pool + "}", false},
	{"a variable of the environment that is not set", "ipam", "store = env(\"SANDGATE_NO_SUCH\")\n" + pool + "}", false},
	{"two faults at once", "ipam", "sotre = \"/s\"\npool \"a\" {\n  cidr = [\"10.0.0.0/8\"]\n}", false},
	{"no block at all", "ipam", "", false},
	{"a string for a map", "tenant-namespace", "tenant \"*\" {\n  labels = \"tier\"\n}", false},
	{"a list for a map", "tenant-namespace", "tenant \"*\" {\n  labels = [\"tier\"]\n}", false},
	{"a list within a map of strings", "tenant-namespace", "tenant \"*\" {\n  labels = { tier = [\"a\"] }\n}", false},
	{"null within a map of strings", "tenant-namespace", "tenant \"*\" {\n  annotations = { tier = null }\n}", false},
	{"a word for a boolean", "tenant-namespace", "tenant \"*\" {\n  network = \"yes\"\n}", false},
	{"a number for a boolean", "tenant-namespace", "tenant \"*\" {\n  network = 1\n}", false},
	{"a negative number", "tenant-namespace", "tenant \"*\" {\n  limits {\n    cpu = -1\n  }\n}", false},
	{"a negative integer", "tenant-namespace", "tenant \"*\" {\n  limits {\n    pids = -1\n  }\n}", false},
	{"a number beyond an integer", "tenant-namespace", "tenant \"*\" {\n  limits {\n    pids = 1e30\n  }\n}", false},
	{"a word for a number in an inner block", "tenant-namespace", "tenant \"*\" {\n  defaults {\n    cpu = \"two\"\n  }\n}", false},
	{"an inner block twice", "tenant-namespace", "tenant \"*\" {\n  limits {\n  }\n  limits {\n  }\n}", false},
	{"an inner block with a label", "tenant-namespace", "tenant \"*\" {\n  limits \"a\" {\n  }\n}", false},
	{"an inner block as an attribute", "tenant-namespace", "tenant \"*\" {\n  limits = { cpu = 1 }\n}", false},
	{"an unknown attribute of an inner block", "tenant-namespace", "tenant \"*\" {\n  limits {\n    memry = \"1GiB\"\n  }\n}", false},
	{"a path that is not absolute", "ipam", "store = \"s\"\n" + pool + "}", true},
	{"no range of addresses", "ipam", "store = \"/s\"\npool \"a\" {\n  cidr = \"10.0.0.0/40\"\n}", true},
	{"a prefix that does not fit", "ipam", "store = \"/s\"\n" + pool + "  subnet_prefix = 31\n}", true},
	{"two pools that overlap", "ipam", "store = \"/s\"\n" + pool + "}\npool \"b\" {\n  cidr       = \"10.1.0.0/16\"\n  workspaces = [\"b\"]\n}", true},
	{"no tenant", "tenant-namespace", "", true},
	{"no size", "tenant-namespace", "tenant \"*\" {\n  limits {\n    memory = \"lots\"\n  }\n}", true},
	{"a default above the limit", "tenant-namespace", "tenant \"*\" {\n  limits {\n    cpu = 1\n  }\n  defaults {\n    cpu = 2\n  }\n}", true},
}

// TestBrokenSettings: a wrong config block is shown at the byte, the same by validate offline, validate --launch and the
// start of the gateway.
func TestBrokenSettings(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	if _, said, _ := s.run("config", "validate", "--dev", s.config()); strings.Count(said, "Warning: Settings not checked") != 2 {
		t.Errorf("before anything was started, validate says:\n%s", said)
	}
	s.ok("config", "validate", "--dev", "--launch", s.config())
	if out, said, code := s.run("config", "validate", "--dev", s.config()); code != exitOK || said != "" {
		t.Errorf("offline, what is right: exit %d\n%s%s", code, out, said)
	}
	var golden strings.Builder
	for _, c := range brokenSettings {
		block := fmt.Sprintf("extension %q {\n  command = %q\n  config {\n%s\n  }\n}\n", c.extension, s.exampleOf(c.extension), indent(c.block))
		s.write(block + fmt.Sprintf("driver \"native\" {}\ndriver \"acme\" {\n  base = \"native\"\n  bind %q {}\n}\n", c.extension))
		offline, launched := s.findings(), s.findings("--launch")
		if launched == "" {
			t.Errorf("%s: nothing is wrong with it", c.name)
			continue
		}
		_, started, code := s.run("gateway", "--dev", "--config", s.config())
		if code != exitConfig {
			t.Errorf("%s: the start exits with %d", c.name, code)
		}
		asked := []string{"config", "validate", "--dev", s.config()}
		switch {
		case c.itself && offline != "":
			t.Errorf("%s: offline it is seen too: %s", c.name, offline)
		case !c.itself && offline != launched:
			t.Errorf("%s: offline it is\n%s\nlaunched it is\n%s", c.name, offline, launched)
		case c.itself:
			asked = append(asked, "--launch")
		}
		if _, said, _ := s.run(asked...); said != started {
			t.Errorf("%s: validate says\n%s\nand the start says\n%s", c.name, said, started)
		}
		fmt.Fprintf(&golden, "# %s\n%s\n%s\n", c.name, c.block, launched)
	}
	s.golden("settings", golden.String())
}

// exampleOf is the path of one of the example programs.
func (s *site) exampleOf(name string) string {
	s.t.Helper()
	examplesBuilt = true
	dir, err := examples()
	if err != nil {
		s.t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func indent(text string) string {
	if text == "" {
		return text
	}
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

// findings are the diagnostics of validate, one in a line: where from and to, as line, column and byte, and what.
func (s *site) findings(more ...string) string {
	s.t.Helper()
	out, errs, _ := s.run(append([]string{"config", "validate", "--dev", "-o", "json", s.config()}, more...)...)
	var report struct {
		Diagnostics []struct {
			Severity, Summary, Detail string
			Range                     struct {
				Start, End struct{ Line, Column, Byte int }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		s.t.Fatalf("%v: %s%s", err, out, errs)
	}
	raw, err := os.ReadFile(s.config())
	if err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	for _, d := range report.Diagnostics {
		from, to := d.Range.Start, d.Range.End
		lines = append(lines, fmt.Sprintf("%d:%d-%d:%d %q\n  %s: %s", from.Line, from.Column, to.Line, to.Column, raw[from.Byte:to.Byte], d.Summary,
			strings.ReplaceAll(d.Detail, "\n", "\n  ")))
	}
	return strings.Join(lines, "\n")
}

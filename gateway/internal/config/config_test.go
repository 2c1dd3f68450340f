package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"

	"github.com/sandgate/sandgate/shared/extension"
)

var update = flag.Bool("update", false, "write the golden files anew")

func env(k string) (string, bool) {
	v, ok := map[string]string{"SANDGATE_DATABASE_URL": "postgres:///x", "POOL_TOKEN": "hush"}[k]
	return v, ok
}

func options() Options {
	return Options{SkipFiles: true, Types: []string{"native", "kubernetes"}, Getenv: env}
}

func TestTheExampleLoadsAndHasEveryKey(t *testing.T) {
	const path = "../../../config.hcl.example"
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "example.hcl")
	if err := os.WriteFile(name, src, 0o600); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Types = append(o.Types, "docker", "podman", "vm")
	c, f := Load([]string{name}, o)
	if f.HasErrors() {
		t.Fatal(f)
	}
	for _, key := range keys(reflect.TypeOf(file{})) {
		if !strings.Contains(string(src), key) {
			t.Errorf("the example does not show %q", key)
		}
	}
	if got := c.Chain("acme-native"); len(got) != 2 || got[1].Timeout != DefaultTimeout {
		t.Errorf("chain: %+v", got)
	}
	formatted, _ := Format(src, name)
	if diff := cmp.Diff(string(formatted), string(src)); diff != "" {
		t.Errorf("the example is not formatted (-formatted +it):\n%s", diff)
	}
}

// The configurations of the examples are whole, and formatted.
func TestTheExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("../../../examples/*/*.hcl")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if formatted, _ := Format(src, name); string(formatted) != string(src) {
			t.Errorf("%s is not formatted", name)
		}
		if !strings.Contains(string(src), "driver \"") {
			continue // settings of one extension, for the conformance kit
		}
		if _, f := Load([]string{name}, options()); f.HasErrors() {
			t.Errorf("%s: %s", name, f)
		}
	}
}

// keys returns the name of every block and attribute of the schema.
func keys(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		name, kind, _ := strings.Cut(f.Tag.Get("hcl"), ",")
		if name == "" || kind == "label" || strings.HasSuffix(kind, "_range") {
			continue
		}
		out = append(out, name)
		if kind == "block" {
			out = append(out, keys(f.Type.Elem())...)
		}
	}
	return out
}

// TestBroken loads every configuration under testdata/broken and compares what is said about it.
func TestBroken(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.hcl")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d broken configurations, want at least 20 (%v)", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			o := options()
			o.SkipFiles = false
			_, f := Load([]string{name}, o)
			if !f.HasErrors() {
				t.Fatal("it is not refused")
			}
			var got bytes.Buffer
			if err := f.Render(&got); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(name, ".hcl") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("what is said (-want +got):\n%s", diff)
			}
			if strings.Contains(got.String(), "hush") {
				t.Error("it tells a secret")
			}
		})
	}
}

func TestSnapshotLoadsWithoutTheEnvironment(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.hcl")
	src := `extension "x" {
  command = "/x"
  env = { TOKEN = env("POOL_TOKEN") }
}
driver "native" {}
`
	if err := os.WriteFile(name, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Dev = true
	c, f := Load([]string{name}, o)
	if f.HasErrors() {
		t.Fatal(f)
	}
	raw, err := c.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	again, err := FromSnapshot(raw, []string{"native"})
	if err != nil {
		t.Fatal(err)
	}
	if x, _ := again.Extension("x"); x.Env["TOKEN"] != "hush" {
		t.Errorf("env: %v", x.Env)
	}
}

func TestDecodeBody(t *testing.T) {
	minimum := 1.0
	schema := extension.ConfigSchema{
		Attributes: []extension.Attribute{{Name: "size", Type: "number", Default: 3, Min: &minimum}, {Name: "mode", Type: "string", Required: true, Enum: []any{"fast", "safe"}}},
		Blocks: []extension.Block{{Type: "pool", Labels: []string{"name"}, Body: extension.ConfigSchema{
			Attributes: []extension.Attribute{{Name: "cidr", Type: "string", Required: true}, {Name: "tags", Type: "list(string)"}}}}},
	}
	body := func(src string) (hcl.Body, *hcl.File) {
		f := NewFindings()
		s := &sources{Files: []source{{Name: "t.hcl", Content: []byte("extension \"x\" {\n  command = \"/x\"\n  config {\n" + src + "\n  }\n}\ndriver \"native\" {}\n")}}, Env: map[string]string{}}
		c := s.load(Options{Dev: true, SkipFiles: true, Types: []string{"native"}}, f)
		if c == nil {
			t.Fatal(f)
		}
		return c.Extensions[0].Config, f.files["t.hcl"]
	}
	at := hcl.Range{Filename: "t.hcl"}
	b, _ := body("mode = \"fast\"\npool \"a\" {\n cidr = \"10.0.0.0/8\"\n tags = [\"x\", \"y\"]\n}")
	raw, diags := DecodeBody(b, schema, nil, at, "x 1.0")
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	if want := `{"mode":"fast","pool":{"a":{"cidr":"10.0.0.0/8","tags":["x","y"]}},"size":3}`; string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
	if r := RangeOf(b, schema, "pool.a.cidr", at); r.Start.Line != 6 {
		t.Errorf("pool.a.cidr is at line %d, want 6", r.Start.Line)
	}
	if r := RangeOf(b, schema, "pool.a.nope", at); r.Start.Line != 5 {
		t.Errorf("what is not there is shown at line %d, want the block's 5", r.Start.Line)
	}
	for src, says := range map[string]string{
		"mode = \"fats\"":                  `Did you mean "fast"`,
		"mode = \"fast\"\nsize = 0":        "from 1",
		"mode = \"fast\"\nsize = \"many\"": "takes a number",
		"":                                 "mode",
		"mode = \"fast\"\nnope = 1":        "nope",
	} {
		b, _ := body(src)
		if _, diags := DecodeBody(b, schema, nil, at, "x 1.0"); !strings.Contains(diags.Error(), says) && !strings.Contains((&Findings{diags: diags}).String(), says) {
			t.Errorf("%q: %v, want it to say %q", src, diags, says)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`gateway { listen = "tcp://x" }`))
	f.Add([]byte("driver \"a\" { base = \"a\" }\nextension \"x\" { command = env(\"NO\") }"))
	f.Fuzz(func(t *testing.T, src []byte) {
		found := NewFindings()
		s := &sources{Files: []source{{Name: "f.hcl", Content: src}}, Env: map[string]string{}}
		s.load(options(), found)
		var out bytes.Buffer
		if err := found.Render(&out); err != nil {
			t.Fatal(err)
		}
		if err := found.JSON(&out); err != nil {
			t.Fatal(err)
		}
	})
}

// TestWhatNeverComesIntoPlayIsWarnedOf, and is no error.
func TestWhatNeverComesIntoPlayIsWarnedOf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.hcl")
	text := `driver "native" {}
driver "acme" {
  base = "native"
  bind "asked" { activation = "on_request" }
  bind "always" {}
}
activation "always" {
  when { driver = "acm*" }
}
activation "always" {
  when { driver = "acne" }
}
`
	for _, x := range []string{"asked", "always", "unbound"} {
		text += "extension \"" + x + "\" {\n  command  = \"/x\"\n  checksum = \"sha256:" + strings.Repeat("0", 64) + "\"\n}\n"
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, f := Load([]string{name}, options())
	var got bytes.Buffer
	if err := f.Render(&got); err != nil || c == nil {
		t.Fatalf("%v %s", err, f)
	}
	for _, want := range []string{"a.hcl:4: Nobody may ask for it", "a.hcl:7: Rule without effect", "a.hcl:10: Rule matches no driver: There is no driver \"acne\". Did you mean \"acme\"?", "a.hcl:21: Extension is bound nowhere"} {
		if !strings.Contains(f.String(), want) {
			t.Errorf("it does not say %q: %s", want, f)
		}
	}
	if n := strings.Count(got.String(), "Warning: "); n != 5 {
		t.Errorf("%d warnings:\n%s", n, &got)
	}
}

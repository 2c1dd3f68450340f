package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/sandgate/sandgate/shared/fault"
)

// Options says how a configuration is read.
type Options struct {
	Dev       bool                        // checksums may be left out
	SkipFiles bool                        // programs are not looked for: for examples
	Types     []string                    // the built-in driver types
	Getenv    func(string) (string, bool) // nil: os.LookupEnv
}

// sources is what a configuration was read from: enough to read it again when files and environment have changed.
type sources struct {
	Files []source          `json:"files"`
	Env   map[string]string `json:"env,omitempty"` // what env() gave; sensitive
	Dev   bool              `json:"dev,omitempty"`
}

type source struct {
	Name    string `json:"name"`
	Content []byte `json:"content"`
}

// Load reads a file, or every .hcl and .hcl.json file of a directory, and checks all of it. Every finding is returned at once; there
// is a configuration only where none is an error.
func Load(paths []string, o Options) (*Config, *Findings) {
	f := NewFindings()
	s := &sources{Env: map[string]string{}, Dev: o.Dev}
	for _, p := range paths {
		s.read(p, f)
	}
	if len(s.Files) == 0 && !f.HasErrors() {
		f.add(nil, "No configuration", fmt.Sprintf("There is no .hcl or .hcl.json file in %s.", strings.Join(paths, ", ")))
	}
	return s.load(o, f), f
}

// Snapshot returns the sources of the configuration with what env() gave. It is sensitive.
func (c *Config) Snapshot() ([]byte, error) { return json.Marshal(c.sources) }

// FromSnapshot reads a configuration again from its snapshot. Programs are not looked for.
func FromSnapshot(raw []byte, types []string) (*Config, error) {
	s := &sources{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("read a stored configuration: %w", err)
	}
	f := NewFindings()
	env := s.Env
	c := s.load(Options{Dev: s.Dev, SkipFiles: true, Types: types, Getenv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}, f)
	if c == nil {
		return nil, fault.New(fault.Internal, "a stored configuration cannot be read any more: %s", f)
	}
	return c, nil
}

func (s *sources) read(path string, f *Findings) {
	info, err := os.Stat(path)
	if err != nil {
		f.add(nil, "Configuration cannot be read", err.Error())
		return
	}
	files := []string{path}
	if info.IsDir() {
		files = nil
		for _, form := range []string{"*.hcl", "*.hcl.json"} {
			found, err := filepath.Glob(filepath.Join(path, form))
			if err != nil {
				f.add(nil, "Configuration cannot be read", err.Error())
				return
			}
			files = append(files, found...)
		}
		slices.Sort(files)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			f.add(nil, "Configuration cannot be read", err.Error())
			continue
		}
		s.Files = append(s.Files, source{Name: name, Content: content})
	}
}

// load parses, decodes and checks the sources.
func (s *sources) load(o Options, f *Findings) *Config {
	if o.Getenv == nil {
		o.Getenv = os.LookupEnv
	}
	var bodies []hcl.Body
	for _, src := range s.Files {
		bodies = append(bodies, f.parse(src.Content, src.Name).Body)
	}
	var all file
	ctx := s.context(o)
	for _, b := range bodies {
		var one file
		f.extend(hinted(gohcl.DecodeBody(b, ctx, &one), b))
		all.Gateways = append(all.Gateways, one.Gateways...)
		all.Stores = append(all.Stores, one.Stores...)
		all.Extensions = append(all.Extensions, one.Extensions...)
		all.Drivers = append(all.Drivers, one.Drivers...)
		all.Activations = append(all.Activations, one.Activations...)
	}
	c := (&checker{options: o, findings: f, ctx: ctx}).check(&all)
	if f.HasErrors() {
		return nil
	}
	c.sources = s
	return c
}

// hinted leaves out what only follows from a function that failed, and says what to do where the library does not: how a
// list is written, and where the settings of an extension or a driver stand, to whoever wrote them into the block itself.
func hinted(diags hcl.Diagnostics, body hcl.Body) hcl.Diagnostics {
	failed := slices.ContainsFunc(diags, func(d *hcl.Diagnostic) bool { return d.Summary == "Invalid function argument" })
	diags = slices.DeleteFunc(diags, func(d *hcl.Diagnostic) bool { return failed && strings.HasSuffix(d.Detail, "value must be known") })
	for _, d := range diags {
		if strings.HasSuffix(d.Detail, "list of string required, but have string") {
			d.Detail += ". A list stands in brackets, for example [\"one\"]."
		}
	}
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		return diags
	}
	for _, d := range diags {
		for _, b := range native.Blocks {
			if d.Subject == nil || (b.Type != "driver" && b.Type != "extension") || strings.Contains(d.Detail, "Did you mean") {
				continue
			}
			for _, a := range b.Body.Attributes {
				if a.NameRange == *d.Subject {
					d.Detail += fmt.Sprintf(" Settings of the %s itself stand in its config block.", b.Type)
				}
			}
		}
	}
	return diags
}

// parse parses one file, of HCL's own syntax or of its JSON one, as the name says.
func (f *Findings) parse(content []byte, name string) *hcl.File {
	var parsed *hcl.File
	var diags hcl.Diagnostics
	if strings.HasSuffix(name, ".json") {
		parsed, diags = hcljson.Parse(content, name)
	} else {
		parsed, diags = hclsyntax.ParseConfig(content, name, hcl.InitialPos)
	}
	if parsed == nil {
		parsed = &hcl.File{Body: hcl.EmptyBody(), Bytes: content}
	}
	f.files[name] = parsed
	f.extend(diags)
	return parsed
}

// context has the function env, and remembers what it gave.
func (s *sources) context(o Options) *hcl.EvalContext {
	env := function.New(&function.Spec{
		Params: []function.Parameter{{Name: "name", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			name := args[0].AsString()
			v, ok := o.Getenv(name)
			if !ok {
				return cty.NilVal, function.NewArgErrorf(0, "the environment variable %s is not set: set it where the gateway is started (systemd: Environment=, EnvironmentFile=)", name)
			}
			if s.Env == nil {
				s.Env = map[string]string{}
			}
			s.Env[name] = v
			return cty.StringVal(v), nil
		},
	})
	return &hcl.EvalContext{Functions: map[string]function.Function{"env": env}}
}

// Context returns what the expressions of a body may use, for decoding one with somebody else's schema.
func (c *Config) Context() *hcl.EvalContext {
	env := c.sources.Env
	return (&sources{Env: map[string]string{}}).context(Options{Getenv: func(k string) (string, bool) {
		if v, ok := env[k]; ok {
			return v, true
		}
		v, ok := os.LookupEnv(k)
		if ok {
			env[k] = v
		}
		return v, ok
	}})
}

// Findings is everything that is wrong, or worth saying, with the sources to show it in.
type Findings struct {
	diags  hcl.Diagnostics
	files  map[string]*hcl.File
	hidden []hcl.Range // what is never shown in a source line
}

// Hide keeps places of the sources out of what is shown.
func (f *Findings) Hide(at []hcl.Range) { f.hidden = append(f.hidden, at...) }

// NewFindings returns an empty list.
func NewFindings() *Findings { return &Findings{files: map[string]*hcl.File{}} }

func (f *Findings) add(at *hcl.Range, summary, detail string) {
	f.diags = append(f.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: at})
}

func (f *Findings) extend(d hcl.Diagnostics) { f.diags = append(f.diags, d...) }

// Add puts a finding of somebody else's into the list, at a place of the configuration.
// The zero range is no place.
func (f *Findings) Add(at hcl.Range, summary, detail string) {
	if at.Filename == "" {
		f.add(nil, summary, detail)
		return
	}
	f.add(&at, summary, detail)
}

// Warn is Add for what keeps nobody from using the configuration.
func (f *Findings) Warn(at hcl.Range, summary, detail string) {
	f.Add(at, summary, detail)
	f.diags[len(f.diags)-1].Severity = hcl.DiagWarning
}

// Join puts the findings of another list into this one.
func (f *Findings) Join(o *Findings) {
	f.diags, f.hidden = append(f.diags, o.diags...), append(f.hidden, o.hidden...)
}

// AddDiagnostics puts diagnostics of a body that was decoded elsewhere into the list.
func (f *Findings) AddDiagnostics(d hcl.Diagnostics) { f.extend(d) }

// HasErrors reports whether there is anything that keeps the configuration from being used.
func (f *Findings) HasErrors() bool { return f.diags.HasErrors() }

// sort puts the findings in the order of the files, and takes out what was found twice.
func (f *Findings) sort() {
	slices.SortStableFunc(f.diags, func(a, b *hcl.Diagnostic) int {
		switch {
		case a.Subject == nil || b.Subject == nil:
			return 0
		case a.Subject.Filename != b.Subject.Filename:
			return strings.Compare(a.Subject.Filename, b.Subject.Filename)
		}
		return a.Subject.Start.Byte - b.Subject.Start.Byte
	})
	f.diags = slices.CompactFunc(f.diags, func(a, b *hcl.Diagnostic) bool {
		return a.Summary == b.Summary && a.Detail == b.Detail && a.Subject != nil && b.Subject != nil && *a.Subject == *b.Subject
	})
}

// String tells the findings in one line each.
func (f *Findings) String() string {
	f.sort()
	var lines []string
	for _, d := range f.diags {
		where := ""
		if d.Subject != nil {
			where = fmt.Sprintf("%s:%d: ", d.Subject.Filename, d.Subject.Start.Line)
		}
		lines = append(lines, where+d.Summary+": "+d.Detail)
	}
	return strings.Join(lines, "; ")
}

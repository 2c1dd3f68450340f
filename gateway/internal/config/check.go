package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	lev "github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"

	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// checker turns blocks into a Config and finds what is wrong with them.
type checker struct {
	options  Options
	findings *Findings
	ctx      *hcl.EvalContext
	all      *file
}

func (c *checker) wrong(at hcl.Range, summary, format string, args ...any) {
	c.findings.add(&at, summary, fmt.Sprintf(format, args...))
}

func (c *checker) check(all *file) *Config {
	c.all = all
	out := &Config{Gateway: c.gateway(), Store: c.store()}
	for i := range all.Extensions {
		out.Extensions = append(out.Extensions, c.extension(&all.Extensions[i]))
	}
	for i := range all.Drivers {
		out.Drivers = append(out.Drivers, c.driver(&all.Drivers[i]))
	}
	for i := range all.Activations {
		out.Activations = append(out.Activations, c.activation(&all.Activations[i]))
	}
	if len(all.Drivers) == 0 && !c.findings.HasErrors() {
		c.findings.add(nil, "No driver", "A gateway needs at least one driver block.")
	}
	c.sockets()
	if c.chains(out); !c.findings.HasErrors() {
		c.idle(out)
	}
	return out
}

func (c *checker) gateway() Gateway {
	out := Gateway{DataDir: DefaultDataDir, Listen: DefaultListen, MaxOperations: DefaultMaxOperations}
	for i, g := range c.all.Gateways {
		if i > 0 {
			c.wrong(g.Range, "Duplicate gateway block", "There is one gateway; the first block is at %s.", c.all.Gateways[0].Range)
			continue
		}
		out.Range = g.Range
		out.DataDir = or(g.DataDir, out.DataDir)
		out.Listen = or(g.Listen, out.Listen)
		out.Metrics = g.Metrics
		c.address(g.Listen, g.ListenRange, len(g.TLS) > 0)
		c.socketPath(g.Listen, g.ListenRange)
		c.socketPath(g.Metrics, g.MetricsRange)
		if g.Metrics != "" && !strings.HasPrefix(g.Metrics, "unix:///") {
			c.wrong(g.MetricsRange, "Invalid address", "metrics takes unix:///path/to/socket.")
		}
		if g.MaxOperations != nil {
			out.MaxOperations = *g.MaxOperations
			if out.MaxOperations < 1 || out.MaxOperations > 65536 {
				c.wrong(g.MaxRange, "Invalid number", "max_operations takes a number from 1 to 65536.")
			}
		}
		if g.Audit != "" {
			var err error
			if out.Audit, err = time.ParseDuration(g.Audit); err != nil || out.Audit < time.Hour {
				c.wrong(g.AuditRange, "Invalid duration", "audit_retention takes an hour or more, for example \"2160h\" for ninety days.")
			}
		}
		for j, t := range g.TLS {
			c.single(j, t.Range, g.TLS[0].Range, "tls")
			out.TLS = &TLS{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA, Range: t.Range}
		}
		for j, t := range g.Tracing {
			c.single(j, t.Range, g.Tracing[0].Range, "tracing")
			out.Tracing = t.Endpoint
		}
	}
	return out
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (c *checker) single(i int, at, first hcl.Range, what string) {
	if i > 0 {
		c.wrong(at, "Duplicate "+what+" block", "Only one is allowed here; the first is at %s.", first)
	}
}

func (c *checker) store() Store {
	out := Store{Type: "sqlite"}
	for i, s := range c.all.Stores {
		c.single(i, s.Range, c.all.Stores[0].Range, "store")
		out = Store{Type: s.Type, URL: s.URL, Range: s.Range}
		switch {
		case s.Type == "postgres" && s.URL == "":
			c.wrong(s.Range, "Missing url", "A store of the type postgres needs a url, for example env(\"SANDGATE_DATABASE_URL\").")
		case s.Type == "sqlite" && s.URL != "":
			c.wrong(s.URLRange, "Unexpected url", "A store of the type sqlite lies in data_dir and takes no url.")
		case s.Type != "sqlite" && s.Type != "postgres":
			c.wrong(s.TypeRange, "Unknown store", "A store is \"sqlite\" or \"postgres\".%s", meant(s.Type, []string{"sqlite", "postgres"}))
		}
	}
	return out
}

func (c *checker) extension(b *extensionBlock) Extension {
	c.name("extension", b.Name, b.NameRange)
	for _, o := range c.all.Extensions {
		if o.Name == b.Name && o.Range != b.Range && before(o.Range, b.Range) {
			c.wrong(b.NameRange, "Duplicate extension", "Extension %q is at %s already.", b.Name, o.Range)
		}
	}
	out := Extension{Name: b.Name, Command: b.Command, Args: b.Args, Checksum: b.Checksum, Files: b.Files,
		Process: c.process(b.Env, b.EnvRange, b.User, b.Group, b.Limits), Capabilities: b.Capabilities, Range: b.Range, Restart: Restart{Budget: DefaultBudget, Window: DefaultWindow}}
	if b.Interpreter != nil {
		out.Interpreter = *b.Interpreter
		c.absolute(out.Interpreter, b.InterpRange, "interpreter")
		c.program(out.Interpreter, "", b.InterpRange, b.InterpRange)
	}
	c.absolute(b.Command, b.CommandRange, "command")
	c.checksum(b.Command, b.Checksum, b.CommandRange, b.ChecksumRange, b.Range)
	if len(b.Files) > 0 && out.Interpreter == "" {
		c.wrong(b.FilesRange, "Unexpected files", "files belongs to a program that is a script: name its interpreter.")
	}
	c.sandbox(b, &out)
	for i, r := range b.Restart {
		c.single(i, r.Range, b.Restart[0].Range, "restart")
		if r.Budget != nil {
			out.Restart.Budget = *r.Budget
			if *r.Budget < 1 {
				c.wrong(r.BudgetRange, "Invalid number", "budget takes a number from 1.")
			}
		}
		out.Restart.Window = c.duration(r.Window, r.WindowRange, DefaultWindow)
	}
	for i, cfg := range b.Config {
		c.single(i, cfg.Range, b.Config[0].Range, "config")
		out.Config = cfg.Body
	}
	return out
}

// process checks what the blocks of programs say alike of their processes.
func (c *checker) process(env map[string]string, envAt hcl.Range, user, group string, limits []limitsBlock) Process {
	out := Process{Env: env, User: user, Group: group}
	for k := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			c.wrong(envAt, "Invalid environment", "%q cannot be the name of a variable.", k)
		}
	}
	for i, l := range limits {
		c.single(i, l.Range, limits[0].Range, "limits")
		out.Limits = Limits{Memory: c.size(l.Memory, l.MemoryRange), CPU: l.CPU, PIDs: l.PIDs, Files: l.Files}
		if l.CPU < 0 || l.PIDs < 0 || l.Files < 0 {
			c.wrong(l.Range, "Invalid limit", "A limit cannot be negative; left out, there is none.")
		}
	}
	return out
}

// sandbox checks what the process of an extension may reach.
func (c *checker) sandbox(b *extensionBlock, out *Extension) {
	out.Sandbox = b.Sandbox
	if known := []string{"landlock", "none"}; b.Sandbox != "" && !slices.Contains(known, b.Sandbox) {
		c.wrong(b.SandboxRange, "Unknown sandbox", "sandbox is \"landlock\" or \"none\"; left out, it is landlock where the host has it.%s", meant(b.Sandbox, known))
	}
	for i, p := range b.Paths {
		c.single(i, p.Range, b.Paths[0].Range, "paths")
		out.Read, out.Write = p.Read, p.Write
		if b.Sandbox == "none" {
			c.wrong(p.Range, "Unexpected paths", "paths belong to a sandbox, and sandbox is \"none\".")
		}
		for _, path := range p.Read {
			c.absolute(path, p.ReadRange, "read")
		}
		for _, path := range p.Write {
			c.absolute(path, p.WriteRange, "write")
		}
	}
}

func before(a, b hcl.Range) bool {
	return a.Filename < b.Filename || a.Filename == b.Filename && a.Start.Byte < b.Start.Byte
}

func (c *checker) name(what, name string, at hcl.Range) {
	if sandbox.CheckName(what, name) != nil {
		c.wrong(at, "Invalid name", "The name of a %s is 1 to %d of a-z, 0-9 and '-', beginning and ending with a letter or digit.", what, sandbox.MaxName)
	}
}

func (c *checker) absolute(path string, at hcl.Range, what string) {
	if !filepath.IsAbs(path) {
		c.wrong(at, "Invalid path", "%s takes an absolute path.", what)
	}
}

var checksumForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// checksum looks at the program and compares its digest.
func (c *checker) checksum(command, sum string, commandAt, sumAt, block hcl.Range) {
	switch {
	case sum == "" && !c.options.Dev:
		c.wrong(block, "Missing checksum", "checksum is required: \"sha256:\" and what sha256sum %s prints.", command)
	case sum != "" && !checksumForm.MatchString(sum):
		c.wrong(sumAt, "Invalid checksum", "A checksum is \"sha256:\" and 64 hexadecimal digits, which sha256sum %s prints.", command)
	default:
		c.program(command, sum, commandAt, sumAt)
	}
}

func (c *checker) program(path, sum string, at, sumAt hcl.Range) {
	if c.options.SkipFiles || !filepath.IsAbs(path) {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		c.wrong(at, "Missing program", "%s: install it there, or correct the path.", err)
		return
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		c.wrong(at, "Not a program", "%s is no regular file.", path)
		return
	}
	if sum == "" {
		return
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		c.wrong(at, "Missing program", "%s.", err)
		return
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != sum {
		c.wrong(sumAt, "Wrong checksum", "%s has the checksum\n  %s\nand the configuration wants\n  %s\nIf the program was meant to change, write the new one.", path, got, sum)
	}
}

func (c *checker) size(s string, at hcl.Range) int64 {
	if s == "" {
		return 0
	}
	digits, unit := s, int64(1)
	for _, u := range []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			digits, unit = rest, u.factor
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if err != nil || n < 1 || n > (1<<62)/unit {
		c.wrong(at, "Invalid size", "A size is a number of bytes, or a number with KiB, MiB or GiB, for example \"256MiB\".")
	}
	return n * unit
}

func (c *checker) duration(s string, at hcl.Range, otherwise time.Duration) time.Duration {
	if s == "" {
		return otherwise
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > 30*24*time.Hour {
		c.wrong(at, "Invalid duration", "A duration is a number with a unit, for example \"30s\", \"5m\" or \"1h30m\"; more than nothing and at most 720h.")
		return otherwise
	}
	return d
}

func (c *checker) driver(b *driverBlock) Driver {
	c.name("driver", b.Name, b.NameRange)
	for _, o := range c.all.Drivers {
		if o.Name == b.Name && before(o.Range, b.Range) {
			c.wrong(b.NameRange, "Duplicate driver", "Driver %q is at %s already.", b.Name, o.Range)
		}
	}
	out := Driver{Name: b.Name, Type: b.Type, Base: b.Base, Socket: b.Socket, Command: b.Command, Checksum: b.Checksum, Range: b.Range,
		Process: c.process(b.Env, b.EnvRange, b.User, b.Group, b.Limits),
		Timeouts: Timeouts{Chain: c.duration(b.Chain, b.ChainRange, DefaultChain), Call: c.duration(b.Call, b.CallRange, DefaultCall),
			Ready: c.duration(b.Ready, b.ReadyRange, DefaultReady), Release: c.duration(b.Release, b.ReleaseRange, DefaultRelease),
			Reconcile: c.duration(b.Reconcile, b.ReconcileRange, DefaultReconcile)}}
	c.kind(b, &out)
	for i, cfg := range b.Config {
		c.single(i, cfg.Range, b.Config[0].Range, "config")
		c.settable(b, cfg.Range)
		out.Config = cfg.Body
	}
	for i, e := range b.Expose {
		c.single(i, e.Range, b.Expose[0].Range, "expose")
		c.absolute(strings.TrimPrefix(e.Socket, "unix://"), e.SocketRange, "socket")
		c.socketPath(e.Socket, e.SocketRange)
		out.Expose = &Expose{Socket: strings.TrimPrefix(e.Socket, "unix://"), AllowedUIDs: e.AllowedUIDs, AllowDriverConfig: e.DriverConfig}
		for j, a := range e.Admission {
			c.single(j, a.Range, e.Admission[0].Range, "resource_admission")
			out.Expose.NoAdmission, out.Expose.RequiredLabels = a.Enabled != nil && !*a.Enabled, a.Labels
		}
	}
	for i := range b.Binds {
		out.Binds = append(out.Binds, c.bind(b.Name, &b.Binds[i]))
	}
	return out
}

// kind decides what a driver is: a built-in type, composed over a base, behind a socket, or a program.
func (c *checker) kind(b *driverBlock, out *Driver) {
	var said []string
	for name, v := range map[string]string{"type": b.Type, "base": b.Base, "socket": b.Socket, "command": b.Command} {
		if v != "" {
			said = append(said, name)
		}
	}
	slices.Sort(said)
	switch {
	case len(said) > 1:
		c.wrong(b.Range, "Ambiguous driver", "A driver has exactly one of type, base, socket and command; this one has %s.", strings.Join(said, " and "))
	case len(said) == 0:
		out.Type = b.Name
		if !slices.Contains(c.options.Types, b.Name) {
			c.wrong(b.NameRange, "Unknown driver", "%q is no built-in driver, and the block has neither type, base, socket nor command. Built in: %s.%s",
				b.Name, strings.Join(c.options.Types, ", "), meant(b.Name, c.options.Types))
		}
	case b.Type != "" && !slices.Contains(c.options.Types, b.Type):
		c.wrong(b.TypeRange, "Unknown driver type", "Built in: %s.%s", strings.Join(c.options.Types, ", "), meant(b.Type, c.options.Types))
	case b.Base != "":
		c.base(b)
	case b.Socket != "" && !strings.HasPrefix(b.Socket, "unix:///"):
		c.wrong(b.SocketRange, "Invalid address", "socket takes unix:///path/to/socket.%s", asURL(b.Socket))
	case b.Command != "":
		c.absolute(b.Command, b.CommandRange, "command")
		c.checksum(b.Command, b.Checksum, b.CommandRange, b.ChecksumRange, b.Range)
	}
	if b.Command == "" {
		c.noProcess(b)
	}
	if len(b.Binds) > 0 && b.Base == "" {
		c.wrong(b.Binds[0].Range, "Unexpected bind", "Extensions are bound to a composed driver: give the chain a driver block of its own with base = %q.", b.Name)
	}
}

// noProcess refuses what belongs to the process of a driver that has none of its own.
func (c *checker) noProcess(b *driverBlock) {
	const why = "A driver has %s where it is a program of its own, named by command; this one is not."
	for _, a := range []struct {
		name string
		said bool
		at   hcl.Range
	}{{"checksum", b.Checksum != "", b.ChecksumRange}, {"env", b.Env != nil, b.EnvRange}, {"user", b.User != "", b.UserRange}, {"group", b.Group != "", b.GroupRange}} {
		if a.said {
			c.wrong(a.at, "Unexpected "+a.name, why, "a "+a.name)
		}
	}
	for _, l := range b.Limits {
		c.wrong(l.Range, "Unexpected limits", why, "limits")
	}
}

// settable refuses settings of a driver that has none: they would be ignored quietly, or are meant for another.
func (c *checker) settable(b *driverBlock, at hcl.Range) {
	switch {
	case b.Base != "":
		c.wrong(at, "Misplaced config", "A composed driver has no settings of its own. Those of its base stand in driver %q { config { … } }, those of an extension in extension \"NAME\" { config { … } }.", b.Base)
	case b.Socket != "":
		c.wrong(at, "Misplaced config", "What serves the socket has its settings from its own configuration: this gateway does not start it.")
	}
}

// base follows the bases of a composed driver to the bottom.
func (c *checker) base(b *driverBlock) {
	var names []string
	for _, o := range c.all.Drivers {
		names = append(names, o.Name)
	}
	seen := []string{b.Name}
	for at := b; at.Base != ""; {
		i := slices.IndexFunc(c.all.Drivers, func(o driverBlock) bool { return o.Name == at.Base })
		if i < 0 {
			if at == b {
				c.wrong(b.BaseRange, "Unknown base", "There is no driver %q.%s", b.Base, meant(b.Base, names))
			}
			return
		}
		if slices.Contains(seen, at.Base) {
			c.wrong(b.BaseRange, "Cycle of bases", "%s is its own base: %s.", b.Name, strings.Join(append(seen, at.Base), " → "))
			return
		}
		seen = append(seen, at.Base)
		at = &c.all.Drivers[i]
	}
}

// choice decodes a word of two.
func (c *checker) choice(word string, at hcl.Range, what, no, yes string) bool {
	switch word {
	case "", no:
		return false
	case yes:
		return true
	}
	c.wrong(at, "Invalid "+what, "%s is %q or %q.%s", what, no, yes, meant(word, []string{no, yes}))
	return false
}

func (c *checker) bind(driver string, b *bindBlock) Bind {
	out := Bind{Driver: driver, Extension: b.Extension, Range: b.Range, Phases: map[phase.Phase]PhasePolicy{},
		Observe:       c.choice(b.Mode, b.ModeRange, "mode", "enforce", "observe"),
		OnRequest:     c.choice(b.Activation, b.ActivationRange, "activation", "global", "on_request"),
		FailOpen:      c.choice(b.Policy, b.PolicyRange, "failure_policy", "fail_closed", "fail_open"),
		Authoritative: c.choice(b.Reconcile, b.ReconcileRange, "reconcile", "advisory", "authoritative"),
		Timeout:       c.duration(b.Timeout, b.TimeoutRange, DefaultTimeout)}
	c.known(b.Extension, b.ExtensionRange)
	for i, p := range b.Phases {
		ph := phase.Phase(p.Name)
		if !ph.Known() {
			var names []string
			for _, k := range phase.All() {
				names = append(names, string(k))
			}
			c.wrong(p.NameRange, "Unknown phase", "%q is no phase.%s", p.Name, or(meant(p.Name, names), " The phases: "+strings.Join(names, ", ")+"."))
			continue
		}
		for _, o := range b.Phases[:i] {
			if o.Name == p.Name {
				c.wrong(p.NameRange, "Duplicate phase block", "%s is at %s already.", p.Name, o.Range)
			}
		}
		policy := PhasePolicy{Timeout: c.duration(p.Timeout, p.TimeoutRange, out.Timeout), FailOpen: out.FailOpen, Attempts: DefaultAttempts}
		if p.Policy != "" {
			policy.FailOpen = c.choice(p.Policy, p.PolicyRange, "failure_policy", "fail_closed", "fail_open")
		}
		if p.Attempts != nil {
			policy.Attempts = *p.Attempts
			if *p.Attempts < 1 || *p.Attempts > 100 {
				c.wrong(p.AttemptsRange, "Invalid number", "attempts takes a number from 1 to 100.")
			}
		}
		out.Phases[ph] = policy
	}
	for i, g := range b.Grants {
		c.single(i, g.Range, b.Grants[0].Range, "grant")
		out.Mutate = c.patterns(g.Mutate, g.MutateRange)
		out.Read = c.patterns(g.Read, g.ReadRange)
		out.Override = c.patterns(g.Override, g.OverrideRange)
	}
	return out
}

func (c *checker) known(extension string, at hcl.Range) {
	var names []string
	for _, x := range c.all.Extensions {
		names = append(names, x.Name)
	}
	if !slices.Contains(names, extension) {
		c.wrong(at, "Unknown extension", "There is no extension block %q.%s", extension, meant(extension, names))
	}
}

func (c *checker) patterns(list []string, at hcl.Range) []plan.Pattern {
	var out []plan.Pattern
	for _, s := range list {
		p, err := plan.ParsePattern(s)
		if err != nil {
			c.wrong(at, "Invalid pattern", "%v.", err)
			continue
		}
		out = append(out, p)
	}
	return out
}

func (c *checker) activation(b *activationBlock) Activation {
	c.known(b.Extension, b.ExtensionRange)
	out := Activation{Extension: b.Extension, Default: b.Default, Range: b.Range}
	for i, w := range b.When {
		c.single(i, w.Range, b.When[0].Range, "when")
		out.Driver, out.Workspace, out.Image, out.Caller = w.Driver, w.Workspace, w.Image, w.Caller
		c.glob(w.Driver, w.DriverRange)
		c.glob(w.Workspace, w.WorkspaceRange)
		c.glob(w.Image, w.ImageRange)
		for _, caller := range w.Caller {
			c.glob(caller, w.CallerRange)
			if !callerForm.MatchString(caller) {
				c.wrong(w.CallerRange, "Unknown caller", "%q is no caller: write \"uid:1000\", or \"cert:NAME\" with the common name of a client certificate; the rest may be a glob.", caller)
			}
		}
	}
	return out
}

func (c *checker) glob(pattern string, at hcl.Range) {
	if _, err := filepath.Match(pattern, ""); err != nil {
		c.wrong(at, "Invalid glob", "%q is no glob: a bracket is not closed.", pattern)
	}
}

// callerForm is what can match a caller at all: one that could not would turn a rule off without a word.
var callerForm = regexp.MustCompile(`^(uid:[0-9*?\[\]!-]+|cert:.+|[*?\[].*)$`)

// chains finds an extension that stands twice in a flattened chain.
func (c *checker) chains(out *Config) {
	if c.findings.HasErrors() {
		return // a chain can be followed only where every base is there
	}
	for _, d := range out.Drivers {
		first := map[string]Bind{}
		for _, b := range out.Chain(d.Name) {
			if o, twice := first[b.Extension]; twice {
				if b.Driver == d.Name {
					c.wrong(b.Range, "Extension bound twice", "Extension %q is in the chain of %q already, by the bind at %s.", b.Extension, d.Name, o.Range)
				}
				continue
			}
			first[b.Extension] = b
		}
	}
}

// meant suggests the name that is nearest to a misspelt one.
func meant(word string, names []string) string {
	best, distance := "", 3
	for _, n := range names {
		if d := levenshtein(word, n); d < distance {
			best, distance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", best)
}

func levenshtein(a, b string) int { return lev.Distance(a, b, nil) }

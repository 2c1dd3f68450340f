// Package config reads the configuration: HCL to a plain, checked struct, in which whatever may be wrong later knows
// where it stands. It starts nothing and knows no other part of the gateway.
package config

import (
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// Config is a checked configuration.
type Config struct {
	Gateway     Gateway
	Store       Store
	Extensions  []Extension
	Drivers     []Driver
	Activations []Activation

	sources *sources
}

// Gateway is the `gateway` block.
type Gateway struct {
	DataDir       string
	Listen        string // "unix:///path" or "tcp://host:port"
	MaxOperations int
	Audit         time.Duration // how long lines of the audit are kept; 0: for ever
	Metrics       string        // "": none
	TLS           *TLS          // of a tcp listener
	Tracing       string        // OTLP endpoint; "": none
	Range         hcl.Range
}

// TLS is what a TCP listener needs.
type TLS struct {
	Cert, Key, ClientCA string
	Range               hcl.Range
}

// Files returns what the block names.
func (t TLS) Files() [3]string { return [3]string{t.Cert, t.Key, t.ClientCA} }

// Store is the `store` block.
type Store struct {
	Type  string // "sqlite" or "postgres"
	URL   string // sensitive: it may hold a password
	Range hcl.Range
}

// Extension is an `extension` block.
type Extension struct {
	Name        string
	Command     string
	Args        []string
	Checksum    string
	Interpreter string
	Files       []string
	Process
	Capabilities []string // that its process keeps
	Sandbox      string   // "landlock", "none", or "" for landlock where the host has it
	Read, Write  []string // absolute paths that a sandboxed process may reach
	Restart      Restart
	Config       hcl.Body // nil: none; its schema is the extension's
	Range        hcl.Range
}

// Process is what the block of an extension and that of a driver say alike of the process of its program.
type Process struct {
	Env         map[string]string // the whole environment; sensitive
	User, Group string            // empty: the gateway's
	Limits      Limits
}

// Limits bounds a process. Zero means no limit.
type Limits struct {
	Memory int64 // bytes
	CPU    float64
	PIDs   int64
	Files  int64
}

// Restart is the crash budget.
type Restart struct {
	Budget int
	Window time.Duration
}

// Driver is a `driver` block. Exactly one of Type, Base, Socket and Command is set.
type Driver struct {
	Name     string
	Type     string
	Base     string
	Socket   string
	Command  string
	Checksum string
	Process  Process // of one that is a program
	Timeouts Timeouts
	Config   hcl.Body // nil: none; its schema is the driver's
	Expose   *Expose
	Binds    []Bind // its own; Chain has its bases' before them
	Range    hcl.Range
}

// Timeouts is the durations of a driver.
type Timeouts struct{ Chain, Call, Ready, Release, Reconcile time.Duration }

// Expose says where a driver is served as a compute driver.
type Expose struct {
	Socket      string
	AllowedUIDs []uint32 // empty: the gateway's own user
	// What the OpenShell gateway's table of this driver says, to be acknowledged: see docs/openshell.md.
	AllowDriverConfig bool
	NoAdmission       bool
	RequiredLabels    map[string]string // nil: those that it has by default
}

// Bind is a `bind` block.
type Bind struct {
	Driver        string // whose block it stands in
	Extension     string
	Observe       bool
	OnRequest     bool
	FailOpen      bool
	Timeout       time.Duration
	Authoritative bool
	Phases        map[phase.Phase]PhasePolicy
	Mutate        []plan.Pattern
	Read          []plan.Pattern
	Override      []plan.Pattern
	Range         hcl.Range
}

// PhasePolicy is a `phase` block, with what it leaves out taken from its bind.
type PhasePolicy struct {
	Timeout  time.Duration
	FailOpen bool
	Attempts int
}

// Activation is an `activation` block. Empty globs match all.
type Activation struct {
	Extension                string
	Default                  bool
	Driver, Workspace, Image string
	Caller                   []string
	Range                    hcl.Range
}

// Driver returns a driver by name.
func (c *Config) Driver(name string) (Driver, bool) {
	for _, d := range c.Drivers {
		if d.Name == name {
			return d, true
		}
	}
	return Driver{}, false
}

// Extension returns an extension by name.
func (c *Config) Extension(name string) (Extension, bool) {
	for _, x := range c.Extensions {
		if x.Name == name {
			return x, true
		}
	}
	return Extension{}, false
}

// Chain returns the binds of a driver in the order in which they are called: those of its bases first.
func (c *Config) Chain(name string) []Bind {
	d, ok := c.Driver(name)
	if !ok {
		return nil
	}
	if d.Base == "" {
		return d.Binds
	}
	return append(slices.Clone(c.Chain(d.Base)), d.Binds...)
}

// Root returns the driver at the bottom of a composition.
func (c *Config) Root(name string) Driver {
	d, _ := c.Driver(name)
	for d.Base != "" {
		d, _ = c.Driver(d.Base)
	}
	return d
}

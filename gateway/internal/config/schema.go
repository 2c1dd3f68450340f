package config

import (
	"time"

	"github.com/hashicorp/hcl/v2"
)

// The types below are the schema of the configuration: the tags are what is decoded, what is suggested for a
// misspelt name, and what config.hcl.example has to show. Ranges are kept where an error may come up later.

// file is one parsed file, or all of them merged.
type file struct {
	Gateways    []gatewayBlock    `hcl:"gateway,block"`
	Stores      []storeBlock      `hcl:"store,block"`
	Extensions  []extensionBlock  `hcl:"extension,block"`
	Drivers     []driverBlock     `hcl:"driver,block"`
	Activations []activationBlock `hcl:"activation,block"`
}

type gatewayBlock struct {
	DataDir       string         `hcl:"data_dir,optional"`
	Listen        string         `hcl:"listen,optional"`
	ListenRange   hcl.Range      `hcl:"listen,attr_value_range"`
	MaxOperations *int           `hcl:"max_operations,optional"`
	MaxRange      hcl.Range      `hcl:"max_operations,attr_value_range"`
	Audit         string         `hcl:"audit_retention,optional"`
	AuditRange    hcl.Range      `hcl:"audit_retention,attr_value_range"`
	Metrics       string         `hcl:"metrics,optional"`
	MetricsRange  hcl.Range      `hcl:"metrics,attr_value_range"`
	TLS           []tlsBlock     `hcl:"tls,block"`
	Tracing       []tracingBlock `hcl:"tracing,block"`
	Range         hcl.Range      `hcl:",def_range"`
}

type tlsBlock struct {
	Cert     string    `hcl:"cert"`
	Key      string    `hcl:"key"`
	ClientCA string    `hcl:"client_ca"`
	Range    hcl.Range `hcl:",def_range"`
}

type tracingBlock struct {
	Endpoint string    `hcl:"endpoint"`
	Range    hcl.Range `hcl:",def_range"`
}

type storeBlock struct {
	Type      string    `hcl:"type,label"`
	TypeRange hcl.Range `hcl:"type,label_range"`
	URL       string    `hcl:"url,optional"`
	URLRange  hcl.Range `hcl:"url,attr_value_range"`
	Range     hcl.Range `hcl:",def_range"`
}

type extensionBlock struct {
	Name          string            `hcl:"name,label"`
	NameRange     hcl.Range         `hcl:"name,label_range"`
	Command       string            `hcl:"command"`
	CommandRange  hcl.Range         `hcl:"command,attr_value_range"`
	Args          []string          `hcl:"args,optional"`
	Checksum      string            `hcl:"checksum,optional"`
	ChecksumRange hcl.Range         `hcl:"checksum,attr_value_range"`
	Interpreter   *string           `hcl:"interpreter,optional"`
	InterpRange   hcl.Range         `hcl:"interpreter,attr_value_range"`
	Files         []string          `hcl:"files,optional"`
	FilesRange    hcl.Range         `hcl:"files,attr_value_range"`
	Env           map[string]string `hcl:"env,optional"`
	EnvRange      hcl.Range         `hcl:"env,attr_value_range"`
	User          string            `hcl:"user,optional"`
	Group         string            `hcl:"group,optional"`
	Capabilities  []string          `hcl:"capabilities,optional"`
	Sandbox       string            `hcl:"sandbox,optional"`
	SandboxRange  hcl.Range         `hcl:"sandbox,attr_value_range"`
	Paths         []pathsBlock      `hcl:"paths,block"`
	Limits        []limitsBlock     `hcl:"limits,block"`
	Restart       []restartBlock    `hcl:"restart,block"`
	Config        []bodyBlock       `hcl:"config,block"`
	Range         hcl.Range         `hcl:",def_range"`
}

type pathsBlock struct {
	Read       []string  `hcl:"read,optional"`
	ReadRange  hcl.Range `hcl:"read,attr_value_range"`
	Write      []string  `hcl:"write,optional"`
	WriteRange hcl.Range `hcl:"write,attr_value_range"`
	Range      hcl.Range `hcl:",def_range"`
}

type limitsBlock struct {
	Memory      string    `hcl:"memory,optional"`
	MemoryRange hcl.Range `hcl:"memory,attr_value_range"`
	CPU         float64   `hcl:"cpu,optional"`
	PIDs        int64     `hcl:"pids,optional"`
	Files       int64     `hcl:"files,optional"`
	Range       hcl.Range `hcl:",def_range"`
}

type restartBlock struct {
	Budget      *int      `hcl:"budget,optional"`
	BudgetRange hcl.Range `hcl:"budget,attr_value_range"`
	Window      string    `hcl:"window,optional"`
	WindowRange hcl.Range `hcl:"window,attr_value_range"`
	Range       hcl.Range `hcl:",def_range"`
}

// bodyBlock is a block whose schema is somebody else's.
type bodyBlock struct {
	Body  hcl.Body  `hcl:",remain"`
	Range hcl.Range `hcl:",def_range"`
}

type driverBlock struct {
	Name           string            `hcl:"name,label"`
	NameRange      hcl.Range         `hcl:"name,label_range"`
	Type           string            `hcl:"type,optional"`
	TypeRange      hcl.Range         `hcl:"type,attr_value_range"`
	Base           string            `hcl:"base,optional"`
	BaseRange      hcl.Range         `hcl:"base,attr_value_range"`
	Socket         string            `hcl:"socket,optional"`
	SocketRange    hcl.Range         `hcl:"socket,attr_value_range"`
	Command        string            `hcl:"command,optional"`
	CommandRange   hcl.Range         `hcl:"command,attr_value_range"`
	Checksum       string            `hcl:"checksum,optional"`
	ChecksumRange  hcl.Range         `hcl:"checksum,attr_value_range"`
	Env            map[string]string `hcl:"env,optional"`
	EnvRange       hcl.Range         `hcl:"env,attr_value_range"`
	User           string            `hcl:"user,optional"`
	UserRange      hcl.Range         `hcl:"user,attr_value_range"`
	Group          string            `hcl:"group,optional"`
	GroupRange     hcl.Range         `hcl:"group,attr_value_range"`
	Limits         []limitsBlock     `hcl:"limits,block"`
	Chain          string            `hcl:"chain_timeout,optional"`
	ChainRange     hcl.Range         `hcl:"chain_timeout,attr_value_range"`
	Call           string            `hcl:"driver_timeout,optional"`
	CallRange      hcl.Range         `hcl:"driver_timeout,attr_value_range"`
	Ready          string            `hcl:"ready_timeout,optional"`
	ReadyRange     hcl.Range         `hcl:"ready_timeout,attr_value_range"`
	Release        string            `hcl:"release_timeout,optional"`
	ReleaseRange   hcl.Range         `hcl:"release_timeout,attr_value_range"`
	Reconcile      string            `hcl:"reconcile_interval,optional"`
	ReconcileRange hcl.Range         `hcl:"reconcile_interval,attr_value_range"`
	Config         []bodyBlock       `hcl:"config,block"`
	Expose         []exposeBlock     `hcl:"expose,block"`
	Binds          []bindBlock       `hcl:"bind,block"`
	Range          hcl.Range         `hcl:",def_range"`
}

type exposeBlock struct {
	Socket       string           `hcl:"socket"`
	SocketRange  hcl.Range        `hcl:"socket,attr_value_range"`
	AllowedUIDs  []uint32         `hcl:"allowed_uids,optional"`
	DriverConfig bool             `hcl:"allow_driver_config,optional"`
	Admission    []admissionBlock `hcl:"resource_admission,block"`
	Range        hcl.Range        `hcl:",def_range"`
}

type admissionBlock struct {
	Enabled *bool             `hcl:"enabled,optional"`
	Labels  map[string]string `hcl:"required_labels,optional"`
	Range   hcl.Range         `hcl:",def_range"`
}

type bindBlock struct {
	Extension       string       `hcl:"extension,label"`
	ExtensionRange  hcl.Range    `hcl:"extension,label_range"`
	Mode            string       `hcl:"mode,optional"`
	ModeRange       hcl.Range    `hcl:"mode,attr_value_range"`
	Activation      string       `hcl:"activation,optional"`
	ActivationRange hcl.Range    `hcl:"activation,attr_value_range"`
	Policy          string       `hcl:"failure_policy,optional"`
	PolicyRange     hcl.Range    `hcl:"failure_policy,attr_value_range"`
	Timeout         string       `hcl:"timeout,optional"`
	TimeoutRange    hcl.Range    `hcl:"timeout,attr_value_range"`
	Reconcile       string       `hcl:"reconcile,optional"`
	ReconcileRange  hcl.Range    `hcl:"reconcile,attr_value_range"`
	Phases          []phaseBlock `hcl:"phase,block"`
	Grants          []grantBlock `hcl:"grant,block"`
	Range           hcl.Range    `hcl:",def_range"`
}

type phaseBlock struct {
	Name          string    `hcl:"name,label"`
	NameRange     hcl.Range `hcl:"name,label_range"`
	Timeout       string    `hcl:"timeout,optional"`
	TimeoutRange  hcl.Range `hcl:"timeout,attr_value_range"`
	Policy        string    `hcl:"failure_policy,optional"`
	PolicyRange   hcl.Range `hcl:"failure_policy,attr_value_range"`
	Attempts      *int      `hcl:"attempts,optional"`
	AttemptsRange hcl.Range `hcl:"attempts,attr_value_range"`
	Range         hcl.Range `hcl:",def_range"`
}

type grantBlock struct {
	Mutate        []string  `hcl:"mutate,optional"`
	MutateRange   hcl.Range `hcl:"mutate,attr_value_range"`
	Read          []string  `hcl:"read,optional"`
	ReadRange     hcl.Range `hcl:"read,attr_value_range"`
	Override      []string  `hcl:"override,optional"`
	OverrideRange hcl.Range `hcl:"override,attr_value_range"`
	Range         hcl.Range `hcl:",def_range"`
}

type activationBlock struct {
	Extension      string      `hcl:"extension,label"`
	ExtensionRange hcl.Range   `hcl:"extension,label_range"`
	Default        bool        `hcl:"default,optional"`
	When           []whenBlock `hcl:"when,block"`
	Range          hcl.Range   `hcl:",def_range"`
}

type whenBlock struct {
	Driver         string    `hcl:"driver,optional"`
	DriverRange    hcl.Range `hcl:"driver,attr_value_range"`
	Workspace      string    `hcl:"workspace,optional"`
	WorkspaceRange hcl.Range `hcl:"workspace,attr_value_range"`
	Image          string    `hcl:"image,optional"`
	ImageRange     hcl.Range `hcl:"image,attr_value_range"`
	Caller         []string  `hcl:"caller,optional"`
	CallerRange    hcl.Range `hcl:"caller,attr_value_range"`
	Range          hcl.Range `hcl:",def_range"`
}

// The defaults of the contract, §6.
const (
	DefaultDataDir       = "/var/lib/sandgate"
	DefaultListen        = "unix:///run/sandgate/gateway.sock"
	DefaultMaxOperations = 64
	DefaultBudget        = 5
	DefaultWindow        = 10 * time.Minute
	DefaultChain         = 2 * time.Minute
	DefaultCall          = 10 * time.Minute
	DefaultReady         = 5 * time.Minute
	DefaultRelease       = 5 * time.Minute
	DefaultReconcile     = 10 * time.Minute
	DefaultTimeout       = 30 * time.Second
	DefaultAttempts      = 3
)

package container

import (
	"context"
	"io"
	"regexp"
	"time"

	"github.com/sandgate/sandgate/shared/fault"
)

// Engine is what the driver asks of its engine. Its errors are faults that Failed makes: NotFound, AlreadyExists for a
// name that is taken, Conflict for what is busy or in use, Unavailable where the engine does not answer.
type Engine interface {
	Source
	Images
	Containers
	Runs
	Networks
	Volumes
}

// Source says what the engine is and what happens in it.
type Source interface {
	About(ctx context.Context) (*About, error)
	// Epoch names this run of what holds the containers. Under another one those that ran have ended with it. It is
	// Unavailable as soon as the engine begins to end its containers in order to end itself.
	Epoch(ctx context.Context) (Epoch, error)
	// Events calls begin once every later change is sure to be told, then change with the id of each container that
	// bears the label, until ctx ends, one of the functions fails or the engine goes away. The calls are serial.
	Events(ctx context.Context, label, value string, begin func() error, change func(id string) error) error
	Close() error
}

// Images are those of the engine.
type Images interface {
	ImageID(ctx context.Context, reference string) (string, error)
	// Pull fetches an image, and tells say in short words how far it is.
	Pull(ctx context.Context, reference string, say func(string)) error
}

// Containers are the container objects of the engine.
type Containers interface {
	CreateContainer(ctx context.Context, s *Spec) (id string, err error)
	FindContainer(ctx context.Context, nameOrID string) (*Found, error)
	ListContainers(ctx context.Context, labels map[string]string) (ids []string, err error)
	RemoveContainer(ctx context.Context, id string) error // also one that runs, with its nameless volumes
	PutFiles(ctx context.Context, id string, tar io.ReadSeeker) error
}

// Runs are what containers do.
type Runs interface {
	StartContainer(ctx context.Context, id string) error
	// StopContainer returns when the container has ended.
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	// Attach gives a container that does not run another address in a network.
	Attach(ctx context.Context, id string, e Endpoint) error
	Logs(ctx context.Context, id string, follow bool, out io.Writer) error
}

// Networks are the networks of the engine.
type Networks interface {
	CreateNetwork(ctx context.Context, n *NetworkSpec) error
	FindNetwork(ctx context.Context, name string) (*NetworkSpec, error)
	ListNetworks(ctx context.Context, labels map[string]string) (names []string, err error)
	RemoveNetwork(ctx context.Context, name string) error
}

// Volumes are the volumes of the engine.
type Volumes interface {
	// CreateVolume returns the labels of the volume that is there then, which may be an older one of that name.
	CreateVolume(ctx context.Context, v *VolumeSpec) (labels map[string]string, err error)
	ListVolumes(ctx context.Context, labels map[string]string) (names []string, err error)
	RemoveVolume(ctx context.Context, name string) error
}

// About is what an engine is and can.
type About struct {
	Version  string
	Instance string
	// Missing says of a feature why this engine does not have it. One that is not named is there.
	Missing map[string]string
}

// Epoch is one run of the engine, or of its host where containers outlive the engine.
type Epoch struct {
	ID    string
	Since time.Time
}

// Spec is a container to be made.
type Spec struct {
	Name, Image     string // the image by its id
	Command         []string
	Directory       string
	Hostname, User  string
	Environment     map[string]string
	Labels          map[string]string
	Annotations     map[string]string
	Limits          Limits
	Mounts          []Mount
	Devices         []string // CDI
	ExtraHosts      map[string]string
	Health          *Health
	Sysctls         map[string]string
	UserNamespace   string
	Seccomp         string
	AppArmor        string
	Network         string     // an engine's word, where there are no endpoints; "" for its default
	Endpoints       []Endpoint // the first is the main one
	StopTimeout     time.Duration
	NoNewPrivileges bool
}

// Limits are what a container may use; zero is no limit.
type Limits struct {
	MilliCPU int64 `json:"milli_cpu,omitempty"`
	Memory   int64 `json:"memory,omitempty"`
	PIDs     int64 `json:"pids,omitempty"`
}

// Mount is one mount. A source of a volume is the volume's real name.
type Mount struct {
	Type     string `json:"type"` // bind, tmpfs, volume or image
	Source   string `json:"source,omitempty"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Size     int64  `json:"size,omitempty"`    // of a tmpfs, in bytes
	SELinux  string `json:"selinux,omitempty"` // shared or private: a bind is labelled anew for it
}

// Health is how a container is asked whether it is ready.
type Health struct {
	Test                           []string
	Interval, Timeout, StartPeriod time.Duration
	Retries                        int
}

// Endpoint is a place in a network.
type Endpoint struct {
	Network string
	Address string // without the length of a prefix; "" for any
	Aliases []string
}

// NetworkSpec is a network. Of one that was found only what is compared is set.
type NetworkSpec struct {
	Name, Subnet string
	Internal     bool
	Options      map[string]string
	Labels       map[string]string
}

// VolumeSpec is a volume to be made.
type VolumeSpec struct {
	Name, Driver string
	Options      map[string]string
	Labels       map[string]string
}

// The states of a container, in Docker's words.
const (
	StateCreated    = "created"
	StateRunning    = "running"
	StatePaused     = "paused"
	StateRestarting = "restarting"
	StateRemoving   = "removing"
	StateExited     = "exited"
	StateDead       = "dead"
)

// Found is a container as the engine has it.
type Found struct {
	ID, Name  string
	Labels    map[string]string
	State     string
	Health    string // starting, healthy, unhealthy; "" without a check
	Created   time.Time
	Started   time.Time // of the latest run
	Finished  time.Time
	ExitCode  int
	OOMKilled bool
	Error     string            // why it did not start
	Wanted    map[string]string // the address that was asked for, by network; nil where the engine does not say
	Addresses []string          // those that it has, the main one first
	Volumes   []string          // the names of its volumes
}

// longID is an engine's id, of which its first twelve digits are enough for people and for the engine's own commands.
var longID = regexp.MustCompile(`\b([0-9a-f]{12})[0-9a-f]{52}\b`)

// Failed makes the error of an engine's call: which call, about what, and in the engine's own words why.
func Failed(code fault.Code, engine, call, object string, err error) error {
	object = longID.ReplaceAllString(object, "$1")
	return fault.New(code, "%s: %s %s: %w", engine, call, object, err)
}

// Package driver is the contract between the gateway and a compute backend.
//
// # Vocabulary
//
// A driver turns a sandbox into something that runs. Before it does, it describes what it is about to build as a
// plan: typed objects with the request's and the driver's own layers, to which extensions contribute at the points
// that the driver publishes. Resolve checks the whole plan without touching anything. Create makes it and starts
// it. Every real object that a driver makes bears two marks, the sandbox's id and the id of the operation that
// made it; Delete removes what bears both and nothing else.
//
// # Life of a sandbox
//
// Layers and Resolve (pure, any number of times) · Create · Stop and Start in turn · Delete. Meanwhile the driver
// says through Watch what becomes of it. A driver call whose answer was lost is in doubt: the gateway asks Get and
// calls again with the same operation id. So every call may be repeated, and repeating one that took effect
// succeeds.
//
// A worked example. The gateway dies while Create runs. After its restart it asks Get, is told Provisioning with
// its own operation id, calls Create again, and the driver finishes what it had begun. Had Get said NotFound, the
// same Create would have made it. Had Get shown another operation id, Create would have answered AlreadyExists,
// and nothing would have been deleted.
//
// # Rules for every method
//
// Any method may be called concurrently for different sandboxes; for one sandbox the gateway calls one mutating
// method at a time. When ctx ends, a method returns soon; what it did stays, and is in doubt. Errors are
// faults. AlreadyExists and Conflict mean that someone else's object is in the way and nothing of it was changed.
// Unavailable, DeadlineExceeded, Canceled, Internal and what is no fault leave the call in doubt; every other code is
// an answer, and ends the call. InDoubt is that rule.
package driver

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// Driver is a compute backend.
type Driver interface {
	// Describe says what the driver is and offers. It does not change while the driver is open.
	Describe(ctx context.Context) (*Description, error)

	// Layers returns the plan's gateway, request and driver layers for a sandbox. Pure: the same request gives the
	// same layers. Invalid names the field of the request that cannot be used.
	Layers(ctx context.Context, r *Request) ([]plan.Layer, error)

	// WorkspaceLayers returns the layers of a workspace's plan before any contribution. Pure.
	WorkspaceLayers(ctx context.Context, w sandbox.Workspace) ([]plan.Layer, error)

	// Resolve checks that the plan can be built here and has the required features; it reserves nothing and may be
	// asked any number of times. Its errors refuse the sandbox: Invalid, FailedPrecondition, ResourceExhausted,
	// Conflict (an object that is in the way and bears no mark of this sandbox).
	Resolve(ctx context.Context, r *ResolveRequest) error

	// Create makes what the plan lists and starts it, and returns when it was started, not when it is ready.
	// Repeated with the same operation id it succeeds, making what is missing. AlreadyExists: the id or an object
	// of the plan is someone else's; what this call made before it saw that is removed again. Any other error
	// leaves what was made; the gateway calls Delete.
	Create(ctx context.Context, r *CreateRequest) error

	// Start runs a sandbox that is stopped, exited or lost, from the plan given. One that runs already under this
	// run number succeeds. NotFound: there is no such sandbox.
	Start(ctx context.Context, r *StartRequest) error

	// Stop ends the run and keeps what a later Start needs. It returns when nothing of the run is left. What is
	// not running or not there succeeds.
	Stop(ctx context.Context, id sandbox.Identity) error

	// Delete removes everything that bears the marks of the sandbox. It returns when nothing is left. What is not
	// there succeeds.
	Delete(ctx context.Context, r *DeleteRequest) error

	// Get returns what the driver has under the id. NotFound is proof, asked twice, that there is nothing.
	Get(ctx context.Context, id sandbox.Identity) (*Status, error)

	// List returns everything that the driver has, of every operation.
	List(ctx context.Context) ([]*Status, error)

	// Watch calls fn for every sandbox there is, then with Event{Synced: true}, then for each change, until ctx
	// ends, fn fails or the driver loses its source; the gateway calls it again after a pause. Calls of fn are
	// serial. A change that happened while nobody watched shows in the next snapshot; a notice does not.
	Watch(ctx context.Context, fn func(Event) error) error

	// EnsureWorkspace applies the objects of a workspace, each marked with driver and workspace id. Idempotent; it
	// changes what differs and removes nothing.
	EnsureWorkspace(ctx context.Context, r *WorkspaceRequest) error

	// DeleteWorkspace removes everything that bears the workspace's marks and returns when nothing is left.
	DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error

	// Close ends what the driver itself runs. Sandboxes go on.
	Close() error
}

// Logger is what a driver that keeps the output of its sandboxes also implements; it then has the feature "logs".
type Logger interface {
	// Logs copies what the sandbox has written to out, and with follow what it writes until it ends or ctx does.
	Logs(ctx context.Context, id sandbox.Identity, follow bool, out io.Writer) error
}

// Authenticator is what a driver that can tell which sandbox a credential belongs to also implements; it then has the
// feature "sandbox-authentication". An OpenShell gateway of the second generation asks it.
type Authenticator interface {
	// Authenticate says whose a credential is, and as which instance it runs. Unauthenticated: nobody's.
	Authenticate(ctx context.Context, credential string) (id sandbox.Identity, runtimeIdentity string, err error)

	// RuntimeIdentity names the instance that a sandbox's last create or start has begun, in the driver's own words.
	RuntimeIdentity(id sandbox.Identity) (string, error)
}

// As finds an optional interface, such as Logger, in a driver, or in the one that it stands before: a driver that wraps
// another one has a method Unwrap.
func As[T any](d Driver) (T, bool) {
	for d != nil {
		if t, ok := d.(T); ok {
			return t, true
		}
		w, ok := d.(interface{ Unwrap() Driver })
		if !ok {
			break
		}
		d = w.Unwrap()
	}
	var none T
	return none, false
}

// Description is what a driver is and offers.
type Description struct {
	Type     string              `json:"type"` // "native", "docker", …
	Version  string              `json:"version"`
	Instance string              `json:"instance,omitempty"` // names the cluster, engine or data directory; "" where there is none
	Features []extension.Feature `json:"features"`
	Kinds    []plan.Kind         `json:"kinds"`
	Points   []plan.Point        `json:"points"`
	// DefaultImage is used where a caller of the compute-driver door names none.
	DefaultImage string `json:"default_image,omitempty"`
	// ManagesLifecycle is said to an OpenShell gateway: that it is to stop the sandboxes when it ends and to start them
	// when it begins. Drivers whose sandboxes outlive it have no need of that.
	ManagesLifecycle bool `json:"manages_lifecycle,omitempty"`
	// Listeners are addresses at which the sandboxes need to reach an OpenShell gateway.
	Listeners []Listener `json:"listeners,omitempty"`
	// Missing says, for people, what this host does not give and why: feature name to reason.
	Missing map[string]string `json:"missing,omitempty"`
}

// Listener is one address that is needed: exactly one of the three is set.
type Listener struct {
	Reason       string `json:"reason,omitempty"`
	Address      string `json:"address,omitempty"` // "ip:port"
	DefaultRoute bool   `json:"default_route,omitempty"`
	Loopback     bool   `json:"loopback,omitempty"`
}

// Request is a sandbox that is asked for.
type Request struct {
	Identity sandbox.Identity
	Spec     sandbox.Spec
	Config   json.RawMessage // the driver's own part of Spec.DriverConfig
}

// ResolveRequest is a whole plan to be judged.
type ResolveRequest struct {
	Identity  sandbox.Identity
	Plan      *plan.Plan
	Workspace *plan.Plan // nil while the workspace was never ensured
	Requires  []string   // features that extensions require for this sandbox
	Request   []byte     // sandbox.Spec.Request: secret
	Preview   bool
	// Note is told, in a sentence for people, what of the plan could not be judged, and why. Nil: nobody listens.
	Note func(text string)
}

// CreateRequest is a sandbox to be made.
type CreateRequest struct {
	Identity  sandbox.Identity
	Operation string // the mark beside the id
	Run       int    // 1
	Plan      *plan.Plan
	Workspace *plan.Plan
	Token     []byte // secret: reaches the sandbox, never a log
	Request   []byte // sandbox.Spec.Request: secret
}

// StartRequest is a run to be begun.
type StartRequest struct {
	Identity  sandbox.Identity
	Operation string // of the create that made it
	Run       int    // from 2
	Plan      *plan.Plan
	Workspace *plan.Plan
	Token     []byte
	Request   []byte // sandbox.Spec.StartRequest: secret
}

// DeleteRequest says what to remove.
type DeleteRequest struct {
	Identity  sandbox.Identity
	Operation string // of the create that made it
}

// WorkspaceRequest is a workspace to be ensured.
type WorkspaceRequest struct {
	Workspace sandbox.Workspace
	Plan      *plan.Plan
}

// State is what a driver says of a sandbox.
type State string

// The states.
const (
	Provisioning State = "provisioning" // being made or started
	Running      State = "running"      // it runs and is not ready yet
	Ready        State = "ready"
	Stopped      State = "stopped" // stopped by Stop
	Exited       State = "exited"  // the process ended or was killed; it is not run again by itself
	Lost         State = "lost"    // host or engine went away under the run; Start can begin it again
	Failed       State = "failed"  // it cannot run, with a reason; may change
	Removing     State = "removing"
)

// Status is what a driver has under an id.
type Status struct {
	Identity  sandbox.Identity `json:"identity"`
	Operation string           `json:"operation,omitempty"` // the mark of the create
	Run       int              `json:"run,omitempty"`
	State     State            `json:"state"`
	Reason    string           `json:"reason,omitempty"` // CamelCase word, for programs
	Message   string           `json:"message,omitempty"`
	ExitCode  *int             `json:"exit_code,omitempty"` // of the last run, where it is known; 128+n for signal n
	Addresses []string         `json:"addresses,omitempty"`
	Objects   []RealObject     `json:"objects,omitempty"` // what exists, for resource list
	Since     time.Time        `json:"since,omitzero"`
}

// RealObject is a thing that a driver made.
type RealObject struct {
	Kind string `json:"kind"`
	Name string `json:"name"` // its real name: of a bridge, a container, a directory
}

// Event is one change, the end of the snapshot, or a notice: one of the four is set.
type Event struct {
	Status  *Status          // what it is now
	Deleted sandbox.Identity // of what is there no more
	Synced  bool             // the snapshot is complete
	Notice  *Notice
}

// Driver returns the name of the driver that the event's sandbox belongs to; "" at the end of the snapshot.
func (e Event) Driver() string {
	switch {
	case e.Status != nil:
		return e.Status.Identity.Driver
	case e.Notice != nil:
		return e.Notice.Identity.Driver
	}
	return e.Deleted.Driver
}

// Notice is what the platform tells people of a sandbox, as the events of a cluster do: that no node has room, that an
// image is being fetched. It changes nothing, is told once, and may be lost.
type Notice struct {
	Identity sandbox.Identity
	At       time.Time
	Warning  bool
	Source   string // who says it: "kubelet"
	Reason   string // CamelCase word, for programs
	Message  string
	Metadata map[string]string // for programs: what an OpenShell gateway shows as progress, say
}

// InDoubt reports whether a call that returned err may have had, or may yet have, its effect: whoever made it asks Get,
// and makes it again.
func InDoubt(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.Canceled, fault.Internal:
		return true
	}
	return false
}

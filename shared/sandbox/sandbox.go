// Package sandbox has the domain's nouns: what a sandbox is, what a caller asks for, and which states there are.
package sandbox

import (
	"encoding/json"
	"time"
)

// Identity says which sandbox is meant. It is fixed at create and never changes.
type Identity struct {
	ID          string `json:"id"`           // unique for ever; through the OpenShell door the caller's id
	Driver      string `json:"driver"`       // the name of the configured driver, composed or not
	Workspace   string `json:"workspace"`    // the tenant; DefaultWorkspace when none was named
	WorkspaceID string `json:"workspace_id"` // new each time the workspace comes into being
	Name        string `json:"name"`         // unique per driver and workspace while the sandbox exists
}

// Workspace identifies a workspace: one per driver and name.
type Workspace struct {
	ID     string `json:"id"` // new each time it comes into being
	Driver string `json:"driver"`
	Name   string `json:"name"`
}

// DefaultWorkspace is the workspace of a sandbox that names none.
const DefaultWorkspace = "default"

// Spec is what a caller asks for. Environment values and DriverConfig are sensitive: they are sealed at rest and
// shown by digest only. Token goes to the driver and to nobody else.
type Spec struct {
	Image        string            `json:"image,omitempty"`
	Command      []string          `json:"command,omitempty"`
	Environment  map[string]string `json:"environment,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Resources    Resources         `json:"resources,omitzero"`
	DriverConfig json.RawMessage   `json:"driver_config,omitempty"` // a JSON object; its schema is the driver's
	Extensions   []string          `json:"extensions,omitempty"`    // on_request extensions that were asked for by name
	Token        []byte            `json:"token,omitempty"`         // the sandbox token: a secret
	// Request is the message of an openshell.compute.v1 caller (DriverSandbox), whole, for a driver that passes it on:
	// one with the feature "compute-request". It holds secrets, and reaches the driver alone.
	Request []byte `json:"request,omitempty"`
	// StartRequest is that caller's last StartSandboxRequest, in the same way; nil while it has asked for none.
	StartRequest []byte `json:"start_request,omitempty"`
}

// Resources is what a sandbox may use. Zero means that the driver decides.
type Resources struct {
	MilliCPU int64 `json:"milli_cpu,omitempty"` // thousandths of a processor
	Memory   int64 `json:"memory,omitempty"`    // bytes
	PIDs     int64 `json:"pids,omitempty"`      // processes and threads
}

// State is where in its life a sandbox is.
type State string

// The states. The engine moves a sandbox between them; nothing else does.
const (
	Creating  State = "creating"  // the create is in flight
	Starting  State = "starting"  // made or started, the driver has not yet said that it is ready
	Ready     State = "ready"     // the driver says that it is ready
	Stopping  State = "stopping"  // a stop is in flight
	Stopped   State = "stopped"   // stopped by request; may be started again
	Exited    State = "exited"    // its process ended by itself or was killed; it is not run again by itself
	Failing   State = "error"     // not as it should be, with a reason; becomes ready when the driver says so
	Deleting  State = "deleting"  // a delete, or the undoing of a create, is in flight
	Releasing State = "releasing" // the driver has nothing of it left; releases of extensions still go on
	Deleted   State = "deleted"   // nothing of it is left but its history
)

// Origin is who asked: the door that was used, and the peer behind it.
type Origin struct {
	Door   string `json:"door"`   // "api" or the name of the exposed driver
	Caller string `json:"caller"` // "uid:1000", or "cert:" and the name of the client certificate
	Trace  string `json:"-"`      // the caller's trace context (W3C traceparent); "" where it has none
}

// Run is one time that a sandbox runs, from its start to its end.
type Run struct {
	Number   int        `json:"number"` // from 1
	Started  time.Time  `json:"started,omitzero"`
	Ended    *time.Time `json:"ended,omitempty"`
	ExitCode *int       `json:"exit_code,omitempty"` // where the driver knows it; 128+n for signal n
}

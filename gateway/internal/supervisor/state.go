package supervisor

import (
	"slices"
	"time"

	"github.com/sandgate/sandgate/shared/extension"
)

// State is where an extension is in its life.
type State string

// The states.
const (
	Verified   State = "verified"   // the program is the one that was configured
	Starting   State = "starting"   // a process is being started, or waits for its restart
	Negotiated State = "negotiated" // it has proved itself and said what it does
	Configured State = "configured" // it has accepted its configuration
	Ready      State = "ready"      // it serves
	Degraded   State = "degraded"   // it serves, but says that it is not well, or does not answer health calls
	Draining   State = "draining"   // it finishes what it serves, and gets nothing new
	Stopped    State = "stopped"    // it was ended; for good
	Failed     State = "failed"     // its crash budget is spent, or it came back as another; until Reset
)

// transitions is the state machine.
var transitions = map[State][]State{
	"":         {Verified, Stopped},
	Verified:   {Starting, Stopped},
	Starting:   {Negotiated, Failed, Stopped},
	Negotiated: {Configured, Starting, Draining, Failed, Stopped},
	Configured: {Ready, Degraded, Starting, Draining, Failed, Stopped},
	Ready:      {Degraded, Starting, Draining, Failed, Stopped},
	Degraded:   {Ready, Starting, Draining, Failed, Stopped},
	Draining:   {Stopped},
	Failed:     {Starting, Stopped},
	Stopped:    {},
}

// may reports whether to is a state that follows from.
func may(from, to State) bool { return slices.Contains(transitions[from], to) }

// serves reports whether calls are made in the state.
func (s State) serves() bool { return s == Ready || s == Degraded }

// over reports whether a call has nothing to wait for in the state.
func (s State) over() bool { return s == Draining || s == Stopped || s == Failed }

// Event is one thing that happened to an extension: its state changed, or its process ended.
type Event struct {
	Extension string
	Time      time.Time
	From, To  State  // equal when the process ended
	Reason    string // why, for people; may be empty
	Exit      *Exit  // of a process that ended
}

// Status is a snapshot of an extension.
type Status struct {
	Name      string
	State     State
	Reason    string // why it is in the state, for people
	PID       int    // 0: there is no process
	Started   time.Time
	Uptime    time.Duration
	Restarts  int // since it was launched
	Digest    string
	Parts     []Part
	Manifest  extension.Manifest
	LastError string // of the last launch or process that failed
	LastExit  *Exit
	InFlight  []Flight
	Stderr    []string // last lines
}

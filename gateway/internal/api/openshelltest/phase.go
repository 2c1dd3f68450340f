package openshelltest

import (
	"slices"
	"strings"

	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
)

// Phase is what a user sees of a sandbox.
type Phase string

// The phases, and Gone for a row that is not there.
const (
	Unspecified  Phase = "Unspecified"
	Provisioning Phase = "Provisioning"
	Ready        Phase = "Ready"
	Error        Phase = "Error"
	Deleting     Phase = "Deleting"
	Unknown      Phase = "Unknown"
	Stopping     Phase = "Stopping"
	Stopped      Phase = "Stopped"
	Starting     Phase = "Starting"
	Gone         Phase = "Gone"
)

// transient are the reasons for not being ready that are waited out.
var transient = []string{"reconcilererror", "dependenciesnotready", "supervisornotconnected", "starting", "containerstarting",
	"containercreated", "healthcheckstarting", "inspectfailed"}

// Derive returns the phase of the backend alone, and the reason for it.
func Derive(gen Generation, s *computev1.DriverSandboxStatus) (Phase, string) {
	if s == nil {
		return Unknown, ""
	}
	if s.GetDeleting() {
		return Deleting, ""
	}
	ready := condition(s, func(c *computev1.DriverCondition) bool { return c.GetType() == "Ready" })
	suspended := condition(s, func(c *computev1.DriverCondition) bool {
		return strings.EqualFold(c.GetType(), "Suspended") && c.GetStatus() == "True"
	})
	if suspended != nil && (gen == First || ready.GetStatus() != "True") {
		return Stopped, suspended.GetReason()
	}
	switch {
	case ready.GetStatus() == "True":
		return Ready, ready.GetReason()
	case ready.GetStatus() == "False" && !slices.Contains(transient, strings.ToLower(ready.GetReason())):
		return Error, ready.GetReason()
	}
	return Provisioning, ready.GetReason()
}

func condition(s *computev1.DriverSandboxStatus, is func(*computev1.DriverCondition) bool) *computev1.DriverCondition {
	if i := slices.IndexFunc(s.GetConditions(), is); i >= 0 {
		return s.GetConditions()[i]
	}
	return nil
}

// compose adds what the gateway knows itself: whether the sandbox's supervisor is connected.
func compose(backend Phase, reason string, session bool) (Phase, string) {
	switch {
	case backend == Error, backend == Deleting, backend == Stopped:
		return backend, reason
	case session:
		return Ready, reason
	case backend == Ready:
		return Provisioning, "SupervisorNotConnected"
	}
	return Provisioning, reason
}

// ended reports whether a snapshot proves that the compute does not run.
func ended(gen Generation, s *computev1.DriverSandboxStatus) bool {
	if p, _ := Derive(gen, s); p == Stopped {
		return true
	}
	return condition(s, func(c *computev1.DriverCondition) bool {
		return c.GetStatus() == "False" && (c.GetReason() == "ContainerExited" || c.GetReason() == "ContainerStopped")
	}) != nil
}

// stopping reports whether a snapshot says that a stop is under way.
func stopping(s *computev1.DriverSandboxStatus) bool {
	return condition(s, func(c *computev1.DriverCondition) bool {
		return strings.EqualFold(c.GetType(), "Suspended") && c.GetStatus() == "False" &&
			(c.GetReason() == "PodTerminating" || c.GetReason() == "PodNotTerminated")
	}) != nil
}

// held says which phase a row that is under way or stopped keeps, whatever a late snapshot shows.
func held(row, next Phase) Phase {
	switch row {
	case Error, Deleting:
		return row
	case Stopping, Stopped:
		if next != Error && next != Stopped && next != Deleting {
			return row
		}
	case Starting:
		if next == Stopped || next == Provisioning {
			return row
		}
	}
	return next
}

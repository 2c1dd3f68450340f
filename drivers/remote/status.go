package remote

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	computev1 "github.com/sandgate/sandgate/shared/proto/compute/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// passing are the reasons for not being ready that an OpenShell gateway waits out, in lower case.
var passing = []string{"reconcilererror", "dependenciesnotready", "supervisornotconnected", "starting", "containerstarting",
	"containercreated", "healthcheckstarting", "inspectfailed"}

// ended are the reasons that say that the command's run is over.
var ended = []string{"containerexited", "mainprocessexited", "mainprocessfailed", "mainprocesscompleted"}

// status says how a sandbox is, as an OpenShell gateway would understand it.
func (d *Driver) status(m *computev1.DriverSandbox) *driver.Status {
	st := &driver.Status{Identity: sandbox.Identity{ID: m.GetId(), Driver: d.cfg.Name, Workspace: m.GetWorkspace(), Name: m.GetName()}}
	n, ours := d.notes.get(m.GetId())
	if ours {
		st.Identity, st.Operation, st.Run = n.Identity, n.Operation, n.Run
	}
	st.State, st.Reason, st.Message, st.Since = derive(m.GetStatus())
	if ours && !n.Begun && (st.State == driver.Exited || st.State == driver.Stopped) {
		st.Run-- // what it shows is still the end of the run before
	}
	if st.State == driver.Exited {
		st.ExitCode = exitCode(st.Message)
	}
	name := m.GetStatus().GetInstanceId()
	if name == "" {
		name = m.GetId()
	}
	st.Objects = []driver.RealObject{{Kind: kindSandbox, Name: name}}
	return st
}

func derive(s *computev1.DriverSandboxStatus) (state driver.State, reason, message string, since time.Time) {
	if s == nil {
		return driver.Provisioning, "", "", time.Time{}
	}
	if s.GetDeleting() {
		return driver.Removing, "", "", time.Time{}
	}
	var ready *computev1.DriverCondition
	for _, c := range s.GetConditions() {
		if strings.EqualFold(c.GetType(), "Suspended") && c.GetStatus() == "True" {
			return driver.Stopped, c.GetReason(), c.GetMessage(), at(c)
		}
		if c.GetType() == "Ready" && ready == nil {
			ready = c
		}
	}
	if ready == nil {
		return driver.Provisioning, "", "", time.Time{}
	}
	word := strings.ToLower(ready.GetReason())
	switch {
	case ready.GetStatus() == "True":
		state = driver.Ready
	case ready.GetStatus() != "False", slices.Contains(passing, word):
		state = driver.Provisioning
	case word == "containerstopped":
		state = driver.Stopped
	case slices.Contains(ended, word):
		state = driver.Exited
	default:
		state = driver.Failed
	}
	return state, ready.GetReason(), ready.GetMessage(), at(ready)
}

// at returns when a condition changed, in the form of either generation.
func at(c *computev1.DriverCondition) time.Time {
	if t := c.GetTransitionTime(); t.IsValid() && t != nil {
		return t.AsTime()
	}
	t, err := time.Parse(time.RFC3339, c.GetLastTransitionTime())
	if err != nil {
		return time.Time{}
	}
	return t
}

var codeForm = regexp.MustCompile(`(?i)\bexit(?:ed)?(?: with)?(?: the)?(?: exit)?(?: code| status)?[ :=]+(\d{1,3})\b|\bcode[ :=]+(\d{1,3})\b`)

// exitCode reads the code out of a message: the contract has no field for it.
func exitCode(message string) *int {
	m := codeForm.FindStringSubmatch(message)
	if m == nil {
		return nil
	}
	text := m[1] + m[2]
	code, err := strconv.Atoi(text)
	if err != nil || code > 255 {
		return nil
	}
	return &code
}

// event turns what a stream says into ours.
func (d *Driver) event(m *computev1.WatchSandboxesEvent) (driver.Event, bool) {
	switch p := m.GetPayload().(type) {
	case *computev1.WatchSandboxesEvent_Sandbox:
		if p.Sandbox.GetSandbox().GetId() != "" {
			return driver.Event{Status: d.status(p.Sandbox.GetSandbox())}, true
		}
	case *computev1.WatchSandboxesEvent_Deleted:
		return driver.Event{Deleted: d.identity(p.Deleted.GetSandboxId())}, true
	case *computev1.WatchSandboxesEvent_PlatformEvent:
		return driver.Event{Notice: d.notice(p.PlatformEvent)}, true
	}
	return driver.Event{}, false
}

// identity returns a sandbox's, as far as it is known here.
func (d *Driver) identity(id string) sandbox.Identity {
	if n, ok := d.notes.get(id); ok {
		return n.Identity
	}
	return sandbox.Identity{ID: id, Driver: d.cfg.Name}
}

func (d *Driver) notice(m *computev1.WatchSandboxesPlatformEvent) *driver.Notice {
	e := m.GetEvent()
	n := &driver.Notice{Identity: d.identity(m.GetSandboxId()), Warning: e.GetType() == "Warning", Source: e.GetSource(), Reason: e.GetReason(),
		Message: e.GetMessage(), Metadata: e.GetMetadata()}
	switch {
	case e.GetEventTime().IsValid() && e.GetEventTime() != nil:
		n.At = e.GetEventTime().AsTime()
	case e.GetTimestampMs() != 0:
		n.At = time.UnixMilli(e.GetTimestampMs())
	}
	return n
}

package engine

import (
	"slices"

	"github.com/sandgate/sandgate/shared/phase"
)

// stage is one line of an operation: exactly one of setup, quiesce, drive, release, settled and run is set.
type stage struct {
	setup   phase.Phase    // the chain in bind order; a failure refuses or is recorded, as the phase says
	quiesce phase.Phase    // the chain in reverse order; failures are recorded
	drive   call           // a call of the driver
	release phase.Lifetime // a release phase of whoever was started, in reverse order
	settled bool           // wait until the releases of earlier runs are acknowledged
	run     bool           // begin a new run, from the stored layers

	failed phase.Cause // what the undoing is caused by when this stage fails
	when   func(*execution) bool
}

// call is a call of the driver.
type call string

const (
	callCreate          call = "create"
	callStart           call = "start"
	callStop            call = "stop"
	callDelete          call = "delete"
	callEnsureWorkspace call = "ensure_workspace"
	callDeleteWorkspace call = "delete_workspace"
)

// procedure is an operation as the contract has it (§2): what is done, and how it is undone when it fails.
type procedure struct {
	forward []stage
	undo    []stage
}

// builds reports whether the operation makes something from the plan.
func (p procedure) builds() bool {
	return slices.ContainsFunc(p.forward, func(s stage) bool {
		return s.drive == callCreate || s.drive == callStart || s.drive == callEnsureWorkspace
	})
}

// procedures is the table of operations. What comes before the first stage with effects (validate_request, the
// workspace, prepare_plan, Resolve) is in create.go: it is pure, and so is not journaled.
var procedures = map[phase.Operation]procedure{
	phase.OpCreate: {
		forward: []stage{
			{setup: phase.BeforeCreate, failed: phase.CauseBeforeCreateFailed},
			{setup: phase.BeforeStart, failed: phase.CauseBeforeStartFailed},
			{drive: callCreate, failed: phase.CauseLaunchFailed},
			{setup: phase.AfterCreate},
		},
		undo: []stage{
			{drive: callDelete, when: createWasBegun},
			{release: phase.Run},
			{release: phase.Sandbox},
		},
	},
	phase.OpReady: {forward: []stage{{setup: phase.AfterReady}}},
	phase.OpStart: {
		forward: []stage{
			{settled: true},
			{run: true},
			{setup: phase.BeforeStart, failed: phase.CauseBeforeStartFailed},
			{drive: callStart, failed: phase.CauseLaunchFailed},
		},
		undo: []stage{{drive: callStop, when: runWasBegun}, {release: phase.Run}},
	},
	phase.OpStop: {forward: []stage{{quiesce: phase.BeforeStop}, {drive: callStop}, {release: phase.Run}}},
	phase.OpExit: {forward: []stage{{release: phase.Run}}},
	phase.OpRestore: {
		forward: []stage{
			{release: phase.Run, when: runNotBegun},
			{settled: true},
			{run: true},
			{setup: phase.BeforeStart, failed: phase.CauseBeforeStartFailed},
			{drive: callStart, failed: phase.CauseLaunchFailed},
		},
		undo: []stage{{drive: callStop, when: runWasBegun}, {release: phase.Run}},
	},
	phase.OpDelete: {forward: []stage{
		{quiesce: phase.BeforeStop, when: ranAtBegin},
		{quiesce: phase.BeforeDelete},
		{drive: callDelete},
		{release: phase.Run},
		{release: phase.Sandbox},
	}},
	phase.OpGone: {forward: []stage{{drive: callDelete}, {release: phase.Run}, {release: phase.Sandbox}}},
	phase.OpWorkspaceEnsure: {
		forward: []stage{{setup: phase.EnsureWorkspace}, {drive: callEnsureWorkspace}},
		undo: []stage{
			{drive: callDeleteWorkspace, when: firstEnsure},
			{release: phase.Workspace, when: firstEnsure},
		},
	},
	phase.OpWorkspaceDelete: {forward: []stage{{drive: callDeleteWorkspace}, {release: phase.Workspace}}},
}

// createWasBegun: nothing is deleted where driver.Create was not called, or found somebody else's.
func createWasBegun(x *execution) bool {
	return x.steps["driver."+string(callCreate)] != nil && !x.op.Refused
}

// runWasBegun: a start that was refused before it began a run has nothing to stop.
func runWasBegun(x *execution) bool { return x.op.Run != 0 }

// runNotBegun: a restore that was cut short after its new run had begun has released the lost one.
func runNotBegun(x *execution) bool { return x.op.Run == 0 }

func ranAtBegin(x *execution) bool { return x.op.Ran }

func firstEnsure(x *execution) bool { return x.op.First }

// releasePhase returns the phase that releases a lifetime in an operation.
func releasePhase(op phase.Operation, l phase.Lifetime) phase.Phase {
	switch {
	case l == phase.Run:
		return phase.AfterStop
	case l == phase.Workspace:
		return phase.DeleteWorkspace
	case op == phase.OpCreate:
		return phase.OnCreateFailed
	}
	return phase.AfterDelete
}

// runCause is the cause under which an operation that does not fail releases the run.
var runCause = map[phase.Operation]phase.Cause{
	phase.OpStop: phase.CauseStopped, phase.OpExit: phase.CauseProcessExited, phase.OpRestore: phase.CauseLost,
	phase.OpDelete: phase.CauseDeleted, phase.OpGone: phase.CauseDeleted,
}

// startCause is the cause with which an operation begins a run.
var startCause = map[phase.Operation]phase.Cause{
	phase.OpCreate: phase.CauseCreate, phase.OpStart: phase.CauseStart, phase.OpRestore: phase.CauseRestore,
}

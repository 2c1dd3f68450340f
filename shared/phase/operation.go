package phase

// Operation is what the gateway does with a sandbox or a workspace, or with one bind.
type Operation string

// The operations.
const (
	OpCreate          Operation = "create"
	OpReady           Operation = "ready"
	OpStart           Operation = "start"
	OpStop            Operation = "stop"
	OpExit            Operation = "exit"
	OpRestore         Operation = "restore"
	OpDelete          Operation = "delete"
	OpGone            Operation = "gone"
	OpRepair          Operation = "repair" // the call of an authoritative reconcile that mends one difference
	OpReconcile       Operation = "reconcile"
	OpWorkspaceEnsure Operation = "workspace_ensure"
	OpWorkspaceDelete Operation = "workspace_delete"
)

// Cause says why a phase is called, where a phase has several.
type Cause string

// The causes.
const (
	CauseCreate             Cause = "create"
	CauseStart              Cause = "start"
	CauseRestore            Cause = "restore"
	CauseStopped            Cause = "stopped"
	CauseDeleted            Cause = "deleted"
	CauseProcessExited      Cause = "process_exited"
	CauseLost               Cause = "lost"
	CauseBeforeCreateFailed Cause = "before_create_failed"
	CauseBeforeStartFailed  Cause = "before_start_failed"
	CauseLaunchFailed       Cause = "launch_failed"
	CauseCancelled          Cause = "cancelled"
)

// Package plugin is what the author of an extension imports.
//
// An extension is any value with an Info method that has one method per phase it cares about; each phase is an
// interface of one method below. Serve is its whole main:
//
//	func main() { _ = plugin.Serve(&labels{}) }
//
// A method is asked with a Request and answers through the value beside it. An error is a failure: the gateway calls
// again, with the same Request.Key, and then does what the operator's failure policy says. A decision against a
// request is Deny, which no policy overrules.
//
// Three promises keep what an extension holds from leaking, and the package keeps the first for it:
//
//   - One call at a time for one sandbox or workspace. One that was overtaken by a later one is refused.
//   - A call may come again. Allocate by Request.SubjectID: asked twice, answer with what you hold already.
//   - Say what you hold. Setup.Hold is the complete set of the phase's lifetime after every call; a phase that
//     releases and returns nil has released everything.
//
// Package plugintest tries all of that, in a unit test and against the program; `sandgate extension new` begins a
// project that does.
package plugin

import "context"

// Info is what an extension says of itself.
type Info struct {
	Name    string
	Version string
	// Requires are features of a driver without which the extension cannot work; a bind to a driver that lacks one is
	// refused when the gateway starts. Uses are those that it uses where they are: ask Request.Feature.
	Requires []string
	Uses     []string
	// Points are mutation points or kinds that it contributes to, besides those of its features.
	Points []string
	// Provides is what its being there adds, in the same words.
	Provides []string
	// StateReads are the versions of state that it can read; StateWrites is the one that it writes. Both may stay
	// empty for an extension that keeps none.
	StateReads  []int
	StateWrites int
	// Config is a pointer to a struct, whose fields describe the config block: see Schema. Nil: it takes none.
	Config any
}

// Extension is what every extension implements.
type Extension interface{ Info() Info }

// The phases. Each is optional; those that are implemented are declared.
type (
	// Validator may refuse a request, before anything is touched. Pure.
	Validator interface {
		ValidateRequest(ctx context.Context, r *Request, v *Verdict) error
	}
	// Planner contributes to the plan. Pure: asked twice it answers the same, and holds nothing.
	Planner interface {
		PreparePlan(ctx context.Context, r *Request, p *Plan) error
	}
	// BeforeCreator may hold for the sandbox, contribute to late points, and refuse.
	BeforeCreator interface {
		BeforeCreate(ctx context.Context, r *Request, s *Setup) error
	}
	// BeforeStarter does the same for every run.
	BeforeStarter interface {
		BeforeStart(ctx context.Context, r *Request, s *Setup) error
	}
	// AfterCreator may hold for the sandbox once it is made.
	AfterCreator interface {
		AfterCreate(ctx context.Context, r *Request, h *Hold) error
	}
	// AfterReadier may hold for the run once it is ready.
	AfterReadier interface {
		AfterReady(ctx context.Context, r *Request, h *Hold) error
	}
	// BeforeStopper quiesces before a stop; an error is recorded and stops nothing.
	BeforeStopper interface {
		BeforeStop(ctx context.Context, r *Request) error
	}
	// BeforeDeleter quiesces before a delete.
	BeforeDeleter interface {
		BeforeDelete(ctx context.Context, r *Request) error
	}
	// AfterStopper releases what was held for the run. It is called until it returns nil.
	AfterStopper interface {
		AfterStop(ctx context.Context, r *Request) error
	}
	// AfterDeleter releases what was held for the sandbox. It is called until it returns nil.
	AfterDeleter interface {
		AfterDelete(ctx context.Context, r *Request) error
	}
	// CreateFailedHandler releases the same after a create that failed.
	CreateFailedHandler interface {
		OnCreateFailed(ctx context.Context, r *Request) error
	}
	// WorkspaceEnsurer contributes a workspace's objects and may hold for it. Idempotent.
	WorkspaceEnsurer interface {
		EnsureWorkspace(ctx context.Context, r *Request, s *Setup) error
	}
	// WorkspaceDeleter releases what was held for the workspace. It is called until it returns nil.
	WorkspaceDeleter interface {
		DeleteWorkspace(ctx context.Context, r *Request) error
	}
	// Reconciler says what it holds, and mends what it is told to. It releases nothing of its own accord.
	Reconciler interface {
		// Holdings returns everything that is held through the bind, an item per subject and lifetime.
		Holdings(ctx context.Context, bind string) ([]Holding, error)
		// Repair releases r.Orphans and takes back r.Lost; h is the complete set afterwards.
		Repair(ctx context.Context, r *Request, h *Hold) error
	}
)

// What an extension may implement besides.
type (
	// Configurer takes the configuration, before any phase and whenever it changes. The struct of Info.Config has been
	// filled in a fresh copy: c.Value is a pointer of that type. Findings about it go to c.Invalid.
	Configurer interface {
		Configure(ctx context.Context, c *Config) error
	}
	// HealthChecker says that the extension cannot serve at the moment, and why.
	HealthChecker interface {
		Health(ctx context.Context) error
	}
	// Drainer finishes what is being done before the process is ended.
	Drainer interface {
		Drain(ctx context.Context) error
	}
)

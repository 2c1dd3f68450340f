// Package cli is the command line: one file per noun. Commands are thin clients of the gateway's API; only `gateway`
// and `config` touch the daemon and the configuration themselves, and `extension verify` and `extension new` what an
// author has before there is a gateway.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	lev "github.com/agext/levenshtein"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// Env is what a command has of the world.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
}

// OSEnv is the environment of the process.
func OSEnv() Env {
	return Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
}

// The exit statuses, for every command. `sandgate help exit-codes` prints them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4  // denied, in conflict, or not in a state for it
	exitUnavailable = 5  // the gateway, or what it needs, cannot be reached
	exitConfig      = 78 // the configuration is wrong (EX_CONFIG)
)

const exitCodes = `Exit codes:
  0   done
  1   it failed
  2   the command line is wrong
  3   what was named does not exist
  4   refused: denied, in conflict, or not in a state for it
  5   the gateway, or something that it needs, cannot be reached
  78  the configuration is wrong`

// errUsage marks an error in the command line.
var errUsage = errors.New("usage")

// errReported is an error that the user has been shown already.
type errReported struct{ code int }

func (e errReported) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// Main runs one command and returns its exit status.
func Main(env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return Run(ctx, env)
}

// Run is Main with a context of the caller's.
func Run(ctx context.Context, env Env) int {
	root := newRoot(env)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var reported errReported
	if errors.As(err, &reported) {
		return reported.code
	}
	showError(env.Stderr, err)
	return exitCode(err)
}

// showError tells people what went wrong. Parts of it may be the words of an extension or a driver.
func showError(w io.Writer, err error) {
	fmt.Fprintln(w, "sandgate: "+printableLines(strings.TrimPrefix(err.Error(), errUsage.Error()+": ")))
	for _, d := range fault.DiagnosticsOf(err) {
		if d.Detail != "" {
			fmt.Fprintln(w, "  "+printable(strings.TrimSpace(d.Path+" "+d.Summary))+"\n    "+strings.ReplaceAll(printableLines(d.Detail), "\n", "\n    "))
		}
	}
}

func exitCode(err error) int {
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	switch fault.CodeOf(err) {
	case fault.NotFound:
		return exitNotFound
	case fault.Denied, fault.Conflict, fault.AlreadyExists, fault.FailedPrecondition, fault.Invalid, fault.ResourceExhausted:
		return exitRefused
	case fault.Unavailable, fault.DeadlineExceeded:
		return exitUnavailable
	}
	return exitFailure
}

func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "sandgate",
		Short:         "Sandboxes on any driver, with extensions in their lifecycle",
		Long:          "Sandgate runs sandboxes on any driver and lets extensions take part in their lifecycle.\n\n" + exitCodes,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          aCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see %s --help", errUsage, err, c.CommandPath())
	})
	c := &client{env: env}
	c.flags(root)
	root.AddCommand(gatewayCommand(env, c), versionCommand(env, c), configCommand(env), sandboxCommand(env, c), workspaceCommand(env, c),
		extensionCommand(env, c), driverCommand(env, c), resourceCommand(env, c), operationCommand(env, c), auditCommand(env, c))
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit statuses mean", Long: exitCodes})
	return c.completeFlags(root)
}

// noun makes a command that only groups others.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: aCommand, RunE: func(c *cobra.Command, _ []string) error {
		return fmt.Errorf("%w: say what to do; see %s --help", errUsage, c.CommandPath())
	}}
	c.AddCommand(verbs...)
	return c
}

// aCommand refuses what is none of a command's own commands, and says which may have been meant.
func aCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant, nearest := "", 3
	for _, sub := range c.Commands() {
		if n := lev.Distance(args[0], sub.Name(), nil); n < nearest {
			meant, nearest = fmt.Sprintf("did you mean %q? ", sub.Name()), n
		}
	}
	return fmt.Errorf("%w: %s has no command %q; %ssee %s --help", errUsage, c.CommandPath(), args[0], meant, c.CommandPath())
}

// exactly is cobra.ExactArgs with an error of ours.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fmt.Errorf("%w: %s takes %s", errUsage, c.CommandPath(), strings.Join(append([]string{}, orNothing(names)...), " "))
		}
		return nil
	}
}

func oneOrMore(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%w: %s takes %s", errUsage, c.CommandPath(), name)
		}
		return nil
	}
}

func oneOrNone(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%w: %s takes %s or nothing", errUsage, c.CommandPath(), name)
		}
		return nil
	}
}

func orNothing(names []string) []string {
	if len(names) == 0 {
		return []string{"no arguments"}
	}
	return names
}

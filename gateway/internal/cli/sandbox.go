package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

func sandboxCommand(env Env, c *client) *cobra.Command {
	return noun("sandbox", "Create, watch and end sandboxes",
		createCommand(env, c), planCommand(env, c), sandboxListCommand(env, c), c.complete(sandboxGetCommand(env, c), sandboxNames), c.complete(sandboxWatchCommand(env, c), sandboxNames),
		c.complete(operateCommand(env, c, "stop", "End a sandbox's run and keep what a start needs", gatewayv1.GatewayClient.StopSandbox), sandboxNames),
		c.complete(operateCommand(env, c, "start", "Run a sandbox again", gatewayv1.GatewayClient.StartSandbox), sandboxNames),
		c.complete(operateCommand(env, c, "delete", "Remove a sandbox and all that is held for it", gatewayv1.GatewayClient.DeleteSandbox), sandboxNames),
		c.complete(historyCommand(env, c), sandboxNames), c.complete(logsCommand(env, c), sandboxNames))
}

// spec is the flags that say what sandbox is wanted.
type spec struct {
	driver, workspace, name, image, config string
	cpu, memory                            string
	pids                                   int64
	env, labels, extensions                []string
}

func (s *spec) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.driver, "driver", "", "the driver; may be left out where only one is configured")
	f.StringVar(&s.workspace, "workspace", "", "the tenant (default \"default\")")
	f.StringVar(&s.name, "name", "", "a name; made up when left out")
	f.StringVar(&s.image, "image", "", "what it runs from, in the driver's terms")
	f.StringArrayVar(&s.env, "env", nil, "K=V; K alone takes the value from here (repeatable)")
	f.StringArrayVar(&s.labels, "label", nil, "K=V (repeatable)")
	f.StringArrayVar(&s.extensions, "extension", nil, "ask for an on_request extension (repeatable)")
	f.StringVar(&s.config, "driver-config-json", "", "a JSON object for the driver")
	f.StringVar(&s.cpu, "cpu", "", "processors, for example 0.5")
	f.StringVar(&s.memory, "memory", "", "bytes, or with KiB, MiB, GiB")
	f.Int64Var(&s.pids, "pids", 0, "processes and threads")
}

// request makes the message. The command follows "--".
func (s *spec) request(ctx context.Context, env Env, g gatewayv1.GatewayClient, command []string) (*gatewayv1.CreateSandboxRequest, error) {
	if s.driver == "" {
		var err error
		if s.driver, err = onlyDriver(ctx, g); err != nil {
			return nil, err
		}
	}
	out := &gatewayv1.SandboxSpec{Image: s.image, Command: command, Extensions: s.extensions, DriverConfigJson: s.config,
		Resources: &gatewayv1.Resources{Pids: s.pids}}
	var err error
	if out.Environment, err = pairs("--env", s.env, func(k string) (string, bool) { v := env.Getenv(k); return v, v != "" }); err != nil {
		return nil, err
	}
	if out.Labels, err = pairs("--label", s.labels, nil); err != nil {
		return nil, err
	}
	if out.Resources.MilliCpu, err = milliCPU(s.cpu); err != nil {
		return nil, err
	}
	if out.Resources.Memory, err = byteSize(s.memory); err != nil {
		return nil, err
	}
	return &gatewayv1.CreateSandboxRequest{Driver: s.driver, Workspace: s.workspace, Name: s.name, Spec: out}, nil
}

// onlyDriver returns the driver that is meant where none was named.
func onlyDriver(ctx context.Context, g gatewayv1.GatewayClient) (string, error) {
	all, err := g.ListDrivers(ctx, &gatewayv1.ListDriversRequest{})
	if err != nil {
		return "", err
	}
	if len(all.Drivers) == 1 {
		return all.Drivers[0].Name, nil
	}
	var names []string
	for _, d := range all.Drivers {
		names = append(names, d.Name)
	}
	return "", fmt.Errorf("%w: say --driver: the gateway has %s", errUsage, strings.Join(names, ", "))
}

func pairs(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for i, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok && lookup != nil {
			v, ok = lookup(k)
		}
		if !ok || k == "" {
			// What was said instead may be a secret whose name was forgotten: it is not shown.
			return nil, fmt.Errorf("%w: %s takes K=V; number %d of them is not, and names nothing that is set here", errUsage, flag, i+1)
		}
		out[k] = v
	}
	return out, nil
}

func milliCPU(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n > 0) || n > 1<<20 {
		return 0, fmt.Errorf("%w: --cpu takes a number of processors, for example 0.5; not %q", errUsage, s)
	}
	return int64(math.Ceil(n * 1000)), nil
}

func byteSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits, unit := s, int64(1)
	for suffix, factor := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = rest, factor
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%w: --memory takes bytes, or a number with KiB, MiB or GiB; not %q", errUsage, s)
	}
	return n * unit, nil
}

func createCommand(env Env, c *client) *cobra.Command {
	var s spec
	var wait bool
	var out format
	cmd := &cobra.Command{
		Use: "create [flags] -- COMMAND [ARG...]", Short: "Create a sandbox",
		Example: "  sandgate sandbox create --driver native --name hello --wait -- sh -c 'echo hello; sleep 60'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				req, err := s.request(ctx, env, g, args)
				if err != nil {
					return err
				}
				res, err := g.CreateSandbox(ctx, req)
				if err != nil {
					return err
				}
				sb := res.Sandbox
				if wait {
					if sb, err = waitReady(ctx, env, g, res); err != nil {
						return err
					}
				}
				return out.print(env.Stdout, sb, func(t *table) { sandboxTable(t, []*gatewayv1.Sandbox{sb}) })
			})
		},
	}
	s.flags(cmd)
	out.flag(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "show the progress of its phases until it is ready")
	return cmd
}

// waitReady follows a create to its end, then the sandbox until it is ready or is not going to be.
func waitReady(ctx context.Context, env Env, g gatewayv1.GatewayClient, res *gatewayv1.OperationResponse) (*gatewayv1.Sandbox, error) {
	if err := follow(ctx, env, g, res.Operation.Id); err != nil {
		return nil, err
	}
	var last *gatewayv1.Sandbox
	err := eachChange(ctx, g, res.Sandbox.Id, func(sb *gatewayv1.Sandbox) (bool, error) {
		last = sb
		switch sb.State {
		case "ready", "exited":
			return true, nil
		case "error", "deleting", "releasing", "deleted", "stopped":
			return true, fault.New(fault.FailedPrecondition, "sandbox %s is %s: %s", sb.Name, sb.State, sb.Reason)
		}
		return false, nil
	})
	return last, err
}

// eachChange calls fn for every version of a sandbox until it says that it is enough.
func eachChange(ctx context.Context, g gatewayv1.GatewayClient, id string, fn func(*gatewayv1.Sandbox) (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.WatchSandboxes(ctx, &gatewayv1.ListSandboxesRequest{Ref: &gatewayv1.SandboxRef{IdOrName: id}, All: true})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.Sandbox == nil {
			continue
		}
		if done, err := fn(m.Sandbox); done || err != nil {
			return err
		}
	}
}

func planCommand(env Env, c *client) *cobra.Command {
	var s spec
	var out format
	var existing bool
	cmd := &cobra.Command{
		Use: "plan [flags] -- COMMAND [ARG...]", Short: "Show what a create would come to, with the owner of each field",
		Long: "Shows the resolved plan of a sandbox, each field with its owner. It creates nothing and holds nothing.\n" +
			"With --of, shows the plan of a sandbox that exists; the argument is its id or name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				res, err := s.preview(ctx, env, g, args, existing)
				if err != nil {
					return err
				}
				return out.print(env.Stdout, res, func(t *table) { planTable(t, res) })
			})
		},
	}
	s.flags(cmd)
	out.flag(cmd)
	cmd.Flags().BoolVar(&existing, "of", false, "the plan of the sandbox that is named")
	return cmd
}

func (s *spec) preview(ctx context.Context, env Env, g gatewayv1.GatewayClient, args []string, existing bool) (*gatewayv1.PlanSandboxResponse, error) {
	if existing {
		if len(args) != 1 {
			return nil, fmt.Errorf("%w: --of takes the id or the name of one sandbox", errUsage)
		}
		return g.GetSandboxPlan(ctx, &gatewayv1.SandboxRef{IdOrName: args[0], Driver: s.driver, Workspace: s.workspace})
	}
	req, err := s.request(ctx, env, g, args)
	if err != nil {
		return nil, err
	}
	return g.PlanSandbox(ctx, &gatewayv1.PlanSandboxRequest{Create: req})
}

func planTable(t *table, p *gatewayv1.PlanSandboxResponse) {
	t.row("OBJECT", "FIELD", "VALUE", "OWNER", "OVERRODE")
	for _, f := range p.Fields {
		t.row(f.Object, f.Path, f.Value, f.Owner, list(f.Overrode))
	}
	for _, l := range p.Late {
		kind, path, _ := strings.Cut(l.Pattern, ".")
		t.row(kind, path, fmt.Sprintf("(late: %s, %s)", l.Extension, l.Phase), l.Extension, "")
	}
	if p.WorkspaceNotEnsured {
		t.row("(workspace, not yet ensured)", "", "", "", "")
	}
	for _, f := range p.WorkspaceFields {
		t.row(f.Object, f.Path, f.Value, f.Owner, list(f.Overrode))
	}
	for _, o := range p.Observed {
		observed(t, o)
	}
	for _, w := range p.Without {
		t.line("without %s: it failed, and its bind is fail_open", w)
	}
	for _, n := range p.Notes {
		t.line("%s", n)
	}
}

func observed(t *table, o *gatewayv1.Observation) {
	t.line("observed, not applied: %s", o.Extension)
	for _, f := range o.Fields {
		t.row("  "+f.Object, f.Path, f.Value, "would be "+f.Owner, list(f.Overrode))
	}
	if o.Error != "" {
		t.line("  it would fail: %s", o.Error)
	}
	for _, l := range o.Late {
		t.line("  %s: set by a later phase, not observable", l)
	}
	if len(o.Phases) > 0 {
		t.line("  not called in observe mode: %s", list(o.Phases))
	}
}

func sandboxTable(t *table, all []*gatewayv1.Sandbox) {
	t.row("NAME", "DRIVER", "WORKSPACE", "STATE", "RUN", "ADDRESSES", "CREATED", "ID", "REASON")
	for _, sb := range all {
		state := sb.State
		if sb.ExitCode != nil && state == "exited" {
			state = fmt.Sprintf("exited (%d)", *sb.ExitCode)
		}
		t.row(sb.Name, sb.Driver, sb.Workspace, state, strconv.Itoa(int(sb.Run)), list(sb.Addresses), when(sb.Created), sb.Id, sb.Reason)
	}
}

// place is the flags that say which of several sandboxes of one name is meant.
type place struct{ driver, workspace string }

func (p *place) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.driver, "driver", "", "of this driver")
	c.Flags().StringVar(&p.workspace, "workspace", "", "of this workspace")
}

func (p *place) ref(name string) *gatewayv1.SandboxRef {
	return &gatewayv1.SandboxRef{IdOrName: name, Driver: p.driver, Workspace: p.workspace}
}

func sandboxListCommand(env Env, c *client) *cobra.Command {
	var p place
	var out format
	var all bool
	cmd := &cobra.Command{Use: "list", Short: "List sandboxes", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			res, err := g.ListSandboxes(ctx, &gatewayv1.ListSandboxesRequest{Driver: p.driver, Workspace: p.workspace, All: all})
			if err != nil {
				return err
			}
			return out.print(env.Stdout, res, func(t *table) { sandboxTable(t, res.Sandboxes) })
		})
	}}
	p.flags(cmd)
	out.flag(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "those that were deleted within the last day, too")
	return cmd
}

func sandboxGetCommand(env Env, c *client) *cobra.Command {
	var p place
	var out format
	cmd := &cobra.Command{Use: "get NAME", Short: "Show one sandbox", Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			sb, err := g.GetSandbox(ctx, p.ref(args[0]))
			if err != nil {
				return err
			}
			return out.print(env.Stdout, sb, func(t *table) { sandboxDetail(t, sb) })
		})
	}}
	p.flags(cmd)
	out.flag(cmd)
	return cmd
}

func sandboxDetail(t *table, sb *gatewayv1.Sandbox) {
	code := ""
	if sb.ExitCode != nil {
		code = strconv.Itoa(int(*sb.ExitCode))
	}
	for _, kv := range [][2]string{{"Name", sb.Name}, {"ID", sb.Id}, {"Driver", sb.Driver}, {"Workspace", sb.Workspace}, {"State", sb.State},
		{"Reason", sb.Reason}, {"Image", sb.Image}, {"Addresses", list(sb.Addresses)}, {"Run", strconv.Itoa(int(sb.Run))},
		{"Run started", when(sb.RunStarted)}, {"Run ended", when(sb.RunEnded)}, {"Exit code", code}, {"Created", when(sb.Created)},
		{"Ended", when(sb.Ended)}, {"Extensions", list(sb.Extensions)}, {"Without", list(sb.Without)}, {"Retiring", list(sb.Retiring)},
		{"Asked for by", sb.Caller}, {"Operation", sb.Operation}} {
		if kv[1] != "" {
			t.row(kv[0]+":", kv[1])
		}
	}
	for i, n := range sb.Notices {
		head := "Notices:"
		if i > 0 {
			head = " "
		}
		t.row(head, fmt.Sprintf("%s %s: %s (%s)", when(n.At), n.Reason, n.Message, n.Source))
	}
}

func sandboxWatchCommand(env Env, c *client) *cobra.Command {
	var p place
	var out format
	cmd := &cobra.Command{Use: "watch [NAME]", Short: "Follow sandboxes as they change", Args: oneOrNone("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			req := &gatewayv1.ListSandboxesRequest{Driver: p.driver, Workspace: p.workspace}
			if len(args) == 1 {
				req.Ref = p.ref(args[0])
			}
			return watchAll(ctx, env, g, req, out)
		})
	}}
	p.flags(cmd)
	out.flag(cmd)
	return cmd
}

func watchAll(ctx context.Context, env Env, g gatewayv1.GatewayClient, req *gatewayv1.ListSandboxesRequest, out format) error {
	stream, err := g.WatchSandboxes(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case m.Sandbox == nil:
			continue
		}
		if err := out.print(env.Stdout, m.Sandbox, func(t *table) {
			t.row(m.Sandbox.Name, m.Sandbox.Driver, m.Sandbox.Workspace, m.Sandbox.State, list(m.Sandbox.Addresses), m.Sandbox.Reason)
		}); err != nil {
			return err
		}
	}
}

type operate func(gatewayv1.GatewayClient, context.Context, *gatewayv1.SandboxRef, ...grpcOption) (*gatewayv1.OperationResponse, error)

func operateCommand(env Env, c *client, verb, short string, do operate) *cobra.Command {
	var p place
	var wait bool
	cmd := &cobra.Command{Use: verb + " NAME", Short: short, Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			res, err := do(g, ctx, p.ref(args[0]))
			if err != nil || !wait || res.Operation.GetEnded() != nil {
				return err
			}
			if err := follow(ctx, env, g, res.Operation.Id); err != nil {
				return err
			}
			return settled(ctx, env, g, verb, res.Operation.Subject)
		})
	}}
	p.flags(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "show the progress of its phases until it is done")
	return cmd
}

func historyCommand(env Env, c *client) *cobra.Command {
	var p place
	var out format
	cmd := &cobra.Command{Use: "history NAME", Short: "Show every step of every operation of a sandbox", Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			res, err := g.GetHistory(ctx, p.ref(args[0]))
			if err != nil {
				return err
			}
			return out.print(env.Stdout, res, func(t *table) {
				for _, op := range res.Operations {
					operationTable(t, op)
				}
			})
		})
	}}
	p.flags(cmd)
	out.flag(cmd)
	return cmd
}

func logsCommand(env Env, c *client) *cobra.Command {
	var p place
	var followLogs bool
	cmd := &cobra.Command{Use: "logs NAME", Short: "Show what a sandbox wrote, where the driver has it", Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			stream, err := g.GetLogs(ctx, &gatewayv1.GetLogsRequest{Ref: p.ref(args[0]), Follow: followLogs})
			if err != nil {
				return err
			}
			for {
				m, err := stream.Recv()
				switch {
				case errors.Is(err, io.EOF) || ctx.Err() != nil:
					return nil
				case err != nil:
					return err
				}
				if _, err := env.Stdout.Write(m.Data); err != nil {
					return err
				}
			}
		})
	}}
	p.flags(cmd)
	cmd.Flags().BoolVarP(&followLogs, "follow", "f", false, "go on until it ends")
	return cmd
}

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// fetch is a command that asks once and prints the answer.
func fetch[M proto.Message](env Env, c *client, use, short string, args cobra.PositionalArgs, ask func(context.Context, gatewayv1.GatewayClient, []string) (M, error), draw func(*table, M)) *cobra.Command {
	var out format
	cmd := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			m, err := ask(ctx, g, args)
			if err != nil {
				return err
			}
			return out.print(env.Stdout, m, func(t *table) { draw(t, m) })
		})
	}}
	out.flag(cmd)
	return cmd
}

func workspaceCommand(env Env, c *client) *cobra.Command {
	var driver string
	get := fetch(env, c, "get NAME", "Show a workspace and the plan of its objects", exactly("NAME"),
		func(ctx context.Context, g gatewayv1.GatewayClient, args []string) (*gatewayv1.Workspace, error) {
			ref, err := workspaceRef(ctx, g, driver, args[0])
			if err != nil {
				return nil, err
			}
			return g.GetWorkspace(ctx, ref)
		}, workspaceDetail)
	list := fetch(env, c, "list", "List workspaces", exactly(),
		func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListWorkspacesResponse, error) {
			return g.ListWorkspaces(ctx, &gatewayv1.ListWorkspacesRequest{Driver: driver})
		}, func(t *table, m *gatewayv1.ListWorkspacesResponse) {
			t.row("NAME", "DRIVER", "STATE", "SANDBOXES", "CREATED", "ID", "REASON")
			for _, w := range m.Workspaces {
				t.row(w.Name, w.Driver, w.State, strconv.Itoa(int(w.Sandboxes)), when(w.Created), w.Id, w.Reason)
			}
		})
	change := func(verb, short string, do func(gatewayv1.GatewayClient, context.Context, *gatewayv1.WorkspaceRef, ...grpcOption) (*gatewayv1.OperationResponse, error)) *cobra.Command {
		return &cobra.Command{Use: verb + " NAME", Short: short, Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				ref, err := workspaceRef(ctx, g, driver, args[0])
				if err != nil {
					return err
				}
				res, err := do(g, ctx, ref)
				if err != nil || res.Operation.GetEnded() != nil {
					return err
				}
				return follow(ctx, env, g, res.Operation.Id)
			})
		}}
	}
	cmd := noun("workspace", "Look after the tenants' workspaces", list, c.complete(get, workspaceNames),
		c.complete(change("ensure", "Bring a workspace into being, or apply its objects anew", gatewayv1.GatewayClient.EnsureWorkspace), workspaceNames),
		c.complete(change("delete", "Remove a workspace and all that is held for it", gatewayv1.GatewayClient.DeleteWorkspace), workspaceNames))
	cmd.PersistentFlags().StringVar(&driver, "driver", "", "of this driver; may be left out where only one has it")
	return cmd
}

// workspaceRef names a workspace. Where no driver was said it is the one that has a workspace of that name, or the only
// driver that there is.
func workspaceRef(ctx context.Context, g gatewayv1.GatewayClient, driver, name string) (*gatewayv1.WorkspaceRef, error) {
	ref := &gatewayv1.WorkspaceRef{Driver: driver, Name: name}
	if driver != "" {
		return ref, nil
	}
	all, err := g.ListWorkspaces(ctx, &gatewayv1.ListWorkspacesRequest{})
	if err != nil {
		return nil, err
	}
	var having []string
	for _, w := range all.Workspaces {
		if w.Name == name {
			having = append(having, w.Driver)
		}
	}
	switch len(having) {
	case 0:
		ref.Driver, err = onlyDriver(ctx, g)
	case 1:
		ref.Driver = having[0]
	default:
		err = fmt.Errorf("%w: say --driver: %s have a workspace %q", errUsage, strings.Join(having, ", "), name)
	}
	return ref, err
}

func workspaceDetail(t *table, w *gatewayv1.Workspace) {
	for _, kv := range [][2]string{{"Name", w.Name}, {"ID", w.Id}, {"Driver", w.Driver}, {"State", w.State}, {"Reason", w.Reason}, {"Created", when(w.Created)}} {
		if kv[1] != "" {
			t.row(kv[0]+":", kv[1])
		}
	}
	t.row("OBJECT", "FIELD", "VALUE", "OWNER")
	for _, f := range w.Fields {
		t.row(f.Object, f.Path, f.Value, f.Owner)
	}
}

func driverCommand(env Env, c *client) *cobra.Command {
	return noun("driver", "Look at the configured drivers",
		fetch(env, c, "list", "List drivers", exactly(), func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListDriversResponse, error) {
			return g.ListDrivers(ctx, &gatewayv1.ListDriversRequest{})
		}, func(t *table, m *gatewayv1.ListDriversResponse) {
			t.row("NAME", "TYPE", "BASE", "CHAIN", "SANDBOXES")
			for _, d := range m.Drivers {
				var chain []string
				for _, b := range d.Chain {
					chain = append(chain, b.Extension)
				}
				t.row(d.Name, d.Type, d.Base, list(chain), strconv.Itoa(int(d.Sandboxes)))
			}
		}),
		c.complete(fetch(env, c, "inspect NAME", "Show a driver's capabilities, mutation points and chain", exactly("NAME"),
			func(ctx context.Context, g gatewayv1.GatewayClient, args []string) (*gatewayv1.Driver, error) {
				return g.GetDriver(ctx, &gatewayv1.GetDriverRequest{Name: args[0]})
			}, driverDetail), driverNames))
}

func driverDetail(t *table, d *gatewayv1.Driver) {
	t.row("Name:", d.Name)
	t.row("Type:", d.Type+" "+d.Version)
	t.row("Base:", d.Base)
	t.row("Instance:", d.Instance)
	t.row("FEATURE", "POINT", "ATTRIBUTES")
	for _, f := range d.Features {
		var attrs []string
		for k, v := range f.Attributes {
			attrs = append(attrs, k+"="+v)
		}
		sort.Strings(attrs)
		t.row(f.Name, f.Point, list(attrs))
	}
	names := make([]string, 0, len(d.Missing))
	for k := range d.Missing {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		t.row(k, "not here", d.Missing[k])
	}
	t.row("POINT", "PHASES", "OVERRIDABLE", "DOC")
	for _, p := range d.Points {
		t.row(p.Pattern, list(p.Phases), strconv.FormatBool(p.Overridable), p.Doc)
	}
	t.row("BIND", "MODE", "POLICY", "PHASES", "MUTATE", "SOURCE")
	for _, b := range d.Chain {
		t.row(b.Extension, b.Mode, b.FailurePolicy, list(b.Phases), list(b.Mutate), b.Source)
	}
}

func indented(t *table, raw string) {
	var v any
	if json.Unmarshal([]byte(raw), &v) != nil {
		return
	}
	pretty, err := json.MarshalIndent(v, "  ", "  ")
	if err != nil {
		return
	}
	for _, l := range strings.Split("  "+string(pretty), "\n") {
		t.line("%s", l)
	}
}

func resourceCommand(env Env, c *client) *cobra.Command {
	var of string
	cmd := fetch(env, c, "list", "List what is held: the ledger's entries and the drivers' objects", exactly(),
		func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListResourcesResponse, error) {
			return g.ListResources(ctx, &gatewayv1.ListResourcesRequest{Ref: &gatewayv1.SandboxRef{IdOrName: of}})
		}, func(t *table, m *gatewayv1.ListResourcesResponse) {
			t.row("HOLDER", "KIND", "ID", "LIFETIME", "STATE", "OF", "WORKSPACE", "DRIVER", "TEXT", "ATTEMPTS", "ERROR")
			for _, r := range m.Resources {
				holder := r.Extension
				if holder == "" {
					holder = "(driver)"
				}
				name := r.Name
				if name == "" {
					name = r.Subject
				}
				attempts := ""
				if r.Attempts > 0 {
					attempts = strconv.Itoa(int(r.Attempts))
				}
				t.row(holder, r.Kind, r.Id, r.Lifetime, r.State, name, r.Workspace, r.Driver, r.Text, attempts, r.Error)
			}
		})
	cmd.Flags().StringVar(&of, "of", "", "of this sandbox only")
	return noun("resource", "Look at what is held", cmd)
}

func operationCommand(env Env, c *client) *cobra.Command {
	var of string
	ls := fetch(env, c, "list", "List what is unfinished, and why", exactly(), func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListOperationsResponse, error) {
		return g.ListOperations(ctx, &gatewayv1.ListOperationsRequest{Subject: of})
	}, func(t *table, m *gatewayv1.ListOperationsResponse) {
		t.row("ID", "KIND", "OF", "STATE", "STARTED", "WAITING", "ERROR")
		for _, op := range m.Operations {
			t.row(op.Id, op.Kind, op.Name, op.State, when(op.Started), waitingFor(op), op.Error)
		}
	})
	ls.Flags().StringVar(&of, "of", "", "every operation of this sandbox, those that have ended too; or what reconciles of a bind, DRIVER/EXTENSION, have found")
	show := fetch(env, c, "show ID", "Show one operation, step by step", exactly("ID"), func(ctx context.Context, g gatewayv1.GatewayClient, args []string) (*gatewayv1.Operation, error) {
		return g.GetOperation(ctx, &gatewayv1.GetOperationRequest{Id: args[0]})
	}, operationTable)
	req := &gatewayv1.AbandonRequest{}
	abandon := &cobra.Command{Use: "abandon ID (--extension NAME | --driver) --reason TEXT", Short: "Give up one extension's, or the driver's, part of a cleanup", Args: exactly("ID"),
		Long: "Gives up one extension's releases of an operation, or with --driver the driver's part: you state that the compute\nis gone, and the releases follow. Both are audited, with the reason.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				req.Operation = args[0]
				_, err := g.Abandon(ctx, req)
				return err
			})
		}}
	abandon.Flags().StringVar(&req.Extension, "extension", "", "whose releases")
	abandon.Flags().BoolVar(&req.Driver, "driver", false, "the driver's part")
	abandon.Flags().StringVar(&req.Reason, "reason", "", "why; required")
	return noun("operation", "Look at what is unfinished", ls, c.complete(show, operationIDs), c.complete(abandon, operationIDs))
}

// waitingFor says what an operation waits for: a release that is retried, what the gateway says, or the call in flight.
func waitingFor(op *gatewayv1.Operation) string {
	begun := ""
	for _, st := range op.Steps {
		switch st.State {
		case "waiting":
			return fmt.Sprintf("%s of %s: %s", st.Phase, st.Extension, st.Error)
		case "begun":
			if begun = stepName(st); st.Extension != "" {
				begun += " of " + st.Extension
			}
			begun += ", for " + took(st)
		}
	}
	if op.State == "queued" {
		begun = "its turn"
	}
	return cmp.Or(op.Waiting, begun)
}

// took is how long a step took, or has been going on.
func took(st *gatewayv1.Step) string {
	if st.State == "begun" && st.Started != nil {
		return time.Since(st.Started.AsTime()).Round(time.Second).String()
	}
	return brief(st.Duration.AsDuration())
}

func operationTable(t *table, op *gatewayv1.Operation) {
	t.line("%s %s of %s, %s: %s%s", op.Id, op.Kind, op.Name, when(op.Started), op.State, orEmpty(": ", op.Error))
	if len(op.Steps) > 0 {
		t.row("  STEP", "EXTENSION", "CAUSE", "OUTCOME", "ATTEMPTS", "STARTED", "DURATION", "ERROR")
	}
	for _, st := range op.Steps {
		t.row("  "+stepName(st), st.Extension, st.Cause, st.State, strconv.Itoa(int(st.Attempt)), when(st.Started), took(st), strings.TrimSpace(st.Error+" "+noted(st)))
	}
	for _, o := range op.Observed {
		observed(t, o)
	}
	for _, r := range op.Report {
		t.line("  %s", r)
	}
}

// noted is what the gateway has to say of a step besides.
func noted(st *gatewayv1.Step) string {
	if st.Note == "" {
		return ""
	}
	return "(" + st.Note + ")"
}

func orEmpty(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

func auditCommand(env Env, c *client) *cobra.Command {
	var of string
	var limit int32
	cmd := fetch(env, c, "audit", "Show the audit log", exactly(), func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListAuditResponse, error) {
		return g.ListAudit(ctx, &gatewayv1.ListAuditRequest{Ref: &gatewayv1.SandboxRef{IdOrName: of}, Limit: limit})
	}, func(t *table, m *gatewayv1.ListAuditResponse) {
		t.row("TIME", "WHAT", "EXTENSION", "PHASE", "OUTCOME", "ACTOR", "SUBJECT", "TEXT")
		for _, a := range m.Entries {
			t.row(when(a.Time), a.What, a.Extension, a.Phase, a.Outcome, a.Actor, a.Subject, a.Text)
		}
	})
	cmd.Flags().StringVar(&of, "of", "", "of this sandbox only")
	cmd.Flags().Int32Var(&limit, "limit", 0, "at most so many, the newest (default 1000)")
	return cmd
}

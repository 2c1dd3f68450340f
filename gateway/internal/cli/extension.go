package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

func extensionCommand(env Env, c *client) *cobra.Command {
	var bypass bool
	disable := &cobra.Command{Use: "disable NAME", Short: "Stop calling an extension's setup phases, at once; its releases go on", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				if _, err := g.DisableExtension(ctx, &gatewayv1.DisableExtensionRequest{Name: args[0], Bypass: bypass}); err != nil {
					return err
				}
				meanwhile := "creates and starts fail where its bind is fail_closed"
				if bypass {
					meanwhile = "creates and starts go on without it"
				}
				_, err := fmt.Fprintf(env.Stdout, "%s is disabled: %s, until sandgate extension enable %[1]s\n", args[0], meanwhile)
				return err
			})
		}}
	disable.Flags().BoolVar(&bypass, "bypass", false, "let creates and starts go on without it where its bind is fail_closed")
	enable := &cobra.Command{Use: "enable NAME", Short: "Take back a disable", Args: exactly("NAME"), RunE: func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
			_, err := g.EnableExtension(ctx, &gatewayv1.EnableExtensionRequest{Name: args[0]})
			return err
		})
	}}
	return noun("extension", "Look after the extensions",
		fetch(env, c, "list", "List extensions with their health", exactly(), func(ctx context.Context, g gatewayv1.GatewayClient, _ []string) (*gatewayv1.ListExtensionsResponse, error) {
			return g.ListExtensions(ctx, &gatewayv1.ListExtensionsRequest{})
		}, func(t *table, m *gatewayv1.ListExtensionsResponse) {
			t.row("NAME", "VERSION", "STATE", "PID", "UPTIME", "RESTARTS", "BINDS", "ISOLATION", "REASON")
			for _, x := range m.Extensions {
				t.row(x.Name, x.Version, extensionState(x), pid(x), uptime(x), strconv.Itoa(int(x.Restarts)), list(x.Binds), x.Isolation, x.Reason)
			}
		}),
		c.complete(fetch(env, c, "inspect NAME", "Show the manifest and the negotiated contract of each bind", exactly("NAME"),
			func(ctx context.Context, g gatewayv1.GatewayClient, args []string) (*gatewayv1.Extension, error) {
				return g.GetExtension(ctx, &gatewayv1.GetExtensionRequest{Name: args[0]})
			}, extensionDetail), extensionNames),
		c.complete(disable, extensionNames), c.complete(enable, extensionNames), c.complete(restartCommand(env, c), extensionNames),
		c.complete(extensionLogsCommand(env, c), extensionNames), c.complete(docsCommand(env, c), extensionNames), verifyCommand(env), newCommand(env))
}

func extensionState(x *gatewayv1.Extension) string {
	switch {
	case x.Disabled && x.Bypass:
		return x.State + ", disabled (bypass)"
	case x.Disabled:
		return x.State + ", disabled"
	}
	return x.State
}

func extensionDetail(t *table, x *gatewayv1.Extension) {
	t.row("Name:", x.Name)
	t.row("Version:", x.Version)
	t.row("State:", extensionState(x))
	t.row("Reason:", x.Reason)
	t.row("PID:", pid(x))
	t.row("Uptime:", uptime(x))
	t.row("Restarts:", strconv.Itoa(int(x.Restarts)))
	t.row("Last error:", x.LastError)
	t.row("Isolation:", x.Isolation)
	t.row("Digest:", x.Digest)
	t.row("Pinned:", list(x.Pinned))
	t.line("Manifest:")
	indented(t, x.ManifestJson)
	for _, contract := range x.ContractsJson {
		t.line("Contract:")
		indented(t, contract)
	}
	if len(x.Stderr) > 0 {
		t.line("Last lines of its output:")
		for _, l := range x.Stderr {
			t.line("  %s", l)
		}
	}
}

func pid(x *gatewayv1.Extension) string {
	if x.Pid == 0 {
		return ""
	}
	return strconv.Itoa(int(x.Pid))
}

func uptime(x *gatewayv1.Extension) string {
	if x.Uptime == nil {
		return ""
	}
	return x.Uptime.AsDuration().Round(time.Second).String()
}

func restartCommand(env Env, c *client) *cobra.Command {
	return &cobra.Command{Use: "restart NAME", Short: "Replace the process of an extension, or of a driver that is a program, in good order; clears a spent crash budget", Args: exactly("NAME"),
		Long: "Replaces the process of an extension by a new one: calls in flight end, those that come wait for it. What it has\n" +
			"crashed so far is forgiven, so that one in state `failed` is started again. Returns when it serves.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				res, err := g.RestartExtension(ctx, &gatewayv1.RestartExtensionRequest{Name: args[0]})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(env.Stdout, "%s is %s, process %d\n", res.Extension.GetName(), res.Extension.GetState(), res.Extension.GetPid())
				return err
			})
		}}
}

func extensionLogsCommand(env Env, c *client) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{Use: "logs NAME", Short: "Show what an extension printed of late, with level and time", Args: exactly("NAME"),
		Long: "Shows what an extension printed of late, over the ends of its processes. It is kept in memory: at most 2000 lines\n" +
			"and 512 KiB of each extension, from all levels, until the gateway ends.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				stream, err := g.GetExtensionLogs(ctx, &gatewayv1.GetExtensionLogsRequest{Name: args[0], Follow: follow})
				if err != nil {
					return err
				}
				for {
					m, err := stream.Recv()
					if errors.Is(err, io.EOF) || ctx.Err() != nil {
						return nil
					}
					if err != nil {
						return err
					}
					for _, l := range m.Lines {
						fmt.Fprintln(env.Stdout, logLine(l))
					}
				}
			})
		}}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return cmd
}

// logLine is a line of the log for people; what others have printed never controls the terminal.
func logLine(l *gatewayv1.ExtensionLogLine) string {
	who := ""
	if l.Pid != 0 {
		who = "[" + strconv.Itoa(int(l.Pid)) + "] "
	}
	text := l.Message
	if len(l.Attributes) > 0 {
		text += "  " + strings.Join(l.Attributes, " ")
	}
	return fmt.Sprintf("%s %-5s %s%s", l.Time.AsTime().Local().Format("2006-01-02 15:04:05.000"), strings.ToUpper(l.Level), who, printable(text))
}

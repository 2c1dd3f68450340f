package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// completionTimeout is how long a shell waits for names; a gateway that does not answer completes nothing.
const completionTimeout = 2 * time.Second

type lister func(context.Context, gatewayv1.GatewayClient) ([]string, error)

// complete makes a command's one argument complete to the names that the gateway knows.
func (c *client) complete(cmd *cobra.Command, names lister) *cobra.Command {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.names(cmd, names), cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

// completeFlags does the same for those flags of a command that take a name.
func (c *client) completeFlags(cmd *cobra.Command) *cobra.Command {
	for flag, names := range map[string]lister{"driver": driverNames, "workspace": workspaceNames, "extension": extensionNames, "of": sandboxNames} {
		if f := cmd.Flags().Lookup(flag); f != nil && f.Value.Type() != "bool" {
			_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
				return c.names(cmd, names), cobra.ShellCompDirectiveNoFileComp
			}) // it fails only where a flag has a function already
		}
	}
	for _, sub := range cmd.Commands() {
		c.completeFlags(sub)
	}
	return cmd
}

func (c *client) names(cmd *cobra.Command, names lister) (out []string) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	_ = c.with(ctx, func(ctx context.Context, g gatewayv1.GatewayClient) (err error) {
		out, err = names(ctx, g)
		return err
	}) // a shell that completes shows no errors
	return out
}

func sandboxNames(ctx context.Context, g gatewayv1.GatewayClient) (out []string, err error) {
	m, err := g.ListSandboxes(ctx, &gatewayv1.ListSandboxesRequest{})
	for _, sb := range m.GetSandboxes() {
		out = append(out, sb.Name+"\t"+sb.State+" on "+sb.Driver+", workspace "+sb.Workspace)
	}
	return out, err
}

func workspaceNames(ctx context.Context, g gatewayv1.GatewayClient) (out []string, err error) {
	m, err := g.ListWorkspaces(ctx, &gatewayv1.ListWorkspacesRequest{})
	for _, w := range m.GetWorkspaces() {
		out = append(out, w.Name+"\tof "+w.Driver)
	}
	return out, err
}

func driverNames(ctx context.Context, g gatewayv1.GatewayClient) (out []string, err error) {
	m, err := g.ListDrivers(ctx, &gatewayv1.ListDriversRequest{})
	for _, d := range m.GetDrivers() {
		out = append(out, d.Name+"\t"+d.Type)
	}
	return out, err
}

func extensionNames(ctx context.Context, g gatewayv1.GatewayClient) (out []string, err error) {
	m, err := g.ListExtensions(ctx, &gatewayv1.ListExtensionsRequest{})
	for _, x := range m.GetExtensions() {
		out = append(out, x.Name+"\t"+x.State)
	}
	return out, err
}

func operationIDs(ctx context.Context, g gatewayv1.GatewayClient) (out []string, err error) {
	m, err := g.ListOperations(ctx, &gatewayv1.ListOperationsRequest{})
	for _, op := range m.GetOperations() {
		out = append(out, op.Id+"\t"+op.Kind+" of "+op.Name)
	}
	return out, err
}

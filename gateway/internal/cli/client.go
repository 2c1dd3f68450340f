package cli

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

const defaultAddr = "unix:///run/sandgate/gateway.sock"

// client reaches the gateway.
type client struct {
	env  Env
	addr string
}

func (c *client) address() string {
	if c.addr != "" {
		return c.addr
	}
	if a := c.env.Getenv("SANDGATE_ADDR"); a != "" {
		return a
	}
	return defaultAddr
}

// with calls fn with a connection. Errors of the API come back as faults.
func (c *client) with(ctx context.Context, fn func(context.Context, gatewayv1.GatewayClient) error) error {
	addr := c.address()
	if !strings.HasPrefix(addr, "unix:") {
		return fault.New(fault.Invalid, "the address %q is not a Unix socket: write unix:///path/to/gateway.sock", addr)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return fault.New(fault.Invalid, "the address %q cannot be used: %w", addr, err)
	}
	defer func() { _ = conn.Close() }()
	err = fault.FromStatus(fn(ctx, gatewayv1.NewGatewayClient(conn)))
	if fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "dial unix") {
		return fault.New(fault.Unavailable, "no gateway answers at %s; is `sandgate gateway` running, and does SANDGATE_ADDR name its socket?", addr)
	}
	return err
}

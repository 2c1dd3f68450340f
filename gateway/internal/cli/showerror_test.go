package cli

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// The words of an extension cannot clear a terminal, write its title, or pretend to be a line of output.
func TestAnErrorCannotSteerTheTerminal(t *testing.T) {
	const hostile = "\x1b[2J\x1b]0;owned\a\u009b31m\rNAME\u202e"
	var out bytes.Buffer
	showError(&out, fault.New(fault.Denied, "it denies: %s\nline two", hostile).With(fault.Diagnostic{Path: hostile, Summary: hostile, Detail: hostile + "\nmore"}))
	if strings.ContainsAny(out.String(), "\x1b\a\r\u009b\u202e") {
		t.Errorf("%q", out.String())
	}
	if n := strings.Count(out.String(), "\n"); n != 5 {
		t.Errorf("%d lines, want 5: the ends of lines are kept:\n%s", n, out.String())
	}
}

// Only where no gateway was reached is it said so, not where the gateway tells of an extension that it did not reach.
func TestWhoIsNotReachedIsToldApart(t *testing.T) {
	const silence = "no gateway answers"
	c := &client{env: Env{Getenv: func(string) string { return "" }}, addr: "unix://" + filepath.Join(t.TempDir(), "none.sock")}
	err := c.with(t.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
		_, err := g.GetVersion(ctx, &gatewayv1.GetVersionRequest{})
		return err
	})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), silence) {
		t.Errorf("without a gateway: %v", err)
	}
	err = c.unanswered(fault.New(fault.Unavailable, `before_create of "ipam": connection error: desc = "transport: error while dialing: dial unix /x: no such file"`))
	if strings.Contains(err.Error(), silence) {
		t.Errorf("without an extension: %v", err)
	}
}

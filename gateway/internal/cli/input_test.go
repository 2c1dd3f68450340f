package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// many returns n entries, each under a key of its own.
func many(n int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprintf("K%d", i)] = "v"
	}
	return out
}

// Every field of a request has a limit, and an error that names it.
func TestEveryFieldHasALimit(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\n")
	s.start()
	conn, err := grpc.NewClient(s.listen, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	g := gatewayv1.NewGatewayClient(conn)
	long := strings.Repeat("x", 70<<10)
	create := func(change func(*gatewayv1.CreateSandboxRequest)) func(context.Context) error {
		return func(ctx context.Context) error {
			r := &gatewayv1.CreateSandboxRequest{Driver: "native", Name: "bad", Spec: &gatewayv1.SandboxSpec{Command: []string{"true"}, Resources: &gatewayv1.Resources{}}}
			change(r)
			_, err := g.CreateSandbox(ctx, r)
			if _, perr := g.PlanSandbox(ctx, &gatewayv1.PlanSandboxRequest{Create: r}); (perr == nil) != (err == nil) {
				t.Errorf("a create and its plan are judged differently: %v, %v", err, perr)
			}
			return err
		}
	}
	spec := func(change func(*gatewayv1.SandboxSpec)) func(context.Context) error {
		return create(func(r *gatewayv1.CreateSandboxRequest) { change(r.Spec) })
	}
	type S = gatewayv1.SandboxSpec
	for field, call := range map[string][]func(context.Context) error{
		"driver":           {create(func(r *gatewayv1.CreateSandboxRequest) { r.Driver = long })},
		"workspace":        {create(func(r *gatewayv1.CreateSandboxRequest) { r.Workspace = "Not A Name" }), create(func(r *gatewayv1.CreateSandboxRequest) { r.Workspace = strings.Repeat("w", 64) })},
		"name":             {create(func(r *gatewayv1.CreateSandboxRequest) { r.Name = "-x" }), create(func(r *gatewayv1.CreateSandboxRequest) { r.Name = long })},
		"id":               {create(func(r *gatewayv1.CreateSandboxRequest) { r.Id = "../etc" }), create(func(r *gatewayv1.CreateSandboxRequest) { r.Id = strings.Repeat("i", 129) })},
		"image":            {spec(func(s *S) { s.Image = long }), spec(func(s *S) { s.Image = "a\x1b[2J" })},
		"command":          {spec(func(s *S) { s.Command = make([]string, 257) }), spec(func(s *S) { s.Command = []string{long, long, long, long} })},
		"command[0]":       {spec(func(s *S) { s.Command = []string{"a\x00"} })},
		"environment":      {spec(func(s *S) { s.Environment = many(129) })},
		"environment.1A":   {spec(func(s *S) { s.Environment = map[string]string{"1A": "v"} })},
		"environment.A":    {spec(func(s *S) { s.Environment = map[string]string{"A": long} }), spec(func(s *S) { s.Environment = map[string]string{"A": "\x00"} })},
		"labels":           {spec(func(s *S) { s.Labels = many(129) })},
		"labels.l":         {spec(func(s *S) { s.Labels = map[string]string{"l": long} }), spec(func(s *S) { s.Labels = map[string]string{"l": "\n"} })},
		"resources.cpu":    {spec(func(s *S) { s.Resources.MilliCpu = -1 }), spec(func(s *S) { s.Resources.MilliCpu = 1 << 62 })},
		"resources.memory": {spec(func(s *S) { s.Resources.Memory = -1 }), spec(func(s *S) { s.Resources.Memory = 1 << 62 })},
		"resources.pids":   {spec(func(s *S) { s.Resources.Pids = -1 }), spec(func(s *S) { s.Resources.Pids = 1 << 62 })},
		"driver_config":    {spec(func(s *S) { s.DriverConfigJson = "[]" }), spec(func(s *S) { s.DriverConfigJson = `{"a":"` + long + `"}` })},
		"extensions":       {spec(func(s *S) { s.Extensions = make([]string, 65) })},
		"extensions[0]":    {spec(func(s *S) { s.Extensions = []string{long} })},
		"token":            {spec(func(s *S) { s.Token = make([]byte, 65<<10) })},
		"id_or_name": {func(ctx context.Context) error {
			_, err := g.GetSandbox(ctx, &gatewayv1.SandboxRef{IdOrName: long})
			return err
		}},
		"ref.id_or_name": {func(ctx context.Context) error {
			return first(g.GetLogs(ctx, &gatewayv1.GetLogsRequest{Ref: &gatewayv1.SandboxRef{IdOrName: "a\x00"}}))
		}},
		"ref.driver": {func(ctx context.Context) error {
			return first(g.WatchSandboxes(ctx, &gatewayv1.ListSandboxesRequest{Ref: &gatewayv1.SandboxRef{Driver: long}}))
		}},
		"subject": {func(ctx context.Context) error {
			_, err := g.ListOperations(ctx, &gatewayv1.ListOperationsRequest{Subject: long})
			return err
		}},
		"operation": {func(ctx context.Context) error {
			_, err := g.Abandon(ctx, &gatewayv1.AbandonRequest{Operation: long})
			return err
		}},
		"reason": {func(ctx context.Context) error {
			_, err := g.Abandon(ctx, &gatewayv1.AbandonRequest{Reason: long})
			return err
		}},
		"limit": {func(ctx context.Context) error {
			_, err := g.ListAudit(ctx, &gatewayv1.ListAuditRequest{Limit: -1})
			return err
		}},
	} {
		for i, c := range call {
			err := fault.FromStatus(c(t.Context()))
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s, case %d: %v, want it to be invalid", field, i, err)
				continue
			}
			named := false
			for _, d := range fault.DiagnosticsOf(err) {
				named = named || d.Path == field
			}
			if !named || len(err.Error()) > 4096 || !strings.Contains(err.Error(), field) {
				t.Errorf("%s, case %d: the error does not name the field: %.300v", field, i, err)
			}
		}
	}
	if out := s.ok("sandbox", "list", "--all"); strings.Contains(out, "bad") {
		t.Errorf("something was created:\n%s", out)
	}
}

// first returns the error with which a stream begins.
func first[M any](stream grpc.ServerStreamingClient[M], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

// The command line says which flag or field is wrong, on standard error, with a status of its own.
func TestTheCommandLineRefuses(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\n")
	s.start()
	for says, c := range map[string]struct {
		code int
		args []string
	}{
		"--cpu":           {exitUsage, []string{"sandbox", "create", "--cpu", "-1", "--", "true"}},
		"--memory":        {exitUsage, []string{"sandbox", "create", "--memory", "lots", "--", "true"}},
		"--env":           {exitUsage, []string{"sandbox", "create", "--env", "NOT_SET_ANYWHERE", "--", "true"}},
		"-o":              {exitUsage, []string{"sandbox", "create", "-o", "xml", "--", "true"}},
		"unknown flag":    {exitUsage, []string{"sandbox", "list", "--nope"}},
		"NAME":            {exitUsage, []string{"sandbox", "get"}},
		"NAME or nothing": {exitUsage, []string{"sandbox", "watch", "a", "b"}},
		"PATH":            {exitUsage, []string{"config", "validate"}},
		"mean \"list\"":   {exitUsage, []string{"sandbox", "lst"}},
		"\"sandbx\"":      {exitUsage, []string{"sandbx", "list"}},
		"\"typo\"":        {exitNotFound, []string{"operation", "list", "--of", "typo"}},
		"in workspace":    {exitNotFound, []string{"sandbox", "get", "nobody", "--workspace", "team-a"}},
		"name:":           {exitRefused, []string{"sandbox", "create", "--name", "Not A Name", "--", "true"}},
		"driver_config":   {exitRefused, []string{"sandbox", "create", "--driver-config-json", "[", "--", "true"}},
		"no sandbox":      {exitNotFound, []string{"sandbox", "delete", "nobody"}},
		"no driver":       {exitNotFound, []string{"driver", "inspect", "nobody"}},
		"no extension":    {exitNotFound, []string{"extension", "disable", "nobody"}},
		"no workspace":    {exitNotFound, []string{"workspace", "get", "nobody"}}, // there is one driver, so it is meant
		"--config":        {exitUsage, []string{"gateway"}},
		"SANDGATE_ADDR":   {exitUnavailable, []string{"sandbox", "list", "--addr", "unix:///nowhere.sock"}},
		"tcp://host:por":  {exitRefused, []string{"sandbox", "list", "--addr", "http://x"}},
	} {
		if said := s.refused(c.code, c.args...); !strings.Contains(said, says) {
			t.Errorf("%v does not say %q: %s", c.args, says, said)
		}
	}
	if out := s.ok("sandbox", "list", "--all"); strings.Count(out, "\n") != 1 {
		t.Errorf("something was created:\n%s", out)
	}
}

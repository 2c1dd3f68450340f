package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/sandbox"
)

// collectorServer is an OpenTelemetry collector that keeps what it is sent.
type collectorServer struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.Span
}

func (c *collectorServer) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			c.spans = append(c.spans, ss.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// named returns the first span of a name.
func (c *collectorServer) named(name string) *tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// observedSite is a gateway with metrics, and with a collector for its spans.
func observedSite(t *testing.T) (*site, *collectorServer) {
	t.Helper()
	s := newSite(t)
	collected := &collectorServer{}
	l, err := net.Listen("unix", s.dir+"/otel.sock")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, collected)
	go func() { _ = server.Serve(l) }() // it ends with the test
	t.Cleanup(server.Stop)
	path := s.write(s.keeperBlock(""), `bind "keeper" {
    grant { mutate = ["Process.labels"] }
  }`)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	more := fmt.Sprintf("  metrics = \"unix://%[1]s/metrics.sock\"\n  tracing {\n    endpoint = \"unix://%[1]s/otel.sock\"\n  }\n}\n", s.dir)
	if err := os.WriteFile(path, []byte(strings.Replace(string(raw), "}\n", more, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, collected
}

func (s *site) scrape() string {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.dir, "metrics.sock"))
	}}}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://gateway/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Body.Close() != nil || r.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %v", r.Status, err)
	}
	return string(body)
}

func TestOneTraceReachesFromTheOperationToExtensionAndDriver(t *testing.T) {
	s, collected := observedSite(t)
	s.start()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	s.remove(id.ID)
	s.end() // sends what is left
	for kind, inside := range map[string][]string{
		"operation create": {"keeper prepare_plan", "driver resolve", "keeper before_create", "driver create"},
		"operation delete": {"driver delete", "keeper after_delete"},
	} {
		op := collected.named(kind)
		if op == nil {
			t.Fatalf("there is no span %q", kind)
		}
		for _, name := range inside {
			span := collected.named(name)
			switch {
			case span == nil:
				t.Errorf("there is no span %q", name)
			case string(span.GetTraceId()) != string(op.GetTraceId()), string(span.GetParentSpanId()) != string(op.GetSpanId()):
				t.Errorf("%q is not within %q", name, kind)
			}
		}
	}
	dump, err := os.ReadFile(filepath.Join(s.dir, "dump"))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%x", collected.named("keeper before_create").GetSpanId()); !strings.Contains(string(dump), want) {
		t.Errorf("the extension's context is not within the span %s of its call", want)
	}
}

func TestMetrics(t *testing.T) {
	s, _ := observedSite(t)
	s.start()
	defer s.end()
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	text := s.scrape()
	for _, want := range []string{
		`sandgate_extension_calls_total{driver="acme",extension="keeper",outcome="ok",phase="before_create"} 1`,
		`sandgate_extension_call_seconds_count{driver="acme",extension="keeper",phase="before_create"} 1`,
		`sandgate_extension_calls_in_flight{driver="acme",extension="keeper"} 0`,
		`sandgate_extension_state{extension="keeper",state="ready",version="1.0.0"} 1`,
		`sandgate_extension_restarts_total{extension="keeper"} 0`,
		`sandgate_driver_calls_total{call="create",driver="acme",outcome="ok"} 1`,
		`sandgate_operations_total{driver="acme",operation="create",outcome="ok"} 1`,
		`sandgate_resources_held{extension="keeper"} 1`,
		`sandgate_journal_commits_total{outcome="ok"}`,
		`sandgate_sandboxes{driver="acme",state=`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	s.remove(id.ID)
	if text = s.scrape(); strings.Contains(text, "sandgate_resources_held{") || !strings.Contains(text, `sandgate_driver_calls_total{call="delete",driver="acme",outcome="ok"} 1`) {
		t.Errorf("after the delete:\n%s", text)
	}
}

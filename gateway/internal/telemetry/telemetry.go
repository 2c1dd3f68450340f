// Package telemetry counts and traces what the gateway does, for Prometheus and for OpenTelemetry. It stands around
// the journal, the drivers and the extensions as decorators, so that none of them knows of it; the engine gets a
// tracer and tells of operations that ended.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Telemetry has the metrics and the tracer of one gateway. It is safe for concurrent use.
type Telemetry struct {
	registry *prometheus.Registry
	tracer   trace.Tracer
	end      []func(context.Context) error

	calls, driverCalls, operations *prometheus.CounterVec
	callTime, driverTime           *prometheus.HistogramVec
	inFlight, driverInFlight       *prometheus.GaugeVec
	operationTime                  *prometheus.HistogramVec
	commits                        *prometheus.CounterVec
	commitTime, commitWrites       prometheus.Histogram
}

// buckets reach from a call of a local process to a driver's whole timeout, in seconds.
var buckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600}

// New makes the metrics, and a tracer that exports to an OTLP endpoint over gRPC ("unix:///path" or "host:port"); an
// empty endpoint means none.
func New(endpoint, version string) (*Telemetry, error) {
	t := &Telemetry{registry: prometheus.NewRegistry(), tracer: noop.NewTracerProvider().Tracer("")}
	t.define()
	if endpoint == "" {
		return t, nil
	}
	// The collector is a neighbour on this host, behind a socket that its own permissions guard.
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("tracing endpoint %q: %w", endpoint, err)
	}
	exporter := otlptracegrpc.NewUnstarted(otlptracegrpc.WithGRPCConn(conn), otlptracegrpc.WithTimeout(5*time.Second))
	if err := exporter.Start(context.Background()); err != nil { // it connects later
		return nil, errors.Join(fmt.Errorf("tracing endpoint %q: %w", endpoint, err), conn.Close())
	}
	about := resource.NewSchemaless(attribute.String("service.name", "sandgate"), attribute.String("service.version", version))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(time.Second)), sdktrace.WithResource(about))
	t.tracer = provider.Tracer("github.com/sandgate/sandgate/gateway")
	t.end = append(t.end, provider.Shutdown, func(context.Context) error { return conn.Close() })
	return t, nil
}

func (t *Telemetry) define() {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sandgate_" + name, Help: help}, labels)
		t.registry.MustRegister(c)
		return c
	}
	seconds := func(name, help string, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sandgate_" + name, Help: help, Buckets: buckets}, labels)
		t.registry.MustRegister(h)
		return h
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sandgate_" + name, Help: help}, labels)
		t.registry.MustRegister(g)
		return g
	}
	t.calls = counter("extension_calls_total", "Calls of extensions, by how they ended: ok, denied, or the code of the error.", "extension", "driver", "phase", "outcome")
	t.callTime = seconds("extension_call_seconds", "How long calls of extensions took.", "extension", "driver", "phase")
	t.inFlight = gauge("extension_calls_in_flight", "Calls of extensions that are not answered yet.", "extension", "driver")
	t.driverCalls = counter("driver_calls_total", "Calls of drivers, by how they ended: ok, or the code of the error.", "driver", "call", "outcome")
	t.driverTime = seconds("driver_call_seconds", "How long calls of drivers took.", "driver", "call")
	t.driverInFlight = gauge("driver_calls_in_flight", "Calls of drivers that have not ended.", "driver")
	t.operations = counter("operations_total", "Operations that ended: done, or failed with the code of the error.", "driver", "operation", "outcome")
	t.operationTime = seconds("operation_seconds", "How long operations took, from when they were accepted.", "driver", "operation")
	t.commits = counter("journal_commits_total", "Commits of the journal, by how they ended.", "outcome")
	t.commitTime = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sandgate_journal_commit_seconds", Help: "How long commits took.", Buckets: buckets})
	t.commitWrites = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sandgate_journal_commit_writes", Help: "Records written by a commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 8)})
	t.registry.MustRegister(t.commitTime, t.commitWrites, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Tracer makes the gateway's spans; it does nothing where no endpoint is configured.
func (t *Telemetry) Tracer() trace.Tracer { return t.tracer }

// Handler serves the metrics in the formats that Prometheus reads.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Collect adds what is looked up when the metrics are read.
func (t *Telemetry) Collect(c prometheus.Collector) error { return t.registry.Register(c) }

// Close sends what spans are left, within ctx.
func (t *Telemetry) Close(ctx context.Context) error {
	var errs []error
	for _, end := range t.end {
		errs = append(errs, end(ctx))
	}
	return errors.Join(errs...)
}

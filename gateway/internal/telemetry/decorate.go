package telemetry

import (
	"context"
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/sandgate/sandgate/gateway/internal/journal"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// outcome is the label of how something ended.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return fault.CodeOf(err).String()
}

// endSpan closes a span. Errors say what went wrong without values: those are redacted where they are made.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// traceParent returns the context of ctx's span as W3C Trace Context has it, or "".
func traceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// Extension counts and traces the calls of one bind.
func (t *Telemetry) Extension(driver, name string, next pipeline.Extension) pipeline.Extension {
	return &observedExtension{t: t, driver: driver, name: name, next: next, inFlight: t.inFlight.WithLabelValues(name, driver)}
}

type observedExtension struct {
	t            *Telemetry
	driver, name string
	next         pipeline.Extension
	inFlight     prometheus.Gauge
}

// around makes one call of a phase, counted and traced; fn says how it ended.
func (x *observedExtension) around(ctx context.Context, phase string, attrs []attribute.KeyValue, fn func(context.Context) (string, error)) {
	attrs = append(attrs, attribute.String("sandgate.extension", x.name), attribute.String("sandgate.driver", x.driver))
	ctx, span := x.t.tracer.Start(ctx, x.name+" "+phase, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))
	x.inFlight.Inc()
	started := time.Now()
	how, err := fn(ctx)
	x.t.callTime.WithLabelValues(x.name, x.driver, phase).Observe(time.Since(started).Seconds())
	x.inFlight.Dec()
	x.t.calls.WithLabelValues(x.name, x.driver, phase, how).Inc()
	span.SetAttributes(attribute.String("sandgate.outcome", how))
	endSpan(span, err)
}

// Call implements pipeline.Extension.
func (x *observedExtension) Call(ctx context.Context, c *extension.Call) (a *extension.Answer, err error) {
	attrs := []attribute.KeyValue{attribute.String("sandgate.operation", c.Operation), attribute.Int("sandgate.attempt", c.Attempt)}
	x.around(ctx, string(c.Phase), attrs, func(ctx context.Context) (string, error) {
		if parent := traceParent(ctx); parent != "" {
			told := *c
			told.TraceParent = parent
			c = &told
		}
		a, err = x.next.Call(ctx, c)
		if err == nil && a != nil && a.Denied {
			return "denied", nil
		}
		return outcome(err), err
	})
	return a, err
}

// Reconcile implements pipeline.Extension.
func (x *observedExtension) Reconcile(ctx context.Context, bind, operation string, known iter.Seq[extension.Item]) (held []extension.Item, err error) {
	x.around(ctx, "reconcile", nil, func(ctx context.Context) (string, error) {
		held, err = x.next.Reconcile(ctx, bind, operation, known)
		return outcome(err), err
	})
	return held, err
}

// Driver counts and traces the calls of a driver.
func (t *Telemetry) Driver(name string, next driver.Driver) driver.Driver {
	return &observedDriver{Driver: next, t: t, name: name, inFlight: t.driverInFlight.WithLabelValues(name)}
}

// observedDriver watches over the calls that do something; the rest is the driver's own.
type observedDriver struct {
	driver.Driver
	t        *Telemetry
	name     string
	inFlight prometheus.Gauge
}

// Unwrap returns the driver itself, for driver.As.
func (d *observedDriver) Unwrap() driver.Driver { return d.Driver }

func (d *observedDriver) around(ctx context.Context, call, subject string, fn func(context.Context) error) error {
	ctx, span := d.t.tracer.Start(ctx, "driver "+call, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("sandgate.driver", d.name), attribute.String("sandgate.subject", subject)))
	d.inFlight.Inc()
	started := time.Now()
	err := fn(ctx)
	d.t.driverTime.WithLabelValues(d.name, call).Observe(time.Since(started).Seconds())
	d.inFlight.Dec()
	d.t.driverCalls.WithLabelValues(d.name, call, outcome(err)).Inc()
	endSpan(span, err)
	return err
}

// Layers implements driver.Driver.
func (d *observedDriver) Layers(ctx context.Context, r *driver.Request) (layers []plan.Layer, err error) {
	err = d.around(ctx, "layers", r.Identity.ID, func(ctx context.Context) error {
		layers, err = d.Driver.Layers(ctx, r)
		return err
	})
	return layers, err
}

// Resolve implements driver.Driver.
func (d *observedDriver) Resolve(ctx context.Context, r *driver.ResolveRequest) error {
	return d.around(ctx, "resolve", r.Identity.ID, func(ctx context.Context) error { return d.Driver.Resolve(ctx, r) })
}

// Create implements driver.Driver.
func (d *observedDriver) Create(ctx context.Context, r *driver.CreateRequest) error {
	return d.around(ctx, "create", r.Identity.ID, func(ctx context.Context) error { return d.Driver.Create(ctx, r) })
}

// Start implements driver.Driver.
func (d *observedDriver) Start(ctx context.Context, r *driver.StartRequest) error {
	return d.around(ctx, "start", r.Identity.ID, func(ctx context.Context) error { return d.Driver.Start(ctx, r) })
}

// Stop implements driver.Driver.
func (d *observedDriver) Stop(ctx context.Context, id sandbox.Identity) error {
	return d.around(ctx, "stop", id.ID, func(ctx context.Context) error { return d.Driver.Stop(ctx, id) })
}

// Delete implements driver.Driver.
func (d *observedDriver) Delete(ctx context.Context, r *driver.DeleteRequest) error {
	return d.around(ctx, "delete", r.Identity.ID, func(ctx context.Context) error { return d.Driver.Delete(ctx, r) })
}

// Get implements driver.Driver.
func (d *observedDriver) Get(ctx context.Context, id sandbox.Identity) (st *driver.Status, err error) {
	err = d.around(ctx, "get", id.ID, func(ctx context.Context) error {
		st, err = d.Driver.Get(ctx, id)
		return err
	})
	return st, err
}

// EnsureWorkspace implements driver.Driver.
func (d *observedDriver) EnsureWorkspace(ctx context.Context, r *driver.WorkspaceRequest) error {
	return d.around(ctx, "ensure_workspace", r.Workspace.ID, func(ctx context.Context) error { return d.Driver.EnsureWorkspace(ctx, r) })
}

// DeleteWorkspace implements driver.Driver.
func (d *observedDriver) DeleteWorkspace(ctx context.Context, w sandbox.Workspace) error {
	return d.around(ctx, "delete_workspace", w.ID, func(ctx context.Context) error { return d.Driver.DeleteWorkspace(ctx, w) })
}

// Journal counts the commits of a journal.
func (t *Telemetry) Journal(next journal.Journal) journal.Journal { return &observedJournal{next, t} }

type observedJournal struct {
	journal.Journal
	t *Telemetry
}

// Commit implements journal.Journal.
func (j *observedJournal) Commit(ctx context.Context, writes []journal.Write) error {
	started := time.Now()
	err := j.Journal.Commit(ctx, writes)
	j.t.commitTime.Observe(time.Since(started).Seconds())
	j.t.commitWrites.Observe(float64(len(writes)))
	j.t.commits.WithLabelValues(outcome(err)).Inc()
	return err
}

// OperationEnded counts an operation that has ended; code is that of its error, "" where there was none.
func (t *Telemetry) OperationEnded(driver, kind, code string, took time.Duration) {
	if code == "" {
		code = "ok"
	}
	t.operations.WithLabelValues(driver, kind, code).Inc()
	t.operationTime.WithLabelValues(driver, kind).Observe(took.Seconds())
}

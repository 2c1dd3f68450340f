package engine

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

var traceContext propagation.TraceContext // W3C Trace Context

// traced opens the span of an operation. One that was found unfinished, or that a caller with a trace of its own asked
// for, goes on in that trace.
func (e *Engine) traced(ctx context.Context, op *Operation) (context.Context, trace.Span) {
	ctx = traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": op.Trace})
	ctx, span := e.Tracer.Start(ctx, "operation "+string(op.Kind), trace.WithAttributes(
		attribute.String("sandgate.operation", op.ID), attribute.String("sandgate.subject", op.Subject)))
	if op.Trace == "" {
		carrier := propagation.MapCarrier{}
		traceContext.Inject(ctx, carrier)
		op.Trace = carrier["traceparent"]
	}
	return ctx, span
}

// trace gives an execution its span, or the one that is open already, and a context that lasts as long as the engine.
func (x *execution) trace() {
	span := trace.SpanFromContext(x.ctx)
	if !span.SpanContext().IsValid() || span.SpanContext().IsRemote() {
		x.ctx, x.span = x.e.traced(x.ctx, &x.op)
		span = x.span
	}
	x.life = trace.ContextWithSpan(x.e.ctx, span)
}

// endSpan closes a span under the error that its operation ended with.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

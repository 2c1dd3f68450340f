package api

import (
	"context"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/fault"
)

// faults is where every door begins: faults become statuses there. A panic of a handler does too. It is a bug of ours,
// and one call's: the gateway serves tenants who have no part in it. Handlers change nothing but through the engine,
// whose operations run elsewhere and end the process as ever; a lock that a panic leaves behind stops the engine, which
// the watchdog sees.
func faults(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
			defer func() { err = answer(log, info.FullMethod, recover(), err) }()
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer func() { err = answer(log, info.FullMethod, recover(), err) }()
			return next(srv, stream)
		}),
	}
}

// answer is the status of a call that has ended with an error or in a panic. What was panicked with may quote what a
// caller sent, so it is in the log alone.
func answer(log *slog.Logger, method string, panicked any, err error) error {
	if panicked != nil {
		log.Error("a call has panicked, which is a bug of the gateway; please report it", "method", method, "panic", panicked, "stack", string(debug.Stack()))
		err = fault.New(fault.Internal, "a bug of the gateway has ended this call, and its log says where; whether the call had an effect, a look at the sandbox or at `sandgate operation list` shows")
	}
	return fault.ToStatus(err)
}

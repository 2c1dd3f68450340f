package fault

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var toGRPC = map[Code]codes.Code{
	OK: codes.OK, Invalid: codes.InvalidArgument, NotFound: codes.NotFound, AlreadyExists: codes.AlreadyExists,
	Conflict: codes.Aborted, Denied: codes.PermissionDenied, FailedPrecondition: codes.FailedPrecondition,
	ResourceExhausted: codes.ResourceExhausted, Unavailable: codes.Unavailable, DeadlineExceeded: codes.DeadlineExceeded,
	Canceled: codes.Canceled, Unimplemented: codes.Unimplemented, Unauthenticated: codes.Unauthenticated, Internal: codes.Internal,
}

var fromGRPC = map[codes.Code]Code{codes.OutOfRange: Invalid, codes.DataLoss: Internal, codes.Unknown: Internal}

// ToStatus translates an error for the wire. Diagnostics travel as google.rpc.BadRequest field violations.
// An error that already is a gRPC status is passed on as it is.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var f *Error
	if !errors.As(err, &f) {
		if _, ok := status.FromError(err); ok {
			return err
		}
	}
	st := status.New(toGRPC[CodeOf(err)], err.Error())
	if d := DiagnosticsOf(err); len(d) > 0 {
		bad := &errdetails.BadRequest{}
		for _, x := range d {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: x.Path, Reason: x.Summary, Description: x.Detail})
		}
		if with, err := st.WithDetails(bad); err == nil {
			st = with
		}
	}
	return st.Err()
}

// FromStatus translates an error that came over the wire. Errors that are no status keep their code.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	var f *Error
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	out := &Error{Code: codeOfStatus(st.Code()), Message: st.Message(), Err: err}
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.FieldViolations {
				out.Diagnostics = append(out.Diagnostics, Diagnostic{Summary: v.Reason, Detail: v.Description, Path: v.Field})
			}
		}
	}
	return out
}

func codeOfStatus(c codes.Code) Code {
	if code, ok := fromGRPC[c]; ok {
		return code
	}
	for code, g := range toGRPC {
		if g == c {
			return code
		}
	}
	return Internal
}

package api

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// The limits of every field of a request that has none of its own. A sandbox's spec is judged by sandbox.Spec.Check,
// which knows what each of its fields may be; here is what nobody looks at more closely.
const (
	maxText   = 1024    // bytes
	maxNumber = 100_000 // lines of an answer
)

// judgedElsewhere is the messages whose fields have limits of their own.
var judgedElsewhere = map[protoreflect.FullName]bool{
	(&gatewayv1.SandboxSpec{}).ProtoReflect().Descriptor().FullName(): true,
}

// checkLimits reports every field of a request that is too long or cannot be shown, by its name.
func checkLimits(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	var wrong []fault.Diagnostic
	limits(m.ProtoReflect(), "", &wrong)
	if len(wrong) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "%s %s", wrong[0].Path, wrong[0].Summary).With(wrong...)
}

func limits(m protoreflect.Message, at string, wrong *[]fault.Diagnostic) {
	if judgedElsewhere[m.Descriptor().FullName()] {
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := at + string(f.Name())
		add := func(format string, args ...any) {
			*wrong = append(*wrong, fault.Diagnostic{Path: path, Summary: fmt.Sprintf(format, args...)})
		}
		switch {
		case f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap():
			limits(v.Message(), path+".", wrong)
		case f.Kind() == protoreflect.StringKind && !f.IsList():
			if n := len(v.String()); n > maxText {
				add("is %d bytes long; at most %d", n, maxText)
			} else if strings.ContainsFunc(v.String(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
				add("contains a control character")
			}
		case f.Kind() == protoreflect.Int32Kind:
			if n := v.Int(); n < 0 || n > maxNumber {
				add("is %d; from 0 to %d", n, maxNumber)
			}
		}
		return true
	})
}

func unaryLimits(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkLimits(req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func streamLimits(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, limited{stream})
}

// limited checks every request of a stream.
type limited struct{ grpc.ServerStream }

func (l limited) RecvMsg(m any) error {
	if err := l.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return checkLimits(m)
}

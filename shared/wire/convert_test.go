package wire

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

// trip converts a message to the Go form and back.
type trip func(proto.Message) (proto.Message, error)

// trips has every message of the contract that is converted. Messages within them are covered with them.
var trips = map[proto.Message]trip{
	&extensionv1.Manifest{}: func(m proto.Message) (proto.Message, error) {
		return ManifestToProto(ManifestFromProto(m.(*extensionv1.Manifest))), nil
	},
	&extensionv1.Contract{}: func(m proto.Message) (proto.Message, error) {
		return ContractToProto(ContractFromProto(m.(*extensionv1.Contract))), nil
	},
	&extensionv1.PureRequest{}: func(m proto.Message) (proto.Message, error) {
		c, err := PureFromProto(m.(*extensionv1.PureRequest))
		if err != nil {
			return nil, err
		}
		return PureToProto(c)
	},
	&extensionv1.PhaseRequest{}: func(m proto.Message) (proto.Message, error) {
		c, err := PhaseFromProto(m.(*extensionv1.PhaseRequest))
		if err != nil {
			return nil, err
		}
		return PhaseToProto(c)
	},
	&extensionv1.RepairRequest{}: func(m proto.Message) (proto.Message, error) {
		return RepairToProto(RepairFromProto(m.(*extensionv1.RepairRequest))), nil
	},
	&extensionv1.ReconcileItem{}: func(m proto.Message) (proto.Message, error) {
		return ItemToProto(ItemFromProto(m.(*extensionv1.ReconcileItem))), nil
	},
	&extensionv1.ValidateResponse{}: func(m proto.Message) (proto.Message, error) {
		return ValidateToProto(validateFromProto(m.(*extensionv1.ValidateResponse))), nil
	},
	&extensionv1.PreparePlanResponse{}: func(m proto.Message) (proto.Message, error) {
		a, err := preparePlanFromProto(m.(*extensionv1.PreparePlanResponse))
		if err != nil {
			return nil, err
		}
		return PreparePlanToProto(a)
	},
	&extensionv1.SetupResponse{}: func(m proto.Message) (proto.Message, error) {
		a, err := setupFromProto(m.(*extensionv1.SetupResponse))
		if err != nil {
			return nil, err
		}
		return SetupToProto(a)
	},
	&extensionv1.HoldResponse{}: func(m proto.Message) (proto.Message, error) {
		return HoldToProto(holdFromProto(m.(*extensionv1.HoldResponse))), nil
	},
	&extensionv1.QuiesceResponse{}: func(m proto.Message) (proto.Message, error) {
		return QuiesceToProto(quiesceFromProto(m.(*extensionv1.QuiesceResponse))), nil
	},
	&driverv1.Status{}: func(m proto.Message) (proto.Message, error) {
		return statusToProto(statusFromProto(m.(*driverv1.Status))), nil
	},
	&driverv1.Notice{}: func(m proto.Message) (proto.Message, error) {
		return noticeToProto(noticeFromProto(m.(*driverv1.Notice))), nil
	},
}

// carried are the messages that the client and the server take apart themselves: their fields are set and read in
// client.go and in the SDK's server, and are covered by its tests.
var carried = map[protoreflect.Name]bool{"DescribeRequest": true, "DescribeResponse": true, "ConfigureRequest": true,
	"ConfigureResponse": true, "ReconcileRequest": true, "ReconcileResponse": true, "HealthRequest": true, "HealthResponse": true,
	"DrainRequest": true, "DrainResponse": true}

// fill sets every field, each to a value of its own.
func fill(m protoreflect.Message, n *int, seen map[protoreflect.Name]bool) {
	seen[m.Descriptor().Name()] = true
	if s, ok := m.Interface().(*structpb.Struct); ok {
		*n++
		s.Fields = map[string]*structpb.Value{"a": structpb.NewNumberValue(float64(*n)), "b": structpb.NewStringValue("x"),
			"c": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewBoolValue(true), structpb.NewNumberValue(1.5)}})}
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(next(n)).MapKey(), protoreflect.ValueOfString(next(n)))
		case f.IsList():
			list := m.Mutable(f).List()
			for range 2 {
				if f.Kind() == protoreflect.MessageKind {
					fill(list.AppendMutable().Message(), n, seen)
				} else {
					list.Append(scalar(f, n))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message(), n, seen)
		default:
			m.Set(f, scalar(f, n))
		}
	}
}

func next(n *int) string { *n++; return fmt.Sprintf("v%d", *n) }

func scalar(f protoreflect.FieldDescriptor, n *int) protoreflect.Value {
	*n++
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(*n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(*n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(*n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(fmt.Sprintf(`{"k":%d}`, *n)))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(next(n))
	}
	panic("a field of the kind " + f.Kind().String() + " is new: teach the test")
}

// A field of the wire that has no conversion is lost on the way, and found here.
func TestEveryFieldIsConverted(t *testing.T) {
	seen, n := map[protoreflect.Name]bool{}, 0
	for m, there := range trips {
		fill(m.ProtoReflect(), &n, seen)
		back, err := there(m)
		if err != nil {
			t.Errorf("%T: %v", m, err)
			continue
		}
		if diff := cmp.Diff(m, back, protocmp.Transform()); diff != "" {
			t.Errorf("%T (-sent +arrived):\n%s", m, diff)
		}
	}
	all := extensionv1.File_extension_v1_extension_proto.Messages()
	for i := range all.Len() {
		if name := all.Get(i).Name(); !seen[name] && !carried[name] {
			t.Errorf("%s has no conversion", name)
		}
	}
}

func TestHostileValuesAreRefused(t *testing.T) {
	deep := structpb.NewStringValue("x")
	for range 2 * maxDepth {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	for name, v := range map[string]*structpb.Value{"deep": deep, "nan": structpb.NewNumberValue(math.NaN()), "inf": structpb.NewNumberValue(math.Inf(1))} {
		o := &extensionv1.Object{Kind: "K", Name: "n", Fields: &structpb.Struct{Fields: map[string]*structpb.Value{"f": v}}}
		if _, err := ObjectsFromProto([]*extensionv1.Object{o}); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
	if _, err := ObjectsFromProto([]*extensionv1.Object{nil, {}}); err != nil {
		t.Errorf("empty objects: %v", err)
	}
}

func FuzzSetupFromProto(f *testing.F) {
	m := &extensionv1.SetupResponse{}
	n := 0
	fill(m.ProtoReflect(), &n, map[protoreflect.Name]bool{})
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := &extensionv1.SetupResponse{}
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		a, err := setupFromProto(m)
		if err != nil {
			return
		}
		if _, err := SetupToProto(a); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}

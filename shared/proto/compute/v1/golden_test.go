package computev1

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// golden is one message as it is on the wire: what its lines say, and its bytes.
type golden struct {
	rpc, what string
	message   protoreflect.MessageType
	lines     []string
	raw       []byte
}

func goldens(t *testing.T, path string) []golden {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	for _, part := range strings.Split(string(text), "\n== ")[1:] {
		lines := strings.Split(strings.TrimSpace(part), "\n")
		head := strings.Fields(lines[0])
		m, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("openshell.compute.v1." + head[2]))
		if err != nil {
			t.Fatalf("%s: %s: %v", path, lines[0], err)
		}
		digits, ok := strings.CutPrefix(lines[len(lines)-1], "hex")
		raw, err := hex.DecodeString(strings.TrimSpace(digits))
		if !ok || err != nil {
			t.Fatalf("%s: %s: no bytes: %v", path, lines[0], err)
		}
		out = append(out, golden{rpc: head[0], what: head[1], message: m, lines: lines[1 : len(lines)-1], raw: raw})
	}
	return out
}

// former are fields that were renamed, with the name that the first generation has for them.
var former = map[string]string{"name": "sandbox_name"}

// tell writes a message in the form of the golden files, in the order of the field numbers.
func tell(m protoreflect.Message, first bool, indent string) []string {
	var fields []protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields = append(fields, f)
		return true
	})
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	var out []string
	for _, f := range fields {
		name, v := string(f.Name()), m.Get(f)
		message := string(m.Descriptor().Name())
		if first && former[name] != "" && (message == "DriverSandboxStatus" || strings.HasSuffix(message, "SandboxRequest")) {
			name = former[name]
		}
		head := fmt.Sprintf("%s%s %d ", indent, name, f.Number())
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				out = append(out, head+"{", fmt.Sprintf("%s  key 1 %q", indent, k.String()))
				out = append(out, one(f.MapValue(), e, first, indent+"  value 2 ", indent+"  ")...)
				out = append(out, indent+"}")
				return true
			})
		case f.IsPacked():
			text := head + "packed"
			for i := range v.List().Len() {
				text += " " + v.List().Get(i).String()
			}
			out = append(out, text)
		case f.IsList():
			for i := range v.List().Len() {
				out = append(out, one(f, v.List().Get(i), first, head, indent)...)
			}
		default:
			out = append(out, one(f, v, first, head, indent)...)
		}
	}
	return out
}

func one(f protoreflect.FieldDescriptor, v protoreflect.Value, first bool, head, indent string) []string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return slices.Concat([]string{head + "{"}, tell(v.Message(), first, indent+"  "), []string{indent + "}"})
	case protoreflect.StringKind:
		return []string{head + strconv.Quote(v.String())}
	case protoreflect.BytesKind:
		return []string{head + "bytes " + hex.EncodeToString(v.Bytes())}
	case protoreflect.DoubleKind:
		return []string{head + "double " + strconv.FormatFloat(v.Float(), 'g', -1, 64)}
	case protoreflect.BoolKind:
		if v.Bool() {
			return []string{head + "1"}
		}
		return []string{head + "0"}
	}
	return []string{head + v.String()}
}

// TestGoldenMessages reads every message of both generations and writes it again: it says what its lines say, it comes
// out to the byte, and what is unknown in it is kept.
func TestGoldenMessages(t *testing.T) {
	for file, removed := range map[string]string{"g1": "AuthenticateSandbox", "g2": "GetGatewayListenerRequirements"} {
		told := map[string]bool{}
		for _, g := range goldens(t, "testdata/"+file+".txt") {
			told[g.rpc+" "+g.what] = true
			name := file + ": " + g.rpc + " " + g.what
			m := g.message.New()
			if err := proto.Unmarshal(g.raw, m.Interface()); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if diff := cmp.Diff(strings.Join(g.lines, "\n"), strings.Join(tell(m, file == "g1", ""), "\n")); diff != "" {
				t.Errorf("%s (-theirs +ours):\n%s", name, diff)
			}
			again(t, name, m.Interface(), g.raw)
			strange := protowire.AppendString(protowire.AppendTag(slices.Clone(g.raw), 1900, protowire.BytesType), "new")
			if err := proto.Unmarshal(strange, m.Interface()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			again(t, name, m.Interface(), strange)
		}
		complete(t, file, removed, told)
	}
}

func again(t *testing.T, name string, m proto.Message, want []byte) {
	t.Helper()
	got, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: it is written as %x, want %x (%v)", name, got, want, err)
	}
}

// complete checks that a generation's file has every call of it, both ways.
func complete(t *testing.T, file, removed string, told map[string]bool) {
	t.Helper()
	methods := File_compute_v1_compute_driver_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		rpc := string(methods.Get(i).Name())
		if rpc == removed {
			continue
		}
		ways := []string{"request", "response"}
		if methods.Get(i).IsStreamingServer() {
			ways = []string{"request", "sandbox", "deleted", "platform_event"}
		}
		for _, what := range ways {
			if !told[rpc+" "+what] {
				t.Errorf("%s has no %s %s", file, rpc, what)
			}
		}
	}
}

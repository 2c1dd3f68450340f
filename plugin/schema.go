package plugin

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

// Schema derives the schema of a config block from a pointer to a struct. A field is an attribute of the name in its
// json tag, with these tags besides:
//
//	config:"optional"    it may be left out; so may one with a default
//	config:"sensitive"   its value is never shown
//	config:"block"       it is a block: a struct for one, a slice of structs for several, and a map from string to a
//	                     struct for labelled ones
//	default:"…"          what stands where it is left out, as JSON, or plain text for a string
//	enum:"a,b"           the values that are allowed
//	min:"…" max:"…"      the bounds of a number
//	deprecated:"…"       what to use instead
//	doc:"…"              one line for people
//	example:"…"          a value, to be shown with it
//
// Several config words are separated by commas.
func Schema(v any) (*extension.ConfigSchema, error) {
	t := reflect.TypeOf(v)
	if t == nil || t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		return nil, fault.New(fault.Invalid, "the configuration is described by a pointer to a struct, and %T is none", v)
	}
	return schemaOf(t.Elem())
}

func schemaOf(t reflect.Type) (*extension.ConfigSchema, error) {
	s := &extension.ConfigSchema{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		words := strings.Split(f.Tag.Get("config"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			return nil, fault.New(fault.Invalid, "the field %s.%s has no name in a json tag", t, f.Name)
		}
		if slices.Contains(words, "block") {
			b, err := blockOf(name, f)
			if err != nil {
				return nil, err
			}
			s.Blocks = append(s.Blocks, *b)
			continue
		}
		a, err := attributeOf(name, f, words)
		if err != nil {
			return nil, err
		}
		s.Attributes = append(s.Attributes, *a)
	}
	return s, nil
}

func attributeOf(name string, f reflect.StructField, words []string) (*extension.Attribute, error) {
	typ, err := typeExpression(f.Type)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the attribute %q: %v", name, err)
	}
	a := &extension.Attribute{Name: name, Type: typ, Sensitive: slices.Contains(words, "sensitive"),
		Deprecated: f.Tag.Get("deprecated"), Description: f.Tag.Get("doc"), Example: f.Tag.Get("example")}
	a.Whole = typ == "number" && !isFloat(f.Type)
	def, hasDefault := f.Tag.Lookup("default")
	a.Required = !hasDefault && !slices.Contains(words, "optional")
	if hasDefault {
		a.Default = literal(def, typ)
	}
	if e := f.Tag.Get("enum"); e != "" {
		for _, v := range strings.Split(e, ",") {
			a.Enum = append(a.Enum, literal(v, typ))
		}
	}
	for tag, to := range map[string]**float64{"min": &a.Min, "max": &a.Max} {
		if text := f.Tag.Get(tag); text != "" {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fault.New(fault.Invalid, "the attribute %q: %s is no number", name, tag)
			}
			*to = &n
		}
	}
	return a, nil
}

func isFloat(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64
}

func literal(text, typ string) any {
	var v any
	if typ == "string" || json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	return v
}

func blockOf(name string, f reflect.StructField) (*extension.Block, error) {
	b := &extension.Block{Type: name, Description: f.Tag.Get("doc")}
	t := f.Type
	switch t.Kind() {
	case reflect.Map:
		b.Labels, t = []string{"name"}, t.Elem()
	case reflect.Slice:
		t = t.Elem()
	default:
		b.Max = 1
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil, fault.New(fault.Invalid, "the block %q is not described by a struct", name)
	}
	body, err := schemaOf(t)
	if err != nil {
		return nil, err
	}
	b.Body = *body
	return b, nil
}

// typeExpression is the HCL type expression of a Go type.
func typeExpression(t reflect.Type) (string, error) {
	switch t.Kind() {
	case reflect.Pointer:
		return typeExpression(t.Elem())
	case reflect.String:
		return "string", nil
	case reflect.Bool:
		return "bool", nil
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return "number", nil
	case reflect.Slice, reflect.Map:
		if t.Kind() == reflect.Map && t.Key().Kind() != reflect.String {
			break
		}
		inner, err := typeExpression(t.Elem())
		if err != nil {
			return "", err
		}
		if t.Kind() == reflect.Slice {
			return "list(" + inner + ")", nil
		}
		return "map(" + inner + ")", nil
	}
	return "", fault.New(fault.Invalid, "the type %s cannot be written in a configuration", t)
}

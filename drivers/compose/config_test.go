package compose

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/fault"
)

func TestSplitConfig(t *testing.T) {
	type parts struct {
		Own, Base  string
		Extensions map[string]string
	}
	tests := map[string]struct {
		raw  string
		want parts
	}{
		"nothing":                            {raw: ``},
		"empty":                              {raw: `{}`},
		"only base":                          {raw: `{"base":{"size":"large"}}`, want: parts{Base: `{"size":"large"}`}},
		"only extensions":                    {raw: `{"extensions":{"ipam":{"pool":"a"}}}`, want: parts{Extensions: map[string]string{"ipam": `{"pool":"a"}`}}},
		"only own":                           {raw: `{"size":"large"}`, want: parts{Own: `{"size":"large"}`}},
		"all three":                          {raw: `{"a":1,"extensions":{"x":{}},"base":{"a":2},"b":[3]}`, want: parts{Own: `{"a":1,"b":[3]}`, Base: `{"a":2}`, Extensions: map[string]string{"x": `{}`}}},
		"no extension is named":              {raw: `{"extensions":{}}`, want: parts{Extensions: map[string]string{}}},
		"reserved words below are not ours":  {raw: `{"base":{"base":{"extensions":1},"extensions":{"x":{}}}}`, want: parts{Base: `{"base":{"extensions":1},"extensions":{"x":{}}}`}},
		"an extension called base":           {raw: `{"extensions":{"base":{"a":1},"extensions":{"b":2}}}`, want: parts{Extensions: map[string]string{"base": `{"a":1}`, "extensions": `{"b":2}`}}},
		"keys differ in case":                {raw: `{"Base":{},"EXTENSIONS":[]}`, want: parts{Own: `{"Base":{},"EXTENSIONS":[]}`}},
		"numbers are kept as they were sent": {raw: `{"base":{"n":12345678901234567890,"f":1.50}}`, want: parts{Base: `{"n":12345678901234567890,"f":1.50}`}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			own, base, extensions, err := SplitConfig(json.RawMessage(test.raw))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, parts{Own: string(own), Base: string(base), Extensions: texts(extensions)}); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSplitConfigRefuses(t *testing.T) {
	tests := map[string]struct{ raw, path string }{
		"a list":                               {`["s3cret"]`, "driver_config"},
		"null":                                 {`null`, "driver_config"},
		"text":                                 {`"s3cret"`, "driver_config"},
		"half an object":                       {`{"base":{"a":"s3cret"`, "driver_config"},
		"two objects":                          {`{}{"a":"s3cret"}`, "driver_config"},
		"base is text":                         {`{"base":"s3cret"}`, "driver_config.base"},
		"base is null":                         {`{"base":null}`, "driver_config.base"},
		"base is a list":                       {`{"base":[{"a":"s3cret"}]}`, "driver_config.base"},
		"base twice":                           {`{"base":{"a":"s3cret"},"base":{}}`, "driver_config.base"},
		"a key of base twice":                  {`{"base":{"a":"s3cret","a":1}}`, "driver_config.base.a"},
		"extensions is a list":                 {`{"extensions":["ipam","s3cret"]}`, "driver_config.extensions"},
		"extensions twice":                     {`{"extensions":{},"extensions":{"a":{"b":"s3cret"}}}`, "driver_config.extensions"},
		"an extension twice":                   {`{"extensions":{"ipam":{},"ipam":{"a":"s3cret"}}}`, "driver_config.extensions.ipam"},
		"an extension's part is text":          {`{"extensions":{"ipam":"s3cret"}}`, "driver_config.extensions.ipam"},
		"an extension's part is a bool":        {`{"extensions":{"ipam":true}}`, "driver_config.extensions.ipam"},
		"an extension's settings not under it": {`{"extensions":{"pool":7,"ipam":{}}}`, "driver_config.extensions.pool"},
		"own twice":                            {`{"a":"s3cret","a":1}`, "driver_config.a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, _, err := SplitConfig(json.RawMessage(test.raw))
			wantInvalid(t, err, test.path)
		})
	}
}

// wantInvalid checks that err is Invalid, is about path, and shows no value.
func wantInvalid(t *testing.T, err error, path string) {
	t.Helper()
	if !fault.Is(err, fault.Invalid) {
		t.Fatalf("error is %v, want invalid", err)
	}
	if d := fault.DiagnosticsOf(err); len(d) == 0 || d[0].Path != path {
		t.Errorf("diagnostics %+v, want one about %s", d, path)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error shows a value: %v", err)
	}
}

func texts(m map[string]json.RawMessage) map[string]string {
	if m == nil {
		return nil
	}
	out := map[string]string{}
	for k, v := range m {
		out[k] = string(v)
	}
	return out
}

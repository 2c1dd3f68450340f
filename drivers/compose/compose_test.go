package compose_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/drivers/compose"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// recorder is a base driver that shows what it was asked, and what it answers is given.
type recorder struct {
	driver.Driver
	request  *driver.Request
	statuses []*driver.Status
	events   []driver.Event
	closed   bool
}

func (r *recorder) Layers(_ context.Context, req *driver.Request) ([]plan.Layer, error) {
	r.request = req
	return []plan.Layer{{Owner: plan.OwnerDriver}}, nil
}

func (r *recorder) List(context.Context) ([]*driver.Status, error) { return r.statuses, nil }

func (r *recorder) Watch(_ context.Context, fn func(driver.Event) error) error {
	for _, e := range r.events {
		if err := fn(e); err != nil {
			return err
		}
	}
	return errors.New("the source ended")
}

func (r *recorder) Close() error { r.closed = true; return nil }

func of(name, id string) sandbox.Identity { return sandbox.Identity{Driver: name, ID: id} }

func TestLayersTakesTheConfigurationApart(t *testing.T) {
	tests := map[string]struct {
		levels int // of composition
		raw    string
		want   string
	}{
		"nothing":                             {levels: 1},
		"nothing for the base":                {levels: 1, raw: `{"extensions":{"ipam":{}}}`},
		"for the base":                        {levels: 1, raw: `{"base":{"size":"large"},"extensions":{"ipam":{}}}`, want: `{"size":"large"}`},
		"a key of the base named like ours":   {levels: 1, raw: `{"base":{"base":{"a":1}}}`, want: `{"base":{"a":1}}`},
		"for the base of the base":            {levels: 2, raw: `{"base":{"base":{"size":"large"}}}`, want: `{"size":"large"}`},
		"extensions at both levels":           {levels: 2, raw: `{"extensions":{"a":{}},"base":{"extensions":{"b":{}},"base":{"x":1}}}`, want: `{"x":1}`},
		"only extensions of the middle":       {levels: 2, raw: `{"base":{"extensions":{"b":{}}}}`},
		"three levels are taken off, no more": {levels: 3, raw: `{"base":{"base":{"base":{"base":{}}}}}`, want: `{"base":{}}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			base := &recorder{}
			r := &driver.Request{Identity: of("outer", "s1"), Spec: sandbox.Spec{Image: "i", DriverConfig: json.RawMessage(test.raw)},
				Config: json.RawMessage(test.raw)}
			if _, err := stack(base, test.levels).Layers(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			want := &driver.Request{Identity: of("outer", "s1"), Spec: sandbox.Spec{Image: "i"}}
			if test.want != "" {
				want.Spec.DriverConfig, want.Config = json.RawMessage(test.want), json.RawMessage(test.want)
			}
			if diff := cmp.Diff(want, base.request); diff != "" {
				t.Errorf("what the base was asked (-want +got):\n%s", diff)
			}
			if string(r.Config) != test.raw || string(r.Spec.DriverConfig) != test.raw {
				t.Errorf("the caller's request was changed to %s", r.Config)
			}
		})
	}
}

func TestLayersRefusesWhatIsNobodys(t *testing.T) {
	tests := map[string]struct {
		levels    int
		raw, path string
	}{
		"the base's settings not under base":      {1, `{"size":"s3cret"}`, "driver_config.size"},
		"an extension's settings not under it":    {1, `{"ipam":{"pool":"s3cret"}}`, "driver_config.ipam"},
		"an extension under the base's base":      {1, `{"base":{"extensions":{"a":{}}}}`, "driver_config.base.extensions"},
		"the middle's settings under its base":    {2, `{"base":{"size":"s3cret"}}`, "driver_config.base.size"},
		"the root's setting with a wrong value":   {2, `{"base":{"base":{"size":"s3cret"}}}`, "driver_config.base.base.size"},
		"settings at the wrapper of two":          {2, `{"size":"s3cret","base":{}}`, "driver_config.size"},
		"base in the middle is no object":         {2, `{"base":{"base":"s3cret"}}`, "driver_config.base.base"},
		"an extension of the middle is no object": {2, `{"base":{"extensions":{"a":"s3cret"}}}`, "driver_config.base.extensions.a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := stack(drivertest.NewWorld(drivertest.Options{}).Open(), test.levels)
			_, err := d.Layers(t.Context(), &driver.Request{Identity: of("outer", "s1"), Config: json.RawMessage(test.raw)})
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error is %v, want invalid", err)
			}
			if got := fault.DiagnosticsOf(err); len(got) != 1 || got[0].Path != test.path {
				t.Errorf("diagnostics %+v, want one about %s", got, test.path)
			}
		})
	}
}

func TestSplitterGathersTheWholeStack(t *testing.T) {
	tests := map[string]struct {
		levels int
		raw    string
		want   map[string]string
		path   string // of the error
	}{
		"nothing":            {levels: 1},
		"one level":          {levels: 1, raw: `{"extensions":{"a":{"x":1},"b":{}},"base":{}}`, want: map[string]string{"a": `{"x":1}`, "b": `{}`}},
		"both levels":        {levels: 2, raw: `{"extensions":{"a":{}},"base":{"extensions":{"b":{"y":2}}}}`, want: map[string]string{"a": `{}`, "b": `{"y":2}`}},
		"only the lower":     {levels: 2, raw: `{"base":{"extensions":{"b":{}}}}`, want: map[string]string{"b": `{}`}},
		"one in both":        {levels: 2, raw: `{"extensions":{"a":{}},"base":{"extensions":{"a":{}}}}`, path: "driver_config.extensions.a"},
		"lower is no object": {levels: 2, raw: `{"base":{"extensions":7}}`, path: "driver_config.base.extensions"},
		"own":                {levels: 1, raw: `{"x":1}`, path: "driver_config.x"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := compose.Splitter(stack(&recorder{}, test.levels))(json.RawMessage(test.raw))
			if test.path != "" {
				if d := fault.DiagnosticsOf(err); !fault.Is(err, fault.Invalid) || len(d) != 1 || d[0].Path != test.path {
					t.Fatalf("error is %v (%+v), want invalid about %s", err, d, test.path)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want map[string]json.RawMessage
			for k, v := range test.want {
				if want == nil {
					want = map[string]json.RawMessage{}
				}
				want[k] = json.RawMessage(v)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a driver that is not composed has none", func(t *testing.T) {
		world := drivertest.NewWorld(drivertest.Options{})
		if compose.Splitter(world.Open()) != nil || compose.Splitter(compose.Named("fake", world.Open())) != nil {
			t.Error("there is a splitter")
		}
	})
}

func TestEachNameShowsItsOwn(t *testing.T) {
	base := &recorder{
		statuses: []*driver.Status{{Identity: of("root", "1")}, {Identity: of("inner", "2")}, {Identity: of("outer", "3")}, {Identity: of("outer", "4")}},
	}
	for _, s := range base.statuses {
		base.events = append(base.events, driver.Event{Status: s})
	}
	base.events = append(base.events, driver.Event{Synced: true},
		driver.Event{Deleted: of("outer", "3")}, driver.Event{Deleted: of("inner", "2")}, driver.Event{Deleted: of("root", "1")})

	inner := compose.New("inner", base)
	tests := map[string]struct {
		driver driver.Driver
		want   []string
	}{
		"the outer of two":      {compose.New("outer", inner), []string{"3", "4"}},
		"the inner of two":      {inner, []string{"2"}},
		"the driver's own name": {compose.Named("root", base), []string{"1"}},
		"over a named driver":   {compose.New("outer", compose.Named("root", base)), []string{"3", "4"}},
		"a name without any":    {compose.New("other", base), nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			listed, err := test.driver.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range listed {
				got = append(got, s.Identity.ID)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("listed (-want +got):\n%s", diff)
			}

			want := append([]string{}, test.want...)
			want = append(want, "synced")
			if len(test.want) > 0 {
				want = append(want, "deleted "+test.want[0])
			}
			if diff := cmp.Diff(want, watched(t, test.driver)); diff != "" {
				t.Errorf("watched (-want +got):\n%s", diff)
			}
		})
	}
}

func watched(t *testing.T, d driver.Driver) []string {
	t.Helper()
	var got []string
	err := d.Watch(t.Context(), func(e driver.Event) error {
		switch {
		case e.Synced:
			got = append(got, "synced")
		case e.Status != nil:
			got = append(got, e.Status.Identity.ID)
		default:
			got = append(got, "deleted "+e.Deleted.ID)
		}
		return nil
	})
	if err == nil || err.Error() != "the source ended" {
		t.Errorf("Watch ended with %v", err)
	}
	return got
}

func TestCloseLeavesTheBaseOpen(t *testing.T) {
	base := &recorder{}
	for _, d := range []driver.Driver{compose.New("a", base), compose.Named("b", base), stack(base, 3)} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if base.closed {
		t.Error("the base was closed, though others may use it")
	}
}

func TestLoggerIsThereWhereTheBaseHasIt(t *testing.T) {
	if _, ok := driver.As[driver.Logger](stack(drivertest.NewWorld(drivertest.Options{}).Open(), 2)); !ok {
		t.Error("the base keeps logs and the composed driver does not")
	}
	if _, ok := driver.As[driver.Logger](stack(&recorder{}, 2)); ok {
		t.Error("the base keeps no logs and the composed driver does")
	}
}

// stack composes a driver over base that many times; the outermost is called "outer".
func stack(base driver.Driver, levels int) driver.Driver {
	d := base
	for range levels - 1 {
		d = compose.New("inner", d)
	}
	return compose.New("outer", d)
}

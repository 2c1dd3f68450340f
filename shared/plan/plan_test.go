package plan

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
)

const boxSchema = `types:
- name: Box
  map:
    fields:
    - {name: image, type: {scalar: string}}
    - {name: address, type: {scalar: string}}
    - {name: cpu, type: {scalar: numeric}}
    - name: command
      type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}
    - name: environment
      type: {map: {elementType: {scalar: string}}}
    - name: labels
      type: {map: {elementType: {scalar: string}}}
    - name: mounts
      type: {list: {elementType: {namedType: Mount}, elementRelationship: associative, keys: [name]}}
- name: Mount
  map:
    fields:
    - {name: name, type: {scalar: string}}
    - {name: source, type: {scalar: string}}
    - {name: readOnly, type: {scalar: boolean}}
`

const netSchema = `types:
- name: Net
  map:
    fields:
    - {name: subnet, type: {scalar: string}}
    - name: labels
      type: {map: {elementType: {scalar: string}}}
`

func testSchema(t testing.TB) *Schema {
	t.Helper()
	prepare := []phase.Phase{phase.PreparePlan, phase.BeforeCreate}
	s, err := NewSchema([]Kind{
		{Name: "Box", Scope: ScopeSandbox, Schema: boxSchema, Sensitive: []string{"environment"}},
		{Name: "Net", Scope: ScopeWorkspace, Schema: netSchema},
	}, []Point{
		{Pattern: "Box.image", Phases: prepare, Overridable: true, Feature: "image", Object: "main"},
		{Pattern: "Box.environment", Phases: prepare, Feature: "environment", Object: "main"},
		{Pattern: "Box.labels", Phases: prepare},
		{Pattern: "Box.cpu", Phases: prepare},
		{Pattern: "Box.mounts", Phases: prepare},
		{Pattern: "Box.address", Phases: []phase.Phase{phase.BeforeCreate}},
		{Pattern: "Net", Phases: []phase.Phase{phase.EnsureWorkspace}},
		{Pattern: "Net.subnet", Phases: []phase.Phase{phase.EnsureWorkspace}, Feature: "network.subnet", Object: "workspace"},
	}, func(v any) string { return "(sensitive, d" + strings.Repeat("x", len(v.(string))) + ")" })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func box(fields map[string]any) []Object {
	return []Object{{Kind: "Box", Name: "main", Fields: fields}}
}

// failer is what a test, a benchmark and a property have in common.
type failer interface {
	Helper()
	Fatal(...any)
}

func base(t failer, s *Schema) *Plan {
	t.Helper()
	p, err := s.Compute([]Layer{
		{Owner: OwnerGateway, Objects: box(map[string]any{"environment": map[string]any{"ID": "sb-1"}})},
		{Owner: OwnerRequest, Objects: box(map[string]any{"image": "alpine", "environment": map[string]any{"TOKEN": "hush"}, "command": []any{"sh"}})},
		{Owner: OwnerDriver, Objects: box(map[string]any{"image": "default", "cpu": 1, "labels": map[string]any{"by": "driver"}})},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func owners(p *Plan) map[string]Owner {
	out := map[string]Owner{}
	for _, f := range p.Fields() {
		out[f.Object+" "+f.Path] = f.Owner
	}
	return out
}

func TestEveryFieldHasItsOwner(t *testing.T) {
	p := base(t, testSchema(t))
	want := map[string]Owner{"Box/main environment.ID": OwnerGateway, "Box/main environment.TOKEN": OwnerRequest,
		"Box/main image": OwnerRequest, "Box/main command": OwnerRequest, "Box/main cpu": OwnerDriver, "Box/main labels.by": OwnerDriver}
	if diff := cmp.Diff(want, owners(p)); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	for _, f := range p.Fields() {
		if f.Path == "environment.TOKEN" && (!f.Sensitive || strings.Contains(f.Value.(string), "hush")) {
			t.Errorf("a sensitive value is shown as %v", f.Value)
		}
		if f.Path == "image" && f.Value != "alpine" {
			t.Errorf("the driver's default did not yield to the request: image is %v", f.Value)
		}
	}
}

func TestApply(t *testing.T) {
	all := Grant{Mutate: []Pattern{"Box"}, Source: "site.hcl:12"}
	for name, c := range map[string]struct {
		grant   Grant
		ph      phase.Phase
		objects []Object
		code    fault.Code
		says    []string
	}{
		"OKAdds":                 {all, phase.PreparePlan, box(map[string]any{"labels": map[string]any{"tenant": "a"}}), fault.OK, nil},
		"OKDefaultYields":        {Grant{Mutate: []Pattern{"Box.cpu"}}, phase.PreparePlan, box(map[string]any{"cpu": 2}), fault.OK, nil},
		"OKSameValue":            {Grant{Mutate: []Pattern{"Box.image"}}, phase.PreparePlan, box(map[string]any{"image": "alpine"}), fault.OK, nil},
		"OKOverride":             {Grant{Mutate: []Pattern{"Box.image"}, Override: []Pattern{"Box.image"}}, phase.PreparePlan, box(map[string]any{"image": "mirror/alpine"}), fault.OK, nil},
		"OKLatePoint":            {Grant{Mutate: []Pattern{"Box.address"}}, phase.BeforeCreate, box(map[string]any{"address": "10.0.0.2/24"}), fault.OK, nil},
		"ConflictWithRequest":    {Grant{Mutate: []Pattern{"Box.image"}}, phase.PreparePlan, box(map[string]any{"image": "other"}), fault.Conflict, []string{"request", "ipam", "image", `"alpine"`, `"other"`}},
		"ConflictSensitive":      {Grant{Mutate: []Pattern{"Box.environment"}}, phase.PreparePlan, box(map[string]any{"environment": map[string]any{"TOKEN": "loud!"}}), fault.Conflict, []string{"(sensitive, dxxxx)", "(sensitive, dxxxxx)"}},
		"GatewayNeverYields":     {Grant{Mutate: []Pattern{"Box.environment"}, Override: []Pattern{"Box.environment"}}, phase.PreparePlan, box(map[string]any{"environment": map[string]any{"ID": "x"}}), fault.Conflict, []string{"gateway"}},
		"OverrideNotOverridable": {Grant{Mutate: []Pattern{"Box.environment"}, Override: []Pattern{"Box"}}, phase.PreparePlan, box(map[string]any{"environment": map[string]any{"TOKEN": "x"}}), fault.Conflict, nil},
		"DeniedByGrant":          {Grant{Mutate: []Pattern{"Box.labels"}, Source: "site.hcl:12"}, phase.PreparePlan, box(map[string]any{"cpu": 2}), fault.Denied, []string{"Box.cpu", "site.hcl:12"}},
		"DeniedNoPoint":          {all, phase.PreparePlan, box(map[string]any{"command": []any{"rm"}}), fault.Denied, []string{"Box.command", "site.hcl:12"}},
		"DeniedNotOpenYet":       {Grant{Mutate: []Pattern{"Box.address"}}, phase.PreparePlan, box(map[string]any{"address": "x"}), fault.Denied, []string{"prepare_plan"}},
		"DeniedKindNotOthers":    {all, phase.PreparePlan, box(map[string]any{"cpu": 2}), fault.Denied, []string{"Box.cpu", "gateway"}},
		"DeniedScope":            {Grant{Mutate: []Pattern{"Net"}}, phase.PreparePlan, []Object{{Kind: "Net", Name: "n", Fields: map[string]any{"subnet": "x"}}}, fault.Denied, nil},
		"InvalidKind":            {all, phase.PreparePlan, []Object{{Kind: "Nope", Name: "n"}}, fault.Invalid, nil},
		"InvalidName":            {all, phase.PreparePlan, []Object{{Kind: "Box", Name: "a/b"}}, fault.Invalid, nil},
		"InvalidType":            {Grant{Mutate: []Pattern{"Box.environment"}}, phase.PreparePlan, box(map[string]any{"environment": map[string]any{"A": []any{"secret-value"}}}), fault.Invalid, nil},
		"InvalidNull":            {Grant{Mutate: []Pattern{"Box.labels"}}, phase.PreparePlan, box(map[string]any{"labels": nil}), fault.Invalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "OKAdds" {
				c.grant = Grant{Mutate: []Pattern{"Box.labels"}}
			}
			p := base(t, testSchema(t))
			before := owners(p)
			_, next, err := p.Apply("ipam", c.ph, c.grant, c.objects)
			if fault.CodeOf(err) != c.code {
				t.Fatalf("error %v, want code %v", err, c.code)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("the error does not say %q: %v", s, err)
				}
			}
			if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "loud!") || strings.Contains(err.Error(), "secret-value")) {
				t.Errorf("the error tells a sensitive value: %v", err)
			}
			var conflict *ConflictError
			if c.code == fault.Conflict && !errors.As(err, &conflict) {
				t.Errorf("%v has no ConflictError", err)
			}
			if diff := cmp.Diff(before, owners(p)); diff != "" {
				t.Errorf("the plan applied to has changed:\n%s", diff)
			}
			if err == nil && len(next.Layers()) != 4 {
				t.Errorf("%d layers, want 4", len(next.Layers()))
			}
		})
	}
}

func TestWorkspaceObjectIsSharedByField(t *testing.T) {
	s := testSchema(t)
	p, err := s.Compute(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, p, err = p.Apply("tenant", phase.EnsureWorkspace, Grant{Mutate: []Pattern{"Net"}}, []Object{{Kind: "Net", Name: "workspace", Fields: map[string]any{"labels": map[string]any{"t": "a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Apply("ipam", phase.EnsureWorkspace, Grant{Mutate: []Pattern{"Net"}}, []Object{{Kind: "Net", Name: "workspace", Fields: map[string]any{"subnet": "10.0.0.0/24"}}}); !fault.Is(err, fault.Denied) {
		t.Errorf("a grant of the kind let ipam into tenant's object: %v", err)
	}
	_, p, err = p.Apply("ipam", phase.EnsureWorkspace, Grant{Mutate: []Pattern{"Net.subnet"}}, []Object{{Kind: "Net", Name: "workspace", Fields: map[string]any{"subnet": "10.0.0.0/24"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Owner{"Net/workspace labels.t": "tenant", "Net/workspace subnet": "ipam"}
	if diff := cmp.Diff(want, owners(p)); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

func TestALaterLayerOfOneOwnerReplacesItsOwnValue(t *testing.T) {
	p := base(t, testSchema(t))
	g := Grant{Mutate: []Pattern{"Box.address"}}
	_, p, err := p.Apply("ipam", phase.BeforeCreate, g, box(map[string]any{"address": "10.0.0.2/24"}))
	if err != nil {
		t.Fatal(err)
	}
	_, p, err = p.Apply("ipam", phase.BeforeCreate, g, box(map[string]any{"address": "10.0.0.3/24"}))
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := p.Object("Box", "main"); o.Fields["address"] != "10.0.0.3/24" {
		t.Errorf("address is %v", o.Fields["address"])
	}
	if _, _, err := p.Apply("other", phase.BeforeCreate, g, box(map[string]any{"address": "10.0.0.4/24"})); !fault.Is(err, fault.Conflict) {
		t.Errorf("another owner got the field: %v", err)
	}
}

func TestTakingALayerAwayBringsBackWhatItOverrode(t *testing.T) {
	s := testSchema(t)
	_, p, err := base(t, s).Apply("mirror", phase.PreparePlan, Grant{Mutate: []Pattern{"Box.image"}, Override: []Pattern{"Box.image"}}, box(map[string]any{"image": "mirror/alpine"}))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Overrides(); len(got) != 1 || got[0].Old != OwnerRequest {
		t.Errorf("overrides: %v", got)
	}
	raw, err := json.Marshal(p.Layers())
	if err != nil {
		t.Fatal(err)
	}
	var stored []Layer
	if err := json.Unmarshal(raw, &stored); err != nil {
		t.Fatal(err)
	}
	again, err := s.Compute(stored)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Fields(), again.Fields()); diff != "" {
		t.Errorf("the plan of the stored layers (-before +after):\n%s", diff)
	}
	without, err := s.Compute(Without(stored, func(l Layer) bool { return l.Owner == "mirror" }))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(base(t, s).Fields(), without.Fields()); diff != "" {
		t.Errorf("without the layer (-base +got):\n%s", diff)
	}
}

func TestViewShowsOnlyWhatIsGranted(t *testing.T) {
	p := base(t, testSchema(t))
	got := p.View([]Pattern{"Box.environment.TOKEN", "Box.cpu"})
	want := box(map[string]any{"environment": map[string]any{"TOKEN": "hush"}, "cpu": int64(1)})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
	if got := p.View([]Pattern{"Box.address"}); len(got) != 0 {
		t.Errorf("nothing is granted, and %v is seen", got)
	}
}

// contribution draws a contribution to the open points.
func contribution(t *rapid.T, label string) []Object {
	fields := map[string]any{}
	draw := func(name string, v func() any) {
		if rapid.Bool().Draw(t, label+name) {
			fields[name] = v()
		}
	}
	word := rapid.SampledFrom([]string{"a", "b", "c.d", "e]f"})
	draw("image", func() any { return word.Draw(t, label+"i") })
	draw("cpu", func() any { return rapid.IntRange(1, 3).Draw(t, label+"c") })
	for _, m := range []string{"labels", "environment"} {
		draw(m, func() any {
			out := map[string]any{}
			for k, v := range rapid.MapOf(word, word).Draw(t, label+m+"kv") {
				out[k] = v
			}
			return out
		})
	}
	draw("mounts", func() any {
		var out []any
		for _, n := range rapid.SliceOfNDistinct(word, 0, 3, rapid.ID).Draw(t, label+"m") {
			out = append(out, map[string]any{"name": n, "source": word.Draw(t, label+"s")})
		}
		return out
	})
	return box(fields)
}

// valuesOf returns a plan's values by their place; items of a keyed list by their key, whatever their order.
func valuesOf(p *Plan) map[string]any {
	out := map[string]any{}
	for _, f := range p.Fields() {
		out[f.Object+f.Path] = f.Value
	}
	return out
}

func TestPropertyNobodyLosesAField(t *testing.T) {
	s := testSchema(t)
	grant := Grant{Mutate: []Pattern{"Box.image", "Box.cpu", "Box.labels", "Box.environment", "Box.mounts"}}
	rapid.Check(t, func(t *rapid.T) {
		p := base(t, s)
		a, b := contribution(t, "a"), contribution(t, "b")
		rawA, _ := json.Marshal(a)
		_, pa, err := p.Apply("a", phase.PreparePlan, grant, a)
		if err != nil {
			t.Skip("a conflicts with the request")
		}
		_, pab, err := pa.Apply("b", phase.PreparePlan, grant, b)
		_, pb, errB := p.Apply("b", phase.PreparePlan, grant, b)
		if err == nil {
			// What a had, a has still, with its value.
			values := valuesOf(pab)
			for _, f := range pa.Fields() {
				if f.Owner != OwnerDriver && !cmp.Equal(values[f.Object+f.Path], f.Value) {
					t.Fatalf("%s of %s was %v and is %v", f.Path, f.Owner, f.Value, values[f.Object+f.Path])
				}
			}
			again, cerr := s.Compute(pab.Layers())
			if cerr != nil || !cmp.Equal(again.Fields(), pab.Fields()) {
				t.Fatalf("the plan is not what its layers compute to: %v", cerr)
			}
		}
		if err == nil && errB == nil {
			_, pba, err := pb.Apply("a", phase.PreparePlan, grant, a)
			// They conflict in one order only where the first said what the driver says anyway: that stays the
			// driver's, whose default yields to the second.
			if err == nil && !cmp.Equal(valuesOf(pab), valuesOf(pba)) {
				t.Fatalf("the order matters (-ab +ba):\n%s", cmp.Diff(valuesOf(pab), valuesOf(pba)))
			}
		}
		if rawAfter, _ := json.Marshal(a); string(rawA) != string(rawAfter) {
			t.Fatalf("the contribution was modified: %s, was %s", rawAfter, rawA)
		}
	})
}

func FuzzApply(f *testing.F) {
	for _, seed := range []string{`{"image":"x"}`, `{"mounts":[{"name":"a"}]}`, `{"mounts":[{}]}`, `{"environment":{"A":null}}`, `{"cpu":1e400}`, `{"labels":{"]":"["}}`, `[]`, `{"command":{"a":1}}`} {
		f.Add([]byte(seed), "main")
	}
	s := testSchema(f)
	p := base(f, s)
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		var fields map[string]any
		if json.Unmarshal(raw, &fields) != nil {
			return
		}
		_, next, err := p.Apply("x", phase.PreparePlan, Grant{Mutate: []Pattern{"Box.image", "Box.labels", "Box.mounts", "Box.environment", "Box.cpu"}},
			[]Object{{Kind: "Box", Name: name, Fields: fields}})
		if err != nil {
			return
		}
		next.Fields()
		if _, err := s.Compute(next.Layers()); err != nil {
			t.Fatalf("what was applied does not compute: %v", err)
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"Box", "Box.labels", "Box.labels[a.b]", "Box.labels[a\\]b].c", "Box..x", "[x]", "Box.*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePattern(s)
		if err != nil {
			return
		}
		segs, _ := split(s)
		again, ok := split(join(segs))
		if !ok || !cmp.Equal(segs, again) {
			t.Fatalf("%q is %q, which joins to %q", s, segs, join(segs))
		}
		if !p.Covers(p) {
			t.Fatalf("%q does not cover itself", s)
		}
	})
}

func BenchmarkComputeThreeLayers(b *testing.B) {
	s := testSchema(b)
	layers := base(b, s).Layers()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Compute(layers); err != nil {
			b.Fatal(err)
		}
	}
}

// Every field is in the part of its owner and in no other, but for the keys of the lists that it lies in.
func TestPartsByOwner(t *testing.T) {
	s := testSchema(t)
	p := base(t, s)
	grant := Grant{Mutate: []Pattern{"Box.labels", "Box.mounts"}}
	_, p, err := p.Apply("later", phase.PreparePlan, grant, box(map[string]any{"labels": map[string]any{"tier": "gold"},
		"mounts": []any{map[string]any{"name": "scratch", "source": "/tmp"}}}))
	if err != nil {
		t.Fatal(err)
	}
	_, p, err = p.Apply("last", phase.PreparePlan, grant, box(map[string]any{"mounts": []any{map[string]any{"name": "scratch", "readOnly": true}}}))
	if err != nil {
		t.Fatal(err)
	}
	owners := p.Owners("Box", "main")
	if diff := cmp.Diff([]Owner{"later", "last"}, owners[len(owners)-2:]); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	var layers []Layer
	for _, owner := range owners {
		layers = append(layers, Layer{Owner: owner, Objects: []Object{p.Part("Box", "main", owner)}})
	}
	if diff := cmp.Diff(map[string]any{"mounts": []any{map[string]any{"name": "scratch", "readOnly": true}}}, p.Part("Box", "main", "last").Fields); diff != "" {
		t.Errorf("the last one's part (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(p.Objects()[0], p.Part("Box", "main", owners...)); diff != "" {
		t.Errorf("all parts at once (-plan +part):\n%s", diff)
	}
	again, err := s.Compute(layers)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Objects(), again.Objects()); diff != "" {
		t.Errorf("the parts laid over each other (-plan +parts):\n%s", diff)
	}
	if p.Owners("Box", "other") != nil || p.Creator("Box", "other") != "" || p.Creator("Box", "main") != OwnerGateway {
		t.Error("owners or creator of an object that is not there, or a wrong one")
	}
}

func TestAKindOfBothScopes(t *testing.T) {
	both := []phase.Phase{phase.PreparePlan, phase.EnsureWorkspace}
	s, err := NewSchema([]Kind{{Name: "Net", Scope: ScopeAny, Schema: netSchema}}, []Point{{Pattern: "Net", Phases: both}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := s.Compute(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ph := range both {
		if _, _, err := empty.Apply("x", ph, Grant{Mutate: []Pattern{"Net"}}, []Object{{Kind: "Net", Name: "n"}}); err != nil {
			t.Errorf("in %s: %v", ph, err)
		}
	}
}

// The key of an item that is there says where a contribution goes; it is no contribution itself. A slip in it would make
// an item, and is refused.
func TestAPointWithinAKeyedList(t *testing.T) {
	points := []Point{{Pattern: "Box.mounts.scratch.source", Phases: []phase.Phase{phase.PreparePlan}}}
	s, err := NewSchema([]Kind{{Name: "Box", Scope: ScopeSandbox, Schema: boxSchema}}, points, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Compute([]Layer{{Owner: OwnerDriver, Objects: box(map[string]any{"mounts": []any{map[string]any{"name": "scratch", "readOnly": true}}})}})
	if err != nil {
		t.Fatal(err)
	}
	mount := func(name string, more map[string]any) []Object {
		more["name"] = name
		return box(map[string]any{"mounts": []any{more}})
	}
	for _, c := range []struct {
		what    string
		objects []Object
		ok      bool
	}{
		{"the open field", mount("scratch", map[string]any{"source": "/tmp"}), true},
		{"another field of the item", mount("scratch", map[string]any{"readOnly": false}), false},
		{"another item", mount("scrtach", map[string]any{"source": "/tmp"}), false},
	} {
		_, next, err := p.Apply("x", phase.PreparePlan, Grant{Mutate: []Pattern{"Box.mounts"}}, c.objects)
		if (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", c.what, err)
		}
		if err == nil {
			if diff := cmp.Diff(mount("scratch", map[string]any{"source": "/tmp"})[0].Fields, next.Part("Box", "main", "x").Fields); diff != "" {
				t.Errorf("%s: (-want +got):\n%s", c.what, diff)
			}
		}
	}
}

func TestWhatIsExceptedFromAPoint(t *testing.T) {
	prepare := []phase.Phase{phase.PreparePlan}
	kinds := []Kind{{Name: "Box", Scope: ScopeSandbox, Schema: boxSchema}}
	s, err := NewSchema(kinds, []Point{{Pattern: "Box.mounts", Phases: prepare, Except: []Pattern{"Box.mounts.reserved"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Compute([]Layer{{Owner: OwnerDriver, Objects: box(map[string]any{"image": "x"})}})
	if err != nil {
		t.Fatal(err)
	}
	grant := Grant{Mutate: []Pattern{"Box.mounts"}}
	for name, ok := range map[string]bool{"scratch": true, "reserved": false} {
		_, _, err := p.Apply("x", phase.PreparePlan, grant, box(map[string]any{"mounts": []any{map[string]any{"name": name, "source": "/tmp"}}}))
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "the driver does not open") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewSchema(kinds, []Point{{Pattern: "Box.mounts", Phases: prepare, Except: []Pattern{"Box.image"}}}, nil); err == nil {
		t.Error("an exception that lies outside its point was taken")
	}
}

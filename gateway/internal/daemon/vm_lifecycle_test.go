package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// The scenarios of the lifecycle hooks that OpenShell's VM driver has for its registry of extensions, under their names
// there. The extensions are processes here. What boots no machine says nothing about one: it looks at the chain, and runs
// over the VM driver where the plan is its own, else over the native one. drivers/vm/DESIGN.md has the table.
var lifecycleScenarios = map[string]func(t *testing.T){
	"configure_launch_runs_each_extension_in_order":            configureLaunchInOrder,
	"configure_launch_short_circuits_on_first_failure":         configureLaunchShortCircuits,
	"on_request_extension_only_runs_when_label_is_enabled":     onRequestByLabel,
	"active_names_reflects_request_label":                      activeByLabel,
	"validate_rejects_invalid_on_request_key":                  unsafeKey,
	"before_launch_runs_each_extension_in_order_and_env":       beforeLaunchInOrder,
	"before_launch_short_circuits_on_first_failure":            beforeLaunchShortCircuits,
	"after_launch_failed_runs_extensions_in_reverse_order":     afterLaunchFailedInReverse,
	"after_delete_runs_every_extension":                        afterDeleteRunsAll,
	"resource_exhausted_flag_round_trips":                      resourceExhausted,
	"extension_state_dir_rejects_path_unsafe_names":            unsafeNames,
	"validate_rejects_duplicate_extension_names":               twoOfOneName,
	"descriptor_tracks_provided_capabilities_and_requirements": descriptor,
}

func TestLifecycleScenarios(t *testing.T) {
	for name, show := range lifecycleScenarios {
		t.Run(name, show)
	}
}

// The driver's design has a table of all of them. What it says is tested is a test.
func TestTheTableOfScenariosIsWhole(t *testing.T) {
	raw, err := os.ReadFile("../../../drivers/vm/DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(raw), "## The reference's scenarios")
	for _, all := range []map[string]func(*testing.T){lifecycleScenarios, driverScenarios} {
		for name := range all {
			if !strings.Contains(table, name) {
				t.Errorf("%s is in no table", name)
			}
		}
	}
	for name := range lifecycleDefects {
		if !regexp.MustCompile(`(?m)^\| ` + strings.TrimPrefix(name[:2], "0") + ` \|`).MatchString(table) {
			t.Errorf("the defect %s is in no table", name)
		}
	}
	var code strings.Builder
	for _, dir := range []string{".", "../../../drivers/vm", "../../../drivers/vm/guest-init", "../../../drivers/vm/internal/image"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*_test.go"))
		for _, path := range files {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(raw)
		}
	}
	for _, name := range regexp.MustCompile("`(Test[A-Za-z]+)").FindAllStringSubmatch(table, -1) {
		if !strings.Contains(code.String(), "func "+name[1]+"(t *testing.T)") {
			t.Errorf("%s is no test", name[1])
		}
	}
}

// fixture is the recorder as the scenarios have it: a profile, a drop-in of its own, a variable.
func fixture(name string, more ...string) string {
	return member(name, append([]string{"profile=tuned", "dropin=50-" + name + ".sh", "provides=profile-" + name + " dropin-50-" + name, "requires=guest-init-dropins"}, more...)...)
}

func dropins(p *plan.Plan) (names []string) {
	for _, o := range p.Objects() {
		if o.Kind == "GuestInitDropin" {
			names = append(names, o.Name)
		}
	}
	return names
}

// Both are called, in chain order, and both their drop-ins are there. One profile cannot be two: here the second to set it
// is refused, naming both, where the last writer won.
func configureLaunchInOrder(t *testing.T) {
	c := newChained(t, "none", fixture("a"), fixture("b")).up()
	p, err := c.preview(sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if got := dropins(p); !slices.Equal(got, []string{"50-a.sh", "50-b.sh"}) {
		t.Errorf("drop-ins %v", got)
	}
	c.end()

	c = newChained(t, "none", fixture("a"), member("b", "profile=other")).up()
	_, err = c.make("one", sandbox.Spec{})
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{`"a"`, `"b"`, "kernel_profile", "tuned", "other"} {
		if !strings.Contains(strings.ReplaceAll(err.Error(), "extension:", ""), strings.Trim(want, `"`)) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
	c.called([]phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.OnCreateFailed}, "prepare_plan a create", "prepare_plan b create")
	c.nothing()
	c.end()
}

func configureLaunchShortCircuits(t *testing.T) {
	c := newChained(t, "none", fixture("a"), fixture("failing", once(phase.PreparePlan)), fixture("c")).up()
	c.do("failing", phase.PreparePlan, "fail the pool is closed")
	_, err := c.make("one", sandbox.Spec{})
	if err == nil || !strings.Contains(err.Error(), "the pool is closed") || !strings.Contains(err.Error(), "failing") {
		t.Errorf("%v", err)
	}
	c.called([]phase.Phase{phase.PreparePlan, phase.OnCreateFailed, phase.AfterStop}, "prepare_plan a create", "prepare_plan failing create")
	c.nothing()
	c.end()
}

// onRequest is a site with an extension for all, and one that is asked for.
func onRequest(t *testing.T) *chained {
	t.Helper()
	c := newChained(t, "native", member("global"), member("nemo-relay", `bind:activation = "on_request"`))
	c.rules = "activation \"nemo-relay\" {\n  when {\n    driver = \"acme\"\n  }\n}\n"
	return c.up()
}

// What is active is decided by the label, and shown.
func activeByLabel(t *testing.T) {
	c := onRequest(t)
	all := []string{"global", "nemo-relay"}
	for value, want := range map[string][]string{"": all[:1], "disabled": all[:1], "disable": all[:1], "no": all[:1], "perhaps": all[:1],
		"enabled": all, " Enable ": all, "requested": all, "request": all, "true": all} {
		spec := sandbox.Spec{}
		if value != "" {
			spec.Labels = map[string]string{"openshell.io/extension.nemo-relay": value}
		}
		p, err := c.d.engine.Preview(t.Context(), c.ask("shown", spec))
		if err != nil {
			t.Errorf("%q: %v", value, err)
		} else if !slices.Equal(p.Active, want) {
			t.Errorf("%q: active are %v, want %v", value, p.Active, want)
		}
	}
	c.end()
}

// Who is active is called in every phase, those that release too; who is not, in none.
func onRequestByLabel(t *testing.T) {
	c := onRequest(t)
	for name, labels := range map[string]map[string]string{"without": nil, "with": {"openshell.io/extension.nemo-relay": "enabled"}} {
		c.deleteIt(c.ready(name, sandbox.Spec{Labels: labels}))
	}
	for _, n := range recorded(t, c.dir) {
		if n.Extension == "nemo-relay" && n.Sandbox == "without" {
			t.Errorf("an inactive extension was called: %+v", n)
		}
	}
	var of []string
	for _, n := range recorded(t, c.dir) {
		if n.Extension == "nemo-relay" && !n.Ended {
			of = append(of, string(n.Phase))
		}
	}
	for _, p := range []phase.Phase{phase.PreparePlan, phase.BeforeCreate, phase.BeforeStart, phase.AfterStop, phase.AfterDelete} {
		if !slices.Contains(of, string(p)) {
			t.Errorf("%s was not called: %v", p, of)
		}
	}
	c.nothing()
	c.end()
}

// Names become parts of paths, of metrics, of labels. What cannot be one is refused when the configuration is read, at
// its line. There is no directory for each extension here that a name could lead out of.
func unsafeNames(t *testing.T) {
	for _, name := range []string{"../vfio", "", "..", "a/b"} {
		unreadable(t, fmt.Sprintf("extension %q {\n  command = \"/bin/true\"\n}\n", name), fmt.Sprintf("extension %q", name))
	}
}

func unsafeKey(t *testing.T) {
	unreadable(t, "activation \"../vfio\" {\n  default = true\n}\n", "../vfio")
}

func twoOfOneName(t *testing.T) {
	block := "extension \"vfio\" {\n  command = \"/bin/true\"\n}\n"
	unreadable(t, block+block, "uplicate")
}

// unreadable loads a configuration that is refused, with these words and its place.
func unreadable(t *testing.T, text, want string) {
	t.Helper()
	s := newSite(t)
	path := s.write(text, "")
	d, found, err := New(t.Context(), s.options())
	var said bytes.Buffer
	if d != nil || found == nil || found.Render(&said) != nil {
		t.Errorf("%s was loaded (%v)", text, err)
	} else if !strings.Contains(said.String(), want) || !strings.Contains(said.String(), path) {
		t.Errorf("%s: %s", text, said.String())
	}
}

// Both variables are in the plan, each with its owner, and the plan was asked in chain order.
func beforeLaunchInOrder(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b")).up()
	id := c.ready("one", sandbox.Spec{})
	c.called([]phase.Phase{phase.BeforeStart}, "before_start a create", "before_start b create")
	p, err := c.d.engine.PlanOf(id)
	if err != nil {
		t.Fatal(err)
	}
	owners := map[string]string{}
	for _, f := range p.Fields() {
		owners[f.Path] = string(f.Owner)
	}
	for _, name := range []string{"a", "b"} {
		if owner := owners["environment.RECORDING_"+name]; !strings.Contains(owner, name) {
			t.Errorf("RECORDING_%s is %q's: %v", name, owner, owners)
		}
	}
	c.deleteIt(id)
	c.end()
}

func beforeLaunchShortCircuits(t *testing.T) {
	c := newChained(t, "native", member("a"), member("failing", once(phase.BeforeStart)), member("c")).up()
	c.do("failing", phase.BeforeStart, "fail the pool is closed")
	id, err := c.make("one", sandbox.Spec{})
	if err == nil || !strings.Contains(err.Error(), "the pool is closed") {
		t.Errorf("%v", err)
	}
	c.comes(id, sandbox.Deleted)
	// Released is who was started, newest first; c's run was not, and its sandbox was.
	c.called([]phase.Phase{phase.BeforeStart, phase.AfterStop, phase.OnCreateFailed},
		"before_start a create", "before_start failing create", "after_stop failing before_start_failed", "after_stop a before_start_failed",
		"on_create_failed c before_start_failed", "on_create_failed failing before_start_failed", "on_create_failed a before_start_failed")
	c.nothing()
	c.end()
}

// The driver cannot launch: everybody is told once, in reverse, with the reason.
func afterLaunchFailedInReverse(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b"))
	c.configure()
	c.startWith(func(o *Options) {
		o.between.driver = func(d driver.Driver) driver.Driver {
			return faulty{d, func(what string) error {
				if what == "create" {
					return fault.New(fault.FailedPrecondition, "there is no launcher")
				}
				return nil
			}}
		}
	})
	id, err := c.make("one", sandbox.Spec{})
	if err == nil || !strings.Contains(err.Error(), "there is no launcher") {
		t.Errorf("%v", err)
	}
	c.comes(id, sandbox.Deleted)
	c.called([]phase.Phase{phase.AfterStop, phase.OnCreateFailed, phase.AfterDelete}, "after_stop b launch_failed", "after_stop a launch_failed",
		"on_create_failed b launch_failed", "on_create_failed a launch_failed")
	c.nothing()
	c.end()
}

func afterDeleteRunsAll(t *testing.T) {
	c := newChained(t, "native", member("a"), member("b")).up()
	id := c.ready("one", sandbox.Spec{})
	c.forget()
	c.deleteIt(id)
	c.called(nil, "before_stop b", "before_stop a", "before_delete b", "before_delete a", "after_stop b deleted", "after_stop a deleted", "after_delete b", "after_delete a")
	c.nothing()
	c.end()
}

// That something is used up is a class of error of its own, which reaches the caller with its words; another error does
// not become one.
func resourceExhausted(t *testing.T) {
	c := newChained(t, "native", member("a", once(phase.BeforeCreate), once(phase.BeforeStart))).up()
	for _, p := range []phase.Phase{phase.BeforeCreate, phase.BeforeStart} {
		c.do("a", p, "exhaust no device is free")
		if _, err := c.make("one", sandbox.Spec{}); !fault.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), "no device is free") {
			t.Errorf("%s: %v", p, err)
		}
		c.do("a", p, "fail something else")
		if _, err := c.make("two", sandbox.Spec{}); err == nil || fault.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: %v", p, err)
		}
		c.do("a", p, "")
	}
	c.nothing()
	c.end()
}

// What an extension says of itself is what was negotiated with it, and what it requires that a driver has not is an
// error at the line of the bind.
func descriptor(t *testing.T) {
	c := newChained(t, "none", fixture("a")).up()
	var bind *pipeline.Bind
	for _, b := range c.d.catalog.current().Drivers["acme"].Chain.Binds() {
		bind = b
	}
	m := c.d.catalog.current().extensions["a"].handle.Manifest()
	if bind == nil || bind.Extension != "a" || m.Name != "a" || !slices.Equal(m.Provides, []string{"profile-a", "dropin-50-a"}) ||
		!slices.Equal(m.Requires, []string{"guest-init-dropins"}) {
		t.Errorf("%+v %+v", bind, m)
	}
	c.end()

	c = newChained(t, "native", fixture("a"))
	c.configure()
	d, found, err := New(t.Context(), c.options())
	var said bytes.Buffer
	if d != nil || found == nil || found.Render(&said) != nil || !strings.Contains(said.String(), "guest-init-dropins") || !strings.Contains(said.String(), `bind "a"`) {
		t.Errorf("over native: %v\n%s", err, said.String())
	}
}

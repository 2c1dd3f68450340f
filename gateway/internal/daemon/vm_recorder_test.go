package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/plan"
)

// recorderSwitch makes the test binary a recorder: DIR NAME, and then what it contributes, each "what=value".
const recorderSwitch = "recorder"

// recorder is an extension that declares every phase of a sandbox and writes down each call, when it begins and when it
// ends. What it does otherwise, a test says in files while it runs.
type recorder struct {
	dir, name string
	settings  map[string]string
}

func newRecorder(args []string) *recorder {
	r := &recorder{dir: args[0], name: args[1], settings: map[string]string{}}
	for _, a := range args[2:] {
		what, value, _ := strings.Cut(a, "=")
		r.settings[what] = value
	}
	return r
}

// noted is a call as a recorder writes it down: once when it begins, and once when it has ended.
type noted struct {
	Extension string            `json:"extension"`
	Phase     phase.Phase       `json:"phase"`
	Cause     phase.Cause       `json:"cause,omitempty"`
	Run       int               `json:"run,omitempty"`
	Key       string            `json:"key,omitempty"`
	Sandbox   string            `json:"sandbox,omitempty"` // its name
	Workspace string            `json:"workspace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Image     string            `json:"image,omitempty"`
	Plan      []plan.Object     `json:"plan,omitempty"`
	State     string            `json:"state,omitempty"`
	Held      int               `json:"held,omitempty"`
	InDoubt   string            `json:"in_doubt,omitempty"`
	Ended     bool              `json:"ended,omitempty"`
	Error     string            `json:"error,omitempty"`
}

func (x *recorder) note(n noted) {
	raw, err := json.Marshal(n)
	if err != nil {
		panic(err)
	}
	f, err := os.OpenFile(filepath.Join(x.dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		panic(err)
	}
}

// errDeny is an action: the phase is to refuse.
var errDeny = errors.New("deny")

// in notes a call, and does what the test wants of it.
func (x *recorder) in(ctx context.Context, r *plugin.Request, effect func() error) error {
	sb, _ := r.Sandbox()
	n := noted{Extension: x.name, Phase: r.Phase(), Cause: r.Cause(), Run: r.Run(), Key: r.Key(), Sandbox: sb.Name, Workspace: r.Workspace().Name,
		Labels: r.Labels(), Image: r.Image(), Plan: r.Plan(), Held: len(r.Held()), InDoubt: r.InDoubt()}
	_, _, _ = r.State(&n.State) // none is ""
	if !r.Preview() {
		x.note(n)
	}
	err := x.act(ctx, r)
	if err == nil {
		err = effect()
	}
	if n.Ended = true; err != nil {
		n.Error = err.Error()
	}
	if !r.Preview() {
		x.note(n)
	}
	return err
}

// action is the file with what a recorder does in a phase: "fail TEXT", "exhaust TEXT", "deny TEXT", "hang" until it is
// cancelled, "gate" until the file is gone, "late" which is a gate that heeds no cancelling, "die".
func action(dir, name string, p phase.Phase) string {
	return filepath.Join(dir, "do-"+name+"-"+string(p))
}

func (x *recorder) act(ctx context.Context, r *plugin.Request) error {
	path := action(x.dir, x.name, r.Phase())
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	word, text, _ := strings.Cut(string(raw), " ")
	switch word {
	case "fail":
		return errors.New(text)
	case "exhaust":
		return fault.New(fault.ResourceExhausted, "%s", text)
	case "deny":
		return errDeny
	case "hang":
		<-ctx.Done()
		return ctx.Err()
	case "die":
		_ = os.Remove(path)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "gate", "late":
		look := time.NewTicker(10 * time.Millisecond)
		defer look.Stop()
		for range look.C {
			if _, err := os.Stat(path); err != nil {
				return nil
			}
			if ctx.Err() != nil && word == "gate" {
				return ctx.Err()
			}
		}
	}
	return nil
}

func (x *recorder) Info() plugin.Info {
	info := plugin.Info{Name: x.name, Version: "1.0.0", Uses: []string{"environment", "labels", "guest-init-dropins"}, StateReads: []int{1}, StateWrites: 1,
		Provides: strings.Fields(x.settings["provides"]), Requires: strings.Fields(x.settings["requires"])}
	for _, what := range []string{"profile", "kernel", "backend", "backends", "features", "device", "late_backend"} {
		if x.settings[what] != "" {
			info.Points = []string{"LaunchPlan"}
		}
	}
	return info
}

func (x *recorder) ValidateRequest(ctx context.Context, r *plugin.Request, v *plugin.Verdict) error {
	return x.in(ctx, r, func() error { return nil })
}

// PreparePlan is what configure_launch is elsewhere: the fixture sets a kernel profile and adds a drop-in of its own.
func (x *recorder) PreparePlan(ctx context.Context, r *plugin.Request, p *plugin.Plan) error {
	err := x.in(ctx, r, func() error {
		launch := map[string]any{}
		for what, field := range map[string]string{"profile": "kernel_profile", "kernel": "kernel_image", "backend": "backend"} {
			if v := x.settings[what]; v != "" {
				launch[field] = v
			}
		}
		for what, field := range map[string]string{"backends": "required_backends", "features": "required_backend_features", "device": "pci_devices"} {
			if v := strings.Fields(x.settings[what]); len(v) > 0 {
				launch[field] = v
			}
		}
		if len(launch) > 0 {
			if err := p.Contribute("LaunchPlan", "main", launch); err != nil {
				return err
			}
		}
		for _, feature := range strings.Fields(x.settings["needs"]) {
			p.Require(feature)
		}
		if name := x.settings["dropin"]; name != "" {
			f, ok := r.Feature("guest-init-dropins")
			if !ok {
				return errors.New("there is no place for drop-ins")
			}
			f.Object = name
			return p.Set(f, map[string]string{"contents": "#!/bin/sh\necho drop-in " + x.name + "\n" + x.settings["script"]})
		}
		return nil
	})
	if errors.Is(err, errDeny) {
		p.Deny("no, says "+x.name, "")
		return nil
	}
	return err
}

func (x *recorder) BeforeCreate(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	err := x.in(ctx, r, func() error {
		s.Hold("seat", r.SubjectID(), "")
		return s.SetState(1, "of "+x.name)
	})
	if errors.Is(err, errDeny) {
		s.Deny("no, says "+x.name, "")
		return nil
	}
	return err
}

// BeforeStart is what before_launch is elsewhere: the fixture adds a variable.
func (x *recorder) BeforeStart(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	err := x.in(ctx, r, func() error {
		s.Hold("run", r.SubjectID(), "")
		if want := x.settings["demands"]; want != "" && !slices.ContainsFunc(r.Plan(), func(o plan.Object) bool { return o.Fields["backend"] == want }) {
			return errDeny
		}
		if b := x.settings["late_backend"]; b != "" {
			return s.Contribute("LaunchPlan", "main", map[string]string{"backend": b})
		}
		f, ok := r.Feature("environment")
		if !ok {
			return errors.New("there is no place for variables")
		}
		return s.Set(f, map[string]string{"RECORDING_" + x.name: "1"})
	})
	if errors.Is(err, errDeny) {
		s.Deny("no, says "+x.name, "")
		return nil
	}
	return err
}

func (x *recorder) AfterCreate(ctx context.Context, r *plugin.Request, h *plugin.Hold) error {
	return x.in(ctx, r, func() error { h.Hold("seat", r.SubjectID(), ""); return nil })
}

func (x *recorder) AfterReady(ctx context.Context, r *plugin.Request, h *plugin.Hold) error {
	return x.in(ctx, r, func() error { h.Hold("run", r.SubjectID(), ""); return nil })
}

func (x *recorder) quiet(ctx context.Context, r *plugin.Request) error {
	return x.in(ctx, r, func() error { return nil })
}

func (x *recorder) BeforeStop(ctx context.Context, r *plugin.Request) error { return x.quiet(ctx, r) }
func (x *recorder) BeforeDelete(ctx context.Context, r *plugin.Request) error {
	return x.quiet(ctx, r)
}
func (x *recorder) AfterStop(ctx context.Context, r *plugin.Request) error   { return x.quiet(ctx, r) }
func (x *recorder) AfterDelete(ctx context.Context, r *plugin.Request) error { return x.quiet(ctx, r) }
func (x *recorder) OnCreateFailed(ctx context.Context, r *plugin.Request) error {
	return x.quiet(ctx, r)
}

// recorded reads what recorders have written in a directory.
func recorded(t *testing.T, dir string) (all []noted) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var n noted
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, n)
	}
	return all
}

// calls are those of phases in short, in the order in which they began: "phase extension", with the cause where it
// has one.
func calls(all []noted, of ...phase.Phase) (out []string) {
	for _, n := range all {
		if n.Ended || len(of) > 0 && !slices.Contains(of, n.Phase) {
			continue
		}
		text := string(n.Phase) + " " + n.Extension
		if n.Cause != "" {
			text += " " + string(n.Cause)
		}
		out = append(out, text)
	}
	return out
}

// Command noop is the extension that the benchmarks call: it does nothing in any phase of a sandbox, or waits there.
package main

import (
	"context"
	"os"
	"time"

	"github.com/sandgate/sandgate/plugin"
)

// settings are read from the environment, so that a program is what the spec of its launch says.
type settings struct {
	name string
	wait time.Duration // in every call
}

// pause waits as long as a call is to take.
func (s *settings) pause(ctx context.Context) error {
	if s.wait == 0 {
		return nil
	}
	t := time.NewTimer(s.wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// validator takes part in validate_request only.
type validator struct{ settings }

func (v *validator) Info() plugin.Info { return plugin.Info{Name: v.name, Version: "1.0.0"} }

func (v *validator) ValidateRequest(ctx context.Context, _ *plugin.Request, _ *plugin.Verdict) error {
	return v.pause(ctx)
}

// whole takes part in every phase of a create, and so in those that release.
type whole struct{ validator }

func (w *whole) PreparePlan(ctx context.Context, _ *plugin.Request, _ *plugin.Plan) error {
	return w.pause(ctx)
}
func (w *whole) BeforeCreate(ctx context.Context, _ *plugin.Request, _ *plugin.Setup) error {
	return w.pause(ctx)
}
func (w *whole) BeforeStart(ctx context.Context, _ *plugin.Request, _ *plugin.Setup) error {
	return w.pause(ctx)
}
func (w *whole) AfterCreate(ctx context.Context, _ *plugin.Request, _ *plugin.Hold) error {
	return w.pause(ctx)
}
func (w *whole) AfterStop(ctx context.Context, _ *plugin.Request) error   { return w.pause(ctx) }
func (w *whole) AfterDelete(ctx context.Context, _ *plugin.Request) error { return w.pause(ctx) }
func (w *whole) OnCreateFailed(ctx context.Context, _ *plugin.Request) error {
	return w.pause(ctx)
}

func main() {
	s := settings{name: os.Getenv("NOOP_NAME")}
	s.wait, _ = time.ParseDuration(os.Getenv("NOOP_WAIT"))                 // nothing said: none
	if d, err := time.ParseDuration(os.Getenv("NOOP_START")); err == nil { // a program that is slow to start
		<-time.After(d)
	}
	var ext any = &whole{validator{s}}
	if os.Getenv("NOOP_PHASES") == "validate_request" {
		ext = &validator{s}
	}
	_ = plugin.Serve(ext) // it has said what was wrong
}

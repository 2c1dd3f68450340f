package container

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/plan"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// empty is an engine that has nothing, and of which the test says which one it is.
type empty struct {
	Engine
	instance string
}

func (e *empty) About(context.Context) (*About, error) {
	return &About{Version: "1", Instance: e.instance}, nil
}

func (e *empty) FindContainer(_ context.Context, name string) (*Found, error) {
	return nil, fault.New(fault.NotFound, "no such container: %s", name)
}

func (e *empty) ListContainers(context.Context, map[string]string) ([]string, error) { return nil, nil }

func (e *empty) ListVolumes(context.Context, map[string]string) ([]string, error) { return nil, nil }

func (e *empty) Events(_ context.Context, _, _ string, begin func() error, _ func(string) error) error {
	return begin()
}

func (e *empty) Close() error { return nil }

// TestAnotherEngineSaysNothing: where another engine answers than the one that was opened, what it does not have is not
// gone, and nothing is made on it.
func TestAnotherEngineSaysNothing(t *testing.T) {
	e := &empty{instance: "the one"}
	d, err := Open(Config{Type: "docker", Dir: t.TempDir()}, e)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	id := sandbox.Identity{ID: "s1", Driver: "docker", Workspace: "default", WorkspaceID: "w1", Name: "one"}
	calls := map[string]func(context.Context) error{
		"get": func(ctx context.Context) error { _, err := d.Get(ctx, id); return err },
		"watch": func(ctx context.Context) error {
			return d.Watch(ctx, func(driver.Event) error { return nil })
		},
		"stop": func(ctx context.Context) error { return d.Stop(ctx, id) },
		"delete": func(ctx context.Context) error {
			return d.Delete(ctx, &driver.DeleteRequest{Identity: id, Operation: "o"})
		},
	}
	check := func(where string, other bool) {
		for name, call := range calls {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			err := call(ctx)
			cancel()
			if refused := fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "another docker engine answers (the other)"); refused != other {
				t.Errorf("%s, %s: %v", where, name, err)
			}
		}
	}
	check("the engine that was opened", false)
	if _, err := d.Get(t.Context(), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("the engine that was opened has no such sandbox, and it says %v", err)
	}
	e.instance = "the other"
	check("another engine", true)
	err = d.Create(t.Context(), &driver.CreateRequest{Identity: id, Operation: "o", Run: 1, Plan: &plan.Plan{}})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a create on another engine: %v", err)
	}
	e.instance = "the one"
	check("the engine is back", false)
}

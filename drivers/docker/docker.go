// Package docker runs sandboxes as containers of a Docker engine, 20.10 or later. What it has in common with other
// engines is package container's; here is how Docker is told.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// Config is what the driver needs.
type Config struct {
	container.Config
	Host string // "unix:///var/run/docker.sock", "tcp://…"; "" for DOCKER_HOST and its companions, or the default
}

// engine implements container.Engine.
type engine struct {
	api   *client.Client
	fresh *client.Client // makes a connection for each call
	cfg   Config
}

var _ container.Engine = (*engine)(nil)

// Open opens the driver.
func Open(cfg Config) (*container.Driver, error) {
	cfg.Type = "docker"
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	opts := []client.Opt{client.FromEnv}
	if cfg.Host != "" {
		opts = []client.Opt{client.WithHost(cfg.Host)}
	}
	api, err := client.New(opts...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "docker: %w", err)
	}
	alone := func(r *http.Request) error { r.Close = true; return nil }
	fresh, err := client.New(append(opts, client.WithHTTPRequestHook(alone))...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "docker: %w", err)
	}
	return container.Open(cfg.Config, &engine{api: api, fresh: fresh, cfg: cfg})
}

// Close implements container.Source.
func (e *engine) Close() error { return errors.Join(e.api.Close(), e.fresh.Close()) }

// failed turns what the client says into a fault.
func failed(call, object string, err error) error {
	if err == nil {
		return nil
	}
	text := strings.ToLower(err.Error())
	code := fault.FailedPrecondition // the engine has answered: it is not in doubt
	switch {
	case errors.Is(err, context.Canceled):
		code = fault.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = fault.DeadlineExceeded
	case client.IsErrConnectionFailed(err):
		code = fault.Unavailable
	case errdefs.IsNotFound(err):
		code = fault.NotFound
	case strings.Contains(text, "no space left on device"), strings.Contains(text, "quota exceeded"):
		code = fault.ResourceExhausted
	case strings.Contains(text, "address already in use"), strings.Contains(text, "has active endpoints"):
		code = fault.Conflict
	case errdefs.IsConflict(err):
		code = fault.Conflict
	case errdefs.IsInvalidArgument(err):
		code = fault.Invalid
	case !answered(err):
		code = fault.Unavailable
	}
	return container.Failed(code, "docker", call, object, words(err))
}

// answered reports whether the engine itself has said no, rather than a connection that broke.
func answered(err error) bool {
	return strings.Contains(err.Error(), "Error response from daemon") || errdefs.IsInternal(err) || errdefs.IsConflict(err) ||
		errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) || errdefs.IsUnavailable(err)
}

// words are the engine's own, without what the client puts before them.
func words(err error) error {
	var broken *url.Error
	if errors.As(err, &broken) { // its text is the address, which means nothing
		return fmt.Errorf("the connection to the engine broke: %w", broken.Err)
	}
	if text, cut := strings.CutPrefix(err.Error(), "Error response from daemon: "); cut {
		return errors.New(text)
	}
	return err
}

// About implements container.Source.
func (e *engine) About(ctx context.Context) (*container.About, error) {
	info, err := e.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, failed("ask", "the engine", err)
	}
	i := info.Info
	a := &container.About{Version: i.ServerVersion, Instance: i.ID, Missing: map[string]string{}}
	api := e.api.ClientVersion()
	if versions.LessThan(api, "1.43") {
		a.Missing["annotations"] = "the engine's API is " + api + ", and annotations came with 1.43"
	}
	if versions.LessThan(api, "1.44") || len(i.CDISpecDirs) == 0 {
		a.Missing["device"] = "this engine knows no CDI devices"
	}
	if !i.MemoryLimit || !i.PidsLimit || !i.CPUCfsQuota {
		a.Missing["limits"] = "the host does not give the engine the control groups for memory, cpu and pids"
	}
	if !hasSecurity(i.SecurityOptions, "seccomp") {
		a.Missing["seccomp"] = "the host has none"
	}
	if !hasSecurity(i.SecurityOptions, "apparmor") {
		a.Missing["apparmor"] = "the host has none"
	}
	return a, nil
}

func hasSecurity(options []string, name string) bool {
	for _, o := range options {
		if strings.Contains(o, "name="+name) {
			return true
		}
	}
	return false
}

// Epoch implements container.Source. Docker does not say when it was started. It makes its default network anew each
// time, unless containers run on over its restart (live-restore), and then there is no new epoch either. It is asked over
// a connection of its own: an engine that ends its containers since it is to end itself goes on to answer over old
// connections, and takes no new one.
func (e *engine) Epoch(ctx context.Context) (container.Epoch, error) {
	n, err := e.fresh.NetworkInspect(ctx, "bridge", client.NetworkInspectOptions{})
	if errdefs.IsNotFound(err) {
		return container.Epoch{ID: "no default network"}, nil
	}
	if err != nil {
		return container.Epoch{}, failed("inspect network", "bridge", err)
	}
	return container.Epoch{ID: n.Network.ID, Since: n.Network.Created}, nil
}

// Events implements container.Source.
func (e *engine) Events(ctx context.Context, label, value string, begin func() error, change func(string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ev := e.api.Events(ctx, client.EventsListOptions{Filters: make(client.Filters).Add("type", "container").Add("label", label+"="+value)})
	select {
	case err := <-ev.Err:
		return failed("watch", "events", err)
	default:
	}
	if err := begin(); err != nil {
		return err
	}
	for {
		select {
		case m := <-ev.Messages:
			if !tells(string(m.Action)) {
				continue
			}
			if err := change(m.Actor.ID); err != nil {
				return err
			}
		case err := <-ev.Err:
			return failed("watch", "events", err)
		}
	}
}

// tells reports whether an event is of a change that a status shows.
func tells(action string) bool {
	return slices.Contains([]string{"create", "start", "die", "oom", "pause", "unpause", "rename", "destroy"}, action) || strings.HasPrefix(action, "health_status")
}

// ImageID implements container.Images.
func (e *engine) ImageID(ctx context.Context, reference string) (string, error) {
	r, err := e.api.ImageInspect(ctx, reference)
	return r.ID, failed("inspect image", reference, err)
}

// sayEvery is how often Pull tells how far it is.
const sayEvery = 2 * time.Second

// Pull implements container.Images.
func (e *engine) Pull(ctx context.Context, reference string, say func(string)) error {
	r, err := e.api.ImagePull(ctx, reference, client.ImagePullOptions{})
	if err != nil {
		return final(failed("pull image", reference, err))
	}
	defer func() { _ = r.Close() }()
	var last time.Time
	for m, err := range r.JSONMessages(ctx) {
		if err == nil && m.Error != nil {
			err = m.Error
		}
		if err != nil {
			return final(failed("pull image", reference, err))
		}
		if time.Since(last) > sayEvery {
			last = time.Now()
			say(strings.TrimSpace(m.ID + " " + m.Status))
		}
	}
	return nil
}

// final says of an image that is nowhere that nothing will come of it: NotFound would be said of the sandbox.
func final(err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.FailedPrecondition, "%w", err)
	}
	return err
}

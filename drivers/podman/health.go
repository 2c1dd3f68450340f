package podman

import (
	"context"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// Podman has its health checks made by timers of systemd. On a host without it nobody makes them, so whoever watches
// does: the engine runs a check when it is asked, and tells of what came of it by an event.
type checks struct {
	mu  sync.Mutex
	ids map[string]bool // the containers that are being checked
}

// timers reports whether this host has systemd.
func timers() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// defaultInterval is Podman's own.
const defaultInterval = 30 * time.Second

// rounds are the checks that one Watch makes. They end with it.
type rounds struct {
	e    *engine
	ctx  context.Context
	wait sync.WaitGroup
}

// see begins to check a container that has a check and runs, unless somebody does that.
func (r *rounds) see(id string) error {
	if timers() {
		return nil
	}
	c, err := r.e.inspect(r.ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || c.State.Status != container.StateRunning || len(c.Config.Healthcheck.Test) == 0 || c.Config.Healthcheck.Test[0] == "NONE" {
		return err
	}
	r.e.checks.mu.Lock()
	defer r.e.checks.mu.Unlock()
	if r.e.checks.ids[id] {
		return nil
	}
	if r.e.checks.ids == nil {
		r.e.checks.ids = map[string]bool{}
	}
	r.e.checks.ids[id] = true
	every := c.Config.Healthcheck.Interval
	if every <= 0 {
		every = defaultInterval
	}
	r.wait.Go(func() { r.check(id, every) })
	return nil
}

// check asks again and again, until the container does not run or the watch ends.
func (r *rounds) check(id string, every time.Duration) {
	defer func() {
		r.e.checks.mu.Lock()
		defer r.e.checks.mu.Unlock()
		delete(r.e.checks.ids, id)
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := r.e.api.do(r.ctx, call{what: "check the health of container", about: id, method: http.MethodGet, path: "/containers/" + id + "/healthcheck"}, nil)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) { // it went, or does not run
			return
		}
		if err != nil && r.ctx.Err() == nil {
			r.e.cfg.Logger.Warn("a health check was not made", "container", id, "err", err)
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
	}
}

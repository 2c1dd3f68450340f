package daemon

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// Manager is who started the gateway and wants to know how it is, by the protocol of sd_notify(3). The zero value is
// nobody.
type Manager struct {
	Socket   string        // of NOTIFY_SOCKET: a path, or a name that begins with @
	Watchdog time.Duration // how long it may hear nothing; 0: it does not listen for that
}

// ManagerOf reads what the environment says to the process pid.
func ManagerOf(getenv func(string) string, pid int) Manager {
	m := Manager{Socket: getenv("NOTIFY_SOCKET")}
	if who := getenv("WATCHDOG_PID"); who != "" && who != strconv.Itoa(pid) {
		return m
	}
	if n, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && n > 0 {
		m.Watchdog = time.Duration(n) * time.Microsecond
	}
	return m
}

// tell sends one message. It waits for nobody.
func (m Manager) tell(lines ...string) error {
	if m.Socket == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", m.Socket)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer func() { _ = conn.Close() }() // it was sent, or the error is told
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// tell tells the service manager, if there is one.
func (d *Daemon) tell(lines ...string) {
	if err := d.opts.Manager.tell(lines...); err != nil {
		d.log.Warn("the service manager does not hear of it", "what", lines[0], "err", err)
	}
}

// statusLine is a line for people, who see it in `systemctl status`.
func statusLine(format string, args ...any) string {
	return "STATUS=" + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
}

// Reload implements api.Host: the new configuration is validated, launched and negotiated before anything changes.
func (d *Daemon) Reload(ctx context.Context, caller string) (*gatewayv1.ReloadResponse, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.tell("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10))
	res, err := d.reload(ctx, caller)
	if err != nil {
		d.tell("READY=1", statusLine("serving configuration %s; the last reload was refused, the log says why", d.catalog.current().ID))
		return nil, err
	}
	d.tell("READY=1", statusLine("serving configuration %s", res.GetGeneration()))
	return res, nil
}

// monotonic is CLOCK_MONOTONIC, by which the manager tells an answer to its signal from an earlier one.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it cannot fail with a clock that every kernel has
	return time.Duration(now.Nano())
}

// guard tells the service manager twice within each interval that the gateway goes on, for as long as the engine does. A
// store that does not answer is no reason to be ended: the engine waits for it.
func (d *Daemon) guard(ctx context.Context) {
	if d.opts.Manager.Watchdog <= 0 {
		return
	}
	alive := d.engine.Alive
	if put := d.opts.between.alive; put != nil {
		alive = put(alive)
	}
	tick := time.NewTicker(d.opts.Manager.Watchdog / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		alive() // for ever, where the engine hangs
		d.tell("WATCHDOG=1")
	}
}

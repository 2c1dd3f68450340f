// Package podman runs sandboxes as containers of Podman 4 or later, rootful or rootless, over libpod's API. What it has
// in common with other engines is package container's; here is how Podman is told.
package podman

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/shared/fault"
)

// Config is what the driver needs.
type Config struct {
	container.Config
	Socket   string // of the engine's API; "" for that of this user
	Rootless *bool  // what the engine has to be; nil: either
	// Boot names this run of the host, and says when it began; nil: the kernel's.
	Boot func() (container.Epoch, error)
}

// engine implements container.Engine.
type engine struct {
	api    *api
	cfg    Config
	checks checks
}

var _ container.Engine = (*engine)(nil)

// Open opens the driver.
func Open(cfg Config) (*container.Driver, error) {
	cfg.Type = "podman"
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Boot == nil {
		cfg.Boot = boot
	}
	if cfg.Socket == "" {
		cfg.Socket = Socket()
	}
	return container.Open(cfg.Config, &engine{api: dial(strings.TrimPrefix(cfg.Socket, "unix://")), cfg: cfg})
}

// Socket is where Podman listens for this user.
func Socket() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "podman/podman.sock")
	}
	return "/run/podman/podman.sock"
}

// boot reads which run of the host this is: containers outlive the engine, and end with the host.
func boot() (container.Epoch, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return container.Epoch{}, err
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return container.Epoch{}, err
	}
	for line := range strings.Lines(string(stat)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return container.Epoch{ID: strings.TrimSpace(string(id)), Since: time.Unix(seconds, 0)}, err
		}
	}
	return container.Epoch{}, errors.New("/proc/stat has no btime")
}

// Epoch implements container.Source.
func (e *engine) Epoch(context.Context) (container.Epoch, error) { return e.cfg.Boot() }

// Close implements container.Source.
func (e *engine) Close() error {
	e.api.http.CloseIdleConnections()
	return nil
}

// machineID is where a host keeps the name that it has for good (machine-id(5)): its hostname may change under its sandboxes.
const machineID = "/etc/machine-id"

// machine returns a digest of that name, which is not for everybody, or "" where the host has none.
func machine(file string) string {
	raw, err := os.ReadFile(file)
	id := strings.TrimSpace(string(raw))
	if err != nil || id == "" || id == "uninitialized" {
		return ""
	}
	sum := sha256.Sum256([]byte("sandgate podman " + id))
	return hex.EncodeToString(sum[:8])
}

// About implements container.Source.
func (e *engine) About(ctx context.Context) (*container.About, error) {
	var info struct {
		Host struct {
			Hostname          string   `json:"hostname"`
			CgroupControllers []string `json:"cgroupControllers"`
			Security          struct {
				Rootless bool `json:"rootless"`
				Seccomp  bool `json:"seccompEnabled"`
				AppArmor bool `json:"apparmorEnabled"`
			} `json:"security"`
		} `json:"host"`
		Store struct {
			GraphRoot string `json:"graphRoot"`
		} `json:"store"`
		Version struct{ Version string } `json:"version"`
	}
	if err := e.api.do(ctx, call{what: "ask", about: "the engine at " + e.cfg.Socket, method: "GET", path: "/info"}, &info); err != nil {
		return nil, err
	}
	rootless := info.Host.Security.Rootless
	if want := e.cfg.Rootless; want != nil && *want != rootless {
		return nil, fault.New(fault.FailedPrecondition, "the engine at %s is rootless: %t, and the configuration says %t", e.cfg.Socket, rootless, *want)
	}
	a := &container.About{Version: info.Version.Version, Instance: cmp.Or(machine(machineID), info.Host.Hostname) + ":" + info.Store.GraphRoot, Missing: map[string]string{}}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(info.Host.CgroupControllers, c) {
			a.Missing["limits"] = "the host does not give the engine the control group for " + c
		}
	}
	if !info.Host.Security.Seccomp {
		a.Missing["seccomp"] = "the host has none"
	}
	if !info.Host.Security.AppArmor {
		a.Missing["apparmor"] = "the host has none, or the engine is rootless"
	}
	return a, nil
}

// Events implements container.Source. The engine reads what has happened from a file, so it is asked for what came
// since just before, and nothing is between that and what begin sees.
func (e *engine) Events(ctx context.Context, label, value string, begin func() error, change func(string) error) error {
	c := call{what: "watch", about: "events", method: "GET", path: "/events", query: url.Values{"stream": {"true"},
		"since":   {fmt.Sprint(time.Now().Add(-time.Second).Unix())},
		"filters": {fmt.Sprintf(`{"type":["container"],"label":[%q]}`, label+"="+value)}}}
	ctx, cancel := context.WithCancel(ctx)
	r := &rounds{e: e, ctx: ctx}
	defer r.wait.Wait()
	defer cancel()
	resp, err := e.api.send(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := begin(); err != nil {
		return err
	}
	there, err := e.ListContainers(ctx, map[string]string{label: value})
	for _, id := range there {
		err = errors.Join(err, r.see(id))
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var ev struct {
			Action string
			Actor  struct{ ID string }
		}
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return c.failed(err)
		}
		if ev.Actor.ID == "" || strings.HasPrefix(ev.Action, "exec") {
			continue
		}
		if err := change(ev.Actor.ID); err != nil {
			return err
		}
		if ev.Action == "start" {
			if err := r.see(ev.Actor.ID); err != nil {
				return err
			}
		}
	}
	if err = lines.Err(); err == nil {
		err = io.ErrUnexpectedEOF
	}
	return c.failed(err)
}

// ImageID implements container.Images.
func (e *engine) ImageID(ctx context.Context, reference string) (string, error) {
	var image struct{ Id string } //nolint:revive // the engine's spelling
	at := "/images/" + url.PathEscape(reference)
	if err := e.api.do(ctx, call{what: "look for image", about: reference, method: "GET", path: at + "/exists"}, nil); err != nil {
		return "", err
	}
	err := e.api.do(ctx, call{what: "inspect image", about: reference, method: "GET", path: at + "/json"}, &image)
	return image.Id, err
}

// Pull implements container.Images.
func (e *engine) Pull(ctx context.Context, reference string, say func(string)) error {
	c := call{what: "pull image", about: reference, method: "POST", path: "/images/pull", query: url.Values{"reference": {reference}, "policy": {"always"}}}
	resp, err := e.api.send(ctx, c)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.FailedPrecondition, "%w", err) // NotFound would be said of the sandbox
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for dec := json.NewDecoder(resp.Body); ; {
		var m struct{ Stream, Error string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return c.failed(err)
		}
		if m.Error != "" {
			return c.failed(&refusal{Message: m.Error})
		}
		if text := strings.TrimSpace(m.Stream); text != "" {
			say(text)
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

const (
	kindRoute = "route"
	suffix    = ".yml" // the proxy reads no other
	remark    = "# sandgate "
)

// routes is the extension. It keeps nothing in memory but its settings: what is published is what lies in the directory.
type routes struct {
	mu  sync.Mutex
	cfg config
}

var _ interface {
	plugin.Configurer
	plugin.HealthChecker
	plugin.Validator
	plugin.AfterReadier
	plugin.AfterStopper
	plugin.Reconciler
} = (*routes)(nil)

// Info implements plugin.Extension.
func (x *routes) Info() plugin.Info {
	return plugin.Info{Name: "route", Version: "1.0.0", Provides: []string{"exposure"}, Config: &config{}}
}

// Configure implements plugin.Configurer.
func (x *routes) Configure(_ context.Context, c *plugin.Config) error {
	cfg := c.Value.(*config)
	wrong := cfg.check()
	for _, w := range wrong {
		c.Invalid(w.Path, w.Summary, w.Detail)
	}
	if len(wrong) == 0 {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.cfg = *cfg
	}
	return nil
}

func (x *routes) configured() config {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cfg
}

// Health implements plugin.HealthChecker.
func (x *routes) Health(context.Context) error {
	_, err := os.Stat(x.configured().Directory)
	return err
}

// ValidateRequest implements plugin.Validator: what could never be published is refused while nothing is made. After that
// nothing here fails a create.
func (x *routes) ValidateRequest(_ context.Context, r *plugin.Request, v *plugin.Verdict) error {
	if _, err := x.port(r); err != nil {
		v.DenyField("driver_config.extensions.route.port", err.Error(), "A number from 1 to 65535.")
	}
	if sb, _ := r.Sandbox(); sb.Name != "" && !label.MatchString(sb.Name) {
		v.DenyField("name", fmt.Sprintf("%q cannot be a part of a name in the DNS", sb.Name), "At most 63 letters, digits and hyphens.")
	}
	return nil
}

// port is what the sandbox asks for, or what is configured.
func (x *routes) port(r *plugin.Request) (int, error) {
	want := asked{Port: x.configured().Port}
	if _, err := r.Config(&want); err != nil {
		return 0, errors.New("it cannot be read")
	}
	if want.Port < 1 || want.Port > 65535 {
		return 0, fmt.Errorf("%d is no port", want.Port)
	}
	return want.Port, nil
}

// route is what is published of a sandbox. It stands in the first line of its file, for us, and the rest is the proxy's.
type route struct {
	Bind    string           `json:"bind"`
	Sandbox sandbox.Identity `json:"sandbox"`
	Host    string           `json:"host"`
	URL     string           `json:"url"`
}

// arrow stands between the two halves of an entry's text.
const arrow = " → "

// entry is named by the sandbox: a host is another's as soon as that has the name.
func (r *route) entry() plugin.Entry {
	return plugin.Entry{Kind: kindRoute, ID: r.Sandbox.ID, Text: r.Host + arrow + r.URL}
}

// AfterReady implements plugin.AfterReadier. A failure is recorded, shown, and harms nobody: the sandbox is not published.
func (x *routes) AfterReady(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	sb, _ := r.Sandbox()
	port, err := x.port(r)
	if err != nil {
		return err
	}
	host, err := address(r.Addresses())
	if err != nil {
		return err
	}
	p := &route{Bind: r.Bind(), Sandbox: sb, Host: sb.Name + "." + sb.Workspace + "." + x.configured().Domain,
		URL: "http://" + net.JoinHostPort(host, strconv.Itoa(port))}
	if err := x.publish(p); err != nil {
		return err
	}
	e := p.entry()
	h.Hold(e.Kind, e.ID, e.Text)
	return nil
}

// address returns the first address, without the prefix length that some drivers give.
func address(all []string) (string, error) {
	for _, a := range all {
		if p, err := netip.ParsePrefix(a); err == nil {
			return p.Addr().String(), nil
		}
		if ip, err := netip.ParseAddr(a); err == nil {
			return ip.String(), nil
		}
	}
	return "", errors.New("it is not published: the driver gives it no address")
}

func (x *routes) file(id string) string { return filepath.Join(x.configured().Directory, id+suffix) }

// publish writes the file of a route, whole or not at all.
func (x *routes) publish(r *route) error {
	name := "sandgate-" + r.Sandbox.ID
	head, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// JSON is YAML; the words are those of Traefik's file provider.
	body, err := json.MarshalIndent(map[string]any{"http": map[string]any{
		"routers":  map[string]any{name: map[string]any{"rule": fmt.Sprintf("Host(`%s`)", r.Host), "service": name}},
		"services": map[string]any{name: map[string]any{"loadBalancer": map[string]any{"servers": []map[string]any{{"url": r.URL}}}}},
	}}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(x.configured().Directory, ".new-*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s%s\n%s\n", remark, head, body)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), x.file(r.Sandbox.ID))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// withdraw removes the route of a sandbox, if there is one.
func (x *routes) withdraw(id string) error {
	if err := os.Remove(x.file(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// AfterStop implements plugin.AfterStopper.
func (x *routes) AfterStop(_ context.Context, r *plugin.Request) error {
	return x.withdraw(r.SubjectID())
}

// Holdings implements plugin.Reconciler.
func (x *routes) Holdings(_ context.Context, bind string) (out []plugin.Holding, err error) {
	dir := x.configured().Directory
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) {
			continue
		}
		r, err := read(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		if r == nil || r.Bind != bind {
			continue // it is somebody else's
		}
		out = append(out, plugin.Holding{Sandbox: &r.Sandbox, Lifetime: phase.Run, Entries: []plugin.Entry{r.entry()},
			Workspace: sandbox.Workspace{ID: r.Sandbox.WorkspaceID, Driver: r.Sandbox.Driver, Name: r.Sandbox.Workspace}})
	}
	return out, nil
}

// read returns the route in a file, and nil for a file that was not written here.
func read(path string) (*route, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	first, _, err := bufio.NewReader(bytes.NewReader(raw)).ReadLine()
	head, ours := strings.CutPrefix(string(first), remark)
	if err != nil || !ours {
		return nil, nil
	}
	r := &route{}
	if err := json.Unmarshal([]byte(head), r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Repair implements plugin.Reconciler.
func (x *routes) Repair(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	if len(r.Orphans()) > 0 {
		if err := x.withdraw(r.SubjectID()); err != nil {
			return err
		}
	}
	for _, e := range r.Lost() {
		sb, _ := r.Sandbox()
		host, url, ok := strings.Cut(e.Text, arrow)
		if !ok || e.Kind != kindRoute || e.ID != sb.ID {
			return fault.New(fault.Invalid, "%s %q is no route", e.Kind, e.ID)
		}
		if err := x.publish(&route{Bind: r.Bind(), Sandbox: sb, Host: host, URL: url}); err != nil {
			return err
		}
	}
	here, err := read(x.file(r.SubjectID()))
	if err == nil && here != nil {
		e := here.entry()
		h.Hold(e.Kind, e.ID, e.Text)
	}
	return err
}

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// slots is an extension that does everything right: it gives a numbered slot for every lifetime, and keeps the book in
// a file. The faulty ones are this one with a fault.
type slots struct {
	fault string

	mu   sync.Mutex
	cfg  slotsConfig
	book map[string]slot // by lifetime and subject
	gave map[string]bool // state that this process wrote, for a fault
	n    int
}

type slotsConfig struct {
	Dir   string           `json:"dir" doc:"where the book is"`
	Size  int              `json:"size" default:"1000" min:"1" max:"5000"`
	Token string           `json:"token" config:"optional,sensitive"`
	Tags  []string         `json:"tags" config:"optional"`
	Zones map[string]zones `json:"zone" config:"block"`
}

type zones struct {
	Weight float64 `json:"weight" default:"1"`
}

type slot struct {
	Lifetime  phase.Lifetime    `json:"lifetime"`
	Number    int               `json:"number"`
	Bind      string            `json:"bind"`
	Sandbox   *sandbox.Identity `json:"sandbox,omitempty"`
	Workspace sandbox.Workspace `json:"workspace"`
	Extra     bool              `json:"extra,omitempty"` // after_create took one more
}

func (s slot) entries() []plugin.Entry {
	out := []plugin.Entry{{Kind: string(s.Lifetime) + "-slot", ID: fmt.Sprint(s.Number), Text: "a slot"}}
	if s.Extra {
		out = append(out, plugin.Entry{Kind: "extra-slot", ID: fmt.Sprint(s.Number)})
	}
	return out
}

func (x *slots) is(name string) bool { return x.fault == name }

func (x *slots) Info() plugin.Info {
	info := plugin.Info{Name: "slots", Version: "1.0.0", Uses: []string{"labels", "environment"}, Config: &slotsConfig{}, StateReads: []int{1, 2}, StateWrites: 2}
	if x.is("needs-features") {
		info.Uses = append(info.Uses, "network.address")
	}
	return info
}

func (x *slots) Configure(_ context.Context, c *plugin.Config) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	cfg := *c.Value.(*slotsConfig)
	if x.is("half-a-config") {
		x.cfg.Tags = cfg.Tags
	}
	if x.is("crash-on-config") && len(cfg.Tags) > 0 && cfg.Tags[0] == "[" {
		os.Exit(3)
	}
	if x.is("leaks-a-secret") {
		plugin.Logger().Info("configured", "token", cfg.Token)
	}
	if x.is("refuses-its-config") {
		c.Invalid("dir", "is not to my liking", "")
		return nil
	}
	if cfg.Size < 1 {
		path := "size"
		if x.is("lost-diagnostic") {
			path = "limits.size"
		}
		c.Invalid(path, "is too small", "")
	}
	if !filepath.IsAbs(cfg.Dir) || strings.Contains(cfg.Dir, "\x00") {
		c.Invalid("dir", "is not absolute", "")
	}
	for _, t := range cfg.Tags {
		if t == "" || t == "[" {
			c.Invalid("tags", "has one that is none", "")
			return nil
		}
	}
	if cfg.Size < 1 || !filepath.IsAbs(cfg.Dir) {
		return nil
	}
	x.cfg = cfg
	return x.read()
}

func (x *slots) file() string { return filepath.Join(x.cfg.Dir, "book.json") }

func (x *slots) read() error {
	x.book = map[string]slot{}
	raw, err := os.ReadFile(x.file())
	if errors.Is(err, fs.ErrNotExist) || x.is("only-in-memory") {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, &x.book)
}

func (x *slots) write() error {
	raw, err := json.Marshal(x.book)
	if err != nil {
		return err
	}
	if err := os.WriteFile(x.file()+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(x.file()+".new", x.file())
}

func (x *slots) key(r *plugin.Request) string {
	id := r.SubjectID()
	if sb, ok := r.Sandbox(); ok && x.is("keyed-by-name") {
		id = sb.Name
	}
	return string(r.Lifetime()) + " " + id
}

func (x *slots) free(l phase.Lifetime) int {
	used := map[int]bool{}
	for _, s := range x.book {
		if s.Lifetime == l {
			used[s.Number] = true
		}
	}
	n := 1
	for used[n] {
		n++
	}
	return n
}

// take gives the subject of a call its slot.
func (x *slots) take(r *plugin.Request) (slot, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s, ok := x.book[x.key(r)]
	if !ok || x.is("another-each-time") && r.Phase() == phase.BeforeCreate {
		s = slot{Lifetime: r.Lifetime(), Number: x.free(r.Lifetime()), Bind: r.Bind(), Workspace: r.Workspace()}
		if sb, ok := r.Sandbox(); ok {
			s.Sandbox = &sb
		}
	}
	s.Extra = s.Extra || r.Phase() == phase.AfterCreate
	x.book[x.key(r)] = s
	return s, x.write()
}

func (x *slots) release(r *plugin.Request) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.book[x.key(r)]; !ok && x.is("releases-once") {
		return fault.New(fault.NotFound, "nothing is held")
	}
	if r.InDoubt() != "" && len(r.Held()) == 0 && x.is("forgets-doubt") || x.is("keeps-a-slot") && r.Phase() == phase.AfterDelete {
		return nil
	}
	delete(x.book, x.key(r))
	return x.write()
}

func (x *slots) ValidateRequest(_ context.Context, r *plugin.Request, v *plugin.Verdict) error {
	if r.Labels()["forbidden"] != "" {
		v.DenyField("labels.forbidden", "is forbidden", "")
	}
	return nil
}

func (x *slots) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	x.mu.Lock()
	x.n++
	n, tags := x.n, strings.Join(x.cfg.Tags, " ")
	x.mu.Unlock()
	labels := map[string]string{"tags": tags}
	if x.is("counts-plans") {
		labels["plan"] = fmt.Sprint(n)
	}
	f, ok := r.Feature("labels")
	if x.is("needs-features") {
		f, ok = r.Feature("network.address")
	}
	if !ok {
		if x.is("needs-features") {
			return errors.New("there is no address to set")
		}
		return nil
	}
	return p.Set(f, labels)
}

func (x *slots) hold(r *plugin.Request, say func(kind, id, text string), state func(int, any) error) error {
	s, err := x.take(r)
	if err != nil {
		return err
	}
	list := s.entries()
	if x.is("only-the-new-entry") && r.Phase() == phase.AfterCreate {
		list = list[1:]
	}
	if x.is("an-entry-twice") {
		list = append(list, list[0])
	}
	for _, e := range list {
		say(e.Kind, e.ID, e.Text)
	}
	var had string
	_, ok, err := r.State(&had)
	if err != nil {
		return err
	}
	x.mu.Lock()
	known := x.gave[had]
	x.mu.Unlock()
	if ok && x.is("state-of-a-process") && !known {
		return fmt.Errorf("the state %q is not one of this process", had)
	}
	now := fmt.Sprintf("%d of %s", os.Getpid(), r.SubjectID())
	x.mu.Lock()
	x.gave[now] = true
	x.mu.Unlock()
	if x.is("another-state-version") {
		return state(3, now)
	}
	return state(2, now)
}

func (x *slots) EnsureWorkspace(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	return x.hold(r, s.Hold, s.SetState)
}

func (x *slots) BeforeCreate(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	return x.hold(r, s.Hold, s.SetState)
}

func (x *slots) BeforeStart(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	return x.hold(r, s.Hold, s.SetState)
}

func (x *slots) AfterCreate(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	return x.hold(r, h.Hold, h.SetState)
}

func (x *slots) AfterStop(_ context.Context, r *plugin.Request) error {
	if x.is("fails-a-phase") && r.Run() == 1 {
		return errors.New("out of paper")
	}
	return x.release(r)
}

func (x *slots) AfterDelete(_ context.Context, r *plugin.Request) error     { return x.release(r) }
func (x *slots) OnCreateFailed(_ context.Context, r *plugin.Request) error  { return x.release(r) }
func (x *slots) DeleteWorkspace(_ context.Context, r *plugin.Request) error { return x.release(r) }

func (x *slots) Holdings(_ context.Context, bind string) ([]plugin.Holding, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []plugin.Holding
	for _, k := range slices.Sorted(maps.Keys(x.book)) {
		s := x.book[k]
		if s.Bind != bind && !x.is("blind-to-binds") || x.is("hides-runs") && s.Lifetime == phase.Run {
			continue
		}
		out = append(out, plugin.Holding{Sandbox: s.Sandbox, Workspace: s.Workspace, Lifetime: s.Lifetime, Entries: s.entries()})
	}
	if x.is("collects-garbage") {
		clear(x.book)
		return out, x.write()
	}
	return out, nil
}

func (x *slots) Repair(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(r.Orphans()) > 0 && !x.is("keeps-orphans") {
		delete(x.book, x.key(r))
	}
	for _, e := range r.Lost() {
		if x.is("takes-nothing-back") {
			break
		}
		s := x.book[x.key(r)]
		s.Lifetime, s.Bind, s.Workspace = r.Lifetime(), r.Bind(), r.Workspace()
		if sb, ok := r.Sandbox(); ok {
			s.Sandbox = &sb
		}
		if e.Kind == "extra-slot" {
			s.Extra = true
		} else if _, err := fmt.Sscan(e.ID, &s.Number); err != nil {
			return err
		}
		x.book[x.key(r)] = s
	}
	if s, ok := x.book[x.key(r)]; ok {
		for _, e := range s.entries() {
			h.Hold(e.Kind, e.ID, e.Text)
		}
	}
	return x.write()
}

func (x *slots) Drain(ctx context.Context) error {
	if x.is("drains-for-ever") {
		select {}
	}
	return nil
}

var (
	_ plugin.Configurer          = (*slots)(nil)
	_ plugin.Drainer             = (*slots)(nil)
	_ plugin.Validator           = (*slots)(nil)
	_ plugin.Planner             = (*slots)(nil)
	_ plugin.WorkspaceEnsurer    = (*slots)(nil)
	_ plugin.BeforeCreator       = (*slots)(nil)
	_ plugin.BeforeStarter       = (*slots)(nil)
	_ plugin.AfterCreator        = (*slots)(nil)
	_ plugin.AfterStopper        = (*slots)(nil)
	_ plugin.AfterDeleter        = (*slots)(nil)
	_ plugin.CreateFailedHandler = (*slots)(nil)
	_ plugin.WorkspaceDeleter    = (*slots)(nil)
	_ plugin.Reconciler          = (*slots)(nil)
)

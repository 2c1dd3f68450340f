package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/phase"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// witness is an extension that declares every phase. What it holds are files, one for each phase that holds. In a
// release it looks whether anything of the sandbox runs still, and writes it down as a violation.
type witness struct{ dir string }

// witnessed is what stands in such a file.
type witnessed struct {
	Sandbox   *sandbox.Identity `json:"sandbox,omitempty"`
	Workspace sandbox.Workspace `json:"workspace"`
	Lifetime  phase.Lifetime    `json:"lifetime"`
	Kind      string            `json:"kind"`
	ID        string            `json:"id"`
}

// snare is a trap in the witness: it ends its gateway or itself in the middle of a phase.
type snare struct {
	Phase   phase.Phase `json:"phase"`
	After   bool        `json:"after"`   // after the effect
	Gateway bool        `json:"gateway"` // end the gateway and stay held open, else end itself
	Always  bool        `json:"always"`  // not only once
}

func (w *witness) snareFile() string { return filepath.Join(w.dir, "snare") }

func (w *witness) pass(p phase.Phase, after bool) {
	raw, err := os.ReadFile(w.snareFile())
	if err != nil {
		return
	}
	var s snare
	if json.Unmarshal(raw, &s) != nil || s.Phase != p || s.After != after {
		return
	}
	if !s.Always {
		_ = os.Rename(w.snareFile(), w.snareFile()+".sprung") // or it would never end
	}
	if !s.Gateway {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	_ = unix.Kill(os.Getppid(), unix.SIGKILL)
	select {} // until the kernel ends it, as its parent has ended
}

// pause makes a phase wait, where the file says so: "PHASE until" as long as the file is there and the call is not
// cancelled, "PHASE late" for a while, cancelled or not, "PHASE exit" until it has ended the command of the sandbox.
func (w *witness) pause(ctx context.Context, r *plugin.Request) error {
	file := filepath.Join(w.dir, "pause")
	words := func() (phase, what string) {
		raw, _ := os.ReadFile(file)
		phase, what, _ = strings.Cut(string(raw), " ")
		return phase, what
	}
	p, what := words()
	if p != string(r.Phase()) {
		return nil
	}
	if err := os.WriteFile(file+"d", nil, 0o600); err != nil {
		return err
	}
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	late := time.After(1500 * time.Millisecond)
	if what == "exit" {
		killCommand(filepath.Dir(w.dir), r.SubjectID())
	}
	for what != "exit" {
		select {
		case <-ctx.Done():
			if what == "until" {
				return ctx.Err()
			}
			ctx = context.Background()
		case <-late:
			if what == "late" {
				return nil
			}
		case <-look.C:
			if p, _ := words(); p == "" {
				return nil
			}
		}
	}
	return nil
}

// killCommand ends the command of a sandbox, as somebody else might.
func killCommand(dir, id string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		raw, err := os.ReadFile(path)
		var pid int
		if _, bad := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && bad == nil && bytes.HasSuffix(raw, []byte("\x00"+dir+"/"+id+"\x00")) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// in does what a phase does, between the two moments at which it may be ended.
func (w *witness) in(p phase.Phase, effect func() error) error {
	w.pass(p, false)
	err := effect()
	w.pass(p, true)
	return err
}

func (w *witness) Info() plugin.Info {
	return plugin.Info{Name: "witness", Version: "1.0.0", Uses: []string{"labels", "environment"}, StateReads: []int{1}, StateWrites: 1}
}

func (w *witness) ValidateRequest(context.Context, *plugin.Request, *plugin.Verdict) error {
	return w.in(phase.ValidateRequest, func() error { return nil })
}

func (w *witness) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	return w.in(phase.PreparePlan, func() error {
		f, ok := r.Feature("labels")
		if !ok {
			return errors.New("there is no place for labels")
		}
		return p.Set(f, map[string]string{"witness": "was here"})
	})
}

// holder is what the answers have in common of the phases that hold.
type holder interface{ Hold(kind, id, text string) }

// take holds a file for the phase, and says everything that is held of its lifetime.
func (w *witness) take(r *plugin.Request, h holder) error {
	return w.in(r.Phase(), func() error {
		ws := r.Workspace()
		file := witnessed{Workspace: ws, Lifetime: r.Lifetime(), Kind: string(r.Phase()), ID: r.SubjectID()}
		if sb, ok := r.Sandbox(); ok {
			file.Sandbox = &sb
		}
		if r.Lifetime() == phase.Run {
			file.ID = fmt.Sprintf("%s-%d", r.SubjectID(), r.Run())
		}
		raw, err := json.Marshal(file)
		if err != nil {
			return err
		}
		path := filepath.Join(w.dir, "held", strings.Join([]string{string(file.Lifetime), r.SubjectID(), file.Kind, file.ID}, "@"))
		if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		held, err := w.held(string(file.Lifetime) + "@" + r.SubjectID() + "@*")
		for _, x := range held {
			h.Hold(x.Kind, x.ID, "")
		}
		return err
	})
}

func (w *witness) held(glob string) ([]witnessed, error) {
	files, err := filepath.Glob(filepath.Join(w.dir, "held", glob))
	var out []witnessed
	for _, path := range files {
		if strings.HasSuffix(path, ".new") {
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var x witnessed
		if err := json.Unmarshal(raw, &x); err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, err
}

// free releases what is held of the phase's lifetime.
func (w *witness) free(r *plugin.Request) error {
	return w.in(r.Phase(), func() error {
		if err := w.suspect(r); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(w.dir, "held", string(r.Lifetime())+"@"+r.SubjectID()+"@*"))
		for _, path := range files {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return err
	})
}

// suspect writes down what runs of a sandbox in the moment in which something of it is released.
func (w *witness) suspect(r *plugin.Request) error {
	sb, ok := r.Sandbox()
	if !ok {
		return nil
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		raw, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(raw, []byte(sb.ID)) {
			continue // it has ended meanwhile, or has nothing to do with it
		}
		f, err := os.OpenFile(filepath.Join(w.dir, "violations"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "%s(%s) of %s while this runs: %s %q\n", r.Phase(), r.Cause(), sb.ID, path, raw)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return err
}

func (w *witness) EnsureWorkspace(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	return w.take(r, s)
}

func (w *witness) BeforeCreate(ctx context.Context, r *plugin.Request, s *plugin.Setup) error {
	if err := w.pause(ctx, r); err != nil {
		return err
	}
	return errors.Join(w.take(r, s), s.SetState(1, r.SubjectID()))
}

func (w *witness) BeforeStart(_ context.Context, r *plugin.Request, s *plugin.Setup) error {
	f, ok := r.Feature("environment")
	if !ok { // a remote driver has no place for it at a start
		return w.take(r, s)
	}
	return errors.Join(w.take(r, s), s.Set(f, map[string]string{"WITNESS_RUN": strconv.Itoa(r.Run())}))
}

func (w *witness) AfterCreate(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	return w.take(r, h)
}

func (w *witness) AfterReady(_ context.Context, r *plugin.Request, h *plugin.Hold) error {
	return w.take(r, h)
}

func (w *witness) BeforeStop(ctx context.Context, r *plugin.Request) error {
	if err := w.pause(ctx, r); err != nil {
		return err
	}
	return w.in(r.Phase(), func() error { return nil })
}

func (w *witness) BeforeDelete(_ context.Context, r *plugin.Request) error {
	return w.in(r.Phase(), func() error { return nil })
}

func (w *witness) AfterStop(_ context.Context, r *plugin.Request) error       { return w.free(r) }
func (w *witness) AfterDelete(_ context.Context, r *plugin.Request) error     { return w.free(r) }
func (w *witness) OnCreateFailed(_ context.Context, r *plugin.Request) error  { return w.free(r) }
func (w *witness) DeleteWorkspace(_ context.Context, r *plugin.Request) error { return w.free(r) }

func (w *witness) Holdings(context.Context, string) (out []plugin.Holding, err error) {
	return out, w.in(phase.Reconcile, func() error {
		held, err := w.held("*")
		for _, x := range held {
			out = append(out, plugin.Holding{Sandbox: x.Sandbox, Workspace: x.Workspace, Lifetime: x.Lifetime, Entries: []plugin.Entry{{Kind: x.Kind, ID: x.ID}}})
		}
		return err
	})
}

func (w *witness) Repair(context.Context, *plugin.Request, *plugin.Hold) error {
	return errors.New("nobody asked for a repair: the bind is advisory")
}

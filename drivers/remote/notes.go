package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/shared/sandbox"
)

// note is what the contract has no field for: whose a sandbox is, and which run it is in. It is durable before the call
// that it is about.
type note struct {
	Identity  sandbox.Identity `json:"identity"`
	Operation string           `json:"operation"`
	Run       int              `json:"run"`
	Begun     bool             `json:"begun"`             // the call that begins the run has succeeded
	Runtime   string           `json:"runtime,omitempty"` // its answer's runtime_identity
}

// notes are kept in a directory, a file for each sandbox and one for the workspaces, and in memory.
type notes struct {
	dir        string
	mu         sync.Mutex
	all        map[string]note
	workspaces map[string]sandbox.Workspace // by driver and name
}

const (
	suffix         = ".json"
	workspacesFile = "workspaces" // no sandbox's, which has the suffix
)

func openNotes(dir string) (*notes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of notes: %w", err)
	}
	n := &notes{dir: dir, all: map[string]note{}, workspaces: map[string]sandbox.Workspace{}}
	raw, err := os.ReadFile(filepath.Join(dir, workspacesFile))
	if err == nil {
		err = json.Unmarshal(raw, &n.workspaces)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the notes of workspaces: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the notes: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the notes: %w", err)
		}
		var one note
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, fmt.Errorf("read the note %s: %w", f.Name(), err)
		}
		n.all[one.Identity.ID] = one
	}
	return n, nil
}

func (n *notes) get(id string) (note, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	one, ok := n.all[id]
	return one, ok
}

// put replaces a note, durably.
func (n *notes) put(one note) error {
	raw, err := json.Marshal(one)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all[one.Identity.ID] == one {
		return nil
	}
	if err := n.replace(n.path(one.Identity.ID), raw); err != nil {
		return fmt.Errorf("note sandbox %s: %w", one.Identity.ID, err)
	}
	n.all[one.Identity.ID] = one
	return nil
}

func (n *notes) remove(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.Remove(n.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the note of sandbox %s: %w", id, err)
	}
	delete(n.all, id)
	return nil
}

// ensured notes that a workspace is there.
func (n *notes) ensured(w sandbox.Workspace) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := w.Driver + "/" + w.Name
	if n.workspaces[key] == w {
		return nil
	}
	return n.keepWorkspaces(func(all map[string]sandbox.Workspace) { all[key] = w })
}

// workspace reports whether the workspace is there under that id, and whether it is the last one of its name: the
// other driver knows no more of it than that.
func (n *notes) workspace(w sandbox.Workspace) (here, last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last = true
	for _, o := range n.workspaces {
		here = here || o == w
		last = last && (o == w || o.Name != w.Name)
	}
	return here, last
}

func (n *notes) removed(w sandbox.Workspace) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keepWorkspaces(func(all map[string]sandbox.Workspace) { delete(all, w.Driver+"/"+w.Name) })
}

// keepWorkspaces makes a change durable, then visible. The lock is held.
func (n *notes) keepWorkspaces(change func(map[string]sandbox.Workspace)) error {
	next := maps.Clone(n.workspaces)
	change(next)
	raw, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := n.replace(filepath.Join(n.dir, workspacesFile), raw); err != nil {
		return fmt.Errorf("note the workspaces: %w", err)
	}
	n.workspaces = next
	return nil
}

// replace replaces a file whole, durably.
func (n *notes) replace(path string, raw []byte) error {
	if err := write(path+".new", raw); err != nil {
		return err
	}
	return errors.Join(os.Rename(path+".new", path), syncDir(n.dir))
}

// path of a note: an id has no separators, see sandbox.CheckID.
func (n *notes) path(id string) string { return filepath.Join(n.dir, id+suffix) }

func write(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

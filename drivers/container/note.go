package container

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// note is what the driver has to know of a container's runs and the engine does not: a container's labels never change.
type note struct {
	Container string            `json:"container"` // the id of the container that it is about
	Run       int               `json:"run"`
	Before    time.Time         `json:"before,omitzero"`   // when the run before had started: the engine shows it until this run has
	Epoch     string            `json:"epoch,omitempty"`   // of the engine when the run was begun
	Stopped   int               `json:"stopped,omitempty"` // the run that Stop ended
	StoppedAt time.Time         `json:"stopped_at,omitzero"`
	Ended     *ending           `json:"ended,omitempty"`  // how the run ended, where somebody has seen it
	Wanted    map[string]string `json:"wanted,omitempty"` // the addresses that its places in networks were given
}

type ending struct {
	Code    int       `json:"code"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	When    time.Time `json:"when"`
}

// pen is who may write what is noted of a sandbox. Few share one, since writing waits for the disk.
func (d *Driver) pen(id string) *sync.Mutex {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return &d.pens[h.Sum32()%uint32(len(d.pens))]
}

func (d *Driver) notePath(id string) string { return filepath.Join(d.cfg.Dir, "runs", id+".json") }

// note reads what is noted of a container. Where nothing is, it is in its first run.
func (d *Driver) note(id string, c *Found) (*note, error) {
	if sandbox.CheckID("id", id) != nil { // somebody has made up the marks
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	n := &note{}
	raw, err := os.ReadFile(d.notePath(id))
	if err == nil {
		err = json.Unmarshal(raw, n)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && n.Container != c.ID:
		return &note{Container: c.ID, Run: 1}, nil
	case err != nil:
		return nil, fault.New(fault.Internal, "read what is noted of sandbox %q: %w", id, err)
	}
	return n, nil
}

// save notes a run, durably.
func (d *Driver) save(id string, n *note) error {
	if err := sandbox.CheckID("id", id); err != nil {
		return err
	}
	pen := d.pen(id)
	pen.Lock()
	defer pen.Unlock()
	return d.write(id, n, true)
}

// amend changes what is noted of a container's run, unless it went on meanwhile.
func (d *Driver) amend(id string, c *Found, run int, change func(*note)) error {
	pen := d.pen(id)
	pen.Lock()
	defer pen.Unlock()
	n, err := d.note(id, c)
	if err != nil || n.Run != run {
		return err
	}
	change(n)
	return d.write(id, n, false) // lost with the host it is found again
}

func (d *Driver) write(id string, n *note, durable bool) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	path := d.notePath(id)
	if err := replace(path, raw, durable); err != nil {
		code := fault.Internal
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			code = fault.ResourceExhausted
		}
		return fault.New(code, "note the run of sandbox %q: %w", id, err)
	}
	return nil
}

func (d *Driver) forget(id string) error {
	err := os.Remove(d.notePath(id))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fault.New(fault.Internal, "forget the runs of sandbox %q: %w", id, err)
}

// replace writes a file whole: whoever reads it sees the old or the new one.
func replace(path string, raw []byte, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !durable {
		return nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

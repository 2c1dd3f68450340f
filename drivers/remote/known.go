package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
)

// aboutFile has what the other driver said of itself when it was last asked; no sandbox's note has that name.
const aboutFile = "about"

// A driver that was there once is waited for no longer than knownPatience when the gateway starts: the others have work
// to do. A call that finds it away waits for agreeTimeout.
const (
	knownPatience = time.Second
	agreeTimeout  = 10 * time.Second
)

func (n *notes) about() (*driver.Description, error) {
	raw, err := os.ReadFile(filepath.Join(n.dir, aboutFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	about := &driver.Description{}
	if err == nil {
		err = json.Unmarshal(raw, about)
	}
	if err != nil {
		return nil, fmt.Errorf("read what is known of the driver: %w", err)
	}
	return about, nil
}

func (n *notes) keepAbout(about *driver.Description) error {
	raw, err := json.Marshal(about)
	if err == nil {
		err = n.replace(filepath.Join(n.dir, aboutFile), raw)
	}
	if err != nil {
		return fmt.Errorf("note what the driver is: %w", err)
	}
	return nil
}

// meet asks the other driver what it is. Where it is away and was there before, what it said then holds until it is back.
func (d *Driver) meet() error {
	known, err := d.notes.about()
	if err != nil {
		return err
	}
	patience := d.cfg.Connect
	if known != nil {
		patience = min(patience, knownPatience)
	} else if absent := d.absent(); absent != nil {
		d.cfg.Logger.Info("waiting for the driver, which was never met", "socket", d.cfg.Socket, "at_most", patience, "why", absent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d.about, err = d.ask(ctx)
	switch {
	case err == nil:
		d.agreed.Store(true)
		return d.notes.keepAbout(d.about)
	case !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.DeadlineExceeded):
		return err
	case known != nil:
		d.cfg.Logger.Warn("the driver is not there; what it said when it was is taken to hold until it is back", "socket", d.cfg.Socket, "err", err)
		d.about = known
		return nil
	}
	if absent := d.absent(); absent != nil {
		return fault.New(fault.Unavailable, "it is not there, and was not for %s (%w): start it, or name the socket that it serves. Once it was there, the gateway starts without it too", patience, absent)
	}
	return fault.New(fault.Unavailable, "something listens there and has not answered as a compute driver within %s: %w", patience, err)
}

// absent says why nobody can be reached on the socket, or nil.
func (d *Driver) absent() error {
	conn, err := net.Dial("unix", d.cfg.Socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// agree sees to it that the other driver is what this gateway has negotiated with, where it was away at the start.
func (d *Driver) agree(ctx context.Context) error {
	if d.agreed.Load() {
		return nil
	}
	about, err := d.ask(ctx)
	if err != nil {
		return fault.New(fault.CodeOf(err), "compute driver on %s: %w", d.cfg.Socket, err)
	}
	was, err := json.Marshal(d.about)
	if err != nil {
		return err
	}
	is, err := json.Marshal(about)
	if err != nil {
		return err
	}
	if !bytes.Equal(was, is) {
		return fault.New(fault.FailedPrecondition, "the compute driver on %s is back and is not what it was (%s, now %s), by which extensions were negotiated: restart the gateway",
			d.cfg.Socket, d.about.Version, about.Version)
	}
	d.agreed.Store(true)
	d.cfg.Logger.Info("the driver is back", "socket", d.cfg.Socket)
	return nil
}

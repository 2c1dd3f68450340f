package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/gateway/internal/api"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/shared/fault"
)

// doors are the exposed drivers: each is served as a compute driver on a socket of its own.
type doors struct {
	d  *Daemon
	mu sync.Mutex
	at map[string]*door // by driver
	wg sync.WaitGroup   // of those that are served, or finish what is in flight
}

// door is one socket that is served.
type door struct {
	setting  config.Expose
	about    api.ComputeAbout
	listener net.Listener // nil: the socket is still another door's
	server   *api.ComputeDoor
}

// open makes the sockets that a configuration wants and that are not there yet. Nobody is served on them before serve.
func (ds *doors) open(gen *generation, f *config.Findings) map[string]*door {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	fresh := map[string]*door{}
	for _, c := range gen.config.Drivers {
		if c.Expose == nil {
			continue
		}
		about := ds.d.about(gen, c)
		if old := ds.at[c.Name]; old != nil && old.same(*c.Expose, about) {
			continue
		}
		o := &door{setting: *c.Expose, about: about}
		if old := ds.at[c.Name]; old == nil || old.setting.Socket != c.Expose.Socket {
			var err error
			if o.listener, err = ds.listen(*c.Expose); err != nil {
				f.Add(c.Range, "Driver cannot be exposed", err.Error())
				continue
			}
		}
		fresh[c.Name] = o
	}
	if f.HasErrors() {
		_ = discardDoors(fresh) // they are made anew when the configuration is right
		return nil
	}
	return fresh
}

func discardDoors(list map[string]*door) error {
	var errs []error
	for _, o := range list {
		if o.listener != nil {
			errs = append(errs, o.listener.Close())
		}
	}
	return errors.Join(errs...)
}

func (o *door) same(setting config.Expose, about api.ComputeAbout) bool {
	return reflect.DeepEqual(o.setting, setting) && reflect.DeepEqual(o.about, about)
}

// about is what a driver's door says of it.
func (d *Daemon) about(gen *generation, c config.Driver) api.ComputeAbout {
	desc := gen.Drivers[c.Name].Description
	about := api.ComputeAbout{Version: d.opts.Version, DefaultImage: desc.DefaultImage, ManagesLifecycle: desc.ManagesLifecycle,
		Admission: admission(c.Expose), Features: map[string]bool{}}
	for _, l := range desc.Listeners {
		about.Listeners = append(about.Listeners, api.ListenerRequirement(l))
	}
	for _, f := range desc.Features {
		about.Features[f.Name] = true
	}
	return about
}

// admission is the acknowledgement that a gateway of the second generation expects: the policy that it derives from its
// own table of this driver, in its own form.
func admission(e *config.Expose) string {
	var policy struct {
		AllowDriverConfig bool `json:"allow_driver_config"`
		ResourceAdmission struct {
			Enabled        bool              `json:"enabled"`
			RequiredLabels map[string]string `json:"required_labels"`
		} `json:"resource_admission"`
	}
	policy.AllowDriverConfig = e.AllowDriverConfig
	policy.ResourceAdmission.Enabled, policy.ResourceAdmission.RequiredLabels = !e.NoAdmission, e.RequiredLabels
	if e.RequiredLabels == nil {
		policy.ResourceAdmission.RequiredLabels = map[string]string{
			"openshell.ai/sandbox-attachable": "true", "openshell.ai/workspace": "${workspace}"}
	}
	raw, err := json.Marshal(policy)
	if err != nil {
		return "" // strings and booleans can be encoded
	}
	return "v1:" + string(raw)
}

// serve lets callers in on the fresh doors, and closes those that the configuration has no more. Calls in flight on
// a door that is replaced may finish.
func (ds *doors) serve(gen *generation, fresh map[string]*door) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for name, o := range ds.at {
		c, ok := gen.config.Driver(name)
		if !ok || c.Expose == nil || fresh[name] != nil {
			ds.shut(name, o)
		}
	}
	for name, o := range fresh {
		if o.listener == nil {
			var err error
			if o.listener, err = ds.listen(o.setting); err != nil {
				ds.d.log.Error("a driver is not served any more; reload the configuration to try again", "driver", name, "err", err)
				continue
			}
		}
		o.server = api.NewComputeDoor(ds.d.engine, name, o.about, grpc.Creds(api.PeerCredentials(allowed(o.setting))))
		ds.wg.Go(func() {
			if err := o.server.Serve(o.listener); err != nil && !errors.Is(err, net.ErrClosed) {
				ds.d.log.Error("a driver's socket is not served any more", "driver", name, "err", err)
			}
		})
		ds.at[name] = o
		ds.d.log.Info("a driver is served as a compute driver", "driver", name, "socket", o.setting.Socket)
	}
}

// shut takes a door out of service: its socket is gone when this returns, and calls in flight have a while to finish.
func (ds *doors) shut(name string, o *door) {
	delete(ds.at, name)
	if err := o.listener.Close(); err != nil {
		ds.d.log.Warn("a driver's socket was not closed in order", "driver", name, "err", err)
	}
	ds.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		o.server.Shut(ctx)
	})
}

// close shuts every door, and returns when nobody is served any more.
func (ds *doors) close() {
	ds.mu.Lock()
	for name, o := range ds.at {
		ds.shut(name, o)
	}
	ds.mu.Unlock()
	ds.wg.Wait()
}

// allowed returns who may connect: those that are listed, or the gateway's own user.
func allowed(e config.Expose) []uint32 {
	if len(e.AllowedUIDs) > 0 {
		return e.AllowedUIDs
	}
	return []uint32{uint32(os.Geteuid())}
}

// listen makes the socket in a directory that only the gateway's user, or the one user that may connect, can enter.
func (ds *doors) listen(e config.Expose) (net.Listener, error) {
	uid := os.Geteuid()
	if others := slices.DeleteFunc(slices.Clone(e.AllowedUIDs), func(u uint32) bool { return int(u) == os.Geteuid() }); len(others) > 0 {
		if uid != 0 {
			return nil, fault.New(fault.FailedPrecondition, "socket %s: only a gateway that runs as root can let other users in, and this one runs as user %d", e.Socket, uid)
		}
		if len(e.AllowedUIDs) == 1 {
			uid = int(others[0]) // several share no directory in which one of them could put a socket for the others
		}
	}
	dir := filepath.Dir(e.Socket)
	if err := ownDirectory(dir, uid); err != nil {
		return nil, err
	}
	l, err := listenUnix("socket", "unix://"+e.Socket)
	if err != nil {
		return nil, err
	}
	if len(e.AllowedUIDs) > 1 { // the directory and the credentials of the peer keep all others out
		err = errors.Join(os.Chmod(dir, 0o711), os.Chmod(e.Socket, 0o666))
	} else if uid != os.Geteuid() {
		err = os.Chown(e.Socket, uid, -1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", e.Socket, err), l.Close())
	}
	return l, nil
}

// ownDirectory makes the directory of a socket, or refuses one that others could have put there or can write to.
func ownDirectory(dir string, uid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("socket directory %s: %w", dir, err)
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return os.Chown(dir, uid, -1)
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("socket directory %s: %w", dir, err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("socket directory %s: %w", dir, err)
	}
	owner := -1
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	switch {
	case !info.IsDir():
		return fault.New(fault.FailedPrecondition, "socket directory %s is no directory", dir)
	case owner != uid && owner != os.Geteuid():
		return fault.New(fault.FailedPrecondition, "socket directory %s belongs to user %d, not to %d", dir, owner, uid)
	case info.Mode().Perm()&(unix.S_IWGRP|unix.S_IWOTH) != 0:
		return fault.New(fault.FailedPrecondition, "socket directory %s can be written by others: chmod go-w %s", dir, dir)
	case owner != uid: // it was there, and is the gateway's own: whose socket it is has to get at it
		return os.Chmod(dir, info.Mode().Perm()|0o111)
	}
	return nil
}

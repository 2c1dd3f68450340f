// Package pgtest starts a PostgreSQL of the tests' own, from the host's programs, on a private socket.
package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Server is a running PostgreSQL.
type Server struct {
	dir string
	cmd *exec.Cmd
	n   int
	bin string
	as  *syscall.Credential
}

// ErrMissing says that PostgreSQL is not installed.
var ErrMissing = errors.New("PostgreSQL is not installed: scripts/install-packages.sh installs it")

// Start starts a server in a directory of its own. It dies with the process that started it.
func Start() (_ *Server, err error) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return nil, ErrMissing
	}
	slices.Sort(bins)
	s := &Server{bin: bins[len(bins)-1]}
	if s.dir, err = os.MkdirTemp("", "sgpg"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	if err := s.credential(); err != nil {
		return nil, err
	}
	if out, err := s.command("initdb", "-D", s.data(), "-U", "sandgate", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "unix_socket_permissions=0777")
	s.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	return s, s.wait()
}

// credential finds the user that the server runs as: initdb refuses root.
func (s *Server) credential() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, uid, gid)
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	return cmd
}

// wait returns when the server answers.
func (s *Server) wait() error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if s.command("pg_isready", "-h", s.dir, "-q").Run() == nil {
			return nil
		}
	}
	return errors.Join(errors.New("the server does not answer"), s.Close())
}

// Database makes an empty database and returns its url.
func (s *Server) Database() (string, error) {
	s.n++
	name := fmt.Sprintf("t%d", s.n)
	if out, err := s.command("createdb", "-h", s.dir, "-U", "sandgate", name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("createdb: %w: %s", err, out)
	}
	return "postgres:///" + name + "?host=" + s.dir + "&user=sandgate", nil
}

// Close ends the server and removes what it left.
func (s *Server) Close() error {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // it may be gone already
	_ = s.cmd.Wait()                          // SIGQUIT is no clean exit
	return os.RemoveAll(s.dir)
}

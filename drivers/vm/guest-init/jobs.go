package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

// jobs are the programs that the machine runs: the drop-ins and then the command, one at a time. What they leave behind
// becomes the first process's own, is reaped, and ends when the command does.
type jobs struct {
	mu       sync.Mutex
	pid      int // of what runs now, and of its process group; 0: nothing
	stopping bool
}

var errStopped = errors.New("it was stopped before")

// run starts a program that is found along a path, if it has no slash.
func (j *jobs) run(argv, env []string, search string, attr *syscall.ProcAttr) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stopping {
		return 0, errStopped
	}
	paths := []string{argv[0]}
	if !strings.Contains(argv[0], "/") {
		paths = nil
		for _, dir := range filepath.SplitList(search) {
			paths = append(paths, filepath.Join("/", dir, argv[0]))
		}
	}
	attr.Env = env
	var first error
	for _, path := range paths {
		pid, err := syscall.ForkExec(path, argv, attr)
		if err == nil {
			j.pid = pid
			return pid, nil
		}
		if first == nil || errors.Is(first, syscall.ENOENT) {
			first = err
		}
	}
	if first == nil {
		first = syscall.ENOENT
	}
	return 0, first
}

// start executes the command.
func (j *jobs) start(c *guest.Config, who *user, env []string, out *output) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	dir := c.Directory
	if dir == "" {
		dir = "/"
	}
	sys := &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: who.groups}}
	if c.PIDs > 0 {
		g, err := os.Open(group)
		if err != nil {
			return 0, err
		}
		defer func() { _ = g.Close() }()
		sys.UseCgroupFD, sys.CgroupFD = true, int(g.Fd())
	}
	search := defaultPath
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			search = p
		}
	}
	return j.run(c.Command, env, search, &syscall.ProcAttr{Dir: dir, Files: []uintptr{null.Fd(), out.in.Fd(), out.in.Fd()}, Sys: sys})
}

// dropInDir is where drop-ins lie while they run.
const dropInDir = "/run/sandgate/init.d"

// dropIn runs a drop-in to its end.
func (m *machine) dropIn(d guest.DropIn, env []string, out *output) error {
	path := filepath.Join(dropInDir, d.Name)
	if err := os.MkdirAll(dropInDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, d.Contents, 0o700); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	pid, err := m.jobs.run([]string{path}, env, "", &syscall.ProcAttr{Dir: "/", Files: []uintptr{null.Fd(), out.in.Fd(), out.in.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}})
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return errors.New("it is no program: a script begins with #! and its interpreter")
	case errors.Is(err, syscall.ENOENT):
		return errors.New("its interpreter is not in the image")
	case err != nil:
		return err
	}
	if code := m.jobs.wait(pid); code != 0 {
		return fmt.Errorf("it ended with %d; what it wrote is in the log", code)
	}
	return os.Remove(path)
}

// wait reaps until a process has ended, and returns its code.
func (j *jobs) wait(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && got != pid:
			continue
		}
		j.mu.Lock()
		j.pid = 0
		j.mu.Unlock()
		switch {
		case err != nil:
			return 255
		case status.Signaled():
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// stop ends what runs, and lets nothing else begin.
func (j *jobs) stop(s guest.Stop) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stopping = true
	pid := j.pid
	if pid == 0 {
		return
	}
	_ = unix.Kill(-pid, unix.SIGTERM) // it may end in this moment
	time.AfterFunc(time.Duration(s.Grace)*time.Millisecond, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.pid == pid {
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
	})
}

// failed judges a program that could not begin or did not do its work. Of a machine that is being stopped that is no failure: it ends as
// a program does that SIGTERM ends.
func (j *jobs) failed(err error) (int, error) {
	j.mu.Lock()
	stopping := j.stopping
	j.mu.Unlock()
	j.end()
	if stopping {
		return 128 + int(unix.SIGTERM), nil
	}
	return 0, err
}

// end ends every process but this one.
func (j *jobs) end() {
	j.mu.Lock()
	j.stopping = true
	j.mu.Unlock()
	_ = unix.Kill(-1, unix.SIGKILL) // there may be none
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// ShimMain is the program that holds a sandbox, and the first process within it. The arguments say which; the result
// is the exit status of the process.
func ShimMain(args []string) int {
	// Nothing that this process has open is for what it executes, but what it hands over.
	if err := unix.CloseRange(orderFD, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "sandgate: keep descriptors from the sandbox:", err)
		return 2
	}
	switch {
	case len(args) == 1 && args[0] == "shim":
		return shimMain()
	case len(args) == 1 && args[0] == "init":
		return initMain()
	}
	fmt.Fprintln(os.Stderr, "this is started by the native driver, with what it needs")
	return 2
}

// shimMain holds one run of a sandbox from its start to its end.
func shimMain() int {
	// SIGTERM is the gateway's word to stop; what else a terminal or a supervisor sends is not meant for the sandbox.
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	answer := os.NewFile(replyFD, "reply")
	s, err := openShim()
	if err == nil {
		err = s.start(answer)
	}
	if err != nil {
		tell(answer, err)
		return 1
	}
	return s.hold(stop)
}

func tell(w *os.File, err error) {
	a := reply{OK: err == nil}
	if err != nil {
		a.Error, a.Code = err.Error(), fault.CodeOf(err).String()
	}
	raw, _ := json.Marshal(a) // strings and a bool
	_, _ = w.Write(raw)       // a driver that is gone asks the directory
	_ = w.Close()
}

// shim is one run.
type shim struct {
	order
	lock  *os.File
	init  *exec.Cmd
	ended chan error
}

// openShim reads the order. The sandbox's lock comes with it, and is kept for as long as the shim lives.
func openShim() (*shim, error) {
	in := os.NewFile(orderFD, "order")
	raw, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	s := &shim{ended: make(chan error, 1)}
	if err := json.Unmarshal(raw, &s.order); err != nil {
		return nil, err
	}
	unix.Umask(0o022)
	s.lock = os.NewFile(lockFD, "lock")
	return s, writeJSON(s.file(shimFile), begun{Run: s.Run, PID: os.Getpid(), Start: startTime(os.Getpid())})
}

func (s *shim) file(name string) string { return filepath.Join(s.Dir, name) }

// start starts the first process of the sandbox in namespaces of its own, joins it to its network, and waits until it
// has executed the command.
func (s *shim) start(answer *os.File) error {
	goR, goW, err := os.Pipe()
	if err != nil {
		return classify(err, "start the sandbox")
	}
	upR, upW, err := os.Pipe()
	if err != nil {
		return classify(err, "start the sandbox")
	}
	s.init = exec.Command(s.Shim[0], append(append([]string{}, s.Shim[1:]...), "init")...)
	s.init.Env = []string{"GOMAXPROCS=1"}
	s.init.Dir = "/"
	s.init.Stdout, s.init.Stderr = os.Stdout, os.Stderr
	s.init.ExtraFiles = []*os.File{goR, upW}
	s.init.SysProcAttr = s.namespaces()
	// The parent-death signal is tied to the thread: it lives until the end.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- s.init.Start()
		s.ended <- s.init.Wait()
	}()
	err = <-started
	err = errors.Join(err, goR.Close(), upW.Close())
	if err != nil {
		return classify(err, "start the sandbox")
	}
	if err := s.outfit(); err != nil {
		return errors.Join(err, s.abort())
	}
	raw, err := json.Marshal(s.order)
	if err == nil {
		_, err = goW.Write(raw)
	}
	if err := errors.Join(err, goW.Close()); err != nil {
		return errors.Join(classify(err, "start the sandbox"), s.abort())
	}
	said, err := io.ReadAll(upR)
	var a reply
	if err != nil || json.Unmarshal(said, &a) != nil {
		return errors.Join(fault.New(fault.Internal, "the sandbox ended before its command was executed"), s.abort())
	}
	if !a.OK {
		return errors.Join(fault.New(fault.ParseCode(a.Code), "%s", a.Error), s.abort())
	}
	s.Process.Environment, s.Token = nil, nil // nobody needs them any more
	if err := writeJSON(s.file(readyFile), begun{Run: s.Run, PID: s.init.Process.Pid}); err != nil {
		return errors.Join(classify(err, "note the start"), s.abort())
	}
	tell(answer, nil)
	return nil
}

// outfit gives the new process what only its parent can: a control group and a link into the network.
func (s *shim) outfit() error {
	pid := s.init.Process.Pid
	if err := s.Group.join(pid); err != nil {
		return err
	}
	if s.Bridge == "" {
		return nil
	}
	return connect(s.ID, s.Bridge, s.Address, s.Alias, pid)
}

// abort ends a sandbox that did not come up.
func (s *shim) abort() error {
	_ = s.init.Process.Kill() // it may have ended
	<-s.ended
	return s.Group.remove()
}

// namespaces says which namespaces the sandbox gets of its own.
func (s *shim) namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	if s.User {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// hold waits for the end of the command, or for the word to stop, and writes down how it ended.
func (s *shim) hold(stop <-chan os.Signal) int {
	var kill <-chan time.Time
	for {
		select {
		case <-stop:
			_ = s.init.Process.Signal(unix.SIGTERM) // it may have ended
			kill = time.After(s.Grace)
		case <-kill:
			_ = s.init.Process.Kill()
		case err := <-s.ended:
			return s.note(err)
		}
	}
}

func (s *shim) note(err error) int {
	e := exited{Run: s.Run, When: time.Now()}
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed):
		status, _ := failed.Sys().(syscall.WaitStatus)
		e.Code = status.ExitStatus()
		if status.Signaled() {
			e.Code, e.Text = 128+int(status.Signal()), "the sandbox was killed: "+status.Signal().String()
		}
	default:
		e.Code, e.Text = 255, err.Error()
	}
	err = errors.Join(s.Group.remove(), writeJSON(s.file(exitFile), e))
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandgate:", err)
		return 1
	}
	return 0
}

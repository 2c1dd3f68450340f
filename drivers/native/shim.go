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
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
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
	case len(args) == 3 && args[0] == "shim":
		return shimMain()
	case len(args) == 3 && args[0] == "init":
		return initMain()
	case len(args) == 1 && args[0] == "probe":
		return probeMain()
	}
	fmt.Fprintln(os.Stderr, "this is started by the native driver, with what it needs")
	return 2
}

// shimMain holds one run of a sandbox from its start to its end.
func shimMain() int {
	// SIGTERM is the gateway's word to stop; what else a terminal or a supervisor sends is not meant for the sandbox.
	// It is caught and not ignored, since the command would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
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
	begun begun
	init  *exec.Cmd
	ended chan error    // how the first process of the sandbox ended
	said  chan struct{} // closed when all that the sandbox has written is in the log
}

// openShim reads the order. The sandbox's lock comes with it, and is kept for as long as the shim lives.
func openShim() (*shim, error) {
	in := os.NewFile(orderFD, "order")
	raw, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	s := &shim{ended: make(chan error, 1), said: make(chan struct{}), lock: os.NewFile(lockFD, "lock")}
	if err := json.Unmarshal(raw, &s.order); err != nil {
		return nil, err
	}
	unix.Umask(0o022)
	s.begun = begun{Run: s.Run, Process: host.ProcessOf(os.Getpid())}
	return s, host.NoteJSON(s.file(shimFile), s.begun)
}

func (s *shim) file(name string) string { return filepath.Join(s.Dir, name) }

// start starts the sandbox, and leaves nothing of one that did not come up.
func (s *shim) start(answer *os.File) error {
	order, up, err := s.startInit()
	if err == nil {
		err = s.bringUp(order, up)
	}
	if err != nil {
		if s.init != nil && s.init.Process != nil {
			_ = s.init.Process.Kill() // it may have ended
			<-s.ended
		}
		return errors.Join(err, s.release(), os.Remove(s.file(shimFile)))
	}
	s.Process.Environment, s.Token = nil, nil // nobody needs them any more
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "sandgate: keep what the sandbox was told from other processes:", err)
	}
	tell(answer, nil)
	return nil
}

// startInit starts the first process of the sandbox in namespaces of its own. It does nothing until it is told, and
// ends when nobody is left who could tell it. Until then it holds the sandbox's lock too.
func (s *shim) startInit() (order, up *os.File, err error) {
	orderR, order, err := os.Pipe()
	if err != nil {
		return nil, nil, host.Classify(err, "start the sandbox")
	}
	up, upW, err := os.Pipe()
	if err != nil {
		return nil, nil, host.Classify(err, "start the sandbox")
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, nil, host.Classify(err, "start the sandbox")
	}
	s.init = exec.Command(s.Shim[0], slices.Concat(s.Shim[1:], []string{"init", s.ID, s.Operation})...)
	s.init.Env = []string{"GOMAXPROCS=1"}
	s.init.Dir = "/"
	s.init.Stdout, s.init.Stderr = outW, outW
	s.init.ExtraFiles = []*os.File{orderR, upW, s.lock} // nobody has noted its pid yet: the lock says that it is there
	s.init.SysProcAttr = namespaces(s.User)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the parent-death signal is tied to the thread: it lives until the end
		err := s.init.Start()
		started <- err
		if err == nil {
			s.ended <- s.init.Wait()
		}
	}()
	err = errors.Join(<-started, orderR.Close(), upW.Close(), outW.Close())
	go func() {
		defer close(s.said)
		keepLog(s.Dir, outR, maxLog)
	}()
	return order, up, host.Classify(err, "start the sandbox")
}

// bringUp gives the new process what only its parent can, tells it what to run, and waits until it was executed.
func (s *shim) bringUp(order, up *os.File) error {
	s.begun.Init = host.ProcessOf(s.init.Process.Pid)
	if err := host.NoteJSON(s.file(shimFile), s.begun); err != nil {
		return host.Classify(err, "note the start")
	}
	if err := s.Group.join(s.begun.Init.PID); err != nil {
		return err
	}
	if s.Bridge != "" {
		if err := connect(s.ID, s.Bridge, s.Address, marks(s.ID, s.Operation), s.begun.Init.PID); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(s.order)
	if err == nil {
		_, err = order.Write(raw)
	}
	if err := errors.Join(err, order.Close()); err != nil {
		return host.Classify(err, "start the sandbox")
	}
	said, err := io.ReadAll(up)
	var a reply
	if err != nil || json.Unmarshal(said, &a) != nil {
		return fault.New(fault.Internal, "the sandbox ended before its command was executed; its log may say why")
	}
	if !a.OK {
		return fault.New(fault.ParseCode(a.Code), "%s", a.Error)
	}
	return host.Classify(host.NoteJSON(s.file(readyFile), begun{Run: s.Run, Process: s.begun.Init}), "note the start")
}

// release removes what the run had outside of its directory.
func (s *shim) release() error {
	err := s.Group.remove()
	if s.Bridge != "" {
		err = errors.Join(err, host.RemoveMarked(linkName(s.ID), marks(s.ID, s.Operation)))
	}
	return err
}

// namespaces says which namespaces the sandbox gets of its own.
func namespaces(user bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	if user {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// hold waits for the end of the command, or for the word to stop, and writes down how it ended.
func (s *shim) hold(stop <-chan os.Signal) int {
	vanished := s.watchDir()
	var kill <-chan time.Time
	for {
		select {
		case <-stop:
			_ = s.init.Process.Signal(unix.SIGTERM) // it may have ended
			kill = time.After(s.Grace)
		case <-kill:
			_ = s.init.Process.Kill()
		case <-vanished:
			_ = s.init.Process.Kill()
			<-s.ended
			return s.leave(s.release())
		case err := <-s.ended:
			<-s.said
			return s.leave(errors.Join(s.release(), host.WriteJSON(s.file(exitFile), s.end(err))))
		}
	}
}

// watchDir returns what is closed when the sandbox's directory was removed behind the gateway's back. Nobody would
// ever end its processes otherwise.
func (s *shim) watchDir() <-chan struct{} {
	vanished := make(chan struct{})
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, s.file(lockFile), unix.IN_ATTRIB|unix.IN_DELETE_SELF)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		close(vanished)
		return vanished
	case err != nil:
		fmt.Fprintln(os.Stderr, "sandgate: watch the sandbox's directory:", err)
		return nil
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := os.Stat(s.file(lockFile)); errors.Is(err, os.ErrNotExist) {
				close(vanished)
				return
			}
			if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return vanished
}

// end says how the first process of the sandbox has ended.
func (s *shim) end(err error) exited {
	e := exited{Run: s.Run, Reason: "Exited", When: time.Now()}
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed):
		status, _ := failed.Sys().(syscall.WaitStatus)
		e.Code = status.ExitStatus()
		if status.Signaled() {
			e.Code, e.Reason, e.Text = 128+int(status.Signal()), "Killed", "the sandbox was killed: "+status.Signal().String()
		}
	default:
		e.Code, e.Text = 255, err.Error()
	}
	if e.Text == "" {
		e.Text = fmt.Sprintf("the command ended with %d", e.Code)
	}
	return e
}

func (s *shim) leave(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandgate:", err)
		return 1
	}
	return 0
}

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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// initMain is the first process of a sandbox: it makes the world that the command sees, executes it, passes on the
// word to stop, and reaps. Its exit status is the command's.
func initMain() int {
	runtime.LockOSThread() // capabilities and namespaces are the thread's
	signals := make(chan os.Signal, 8)
	signal.Notify(signals) // all of them: none from within may end this process
	up := os.NewFile(replyFD, "up")
	o, err := readOrder()
	if err == nil {
		// Its shim has noted its pid, and takes it along from here on. One that is not told keeps the lock to its end.
		err = os.NewFile(lockFD, "lock").Close()
	}
	pid := 0
	if err == nil {
		pid, err = enter(o)
	}
	if err != nil {
		tell(up, err)
		return 255
	}
	tell(up, nil)
	go func() {
		for sig := range signals {
			if sig == unix.SIGTERM {
				_ = unix.Kill(-pid, unix.SIGTERM) // the group may be gone
			}
		}
	}()
	return reap(pid)
}

func readOrder() (*order, error) {
	in := os.NewFile(orderFD, "order")
	raw, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	o := &order{}
	return o, json.Unmarshal(raw, o)
}

// reap waits for every process of the sandbox, which all become its children, until the command has ended.
func reap(command int) int {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 255
		case pid != command:
			continue
		case status.Signaled():
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// enter makes the sandbox's world and executes the command in it.
func enter(o *order) (int, error) {
	if err := unix.Sethostname([]byte(o.Process.Hostname)); err != nil {
		return 0, fmt.Errorf("set the host name: %w", err)
	}
	if err := loopback(); err != nil {
		return 0, err
	}
	if err := o.world(); err != nil {
		return 0, err
	}
	env := o.environment()
	path, err := find(o.Process.Command[0], o.Process.Environment["PATH"])
	if err != nil {
		return 0, fault.New(fault.FailedPrecondition, "the command cannot be executed: %v", err)
	}
	// The threads of this process that are not confined must be out of reach for the command: it can neither trace it
	// nor open what it has open.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("protect the first process: %w", err)
	}
	if err := o.confine(); err != nil {
		return 0, err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(path, o.Process.Command, &syscall.ProcAttr{Dir: o.Process.Directory, Env: env,
		Files: []uintptr{null.Fd(), 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}})
	if err != nil {
		return 0, fault.New(fault.FailedPrecondition, "the command %q cannot be executed: %v", o.Process.Command[0], err)
	}
	return pid, null.Close()
}

// tokenPath is where the sandbox finds its token.
const tokenPath = "/run/sandgate/token"

func (o *order) environment() []string {
	var env []string
	for k, v := range o.Process.Environment {
		env = append(env, k+"="+v)
	}
	if len(o.Token) > 0 {
		env = append(env, "SANDGATE_TOKEN_FILE="+tokenPath)
	}
	slices.Sort(env)
	return env
}

// find looks a command up as a shell would.
func find(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// kept are the capabilities that a command keeps where the gateway is root: what a program needs to change its user
// and its own files, and none that reaches the host.
var kept = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_NET_BIND_SERVICE}

// confine takes privileges from this thread, and so from the command: limits, capabilities, new privileges.
func (o *order) confine() error {
	if n := o.Process.Limits.Files; n > 0 {
		if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
			return fmt.Errorf("limit files: %w", err)
		}
	}
	if o.User {
		// Counted within the user namespace, that is for this sandbox alone. As root the control group does it.
		most := uint64(defaultPIDs + ownProcesses)
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("limit processes: %w", err)
		}
	} else if err := unix.Setgroups(nil); err != nil {
		return fmt.Errorf("leave the gateway's groups: %w", err)
	}
	var mask [2]uint32
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(kept, c) {
			mask[c/32] |= 1 << (c % 32)
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	// Also those that the gateway was given to pass on: the bounding set does not bound these.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: mask[0], Permitted: mask[0]}, {Effective: mask[1], Permitted: mask[1]}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	return nil
}

package supervisor

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// capabilities returns what a spec lets a process have, or says which name is none. Names are those of
// capabilities(7), with or without CAP_, in any case.
func (s Spec) capabilities() ([]capability.Cap, error) {
	var out []capability.Cap
	for _, name := range s.Capabilities {
		word := strings.ToLower(strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		i := slices.IndexFunc(capability.ListKnown(), func(c capability.Cap) bool { return c.String() == word })
		if i < 0 {
			return nil, s.invalid("%q is no capability; capabilities(7) lists them, for example \"CAP_NET_ADMIN\"", name)
		}
		out = append(out, capability.ListKnown()[i])
	}
	return out, nil
}

// onThreadOfItsOwn runs fn on a thread that ends with it, so that what the thread gives up nobody misses. It is never the
// main thread, whose privileges are taken for the program's.
func onThreadOfItsOwn(fn func()) {
	runtime.LockOSThread() // for good
	if unix.Gettid() != unix.Getpid() {
		fn()
		return
	}
	elsewhere := make(chan struct{})
	go func() {
		runtime.LockOSThread() // another one, since this goroutine sits on the main thread
		close(elsewhere)
		fn()
	}()
	<-elsewhere
	runtime.UnlockOSThread()
}

// dropPrivileges makes this thread one whose children can gain nothing: no privilege by executing a file, and of the
// capabilities only those that are kept. It changes no other thread; the caller has locked itself to this one for good.
func dropPrivileges(keep []capability.Cap) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil // it has none to give up
	}
	all, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	if err := all.Load(); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	all.Clear(capability.BOUNDS)
	all.Set(capability.BOUNDS, keep...)
	// What is bounded away is lost with the next exec; until then this thread can still become another user.
	if err := all.Apply(capability.BOUNDS); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// ambient returns the capabilities that a process of another user needs to be handed through its exec.
func (c *child) ambient() []uintptr {
	if c.cred == nil || c.cred.Uid == 0 {
		return nil
	}
	var out []uintptr
	for _, one := range c.keep {
		out = append(out, uintptr(one))
	}
	return out
}

// sandbox says for people what keeps the process from the host's files.
func (s Spec) sandbox() string {
	switch {
	case s.Confined():
		return "landlock"
	case s.Sandbox == SandboxNone:
		return "no sandbox"
	}
	return "no sandbox (the kernel has no Landlock)"
}

// Isolation says for people what keeps the process apart from the gateway and from the host.
func (s Spec) Isolation() string {
	if s.Attach != "" {
		return "none: attached to a process that was started by hand"
	}
	who := "the gateway's user"
	if s.User != "" {
		who = "user " + s.User
	}
	if s.Group != "" {
		who += ", group " + s.Group
	}
	out := []string{who}
	switch {
	case s.Privileged && s.User == "":
		out = append(out, "all privileges of the gateway")
	case s.Privileged:
		out = append(out, "all privileges of that user")
	case len(s.Capabilities) == 0:
		out = append(out, s.sandbox(), "no new privileges", "no capabilities")
	default:
		out = append(out, s.sandbox(), "no new privileges", strings.Join(s.Capabilities, " "))
	}
	if n := s.Limits.Memory; n > 0 {
		out = append(out, fmt.Sprintf("memory %d MiB", n>>20))
	}
	if n := s.Limits.CPU; n > 0 {
		out = append(out, fmt.Sprintf("cpu %g", n))
	}
	if n := s.Limits.PIDs; n > 0 {
		out = append(out, fmt.Sprintf("pids %d", n))
	}
	if n := s.Limits.Files; n > 0 {
		out = append(out, fmt.Sprintf("files %d", n))
	}
	return strings.Join(out, ", ")
}

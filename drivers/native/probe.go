package native

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// abilities is what this host gives, found out by trying.
type abilities struct {
	userNamespace bool // sandboxes need one: the gateway is no root that may make the other namespaces
	network       bool
	cgroups       bool
	roots         map[string]string // controller -> directory of ours
	missing       map[string]string // feature -> why
}

// probe tries what the host gives. A host on which nothing can be isolated is an error.
func probe(shim []string) (abilities, error) {
	a := abilities{missing: map[string]string{}}
	if err := probeNamespaces(shim, false); err != nil {
		a.userNamespace = true
		if err := probeNamespaces(shim, true); err != nil {
			return a, fault.New(fault.FailedPrecondition, "this host lets user %d isolate nothing: %w; run the gateway as root, or allow user namespaces "+
				"(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", os.Geteuid(), err)
		}
		why := "the gateway is not root"
		a.missing["network.address"], a.missing["network.subnet"], a.missing["limits"] = why, why, why
		return a, nil
	}
	if err := probeNetwork(); err != nil {
		a.missing["network.address"], a.missing["network.subnet"] = err.Error(), err.Error()
	} else {
		a.network = true
	}
	var err error
	if a.roots, err = findControllers(); err != nil {
		a.missing["limits"] = err.Error()
	}
	a.cgroups = err == nil
	return a, nil
}

// probeNamespaces starts a process in the namespaces of a sandbox.
func probeNamespaces(shim []string, user bool) error {
	if !user && os.Geteuid() != 0 {
		return fmt.Errorf("user %d is not root", os.Geteuid())
	}
	cmd := exec.Command(shim[0], slices.Concat(shim[1:], []string{"probe"})...)
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = namespaces(user)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// probeMain tries, in the namespaces of a sandbox, what those alone do not show.
func probeMain() int {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err == nil {
		err = unix.Mount("tmpfs", "/proc", "tmpfs", 0, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mount:", err)
		return 1
	}
	return 0
}

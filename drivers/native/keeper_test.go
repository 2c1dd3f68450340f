package native

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/host"
)

// keeperSwitch makes the test binary wait for the end of a test run, however it comes, and remove what that has left:
// a shim outlives who started it, and a bridge everybody.
const keeperSwitch = "native-keeper"

// runName is in the name of all that a test run makes.
var runName = fmt.Sprintf("sgn%d", os.Getpid())

// keep runs the tests under a keeper. A run that leaves something fails.
func keep(run func() int) int {
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, keeperSwitch, runName)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends the run does not end it
	running, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the keeper:", err)
		return 1
	}
	code := run()
	if err := errors.Join(running.Close(), cmd.Wait()); err != nil {
		fmt.Fprintln(os.Stderr, "the keeper:", err)
		return max(code, 1)
	}
	return code
}

// keeperMain says what is left at the end of a run, and removes it.
func keeperMain(self, name string) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	code := 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, dir := range matches("/var/tmp/" + name + "-*") { // a shim ends with its directory, and takes along what it had
		fmt.Fprintln(os.Stderr, "left:", dir)
		for i := 0; host.RemoveTree(dir) != nil && i < 100; i++ {
			<-tick.C
		}
		code = 1
	}
	ours := processesOf(self)
	for end := time.Now().Add(20 * time.Second); len(ours) > 0 && time.Now().Before(end); <-tick.C {
		ours = processesOf(self)
	}
	for pid, args := range ours {
		fmt.Fprintln(os.Stderr, "left:", pid, args)
		_ = unix.Kill(pid, unix.SIGKILL)
		code = 1
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		if strings.Contains(l.Attrs().Alias, name+"-") {
			fmt.Fprintln(os.Stderr, "left:", l.Attrs().Name, l.Attrs().Alias, netlink.LinkDel(l))
			code = 1
		}
	}
	_ = filepath.WalkDir(groupsRoot, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(e.Name(), name+"-") {
			fmt.Fprintln(os.Stderr, "left:", path, unix.Rmdir(path))
			code = 1
		}
		return nil
	})
	return code
}

func matches(pattern string) []string {
	found, _ := filepath.Glob(pattern) // the pattern is a good one
	return found
}

// processesOf returns the shims, first processes and gateways that a test binary has become.
func processesOf(self string) map[int]string {
	out := map[int]string{}
	for _, path := range matches("/proc/[0-9]*/cmdline") {
		raw, err := os.ReadFile(path)
		args := bytes.Split(raw, []byte{0})
		if err != nil || len(args) < 2 || string(args[0]) != self {
			continue
		}
		if role := string(args[1]); role == shimSwitch || role == gatewaySwitch {
			pid := 0
			_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
			out[pid] = string(bytes.Join(args, []byte(" ")))
		}
	}
	return out
}

// testDir is a directory that the host's sandboxes would see if it were not hidden.
func testDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", runName+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Package vmtest is what tests boot machines with: the kernel and QEMU that scripts/install-packages.sh puts in place, the
// first process, built anew, and a small image.
package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Where scripts/install-packages.sh puts Debian's kernel.
const (
	Kernel  = "/usr/local/lib/sandgate/kernel/vmlinuz"
	Modules = "/usr/local/lib/sandgate/kernel/modules"
)

// Need skips a test where machines cannot be booted since nobody could install what that needs. As root they can.
func Need(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("qemu-system-x86_64")
	if err == nil {
		_, err = os.Stat(Kernel)
	}
	switch {
	case err == nil:
	case os.Geteuid() == 0:
		t.Fatalf("%v; run scripts/install-packages.sh", err)
	default:
		t.Skipf("%v; run scripts/install-packages.sh as root", err)
	}
}

// Init builds the first process of machines in a directory, and returns its path.
func Init(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "guest-init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/sandgate/sandgate/drivers/vm/guest-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build guest-init: %v\n%s", err, said)
	}
	return path
}

// Image makes a root directory with busybox in a directory, and returns its path.
func Image(t testing.TB, dir string) string {
	t.Helper()
	dir = filepath.Join(dir, "image")
	for _, d := range []string{"bin", "etc", "root", "tmp", "proc", "sys", "dev", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v; run scripts/install-packages.sh", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), raw, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "id", "ip", "ls", "mkdir", "touch", "kill", "ps", "env", "true", "false", "hostname", "wget", "nc", "date", "mount", "tr", "mv", "mkfifo", "head"} {
		if err := os.Symlink("/bin/busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	passwd := "root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/work:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Settings returns the block of a driver's settings, in HCL: small machines, without KVM, and an image "busybox". What
// they are made from is in a directory of the test's. Further settings may be given.
func Settings(t testing.TB, more ...string) string {
	t.Helper()
	Need(t)
	dir := t.TempDir()
	return fmt.Sprintf("config {\n  kernel = %q\n  modules = %q\n  init = %q\n  accel = \"tcg\"\n  memory_mib = 128\n  disk_mib = 64\n  default_image = \"busybox\"\n  root \"busybox\" {\n    path = %q\n  }\n%s\n}\n",
		Kernel, Modules, Init(t, dir), Image(t, dir), strings.Join(more, "\n"))
}

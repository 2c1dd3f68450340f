package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk under the data directory is reported to whoever asks for something, and nothing is lost: what was there
// stays, and once there is space everything goes on. It needs root, for a disk of its own.
func TestAFullDiskLosesNothing(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	data := filepath.Join(s.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot mount a small disk: not run")
		return
	}
	if err := unix.Mount("tmpfs", data, "tmpfs", 0, "size=128m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		s.end()
		_ = unix.Unmount(data, unix.MNT_DETACH)
	}()
	s.start()
	create := func(name string) []string {
		return []string{"sandbox", "create", "--driver", "acme", "--name", name, "--wait", "--", "sleep", "600"}
	}
	s.ok(create("before")...)
	s.fill(data + "/ballast")
	failed := ""
	for i := 0; failed == "" && i < 200; i++ { // the log has a few free pages left
		_, errs, code := s.run(create(fmt.Sprintf("full-%d", i))...)
		if code != exitOK {
			failed = errs
		}
	}
	if !strings.Contains(failed, "full") && !strings.Contains(failed, "no space") {
		t.Errorf("a create on a full disk: %q", failed)
	}
	if out := s.ok("sandbox", "get", "before"); !strings.Contains(out, "ready") {
		t.Errorf("what was there:\n%s", out)
	}
	if err := os.Remove(data + "/ballast"); err != nil {
		t.Fatal(err)
	}
	s.until("creates go on", func() bool { _, _, code := s.run(create("after")...); return code == exitOK })
	s.end()
	s.start()
	for _, name := range []string{"before", "after"} {
		if out := s.ok("sandbox", "get", name); !strings.Contains(out, "ready") {
			t.Errorf("%s after a restart:\n%s", name, out)
		}
	}
	for _, line := range strings.Split(s.ok("sandbox", "list"), "\n")[1:] {
		if name, _, _ := strings.Cut(line, " "); name != "" {
			s.ok("sandbox", "delete", name, "--wait")
		}
	}
	s.until("nothing is held", func() bool { return strings.Count(s.ok("resource", "list"), "\n") == 1 })
}

// fill takes all the space of a disk, to the last page.
func (s *site) fill(path string) {
	s.t.Helper()
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int{1 << 20, 4 << 10} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
	}
}

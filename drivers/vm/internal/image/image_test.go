package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSmoke(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	os.MkdirAll(dir+"/bin", 0o755)
	os.WriteFile(dir+"/bin/a", []byte("hello"), 0o755)
	os.Symlink("/bin/a", dir+"/link")
	r, err := s.Root(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("unsquashfs", "-lln", r.Path).CombinedOutput()
	t.Logf("%s %v", out, err)
	k, err := s.Kernel(t.Context(), "/usr/local/lib/sandgate/kernel/vmlinuz")
	t.Log(k, err)
	i, err := s.Initramfs(t.Context(), "/bin/true", "/usr/local/lib/sandgate/kernel/modules")
	t.Log(i, err)
	out, err = exec.Command("sh", "-c", "cpio -tv < "+i).CombinedOutput()
	t.Logf("%s %v", out, err)
	t.Log(Disk(t.Context(), filepath.Join(dir, "disk"), 1<<30))
	out, err = exec.Command("sh", "-c", "ls -las "+dir+"/disk; file "+k+" "+dir+"/disk").CombinedOutput()
	t.Logf("%s %v", out, err)
}

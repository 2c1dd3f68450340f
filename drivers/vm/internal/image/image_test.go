package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/shared/fault"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	vmtest.Need(t)
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listing is what a root file system has: unsquashfs is what its own makers read it with.
func listing(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("unsquashfs", "-d", "", "-lln", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		lines = append(lines, f[0]+" "+f[1]+" "+strings.Join(f[5:], " ")) // without size and time
	}
	return strings.Join(lines, "\n")
}

func writeTar(t *testing.T, e entries) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := e.each(func(h *tar.Header, r io.Reader) error {
		err := w.WriteHeader(h)
		if err == nil {
			_, err = io.Copy(w, r)
		}
		return err
	})
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t *testing.T, path string, contents []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, contents, 0o644); err != nil {
		t.Fatal(err)
	}
}

func zipped(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(raw)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layout is an image layout, by file.
type layout map[string][]byte

func (l layout) blob(raw []byte, media string) oci.Descriptor {
	d := digest.FromBytes(raw)
	l["blobs/sha256/"+d.Encoded()] = raw
	return oci.Descriptor{MediaType: media, Digest: d, Size: int64(len(raw))}
}

func (l layout) json(t *testing.T, v any, media string) oci.Descriptor {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return l.blob(raw, media)
}

// image adds an image of layers, and an index that has it for a platform.
func (l layout) image(t *testing.T, layers ...[]byte) oci.Descriptor {
	t.Helper()
	var c oci.Image
	c.Config = oci.ImageConfig{Env: []string{"PATH=/bin", "A=b=c"}, Entrypoint: []string{"/bin/a"}, Cmd: []string{"now"}, WorkingDir: "/srv", User: "7:8"}
	m := oci.Manifest{Config: l.json(t, c, oci.MediaTypeImageConfig)}
	for _, raw := range layers {
		m.Layers = append(m.Layers, l.blob(raw, oci.MediaTypeImageLayerGzip))
	}
	return l.json(t, m, oci.MediaTypeImageManifest)
}

func (l layout) index(t *testing.T, list ...oci.Descriptor) layout {
	t.Helper()
	d := l.json(t, oci.Index{Manifests: list}, oci.MediaTypeImageIndex)
	l["index.json"], l["oci-layout"] = l["blobs/sha256/"+d.Digest.Encoded()], []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return l
}

func (l layout) lay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, raw := range l {
		write(t, filepath.Join(dir, name), raw)
	}
	return dir
}

func TestRootOfADirectory(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, []byte("of the host"))
	write(t, filepath.Join(dir, "bin/a"), []byte("hello"))
	for name, to := range map[string]string{"link": "/bin/a", "out": secret, "up": "../../../.."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := s.Root(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("%d/%d", os.Getuid(), os.Getgid())
	want := strings.ReplaceAll("drwxr-xr-x ME \ndrwxr-xr-x ME /bin\n-rw-r--r-- ME /bin/a\nlrwxrwxrwx ME /link -> /bin/a\nlrwxrwxrwx ME /out -> "+
		secret+"\nlrwxrwxrwx ME /up -> ../../../..", "ME", me)
	if diff := cmp.Diff(want, listing(t, r.Path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, err := s.Root(t.Context(), dir)
	if err != nil || again.Path != r.Path {
		t.Errorf("asked again: %+v %v", again, err)
	}
	write(t, filepath.Join(dir, "bin/a"), []byte("HELLO"))
	changed, err := s.Root(t.Context(), dir)
	if err != nil || changed.Path == r.Path {
		t.Errorf("after a change: %+v %v", changed, err)
	}
	if err := s.Prune(func(path string) bool { return path == r.Path }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(changed.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not kept is there: %v", err)
	}
	if _, err := os.Stat(r.Path); err != nil {
		t.Error(err)
	}
}

func TestRootOfATarFile(t *testing.T) {
	s := newStore(t)
	plain := writeTar(t, entries{"bin/", "bin/a=hello", "b<-bin/a"})
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"plain.tar": plain, "gzip.tar.gz": zipped(t, plain), "zstd.tar.zst": z.Bytes()} {
		path := filepath.Join(t.TempDir(), name)
		write(t, path, raw)
		r, err := s.Root(t.Context(), path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := "drwxr-xr-x 0/0 \n-rw-r--r-- 7/0 /b\ndrwxr-xr-x 7/0 /bin\n-rw-r--r-- 7/0 /bin/a"; listing(t, r.Path) != want {
			t.Errorf("%s has\n%s", name, listing(t, r.Path))
		}
	}
}

func TestRootOfAnImageLayout(t *testing.T) {
	s := newStore(t)
	l := layout{}
	m := l.image(t, zipped(t, writeTar(t, entries{"bin/", "bin/a=1", "gone=1"})), writeTar(t, entries{".wh.gone", "bin/b=2"}))
	m.Platform = &oci.Platform{OS: "linux", Architecture: "amd64"}
	other := l.image(t, writeTar(t, entries{"other=1"}))
	other.Platform = &oci.Platform{OS: "linux", Architecture: "s390x"}
	nested := l.json(t, oci.Index{Manifests: []oci.Descriptor{other, m}}, oci.MediaTypeImageIndex)
	dir := l.index(t, nested).lay(t)
	var packed entries
	for name, raw := range l {
		packed = append(packed, name+"="+string(raw))
	}
	file := filepath.Join(t.TempDir(), "layout.tar")
	write(t, file, writeTar(t, packed))
	for _, source := range []string{dir, file} {
		r, err := s.Root(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		if want := "drwxr-xr-x 0/0 \ndrwxr-xr-x 7/0 /bin\n-rw-r--r-- 7/0 /bin/a\n-rw-r--r-- 7/0 /bin/b"; listing(t, r.Path) != want {
			t.Errorf("it has\n%s", listing(t, r.Path))
		}
		r.Path = ""
		want := &Root{Command: []string{"/bin/a", "now"}, Environment: map[string]string{"PATH": "/bin", "A": "b=c"}, Directory: "/srv", User: "7:8"}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if roots, _ := filepath.Glob(filepath.Join(s.dir, "root-*")); len(roots) != 1 {
		t.Errorf("of one image there are %v", roots)
	}
}

func TestSourcesThatAreRefused(t *testing.T) {
	s := newStore(t)
	for _, c := range []struct {
		name, want string
		source     func(t *testing.T) string
	}{
		{"nothing", "no such file", func(t *testing.T) string { return filepath.Join(t.TempDir(), "nothing") }},
		{"no tar file", "no tar file", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "x")
			write(t, path, []byte("x"))
			return path
		}},
		{"rubbish", "invalid tar header", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "x")
			write(t, path, bytes.Repeat([]byte("rubbish "), 1000))
			return path
		}},
		{"a tar file that leaves", "leaves the image", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "x.tar")
			write(t, path, writeTar(t, entries{"../../../../tmp/escaped=x"}))
			return path
		}},
		{"a layer that is not what its name says", "is not what its name says", func(t *testing.T) string {
			l := layout{}
			m := l.image(t, writeTar(t, entries{"a=1"}))
			for name, raw := range l {
				if bytes.HasPrefix(raw, []byte("a\x00")) {
					l[name] = writeTar(t, entries{"a=2"})
				}
			}
			return l.index(t, m).lay(t)
		}},
		{"a configuration that is not what its name says", "is not what its name says", func(t *testing.T) string {
			l := layout{}
			m := l.image(t, writeTar(t, entries{"a=1"}))
			for name, raw := range l {
				if bytes.Contains(raw, []byte("/srv")) {
					l[name] = bytes.ReplaceAll(raw, []byte("/srv"), []byte("/etc"))
				}
			}
			return l.index(t, m).lay(t)
		}},
		{"a digest that is a path", "the digest", func(t *testing.T) string {
			return layout{}.index(t, oci.Descriptor{Digest: "sha256:../../../../etc/passwd"}).lay(t)
		}},
		{"blobs that are a link", "escapes from parent", func(t *testing.T) string {
			l := layout{}
			dir := l.index(t, l.image(t, writeTar(t, entries{"a=1"}))).lay(t)
			elsewhere := filepath.Join(t.TempDir(), "blobs")
			if err := errors.Join(os.Rename(filepath.Join(dir, "blobs"), elsewhere), os.Symlink(elsewhere, filepath.Join(dir, "blobs"))); err != nil {
				t.Fatal(err)
			}
			return dir
		}},
		{"two images", "it has 2 images for linux/", func(t *testing.T) string {
			l := layout{}
			return l.index(t, l.image(t, writeTar(t, entries{"a=1"})), l.image(t, writeTar(t, entries{"a=2"}))).lay(t)
		}},
		{"no image", "it has 0 images", func(t *testing.T) string { return layout{}.index(t).lay(t) }},
		{"a compressed layout", "decompress it", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "x.tar.gz")
			write(t, path, zipped(t, writeTar(t, entries{"oci-layout={}", "index.json={}"})))
			return path
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Root(t.Context(), c.source(t))
			if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWhoAsksAtTheSameTimeWaits(t *testing.T) {
	s := newStore(t)
	var made, gone int
	var mu sync.Mutex
	fill := func(ctx context.Context, out *os.File) error {
		mu.Lock()
		made++
		first := made == 1
		mu.Unlock()
		if first { // whoever made it went away
			return context.Canceled
		}
		_, err := out.WriteString("whole")
		return err
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := s.once(t.Context(), "thing", fill)
			if errors.Is(err, context.Canceled) {
				mu.Lock()
				gone++
				mu.Unlock()
				return
			}
			raw, bad := os.ReadFile(path)
			if err != nil || bad != nil || string(raw) != "whole" {
				t.Errorf("%q %v %v", raw, err, bad)
			}
		})
	}
	wg.Wait()
	if made != 2 || gone != 1 {
		t.Errorf("it was made %d times, and %d went away", made, gone)
	}
}

func TestNoSpaceIsSaidInItsOwnCode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	vmtest.Need(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(small)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 4<<20)
	for i, x := range noise { // nothing that can be compressed
		noise[i] = x + byte(uint32(i)*2654435761>>13)
	}
	_, inRoot := s.Root(t.Context(), vmtest.Image(t, t.TempDir()))
	_, inKernel := s.Kernel(t.Context(), vmtest.Kernel)
	if err := os.WriteFile(filepath.Join(small, "rest"), noise, 0o600); err == nil {
		t.Fatal("there is space")
	}
	for what, err := range map[string]error{"a root": inRoot, "a kernel": inKernel, "a disk": Disk(t.Context(), filepath.Join(small, "disk"), 1<<30)} {
		if !fault.Is(err, fault.ResourceExhausted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(small, ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestADiskIsKept(t *testing.T) {
	vmtest.Need(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := Disk(t.Context(), path, 32<<20); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != 32<<20 || info.Mode() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	write(t, path, []byte("kept"))
	if err := Disk(t.Context(), path, 64<<20); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "kept" {
		t.Errorf("%q %v", raw, err)
	}
	if err := Disk(t.Context(), path+"2", 1<<20); !fault.Is(err, fault.Invalid) {
		t.Errorf("a disk that is too small: %v", err)
	}
}

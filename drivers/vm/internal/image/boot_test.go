package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/shared/fault"
)

// names reads an archive's names back.
func names(t *testing.T, raw []byte) (all []string) {
	t.Helper()
	for len(raw) > 110 {
		if string(raw[:6]) != "070701" {
			t.Fatalf("no header: %q", raw[:6])
		}
		field := func(i int) int {
			n := 0
			for _, c := range raw[6+8*i : 14+8*i] {
				n = n*16 + strings.IndexByte("0123456789abcdef", c)
			}
			return n
		}
		size, length := field(6), field(11)
		all = append(all, string(raw[110:110+length-1]))
		at := (110 + length + 3) &^ 3
		raw = raw[(at+size+3)&^3:]
	}
	return all
}

func TestAnArchiveIsTheSameEachTime(t *testing.T) {
	files := []File{{Name: "b/c/d", Mode: 0o600, Contents: []byte("odd")}, {Name: "a", Contents: []byte("1")}, {Name: "b/x"}}
	var one, two bytes.Buffer
	if err := WriteCPIO(&one, files); err != nil {
		t.Fatal(err)
	}
	if err := WriteCPIO(&two, []File{files[2], files[0], files[1]}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) || one.Len()%4 != 0 {
		t.Error("it depends on the order")
	}
	if diff := cmp.Diff([]string{"a", "b", "b/c", "b/c/d", "b/x", "TRAILER!!!"}, names(t, one.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	s := newStore(t)
	path, err := s.Initramfs(t.Context(), os.Args[0], vmtest.Modules)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	order := strings.Join(names(t, raw), " ")
	for _, pair := range [][2]string{{"-virtio_ring.ko", "-virtio.ko"}, {"-virtio.ko", "-virtio_mmio.ko"}, {"-virtio_ring.ko", "-virtio_pci.ko"},
		{"-net_failover.ko", "-virtio_net.ko"}, {"-failover.ko", "-net_failover.ko"}, {"-virtio.ko", "-virtio_blk.ko"}} {
		a, b := strings.Index(order, pair[0]), strings.Index(order, pair[1])
		if a < 0 || b < a {
			t.Errorf("%s comes before %s, or is missing: %s", pair[1], pair[0], order)
		}
	}
	again, err := s.Initramfs(t.Context(), os.Args[0], vmtest.Modules)
	if err != nil || again != path {
		t.Errorf("asked again: %s %v", again, err)
	}
	bare, err := s.Initramfs(t.Context(), os.Args[0], "")
	if err != nil || bare == path {
		t.Errorf("without modules: %s %v", bare, err)
	}
	if _, err := s.Initramfs(t.Context(), os.Args[0], t.TempDir()+"/none"); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("modules that are not there: %v", err)
	}
}

func TestAKernelIsUnpackedOnce(t *testing.T) {
	s := newStore(t)
	unpacked, err := s.Kernel(t.Context(), vmtest.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	before, err := os.Stat(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Kernel(t.Context(), vmtest.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(again); err != nil || again != unpacked || !os.SameFile(before, after) {
		t.Errorf("it was unpacked again: %v", err)
	}
	if same, err := s.Kernel(t.Context(), unpacked); err != nil || same != unpacked {
		t.Errorf("one that is not packed: %s %v", same, err)
	}
	for _, no := range []string{"/dev/null", "/etc/passwd", t.TempDir() + "/none"} {
		if _, err := s.Kernel(t.Context(), no); !fault.Is(err, fault.FailedPrecondition) {
			t.Errorf("%s: %v", path.Base(no), err)
		}
	}
}

func FuzzKernel(f *testing.F) {
	raw := make([]byte, 0x400)
	copy(raw[0x202:], "HdrS")
	raw[0x1f1] = 0
	binary.LittleEndian.PutUint32(raw[0x24c:], 0x40)
	f.Add(raw)
	f.Add([]byte("\x02\x21\x4c\x18\x04\x00\x00\x00\x30abc\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if packed, err := payload(raw); err == nil {
			raw = packed
		}
		if r, err := unpack(raw); err == nil && r != nil {
			_, _ = io.CopyN(io.Discard, r, 1<<20)
		}
	})
}

func FuzzModule(f *testing.F) {
	if raw, err := os.ReadFile(vmtest.Modules + "/kernel/drivers/virtio/virtio_mmio.ko"); err == nil {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) { _, _ = needsOf(raw) })
}

func FuzzLayout(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`), []byte(`{"layers":[{}]}`))
	f.Fuzz(func(t *testing.T, index, rest []byte) {
		_, _ = readLayout(fixed{index, rest})
	})
}

// fixed is a layout whose blobs are all the same.
type fixed struct{ index, rest []byte }

func (x fixed) open(name string) (io.ReadCloser, error) {
	if name == "index.json" {
		return io.NopCloser(bytes.NewReader(x.index)), nil
	}
	return io.NopCloser(bytes.NewReader(x.rest)), nil
}

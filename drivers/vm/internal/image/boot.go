package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
	"github.com/sandgate/sandgate/shared/fault"
)

// wanted are the modules that a machine needs, of both kinds of machine. One that the kernel has built in is no file.
var wanted = []string{"virtio_mmio", "virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "squashfs", "overlay", "ext4"}

// Kernel returns the path of a kernel as a machine boots it fastest: not compressed. One of a form that is not known
// is returned as it is.
func (s *Store) Kernel(ctx context.Context, path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "the kernel cannot be read: %w", err)
	}
	if bytes.HasPrefix(raw, []byte(elf.ELFMAG)) {
		return path, nil
	}
	packed, err := payload(raw)
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "%s is no kernel: %w", path, err)
	}
	r, err := unpack(packed)
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "the kernel %s cannot be unpacked: %w", path, err)
	}
	if r == nil {
		return path, nil
	}
	return s.once(ctx, "kernel-"+sum(raw), func(_ context.Context, out *os.File) error {
		if _, err := io.Copy(out, io.LimitReader(r, maxKernel)); err != nil {
			return fault.New(fault.FailedPrecondition, "the kernel %s cannot be unpacked: %w", path, err)
		}
		return nil
	})
}

// maxKernel is how large an unpacked kernel may be.
const maxKernel = 1 << 30

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// payload returns the compressed kernel in a bzImage, as the kernel's boot protocol says where it is.
func payload(raw []byte) ([]byte, error) {
	const sectors, magic, offset, length, end = 0x1f1, 0x202, 0x248, 0x24c, 0x250
	if len(raw) < end || string(raw[magic:magic+4]) != "HdrS" {
		return nil, errors.New("it is neither an ELF file nor a bzImage")
	}
	setup := uint64(raw[sectors])
	if setup == 0 {
		setup = 4
	}
	from := (setup+1)*512 + uint64(binary.LittleEndian.Uint32(raw[offset:]))
	to := from + uint64(binary.LittleEndian.Uint32(raw[length:]))
	if from >= to || to > uint64(len(raw)) {
		return nil, errors.New("its payload lies outside of it")
	}
	return raw[from:to], nil
}

// unpack returns a reader of what is packed, or nil where the form is not known. But for gzip, what packs a kernel puts
// its size behind it.
func unpack(packed []byte) (io.Reader, error) {
	sized := bytes.NewReader(packed[:max(0, len(packed)-4)])
	switch {
	case bytes.HasPrefix(packed, []byte{0x02, 0x21, 0x4c, 0x18}):
		return lz4.NewReader(sized), nil
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(sized)
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	}
	return nil, nil
}

// Initramfs returns the path of an initramfs with the program that is a machine's first process, and the modules of its
// kernel from a directory; "": the kernel has built in what it needs. Something of a run's own may follow it.
func (s *Store) Initramfs(ctx context.Context, program, modules string) (string, error) {
	first, err := os.ReadFile(program)
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "the first process of machines cannot be read: %w", err)
	}
	files := []File{{Name: "init", Mode: 0o755, Contents: first}}
	if modules != "" {
		loaded, err := modulesOf(modules)
		if err != nil {
			return "", fault.New(fault.FailedPrecondition, "the kernel's modules in %s cannot be used: %w", modules, err)
		}
		files = append(files, loaded...)
	}
	var b bytes.Buffer
	if err := WriteCPIO(&b, files); err != nil {
		return "", err
	}
	return s.once(ctx, "initramfs-"+sum(b.Bytes()), func(_ context.Context, out *os.File) error {
		_, err := out.Write(b.Bytes())
		return err
	})
}

// modulesOf returns the modules that a machine needs, named so that each comes after those that it needs.
func modulesOf(dir string) ([]File, error) {
	found, err := findModules(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		at, ok := found[name]
		if seen[name] || !ok { // what is no file is built in, or the machine will say what it misses
			return nil
		}
		seen[name] = true
		raw, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		needs, err := needsOf(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		files = append(files, File{Name: fmt.Sprintf("%s/%02d-%s.ko", guest.ModuleDir[1:], len(files), name), Mode: 0o644, Contents: raw})
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func findModules(dir string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, form, ok := strings.Cut(e.Name(), ".ko")
		name = strings.ReplaceAll(name, "-", "_")
		switch {
		case !ok || !e.Type().IsRegular():
		case form != "" && slices.Contains(wanted, name):
			return fmt.Errorf("%s is compressed: unpack it", at)
		case form == "":
			found[name] = at
		}
		return nil
	})
	return found, err
}

// needsOf returns the names of the modules that a module needs.
func needsOf(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it is no module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if names, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(names) > 0 {
			return strings.Split(strings.ReplaceAll(string(names), "-", "_"), ","), nil
		}
	}
	return nil, nil
}

package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandgate/sandgate/shared/fault"
)

// Root is a root file system, and what its image says of the command that runs in it.
type Root struct {
	Path        string // of a squashfs
	Command     []string
	Environment map[string]string
	Directory   string
	User        string
}

// layer is a part of a root file system that can be read more than once.
type layer interface {
	// each calls fn for every entry, in an order that is the same each time.
	each(fn func(h *tar.Header, contents io.Reader) error) error
}

// Root makes a root file system of a directory, a tar file, or an OCI image layout in either.
func (s *Store) Root(ctx context.Context, source string) (*Root, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "the image cannot be read: %w", err)
	}
	var from *image
	if info.IsDir() {
		from, err = openDirectory(source)
	} else {
		from, err = openTar(source)
	}
	if err != nil {
		return nil, bad(source, err)
	}
	defer func() { _ = from.Close() }()
	root := from.root
	root.Path, err = s.once(ctx, "root-"+from.key, func(ctx context.Context, out *os.File) error { return from.build(ctx, out) })
	if err != nil {
		return nil, bad(source, err)
	}
	return &root, nil
}

// bad says of which image an error is. What is wrong with one is for the operator to mend.
func bad(source string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.New(fault.FailedPrecondition, "the image %s cannot be used: %w", source, err)
}

// Prune removes every root file system that is not kept, by path: what no machine was made from.
func (s *Store) Prune(keep func(path string) bool) error {
	roots, err := filepath.Glob(filepath.Join(s.dir, "root-*"))
	for _, path := range roots {
		if !keep(path) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// image is a source that was looked at.
type image struct {
	io.Closer
	key    string // says what it is made from
	layers []layer
	root   Root // without a path
}

// build writes the file system.
func (i *image) build(ctx context.Context, out *os.File) error {
	t := newTree()
	for n, l := range i.layers {
		if err := t.apply(ctx, n, l); err != nil {
			return err
		}
	}
	if n := t.root.children["oci-layout"]; n != nil {
		return errors.New("it is an OCI image layout in a compressed tar file: decompress it")
	}
	path, err := tool("sqfstar")
	if err != nil {
		return err
	}
	// It replaces a file that is there, and takes the rest of what it needs from the stream.
	cmd := exec.CommandContext(ctx, path, "-quiet", "-no-progress", "-force", "-comp", "lz4", "-mkfs-time", "0",
		"-root-mode", fmt.Sprintf("%o", t.root.header.Mode), "-root-uid", fmt.Sprint(t.root.header.Uid), "-root-gid", fmt.Sprint(t.root.header.Gid), out.Name())
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = toolEnvironment
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = t.write(ctx, in, i.layers)
	_ = in.Close()
	if err != nil {
		_ = cmd.Process.Kill()
	}
	ended := cmd.Wait()
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return judge(ctx, "sqfstar", ended, []byte(said.String()))
}

// directory is a layer that lies on the host. Symbolic links in it are entries, and lead nowhere else.
type directory struct{ *os.Root }

func openDirectory(path string) (*image, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	if _, err := root.Lstat("oci-layout"); err == nil {
		return openLayout(rootFiles{root}, root)
	}
	d := directory{root}
	h := sha256.New()
	err = d.each(func(header *tar.Header, _ io.Reader) error {
		fmt.Fprintf(h, "%q %q %c %o %d %d %d %d\n", header.Name, header.Linkname, header.Typeflag, header.Mode, header.Uid, header.Gid, header.Size, header.ChangeTime.UnixNano())
		return nil
	})
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return &image{Closer: root, key: "directory-" + hex.EncodeToString(h.Sum(nil)), layers: []layer{d}}, nil
}

// each implements layer.
func (d directory) each(fn func(*tar.Header, io.Reader) error) error {
	return fs.WalkDir(d.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Lstat(path)
		if err != nil {
			return err
		}
		target := ""
		switch info.Mode().Type() {
		case 0, fs.ModeDir:
		case fs.ModeSymlink:
			if target, err = d.Readlink(path); err != nil {
				return err
			}
		default:
			return nil // a device, a pipe or a socket of the host means nothing elsewhere
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name = path
		if !info.Mode().IsRegular() {
			return fn(h, nil)
		}
		f := &lazy{root: d.Root, path: path}
		defer f.Close()
		return fn(h, f)
	})
}

// lazy is a file that is opened when it is read.
type lazy struct {
	root *os.Root
	path string
	file *os.File
}

func (l *lazy) Read(b []byte) (int, error) {
	if l.file == nil {
		f, err := l.root.OpenFile(l.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return 0, err
		}
		l.file = f
	}
	return l.file.Read(b)
}

func (l *lazy) Close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// stamp says of a file which it is, and that it was not changed.
func stamp(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return "", errors.New("it is neither a directory nor a file")
	}
	return sum(fmt.Appendf(nil, "%d %d %d %d %d", st.Dev, st.Ino, st.Size, info.ModTime().UnixNano(), st.Ctim.Nano())), nil
}

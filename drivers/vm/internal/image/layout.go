package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// files are those of an image layout.
type files interface {
	open(name string) (io.ReadCloser, error)
}

// rootFiles are in a directory, which no symbolic link leaves.
type rootFiles struct{ *os.Root }

func (r rootFiles) open(name string) (io.ReadCloser, error) { return r.Open(name) }

// tarFiles are in a tar file that is not compressed.
type tarFiles struct {
	file *os.File
	at   map[string][2]int64 // offset and size
}

func (t tarFiles) open(name string) (io.ReadCloser, error) {
	at, ok := t.at[name]
	if !ok {
		return nil, fmt.Errorf("it has no file %s", name)
	}
	return io.NopCloser(io.NewSectionReader(t.file, at[0], at[1])), nil
}

// openTar opens a tar file: an image layout, or else a root file system.
func openTar(source string) (*image, error) {
	f, err := os.Open(source)
	if err != nil {
		return nil, err
	}
	i, err := inTar(f)
	if err != nil {
		_ = f.Close()
	}
	return i, err
}

func inTar(f *os.File) (*image, error) {
	key, err := stamp(f)
	if err != nil {
		return nil, err
	}
	start := make([]byte, 4)
	if _, err := f.ReadAt(start, 0); err != nil {
		return nil, errors.New("it is no tar file")
	}
	if packing(start) == "" {
		in, err := index(f)
		if err != nil {
			return nil, err
		}
		if _, ok := in.at["oci-layout"]; ok {
			return openLayout(in, f)
		}
	}
	return &image{Closer: f, key: "tar-" + key, layers: []layer{blob{open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, 1<<62)), nil
	}}}}, nil
}

// index says where in a tar file its files are.
func index(f *os.File) (tarFiles, error) {
	in := tarFiles{f, map[string][2]int64{}}
	r := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return in, nil
		}
		if err != nil {
			return in, err
		}
		if n > maxEntries {
			return in, errors.New("it has more than an image may have")
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return in, err
		}
		if h.Typeflag == tar.TypeReg {
			in.at[path.Clean(h.Name)] = [2]int64{at, h.Size}
		}
	}
}

// blob is a layer that is a tar stream, compressed or not.
type blob struct {
	open   func() (io.ReadCloser, error)
	digest digest.Digest // "": of no blob
}

// each implements layer. What the digest does not fit is not used: the error comes at the end at the latest.
func (b blob) each(fn func(*tar.Header, io.Reader) error) error {
	f, err := b.open()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	raw, checked := io.Reader(f), func() error { return nil }
	if b.digest != "" {
		raw, checked = verified(f, b.digest)
	}
	plain, err := decompress(raw)
	if err != nil {
		return err
	}
	defer plain.Close()
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = fn(h, r)
		}
		if err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	return checked()
}

// verified returns a reader, and a function that says afterwards whether what was read is what was named.
func verified(r io.Reader, d digest.Digest) (io.Reader, func() error) {
	v := d.Verifier()
	return io.TeeReader(r, v), func() error {
		if !v.Verified() {
			return fmt.Errorf("the blob %s is not what its name says", d)
		}
		return nil
	}
}

func packing(start []byte) string {
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

func decompress(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	start, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch packing(start) {
	case "gzip":
		return gzip.NewReader(in)
	case "zstd":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

// openLayout reads what an image layout has for this machine.
func openLayout(f files, closer io.Closer) (*image, error) {
	i, err := readLayout(f)
	if err != nil {
		_ = closer.Close()
		return nil, err
	}
	i.Closer = closer
	return i, nil
}

func readLayout(f files) (*image, error) {
	var top oci.Index
	r, err := f.open(oci.ImageIndexFile)
	if err == nil {
		err = decode(r, &top)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", oci.ImageIndexFile, err)
	}
	d, err := choose(f, top.Manifests, 0)
	if err != nil {
		return nil, err
	}
	var m oci.Manifest
	if err := read(f, d, &m); err != nil {
		return nil, err
	}
	var c oci.Image
	if err := read(f, m.Config, &c); err != nil {
		return nil, err
	}
	i := &image{key: "oci-" + d.Digest.Encoded(), root: Root{Command: append(c.Config.Entrypoint, c.Config.Cmd...), Environment: map[string]string{},
		Directory: c.Config.WorkingDir, User: c.Config.User}}
	for _, v := range c.Config.Env {
		name, value, _ := strings.Cut(v, "=")
		i.root.Environment[name] = value
	}
	if len(m.Layers) == 0 || len(m.Layers) > 1024 {
		return nil, fmt.Errorf("it has %d layers", len(m.Layers))
	}
	for _, l := range m.Layers {
		name, err := blobName(l.Digest)
		if err != nil {
			return nil, err
		}
		i.layers = append(i.layers, blob{digest: l.Digest, open: func() (io.ReadCloser, error) { return f.open(name) }})
	}
	return i, nil
}

// choose finds the one image for this kind of machine, in indexes of indexes too.
func choose(f files, list []oci.Descriptor, depth int) (oci.Descriptor, error) {
	var fit []oci.Descriptor
	for _, d := range list {
		if p := d.Platform; p == nil || p.OS == "linux" && p.Architecture == runtime.GOARCH {
			fit = append(fit, d)
		}
	}
	if len(fit) != 1 {
		return oci.Descriptor{}, fmt.Errorf("it has %d images for linux/%s, and has to have one", len(fit), runtime.GOARCH)
	}
	var in oci.Index
	if err := read(f, fit[0], &in); err != nil {
		return oci.Descriptor{}, err
	}
	if len(in.Manifests) == 0 {
		return fit[0], nil
	}
	if depth > 3 {
		return oci.Descriptor{}, errors.New("its indexes are nested too deep")
	}
	return choose(f, in.Manifests, depth+1)
}

func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("the digest %.128q: %w", d, err)
	}
	return path.Join(oci.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// read reads a blob of JSON.
func read(f files, d oci.Descriptor, into any) error {
	name, err := blobName(d.Digest)
	if err != nil {
		return err
	}
	r, err := f.open(name)
	if err != nil {
		return err
	}
	v, checked := verified(r, d.Digest)
	if err := decode(io.NopCloser(v), into); err != nil {
		_ = r.Close()
		return fmt.Errorf("the blob %s: %w", d.Digest, err)
	}
	_ = r.Close()
	return checked()
}

// maxJSON is how large a manifest may be.
const maxJSON = 4 << 20

func decode(r io.ReadCloser, into any) error {
	defer func() { _ = r.Close() }()
	raw, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return err
	}
	if len(raw) > maxJSON {
		return errors.New("it is too large")
	}
	return json.Unmarshal(raw, into)
}

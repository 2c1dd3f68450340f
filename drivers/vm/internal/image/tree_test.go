package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entries is a layer in a test: each is "name", "name=contents", "name->target" (a symbolic link), "name<-target" (a hard
// link), or "name/" (a directory).
type entries []string

func (e entries) each(fn func(*tar.Header, io.Reader) error) error {
	for _, text := range e {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: text, Mode: 0o644, Uid: 7}
		contents := ""
		switch {
		case strings.Contains(text, "->"):
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(text, "->")
		case strings.Contains(text, "<-"):
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(text, "<-")
		case strings.Contains(text, "="):
			h.Name, contents, _ = strings.Cut(text, "=")
		case strings.HasSuffix(text, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		h.Size = int64(len(contents))
		if err := fn(h, strings.NewReader(contents)); err != nil {
			return err
		}
	}
	return nil
}

// amount is what layers amount to, in the same words, sorted. Directories that nobody names are left out.
func amount(t *testing.T, layers ...layer) ([]string, error) {
	t.Helper()
	tree := newTree()
	for i, l := range layers {
		if err := tree.apply(t.Context(), i, l); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	if err := tree.write(t.Context(), &b, layers); err != nil {
		return nil, err
	}
	return said(t, &b), nil
}

// said reads a stream, and checks that a machine's root can be made of it: no name twice, nothing outside, each link after
// what it links to, each entry after its directory.
func said(t *testing.T, stream io.Reader) (all []string) {
	t.Helper()
	seen := map[string]byte{"": tar.TypeDir}
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		dir, _ := "", ""
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			dir = name[:i]
		}
		if seen[name] != 0 || seen[dir] != tar.TypeDir || strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") {
			t.Fatalf("the entry %q cannot be", h.Name)
		}
		seen[name] = h.Typeflag
		contents, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			all = append(all, fmt.Sprintf("%s=%s", name, contents))
		case tar.TypeSymlink:
			all = append(all, name+"->"+h.Linkname)
		case tar.TypeLink:
			if seen[h.Linkname] != tar.TypeReg {
				t.Fatalf("the link %q comes before %q", name, h.Linkname)
			}
			all = append(all, name+"<-"+h.Linkname)
		case tar.TypeDir:
			all = append(all, name+"/")
		default:
			t.Fatalf("an entry of type %c", h.Typeflag)
		}
	}
	slices.Sort(all)
	return all
}

func TestLayers(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []layer
		want   string
	}{
		{"one over another", []layer{entries{"a=1", "b=1"}, entries{"b=2", "c=2"}}, "a=1 b=2 c=2"},
		{"a whiteout", []layer{entries{"d/", "d/a=1", "d/b=1"}, entries{"d/.wh.a"}}, "d/ d/b=1"},
		{"a whiteout of a directory", []layer{entries{"d/", "d/e/f=1", "g=1"}, entries{".wh.d"}}, "g=1"},
		{"a whiteout of what its own layer has, before", []layer{entries{"a=1"}, entries{"a=2", ".wh.a"}}, "a=2"},
		{"a whiteout of what its own layer has, after", []layer{entries{"a=1"}, entries{".wh.a", "a=2"}}, "a=2"},
		{"a whiteout of nothing", []layer{entries{"a=1"}, entries{"d/.wh.b"}}, "a=1 d/"},
		{"an opaque directory", []layer{entries{"d/", "d/a=1", "d/e/b=1"}, entries{"d/", "d/c=2", "d/.wh..wh..opq"}}, "d/ d/c=2"},
		{"an opaque directory, said first", []layer{entries{"d/", "d/a=1"}, entries{"d/.wh..wh..opq", "d/a=2"}}, "d/ d/a=2"},
		{"whiteout, then there again", []layer{entries{"a=1"}, entries{".wh.a"}, entries{"a=3"}}, "a=3"},
		{"a directory becomes a file", []layer{entries{"d/", "d/a=1"}, entries{"d=2"}}, "d=2"},
		{"a file becomes a directory", []layer{entries{"d=1"}, entries{"d/", "d/a=2"}}, "d/ d/a=2"},
		{"a file on the way gives way", []layer{entries{"d=1"}, entries{"d/a=2"}}, "d/ d/a=2"},
		{"a directory again keeps what is in it", []layer{entries{"d/", "d/a=1"}, entries{"d/"}}, "d/ d/a=1"},
		{"hard links", []layer{entries{"a=1", "b<-a"}, entries{"c<-b"}}, "a=1 b<-a c<-a"},
		{"a hard link outlives what it linked to", []layer{entries{"a=1", "b<-a"}, entries{".wh.a"}}, "b=1"},
		{"a hard link does not follow what comes later", []layer{entries{"a=1", "b<-a"}, entries{"a=2"}}, "a=2 b=1"},
		{"through a symbolic link of a layer below", []layer{entries{"usr/lib/", "lib->usr/lib"}, entries{"lib/x=2"}}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=2"},
		{"through an absolute one that leaves", []layer{entries{"out->/../../etc", "etc/"}, entries{"out/passwd=2"}}, "etc/ etc/passwd=2 out->/../../etc"},
		{"a symbolic link is replaced by a directory", []layer{entries{"d->/etc"}, entries{"d/", "d/a=2"}}, "d/ d/a=2"},
		{"what some storage driver noted", []layer{entries{"a=1", ".wh..wh.plnk=x"}}, "a=1"},
		{"names with what means nothing", []layer{entries{"./a=1", "/b=1", "d//c=1"}}, "a=1 b=1 d/ d/c=1"},
	} {
		got, err := amount(t, c.layers...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(strings.Fields(c.want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestLayersThatAreRefused(t *testing.T) {
	for want, l := range map[string]entries{
		"leaves the image":           {"../../etc/passwd=x"},
		"leaves the image ":          {"a/../../b=x"},
		"its link: it has a name":    {"a<-../../etc/passwd"},
		"which is no file":           {"a<-nothing"},
		"which is no file ":          {"d/", "a<-d"},
		"hides nothing":              {"d/.wh."},
		"hides nothing that":         {".wh..."},
		"lead in a circle":           {"a->b", "b->a", "a/c=1"},
		"the root is no directory":   {"./=x"},
		"too long":                   {strings.Repeat("x", 256) + "=1"},
		"name that is too long":      {strings.Repeat("d/", maxDepth) + "a=1"},
		"it has a name that cannot ": {strings.Repeat("d/", 2100) + "a=1"},
	} {
		got, err := amount(t, l)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%.60q: %v, %v; want %q", l, got, err, want)
		}
	}
}

// Whatever a tar file has in it: what becomes of it is a root that can be.
func FuzzLayers(f *testing.F) {
	for _, l := range []entries{{"a=1", "b<-a", "c->/d"}, {"d/", "d/.wh..wh..opq", ".wh.a", "c/x=2"}, {"../x=1"}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		err := l.each(func(h *tar.Header, r io.Reader) error {
			err := w.WriteHeader(h)
			if err == nil {
				_, err = io.Copy(w, r)
			}
			return err
		})
		if err := errors.Join(err, w.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), b.Bytes())
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		of := func(raw []byte) layer {
			return blob{open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
		}
		_, _ = amount(t, of(lower), of(upper)) // said judges
	})
}

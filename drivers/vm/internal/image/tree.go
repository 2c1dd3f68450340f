package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// What an image may have: more is taken for an attempt to fill the host.
const (
	maxEntries = 1 << 19
	maxBytes   = 256 << 30
	maxDepth   = 512
)

// tree is what layers amount to, in memory, without what is in the files.
type tree struct {
	root    *node
	entries int
	bytes   int64
}

// node is an entry. It is a directory if it has children.
type node struct {
	header   tar.Header
	layer    int // the last that has it
	children map[string]*node
	contents *contents
}

// contents says where the bytes of a file are: in an entry of a layer. Hard links share them.
type contents struct{ layer, entry int }

func newTree() *tree { return &tree{root: newDir(0)} }

func newDir(layer int) *node {
	return &node{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}, layer: layer, children: map[string]*node{}}
}

// The names by which a layer takes away what is below it.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// apply lays a layer over the tree.
func (t *tree) apply(ctx context.Context, layer int, l layer) error {
	n := -1
	return l.each(func(h *tar.Header, _ io.Reader) error {
		n++
		if n > maxEntries || t.entries > maxEntries || t.bytes > maxBytes {
			return errors.New("it has more than an image may have")
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.add(h, layer, n); err != nil {
			return fmt.Errorf("the entry %.256q: %w", h.Name, err)
		}
		return nil
	})
}

func (t *tree) add(h *tar.Header, layer, n int) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	switch hidden, ok := strings.CutPrefix(base, whiteout); {
	case base == opaque:
		parent, err := t.directory(dir, layer)
		if err == nil {
			parent.prune(layer)
		}
		return err
	case ok && strings.HasPrefix(hidden, whiteout):
		return nil // what some storage driver has noted for itself
	case ok && (hidden == "" || hidden == "." || hidden == ".."):
		return errors.New("it hides nothing that can be")
	case ok:
		parent, err := t.directory(dir, layer)
		if err != nil {
			return err
		}
		if child := parent.children[hidden]; child != nil && child.prune(layer) {
			delete(parent.children, hidden)
		}
		return nil
	}
	made, err := t.node(h, layer, n)
	if made == nil || err != nil {
		return err
	}
	if name == "" {
		if made.children == nil {
			return errors.New("the root is no directory")
		}
		t.root.header, t.root.layer = made.header, layer
		return nil
	}
	parent, err := t.directory(dir, layer)
	if err != nil {
		return err
	}
	if old := parent.children[base]; old != nil && old.children != nil && made.children != nil {
		made.children = old.children
	}
	parent.children[base] = made
	return nil
}

// node makes a node of a header, or none of one that means nothing in a machine.
func (t *tree) node(h *tar.Header, layer, n int) (*node, error) {
	t.entries++
	out := &node{layer: layer, header: tar.Header{Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime}}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.user.") || k == "SCHILY.xattr.security.capability" {
			if out.header.PAXRecords == nil {
				out.header.PAXRecords = map[string]string{}
			}
			out.header.PAXRecords[k] = v
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		out.children = map[string]*node{}
	case tar.TypeReg, tar.TypeGNUSparse:
		t.bytes += h.Size
		out.header.Typeflag, out.header.Size, out.contents = tar.TypeReg, h.Size, &contents{layer, n}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > 4095 || strings.ContainsRune(h.Linkname, 0) {
			return nil, errors.New("it leads nowhere")
		}
		out.header.Linkname = h.Linkname
	case tar.TypeLink:
		to, err := clean(h.Linkname)
		if err != nil {
			return nil, fmt.Errorf("its link: %w", err)
		}
		target := t.find(to)
		if target == nil || target.children != nil {
			return nil, fmt.Errorf("it is a link to %.256q, which is no file", h.Linkname)
		}
		linked := *target
		linked.layer = layer
		return &linked, nil
	default:
		return nil, nil // a device, a pipe
	}
	return out, nil
}

// clean returns a name without what means nothing in it. One that leaves the root is refused.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) || len(name) > 4096 {
		return "", errors.New("it has a name that cannot be")
	}
	parts := strings.Split(name, "/")
	if slices.Contains(parts, "..") {
		return "", errors.New("it has a name that leaves the image")
	}
	if slices.ContainsFunc(parts, func(p string) bool { return len(p) > 255 }) || len(parts) > maxDepth {
		return "", errors.New("it has a name that is too long")
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// directory returns a directory, and makes what is missing.
func (t *tree) directory(name string, layer int) (*node, error) { return t.walk(name, layer, true) }

// find returns the node of a name, or nil. It is not followed itself.
func (t *tree) find(name string) *node {
	dir, base := path.Split(name)
	if parent, err := t.walk(dir, 0, false); err == nil {
		return parent.children[base]
	}
	return nil
}

// walk goes to a directory. A symbolic link on the way is followed within the tree, as it would be in the machine. If
// it may, it makes what is missing, and a file on the way gives way.
func (t *tree) walk(name string, layer int, mayMake bool) (*node, error) {
	at, hops := []*node{t.root}, 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		here := at[len(at)-1]
		child := here.children[part]
		switch {
		case part == "" || part == ".":
		case part == "..":
			at = at[:max(1, len(at)-1)]
		case child != nil && child.header.Typeflag == tar.TypeSymlink:
			if hops++; hops > 40 {
				return nil, errors.New("its symbolic links lead in a circle")
			}
			if path.IsAbs(child.header.Linkname) {
				at = at[:1]
			}
			rest = append(strings.Split(child.header.Linkname, "/"), rest...)
		case child != nil && child.children != nil:
			at = append(at, child)
		case !mayMake:
			return nil, errors.New("there is no such directory")
		case len(at) >= maxDepth:
			return nil, errors.New("it lies too deep")
		default:
			t.entries++
			here.children[part] = newDir(layer)
			at = append(at, here.children[part])
		}
	}
	return at[len(at)-1], nil
}

// prune takes away what layers below have under a node, and reports whether the node itself goes with that.
func (n *node) prune(layer int) bool {
	for name, child := range n.children {
		if child.prune(layer) {
			delete(n.children, name)
		}
	}
	return n.layer < layer && len(n.children) == 0
}

// write writes the tree as one tar stream: first everything that has no contents, then the files in the order in which
// their layers have them.
func (t *tree) write(ctx context.Context, out io.Writer, layers []layer) error {
	w := tar.NewWriter(out)
	files := map[contents][]string{}
	of := map[contents]*node{}
	if err := t.root.write(w, "", files, of); err != nil {
		return err
	}
	for i, l := range layers {
		n := -1
		err := l.each(func(h *tar.Header, r io.Reader) error {
			n++
			if err := ctx.Err(); err != nil {
				return err
			}
			at := contents{i, n}
			names := files[at]
			if len(names) == 0 {
				return nil
			}
			if h.Size != of[at].header.Size {
				return fmt.Errorf("%q was changed while it was read", h.Name)
			}
			return writeFile(w, of[at].header, names, r)
		})
		if err != nil {
			return err
		}
	}
	return w.Close()
}

func (n *node) write(w *tar.Writer, name string, files map[contents][]string, of map[contents]*node) error {
	if n.contents != nil {
		files[*n.contents], of[*n.contents] = append(files[*n.contents], name), n
		return nil
	}
	h := n.header
	h.Name = name
	if n.children != nil {
		h.Name = name + "/"
	}
	if name != "" { // the root has no entry: its mode and owner are told in another way
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
	}
	for _, base := range slices.Sorted(maps.Keys(n.children)) {
		if err := n.children[base].write(w, path.Join(name, base), files, of); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes a file under its first name, and its others as links.
func writeFile(w *tar.Writer, h tar.Header, names []string, r io.Reader) error {
	h.Name = names[0]
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	if _, err := io.CopyN(w, r, h.Size); err != nil {
		return fmt.Errorf("read %q: %w", h.Name, err)
	}
	for _, name := range names[1:] {
		link := tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: names[0], Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime}
		if err := w.WriteHeader(&link); err != nil {
			return err
		}
	}
	return nil
}

package image

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// File is a file of an initramfs.
type File struct {
	Name     string // without a slash before it
	Mode     uint32 // the permissions
	Contents []byte
}

// WriteCPIO writes files, and the directories that they are in, as an archive that a kernel unpacks. It reads several,
// one after another. The same files give the same bytes.
func WriteCPIO(w io.Writer, files []File) error {
	a := &archive{out: w, dirs: map[string]bool{}}
	files = slices.Clone(files)
	slices.SortFunc(files, func(x, y File) int { return strings.Compare(x.Name, y.Name) })
	for _, f := range files {
		a.parents(f.Name)
		a.entry(f.Name, 0o100000|f.Mode&0o7777, f.Contents)
	}
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

type archive struct {
	out   io.Writer
	inode int
	size  int
	dirs  map[string]bool
	err   error
}

func (a *archive) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || a.dirs[dir] {
		return
	}
	a.parents(dir)
	a.dirs[dir] = true
	a.entry(dir, 0o040755, nil)
}

// entry writes one entry in the form "newc": numbers of eight hexadecimal digits, everything padded to four bytes.
func (a *archive) entry(name string, mode uint32, contents []byte) {
	a.inode++
	links := 1
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, links, 0, len(contents), 0, 0, 0, 0, len(name)+1, 0, name))
	a.write(make([]byte, -a.size&3))
	a.write(contents)
	a.write(make([]byte, -a.size&3))
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.out.Write(b)
		a.size += len(b)
	}
}

package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sandgate/sandgate/shared/fault"
)

// store keeps copies of programs, each in a directory of its own named by its reference: the digest of the program,
// or of the list of digests where a script has files. A copy is made under another name, synced, and then renamed:
// what has its name is complete. Files are not writable; that they are what their name says is checked at each use.
type store struct {
	dir string
	mu  sync.Mutex // nothing is collected while something is being kept
}

const (
	programName = "program"
	copyPrefix  = ".new-"
)

func (s *store) prepare() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make the store of programs: %w", err)
	}
	return nil
}

func (s *store) path(ref string) string {
	return filepath.Join(s.dir, strings.TrimPrefix(ref, "sha256:"))
}

// reference names what a program and its files consist of.
func reference(p *program) string {
	if len(p.files) == 0 {
		return p.digest()
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", p.digest(), programName)
	for i, f := range p.files {
		fmt.Fprintf(h, "%s %q\n", p.parts[i+2].Digest, f.name)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// keep copies a verified program and returns its reference.
func (s *store) keep(p *program) (ref string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ref = reference(p)
	if isDir(s.path(ref)) {
		return ref, nil
	}
	dir, err := os.MkdirTemp(s.dir, copyPrefix)
	if err != nil {
		return "", fmt.Errorf("keep a copy of the program: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // gone after the rename
	// Others may execute it: an extension can run as a user of its own, and the kernel looks at the file's mode.
	digest, err := copyFile(filepath.Join(dir, programName), p.file, 0o555)
	if err != nil {
		return "", fmt.Errorf("keep a copy of the program: %w", err)
	}
	if digest != p.digest() {
		return "", fault.New(fault.FailedPrecondition, "keep a copy of the program: it changed while it was read")
	}
	if err := p.lay(filepath.Join(dir, filesDir)); err != nil {
		return "", err
	}
	if err := syncTree(dir); err != nil {
		return "", fmt.Errorf("keep a copy of the program: %w", err)
	}
	if err := os.Rename(dir, s.path(ref)); err != nil && !isDir(s.path(ref)) { // another may have been quicker
		return "", fmt.Errorf("keep a copy of the program: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return "", fmt.Errorf("keep a copy of the program: %w", err)
	}
	return ref, nil
}

// open opens a copy as the program of a spec, and checks that it is what its name says.
func (s *store) open(spec Spec) (*program, error) {
	dir := s.path(spec.Copy)
	if !isDir(dir) {
		return nil, fault.New(fault.NotFound, "extension %q: there is no copy of the program %s", spec.Name, spec.Copy)
	}
	own := spec
	own.Command, own.Checksum, own.Unpinned = filepath.Join(dir, programName), "", false
	own.Files = nil
	base := filepath.Join(dir, filesDir)
	err := filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			own.Files = append(own.Files, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("extension %q: read the copy of the program: %w", spec.Name, err)
	}
	p, err := openProgram(own, nil)
	if err != nil {
		return nil, err
	}
	for i := range p.files {
		p.files[i].name = strings.TrimPrefix(p.files[i].name, filesDir+"/")
	}
	if got := reference(p); got != spec.Copy {
		p.close()
		return nil, spec.precondition("the copy of the program in %s has changed: it is %s", dir, got)
	}
	for i := range p.parts {
		p.parts[i].Pinned = p.parts[i].Role != "interpreter"
	}
	return p, nil
}

// collect removes copies that nobody refers to, and what an interrupted keep left.
func (s *store) collect(keep []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("collect copies of programs: %w", err)
	}
	var failed error
	for _, e := range entries {
		if !slices.Contains(keep, "sha256:"+e.Name()) {
			failed = errors.Join(failed, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	if failed != nil {
		return fmt.Errorf("collect copies of programs: %w", failed)
	}
	return nil
}

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = syncDir(path)
		}
		return err
	})
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

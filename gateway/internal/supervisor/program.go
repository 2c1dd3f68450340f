package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// Part is one file that a process consists of, and how far it is pinned.
type Part struct {
	Role   string // "program", "interpreter" or "file"
	Path   string
	Digest string // "sha256:…" of what was run
	Pinned bool   // by the configuration; the others are held to what they were at the first launch
}

// program is an extension's program, opened and verified. What was hashed is what these descriptors show.
type program struct {
	file        *os.File // the program, or the script
	interpreter *os.File // of a script
	files       []programFile
	parts       []Part
}

type programFile struct {
	name string // relative, where it lies beside the script
	file *os.File
}

func (p *program) digest() string { return p.parts[0].Digest }

func (p *program) close() {
	for _, f := range p.files {
		_ = f.file.Close()
	}
	if p.interpreter != nil {
		_ = p.interpreter.Close()
	}
	if p.file != nil {
		_ = p.file.Close()
	}
}

// openProgram opens and verifies what a spec names. known, if not nil, are the parts of the first launch: what the
// configuration does not pin must still be the same, unless the spec is unpinned.
func openProgram(spec Spec, known []Part) (_ *program, err error) {
	p := &program{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.file, err = p.open(spec, "program", spec.Command, spec.Checksum); err != nil {
		return nil, err
	}
	if spec.Interpreter == "" {
		return p, checkBinary(spec, p.file)
	}
	if p.interpreter, err = p.open(spec, "interpreter", spec.Interpreter, ""); err != nil {
		return nil, err
	}
	paths := map[string]string{} // by name
	for _, path := range spec.Files {
		name := besides(filepath.Dir(spec.Command), path)
		if paths[name] != "" {
			return nil, spec.invalid("two files are called %q", name)
		}
		paths[name] = path
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		f, err := p.open(spec, "file", paths[name], "")
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, programFile{name, f})
	}
	return p, checkKnown(spec, p.parts, known)
}

// open opens one part, refuses what others could have written, and hashes the descriptor.
func (p *program) open(spec Spec, role, path, want string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "extension %q: %s %s does not exist", spec.Name, role, path)
	}
	if err != nil {
		return nil, spec.precondition("open the %s: %v", role, err)
	}
	if err := checkTrust(spec, role, path, f); err != nil {
		_ = f.Close()
		return nil, err
	}
	digest, err := hash(f)
	if err != nil {
		_ = f.Close()
		return nil, spec.precondition("read the %s %s: %v", role, path, err)
	}
	if want != "" && digest != want {
		_ = f.Close()
		return nil, spec.precondition("%s %s has the checksum %s, the configuration says %s; it was changed, or the wrong one was installed", role, path, digest, want)
	}
	p.parts = append(p.parts, Part{Role: role, Path: path, Digest: digest, Pinned: want != ""})
	return f, nil
}

// checkTrust refuses a file that somebody other than root and the gateway's user could write, and one that lies
// where others could put another in its place. The group of a directory is trusted: the digest covers what it does.
func checkTrust(spec Spec, role, path string, f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return spec.precondition("examine the %s %s: %v", role, path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return spec.precondition("%s %s is not a regular file", role, path)
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return spec.precondition("%s %s belongs to uid %d; it must belong to root or to the gateway's user", role, path, st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return spec.precondition("%s %s is writable by its group or by others (mode %04o); chmod go-w", role, path, st.Mode&0o7777)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return spec.precondition("resolve the %s %s: %v", role, path, err)
	}
	for _, start := range []string{path, real} {
		for dir := filepath.Dir(start); ; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				return spec.precondition("examine the directory %s of the %s: %v", dir, role, err)
			}
			if info.Mode().Perm()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
				return spec.precondition("%s %s lies under %s, where anybody can replace it (mode %04o)", role, path, dir, info.Mode().Perm())
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

// checkBinary refuses a script without an interpreter: the kernel could not run it from its descriptor.
func checkBinary(spec Spec, f *os.File) error {
	var head [2]byte
	if n, _ := f.ReadAt(head[:], 0); n == 2 && string(head[:]) == "#!" {
		return spec.invalid("command %s is a script: name its interpreter", spec.Command)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&0o111 == 0 {
		return spec.precondition("command %s is not executable (mode %04o); chmod +x", spec.Command, st.Mode&0o7777)
	}
	return nil
}

func checkKnown(spec Spec, now, known []Part) error {
	if spec.Unpinned {
		return nil
	}
	for _, k := range known {
		for _, n := range now {
			if n.Role == k.Role && n.Path == k.Path && n.Digest != k.Digest {
				return spec.precondition("%s %s was changed after the extension was loaded: %s before, %s now; reload the configuration to accept it",
					k.Role, k.Path, k.Digest, n.Digest)
			}
		}
	}
	return nil
}

// hash returns the digest of all that a descriptor shows, and leaves its offset at the start.
func hash(f *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// besides returns the name of a script's file relative to the script, or its last element if it lies elsewhere.
func besides(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return rel
	}
	return filepath.Base(path)
}

// lay writes a script's files, as they were hashed, below dir.
func (p *program) lay(dir string) error {
	for i, f := range p.files {
		path := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("lay out the files of the program: %w", err)
		}
		digest, err := copyFile(path, f.file, 0o444)
		if err != nil {
			return fmt.Errorf("lay out the files of the program: %w", err)
		}
		// The first parts are the program and its interpreter.
		if want := p.parts[i+2].Digest; digest != want {
			return fmt.Errorf("lay out the files of the program: %s changed while it was read", f.name)
		}
	}
	return nil
}

// copyFile makes a file of what a descriptor shows, synced to disk, and returns its digest.
func copyFile(path string, from *os.File, mode os.FileMode) (digest string, err error) {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, h), io.NewSectionReader(from, 0, 1<<62)); err != nil {
		return "", err
	}
	if err := errors.Join(to.Chmod(mode), to.Sync()); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

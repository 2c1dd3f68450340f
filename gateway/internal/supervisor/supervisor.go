// Package supervisor owns the processes of extensions: it verifies a program, launches it, negotiates with it,
// watches it, restarts it, and ends it. DESIGN.md says why it does so the way it does.
//
// A Supervisor launches. A Handle is one extension for the rest of the gateway: it survives the restarts of its
// process. The protocol on the wire is go-plugin's, the process is ours.
package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/fault"
)

// Config is what a supervisor needs.
type Config struct {
	// Dir holds the sockets and working directories of running extensions. It is made if it is not there, must belong
	// to this supervisor alone, must be short (MaxDir bytes), and what is left in it from an earlier one is removed.
	Dir string
	// Store holds the gateway's own copies of programs. Empty: Keep fails.
	Store string
	// Logger gets what extensions print, and what happens to them.
	Logger *slog.Logger
	// Observe is called for every change of a state and every end of a process, one at a time for each extension and in
	// order. It must not block, and must not call the handle. Nil: nobody observes.
	Observe func(Event)
	// Version is the gateway's, told to extensions.
	Version string
	// Now is the wall clock of events; durations are measured on the monotonic clock. Nil: time.Now.
	Now func() time.Time
	// Jitter returns a number in [0, 1), for backoff. Nil: random.
	Jitter func() float64
	// Timing has the durations; a zero one is replaced by that of DefaultTiming.
	Timing Timing

	dial func(grpc.ClientConnInterface) remote
}

// Timing is how long things may take.
type Timing struct {
	Start        time.Duration // from the start of a process to its manifest
	Configure    time.Duration // for a configuration to be taken; a driver's program opens its driver meanwhile
	Stop         time.Duration // from SIGTERM to SIGKILL
	Health       time.Duration // between two health calls
	HealthAnswer time.Duration // for a health call to be answered
	BackoffFirst time.Duration // before the first restart; doubled for each one within the window
	BackoffMax   time.Duration
}

// DefaultTiming is what a gateway uses.
func DefaultTiming() Timing {
	return Timing{Start: 10 * time.Second, Configure: 40 * time.Second, Stop: 3 * time.Second, Health: 10 * time.Second, HealthAnswer: 5 * time.Second,
		BackoffFirst: 100 * time.Millisecond, BackoffMax: 30 * time.Second}
}

// MaxDir is how long Config.Dir may be, in bytes: a socket's path, two directories deeper, has to fit into the 107
// that the kernel allows.
const MaxDir = 56

const (
	launchPrefix = "x" // of a launch's directory
)

// Supervisor launches extensions. It is safe for concurrent use.
type Supervisor struct {
	cfg    Config
	lock   *os.File
	groups *cgroups
	store  *store

	mu      sync.Mutex
	handles map[*Handle]struct{}
	books   map[string]*book // what extensions printed, by name
	closed  bool
}

// New makes a supervisor, and removes what an earlier one with the same directory left. It fails where another one
// uses the directory.
func New(cfg Config) (*Supervisor, error) {
	if !filepath.IsAbs(cfg.Dir) || len(cfg.Dir) > MaxDir {
		return nil, fault.New(fault.Invalid, "the directory for extension sockets must be absolute and at most %d bytes long, which %q is not", MaxDir, cfg.Dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Event) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	if cfg.dial == nil {
		cfg.dial = func(conn grpc.ClientConnInterface) remote { return newRemote(conn) }
	}
	cfg.Timing = cfg.Timing.orDefault()
	s := &Supervisor{cfg: cfg, handles: map[*Handle]struct{}{}, books: map[string]*book{}, groups: findCgroups(groupName(cfg.Dir))}
	if err := s.claim(); err != nil {
		return nil, err
	}
	if err := s.sweep(); err != nil {
		return nil, errors.Join(err, s.unclaim())
	}
	if cfg.Store != "" {
		s.store = &store{dir: cfg.Store}
		if err := s.store.prepare(); err != nil {
			return nil, errors.Join(err, s.unclaim())
		}
	}
	return s, nil
}

// groupName names the supervisor's control groups after its directory: there may be several gateways on a host.
func groupName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "sandgate-" + hex.EncodeToString(sum[:4])
}

func (t Timing) orDefault() Timing {
	d := DefaultTiming()
	for _, p := range []struct{ have, def *time.Duration }{{&t.Start, &d.Start}, {&t.Configure, &d.Configure}, {&t.Stop, &d.Stop}, {&t.Health, &d.Health},
		{&t.HealthAnswer, &d.HealthAnswer}, {&t.BackoffFirst, &d.BackoffFirst}, {&t.BackoffMax, &d.BackoffMax}} {
		if *p.have <= 0 {
			*p.have = *p.def
		}
	}
	return t
}

// claim makes the directory and takes it for this supervisor: it holds the directory's own lock.
func (s *Supervisor) claim() error {
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711 // an extension that runs as another user has to reach its own directory, which is 0700
	}
	for {
		if err := os.MkdirAll(s.cfg.Dir, mode); err != nil {
			return fmt.Errorf("make the directory for extension sockets: %w", err)
		}
		if err := os.Chmod(s.cfg.Dir, mode); err != nil {
			return fmt.Errorf("protect the directory for extension sockets: %w", err)
		}
		dir, err := os.Open(s.cfg.Dir)
		if err != nil {
			return fmt.Errorf("lock the directory for extension sockets: %w", err)
		}
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = dir.Close()
			return fault.New(fault.FailedPrecondition, "the directory for extension sockets %s is in use by another gateway: %w", s.cfg.Dir, err)
		}
		if stillThere(dir) {
			s.lock = dir
			return nil
		}
		_ = dir.Close() // another supervisor has just ended and taken it along
	}
}

// stillThere reports whether a directory that is open is the one under its name.
func stillThere(dir *os.File) bool {
	held, err := dir.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(dir.Name())
	return err == nil && os.SameFile(held, named)
}

// unclaim gives the directory up. It goes, unless somebody has put something into it.
func (s *Supervisor) unclaim() error {
	_ = os.Remove(s.cfg.Dir)
	return s.lock.Close()
}

// sweep removes sockets, directories and control groups of a supervisor that was killed. Its processes are gone
// already: they have died with it.
func (s *Supervisor) sweep() error {
	left, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("sweep the directory for extension sockets: %w", err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), launchPrefix) {
			if err := os.RemoveAll(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
				return fmt.Errorf("sweep the directory for extension sockets: %w", err)
			}
		}
	}
	s.groups.sweep()
	return nil
}

// Launch verifies a program, starts it, and returns when it has proved who it is and said what it does. A failure
// here is not retried: nothing is left of it. The handle is to be configured before it serves calls.
func (s *Supervisor) Launch(ctx context.Context, spec Spec) (*Handle, error) {
	spec, err := spec.checked()
	if err != nil {
		return nil, err
	}
	h := newHandle(s.cfg, spec, s)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "extension %q is not launched: the gateway is stopping", spec.Name)
	}
	s.handles[h] = struct{}{}
	s.mu.Unlock()
	h.forget = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.handles, h)
	}
	if err := h.launch(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// verify opens the program of a spec: the one that it names, or the gateway's own copy. What is known was started before.
func (s *Supervisor) verify(spec Spec, known []Part) (*program, error) {
	if spec.Attach != "" {
		return &program{}, nil
	}
	if spec.Copy != "" {
		return s.openCopy(spec)
	}
	p, err := openProgram(spec, known)
	if err == nil || known == nil || spec.Kept == "" {
		return p, err
	}
	spec.Copy = spec.Kept
	if p, kept := s.openCopy(spec); kept == nil {
		s.cfg.Logger.Warn("the program is not what was started; the gateway's own copy of that goes on", "extension", spec.Name, "why", err)
		return p, nil
	}
	return nil, err
}

// Verify reports why the program of a spec, or its copy, cannot be run. It starts nothing.
func (s *Supervisor) Verify(spec Spec) error {
	spec, err := spec.checked()
	if err != nil {
		return err
	}
	prog, err := s.verify(spec, nil)
	if err == nil {
		prog.close()
	}
	return err
}

func (s *Supervisor) openCopy(spec Spec) (*program, error) {
	if s.store == nil {
		return nil, spec.precondition("there is no store of programs to take %s from", spec.Copy)
	}
	return s.store.open(spec)
}

// Reference returns the reference that Keep returns for a spec, and keeps nothing. It says what of the spec this host
// does not have.
func Reference(spec Spec) (string, error) {
	spec, err := spec.checked()
	if err != nil {
		return "", err
	}
	if _, err := spec.capabilities(); err != nil {
		return "", err
	}
	if _, err := spec.identity(); err != nil {
		return "", err
	}
	prog, err := openProgram(spec, nil)
	if err != nil {
		return "", err
	}
	defer prog.close()
	return reference(prog), nil
}

// Keep puts a copy of a verified program into the store, durably, and returns the reference for Spec.Copy. What is
// there already is left as it is. The interpreter of a script is not kept.
func (s *Supervisor) Keep(spec Spec) (string, error) {
	spec, err := spec.checked()
	if err != nil {
		return "", err
	}
	if spec.Copy != "" || spec.Attach != "" {
		return spec.Copy, nil
	}
	if s.store == nil {
		return "", spec.precondition("there is no store of programs to keep it in")
	}
	prog, err := openProgram(spec, nil)
	if err != nil {
		return "", err
	}
	defer prog.close()
	return s.store.keep(prog)
}

// Collect removes every copy that is not in keep. Processes that run one go on.
func (s *Supervisor) Collect(keep []string) error {
	if s.store == nil {
		return nil
	}
	return s.store.collect(keep)
}

// Handles returns the extensions that were launched and are not stopped.
func (s *Supervisor) Handles() []*Handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Handle, 0, len(s.handles))
	for h := range s.handles {
		out = append(out, h)
	}
	return out
}

// Close ends every extension and gives the directory back. Use Handle.Drain first for an orderly stop.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for _, h := range s.Handles() {
		wg.Go(func() {
			err := h.Close()
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	s.groups.close()
	return errors.Join(failed, s.unclaim())
}

var _ launcher = (*Supervisor)(nil)

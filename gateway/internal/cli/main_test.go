package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/native"
	"github.com/sandgate/sandgate/plugin"

	"golang.org/x/sys/unix"
)

// asProgram makes the test binary the program itself: what a signal or a terminal is needed for.
const asProgram = "SANDGATE_TEST_AS_PROGRAM"

// environ is what the tests were started with: a site changes where caches are, and the compiler's is to stay.
var environ = os.Environ()

// examples builds the example extensions, once.
var examples = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "examples")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./ipam", "./tenant-namespace")
	build.Dir, build.Env = "../../../examples", append(environ, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

var examplesBuilt bool

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == NativeShim {
		unix.Exit(native.ShimMain(os.Args[2:])) // os.Exit of a program with the race detector takes a second
	}
	if len(os.Args) > 1 && os.Args[1] == talkerSwitch {
		_ = plugin.Serve(talker{requires: os.Args[2:]}) // it has said what was wrong
		unix.Exit(0)
	}
	if os.Getenv(asProgram) != "" {
		unix.Exit(Main(OSEnv()))
	}
	code := m.Run()
	if examplesBuilt {
		if dir, err := examples(); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// site is a gateway on a directory of its own, reached by commands.
type site struct {
	t       *testing.T
	dir     string
	listen  string
	more    string // of the gateway block
	env     map[string]string
	log     syncBuffer
	stop    context.CancelFunc
	done    chan int
	running bool
}

// syncBuffer is what a gateway writes while a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, listen: "unix://" + dir + "/gw.sock"}
	s.env = map[string]string{"SANDGATE_ADDR": s.listen}
	t.Setenv("XDG_CACHE_HOME", dir+"/cache")
	t.Cleanup(func() {
		s.end()
		if t.Failed() {
			t.Logf("the gateway said:\n%s", s.log.String())
		}
		_ = os.RemoveAll(dir)
	})
	return s
}

// write writes the configuration: the gateway block, and what is given.
func (s *site) write(text string) {
	s.t.Helper()
	head := fmt.Sprintf("gateway {\n  data_dir = %q\n  listen   = %q\n%s}\n", s.dir+"/data", s.listen, s.more)
	if err := os.WriteFile(s.config(), []byte(head+text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) config() string { return filepath.Join(s.dir, "site.hcl") }

// chain is a driver "acme" over the native one, with both examples bound.
func (s *site) chain(mode string) string {
	s.t.Helper()
	examplesBuilt = true
	dir, err := examples()
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf(`
extension "tenant-namespace" {
  command = "%[1]s/tenant-namespace"
  config {
    tenant "*" {
      labels = { tier = "demo" }
    }
  }
}
extension "ipam" {
  command = "%[1]s/ipam"
  paths {
    write = ["%[2]s/leases"]
  }
  config {
    store = "%[2]s/leases"
    pool "sandboxes" {
      cidr = "10.80.0.0/16"
    }
  }
}
driver "native" {
  config {
    stop_timeout = "1s"
  }
}
driver "acme" {
  base = "native"
  bind "tenant-namespace" {
    mode = %[3]q
    grant { mutate = ["Process.labels", "Process.annotations"] }
  }
  bind "ipam" {
    mode = %[3]q
    grant { mutate = ["Process.environment"] }
  }
}
`, dir, s.dir, mode)
}

// program is this program, to be run as a process of its own.
func (s *site) program(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "SANDGATE_ADDR="+s.env["SANDGATE_ADDR"])
	return cmd
}

// startProcess runs the gateway as a process of its own; attr says how.
func (s *site) startProcess(attr *syscall.SysProcAttr) *exec.Cmd {
	s.t.Helper()
	cmd := s.program("gateway", "--dev", "--config", s.config())
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &s.log, &s.log, attr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	s.until("the gateway answers", func() bool { _, _, code := s.run("version", "--gateway"); return code == 0 })
	return cmd
}

// start runs the gateway in this process, by its command.
func (s *site) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.stop, s.done, s.running = cancel, make(chan int, 1), true
	go func() {
		s.done <- Run(ctx, Env{Args: []string{"gateway", "--dev", "--config", s.config()}, Stdout: &s.log, Stderr: &s.log, Getenv: s.getenv})
	}()
	s.until("the gateway answers", func() bool {
		select {
		case code := <-s.done:
			s.running = false
			s.t.Fatalf("the gateway ended with %d:\n%s", code, s.log.String())
		default:
		}
		s.findAddress()
		_, _, code := s.run("version", "--gateway")
		return code == 0
	})
}

func (s *site) end() {
	if !s.running {
		return
	}
	s.running = false
	s.stop()
	if code := <-s.done; code != 0 {
		s.t.Errorf("the gateway ended with %d", code)
	}
}

func (s *site) getenv(k string) string { return s.env[k] }

// run runs one command.
func (s *site) run(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = Run(s.t.Context(), Env{Args: args, Stdout: &out, Stderr: &errs, Getenv: s.getenv})
	return out.String(), errs.String(), code
}

// ok runs a command that has to succeed, and returns what it printed.
func (s *site) ok(args ...string) string {
	s.t.Helper()
	out, errs, code := s.run(args...)
	if code != 0 {
		s.t.Fatalf("sandgate %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// refused runs a command that has to fail with the code, and returns what it said on standard error.
func (s *site) refused(want int, args ...string) string {
	s.t.Helper()
	out, errs, code := s.run(args...)
	if code != want || errs == "" || out != "" {
		s.t.Errorf("sandgate %s: exit %d, want %d; stdout %q, stderr %q", strings.Join(args, " "), code, want, out, errs)
	}
	return errs
}

// until waits for something that the gateway does.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-limit.C:
			s.t.Fatalf("it does not come to this: %s", what)
		}
	}
}

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/wire"
)

const sigKill = unix.SIGKILL

// afterExit is how long the output of a process is read after it has ended: what it printed is in the pipes by then,
// and whoever else holds them is not waited for.
const afterExit = 200 * time.Millisecond

// Exit says how a process ended.
type Exit struct {
	PID       int
	Code      int           // of a process that exited; 128+n after signal n
	Signal    string        // of a process that was killed: "killed", "terminated", …
	OOM       bool          // its cgroup ran out of memory; known only where it has a memory limit
	Uptime    time.Duration // since the process was started
	Digest    string        // of the program that it ran
	Stderr    []string      // last lines of its standard error
	InFlight  []Flight      // calls that it had not answered
	Requested bool          // the supervisor ended it
}

// String is how people read it, for example "signal: killed" or "exit status 3".
func (e *Exit) String() string {
	var s string
	switch {
	case e.OOM:
		s = "out of memory: it reached its memory limit"
	case e.Signal != "":
		s = "signal: " + e.Signal
	default:
		s = "exit status " + strconv.Itoa(e.Code)
	}
	return s
}

// child is one process of an extension: go-plugin's runner, with everything about the process in our hands. It is
// started once. go-plugin sees the handshake line and nothing else of what the process prints.
type child struct {
	spec   Spec
	prog   *program
	launch *wire.Launch
	env    []string // what go-plugin wants the process to find
	dir    string   // private to this launch: sockets, working directory, a script's files
	out    *output
	cred   *syscall.Credential
	keep   []capability.Cap
	group  *cgroup  // nil: the host gives none
	rules  *ruleset // nil: it has no sandbox
	flying func() []Flight

	line      *io.PipeReader // the handshake line, for go-plugin
	lineW     *io.PipeWriter
	handshook chan struct{} // closed when the line was seen
	dead      context.Context
	died      context.CancelFunc
	done      chan struct{} // closed when exit is set and nothing of the process is left

	mu      sync.Mutex
	pid     int // 0: not started
	reaped  bool
	asked   bool // we ended it
	doomed  bool // it was to be killed before it was there
	started time.Time
	exit    *Exit
	socket  string
}

var _ runner.Runner = (*child)(nil)

func newChild(spec Spec, prog *program, launch *wire.Launch, dir string, out *output, flying func() []Flight) *child {
	c := &child{spec: spec, prog: prog, launch: launch, dir: dir, out: out, flying: flying,
		handshook: make(chan struct{}), done: make(chan struct{})}
	c.line, c.lineW = io.Pipe()
	c.dead, c.died = context.WithCancel(context.Background())
	return c
}

// Start starts the process. The goroutine that does so lives as long as the process: the parent-death signal is
// tied to the thread that forked.
func (c *child) Start(context.Context) error {
	cmd, theirs, ours, err := c.command()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go onThreadOfItsOwn(func() { c.live(cmd, ours, started) })
	err = <-started
	for _, f := range theirs {
		_ = f.Close()
	}
	return err
}

// pipes are our ends of what the process holds the other ends of.
type pipes struct{ stdout, stderr, lifeline *os.File }

// command prepares the process. It returns the descriptors that are to be closed once it is started.
func (c *child) command() (cmd *exec.Cmd, theirs []*os.File, ours pipes, err error) {
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				opened = append(opened, r, w)
			}
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	launchR, launchW := pipe()
	if err == nil {
		err = c.launch.Write(launchW) // it fits into the pipe: nobody has to read yet
	}
	var image *os.File
	if err == nil {
		image, err = executable(c.prog)
	}
	if err != nil {
		for _, f := range opened {
			_ = f.Close()
		}
		return nil, nil, pipes{}, err
	}
	cmd = &exec.Cmd{
		Path:       fmt.Sprintf("/proc/self/fd/%d", image.Fd()),
		Args:       []string{c.spec.Command},
		Env:        append(c.env, c.spec.environ()...),
		Dir:        filepath.Join(c.dir, workDir),
		Stdout:     outW,
		Stderr:     errW,
		ExtraFiles: []*os.File{launchR}, // descriptor wire.LaunchFD
		SysProcAttr: &syscall.SysProcAttr{
			Setpgid:     true,
			Pdeathsig:   syscall.SIGKILL,
			Credential:  c.cred,
			AmbientCaps: c.ambient(),
			Ptrace:      c.spec.Limits.any() || c.group != nil, // stopped before its first instruction, until its limits hold
		},
	}
	if c.prog.interpreter != nil {
		cmd.Args = []string{c.spec.Interpreter, fmt.Sprintf("/proc/self/fd/%d", wire.LaunchFD+1)}
		cmd.ExtraFiles = append(cmd.ExtraFiles, c.prog.file)
		if len(c.prog.files) > 0 {
			cmd.Env = append(cmd.Env, wire.EnvProgramDir+"="+filepath.Join(c.dir, filesDir))
		}
	}
	cmd.Args = append(cmd.Args, c.spec.Args...)
	return cmd, []*os.File{outW, errW, launchR, image}, pipes{outR, errR, launchW}, nil
}

// executable duplicates the descriptor to run to a number that no descriptor of the child takes. It is closed by the
// exec itself.
func executable(p *program) (*os.File, error) {
	f := p.file
	if p.interpreter != nil {
		f = p.interpreter
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 16) // a child has five
	if err != nil {
		return nil, fmt.Errorf("duplicate the program's descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// live starts the process, waits for its end, and leaves nothing of it. It has its thread for itself.
func (c *child) live(cmd *exec.Cmd, ours pipes, started chan<- error) {
	var err error
	if !c.spec.Privileged {
		err = dropPrivileges(c.keep)
	}
	if err == nil {
		err = c.rules.enter()
	}
	if err == nil {
		err = startBusy(cmd)
	}
	c.rules.close()
	if err == nil {
		c.mu.Lock()
		c.pid, c.started = cmd.Process.Pid, time.Now()
		c.out.pid.Store(int64(c.pid))
		doomed := c.doomed
		c.mu.Unlock()
		if cmd.SysProcAttr.Ptrace {
			if err = c.confine(); err != nil {
				doomed = true
				c.mu.Lock()
				c.asked = true // what counts is why we end it
				c.mu.Unlock()
			}
		}
		if doomed {
			_ = unix.Kill(-c.pid, unix.SIGKILL)
		}
	} else {
		err = fmt.Errorf("start %s: %w", c.spec.Command, err)
		_ = errors.Join(ours.stdout.Close(), ours.stderr.Close(), ours.lifeline.Close())
		started <- err
		c.died()
		elsewhere(c.group.remove)
		close(c.done)
		return
	}
	var readers sync.WaitGroup
	readers.Go(func() { c.readStdout(&toTheEnd{File: ours.stdout}) })
	readers.Go(func() { c.out.read(&toTheEnd{File: ours.stderr}, "stderr") })
	started <- err
	c.reap(cmd)
	flying := c.flying() // before they are cut off
	c.died()
	deadline := time.Now().Add(afterExit)
	_ = errors.Join(ours.stdout.SetReadDeadline(deadline), ours.stderr.SetReadDeadline(deadline))
	readers.Wait()
	_ = errors.Join(ours.stdout.Close(), ours.stderr.Close(), ours.lifeline.Close(), c.line.Close())
	var oom bool
	elsewhere(func() { oom = c.group.oom(); c.group.remove() })
	c.mu.Lock()
	c.exit.OOM = oom
	c.exit.Stderr = c.out.last()
	c.exit.InFlight = flying
	c.mu.Unlock()
	close(c.done)
}

// elsewhere runs fn on another thread: the one that holds a process can reach no more than that can.
func elsewhere(fn func()) {
	done := make(chan struct{})
	go func() { fn(); close(done) }()
	<-done
}

// toTheEnd reads a pipe until its deadline, and then what is in it: on a host without time for its reader that may be
// all that a crash has printed. What a grandchild goes on printing is not waited for.
type toTheEnd struct {
	*os.File
	late bool
}

func (r *toTheEnd) Read(p []byte) (n int, err error) {
	if n, err = r.File.Read(p); n > 0 || r.late || !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	r.late = true
	raw, rawErr := r.SyscallConn()
	if rawErr != nil {
		return 0, err
	}
	if rawErr = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), p) }); rawErr != nil || n <= 0 {
		return 0, err
	}
	return n, nil
}

// startBusy starts cmd, again for a moment where the program's file is still open for writing in a process that was
// forked while somebody wrote it.
func startBusy(cmd *exec.Cmd) error {
	for try := 0; ; try++ {
		again := *cmd
		err := again.Start()
		if err == nil || !errors.Is(err, syscall.ETXTBSY) || try == 6 {
			cmd.Process = again.Process
			return err
		}
		<-time.After(time.Millisecond << try)
	}
}

// reap waits for the process, ends what is left of its group while its number cannot be anybody else's, and notes
// how it ended.
func (c *child) reap(cmd *exec.Cmd) {
	for {
		err := unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = unix.Kill(-c.pid, unix.SIGKILL)
	elsewhere(c.group.kill)
	state, _ := cmd.Process.Wait()
	c.reaped = true
	c.exit = &Exit{PID: c.pid, Uptime: time.Since(c.started), Digest: c.prog.digest(), Requested: c.asked}
	if state == nil {
		c.exit.Code = -1
		return
	}
	ws := state.Sys().(syscall.WaitStatus)
	c.exit.Code = ws.ExitStatus()
	if ws.Signaled() {
		c.exit.Code, c.exit.Signal = 128+int(ws.Signal()), ws.Signal().String()
	}
}

var handshakeForm = regexp.MustCompile(`^\d+\|\d+\|`)

// readStdout passes the handshake line to go-plugin and every other line to the log.
func (c *child) readStdout(r io.Reader) {
	seen := false
	_ = eachLine(r, func(line string) {
		if seen || !handshakeForm.MatchString(line) {
			c.out.line(line, "stdout")
			return
		}
		seen = true
		close(c.handshook)
		_, _ = io.WriteString(c.lineW, line+"\n")
		_ = c.lineW.Close()
	})
	if !seen { // it is most likely ending: let its own end be what counts, not our answer to the silence
		select {
		case <-c.dead.Done():
		case <-time.After(afterExit):
		}
	}
	_ = c.lineW.Close()
}

// signal sends sig to the process and its group, if the process is there.
func (c *child) signal(sig unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return
	}
	c.asked = true
	if c.pid == 0 {
		c.doomed = c.doomed || sig == unix.SIGKILL
		return
	}
	_ = unix.Kill(-c.pid, sig)
}

// stop asks the process to end, and kills it when it has not within grace. It returns when nothing is left, or when
// not even the kernel could end it in time.
func (c *child) stop(grace time.Duration) error {
	if grace > 0 {
		c.signal(unix.SIGTERM)
		if c.ended(grace) {
			return nil
		}
	}
	c.signal(unix.SIGKILL)
	if !c.ended(unkillable) {
		return fmt.Errorf("process %s was killed and is still there: it hangs in the kernel", c.ID())
	}
	return nil
}

// ending returns how the process ended, after its end.
func (c *child) ending() *Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}

// wasAsked reports whether we told the process to end.
func (c *child) wasAsked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// unkillable is how long a killed process may take to be gone.
const unkillable = 10 * time.Second

func (c *child) ended(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-c.done:
		return true
	case <-t.C:
		return false
	}
}

// Kill ends the process at once; go-plugin calls it when a start has failed.
func (c *child) Kill(context.Context) error { return c.stop(0) }

// Wait waits for the end of the process.
func (c *child) Wait(context.Context) error {
	<-c.dead.Done()
	return nil
}

// Stdout has the handshake line, then ends.
func (c *child) Stdout() io.ReadCloser { return c.line }

// Stderr is empty: what the process prints is read by us.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name returns the extension's name.
func (c *child) Name() string { return c.spec.Name }

// Diagnose has nothing to add: errors of a start are written by us.
func (c *child) Diagnose(context.Context) string { return "" }

// ID returns the process id, or nothing if there is no process.
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return ""
	}
	return strconv.Itoa(c.pid)
}

// PluginToHost accepts the socket that the process listens on only where it was told to make it.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(filepath.Clean(address), c.dir+"/") {
		return "", "", fmt.Errorf("it listens on %s %s instead of a Unix socket in the directory that it was given", network, address)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket = address
	return network, address, nil
}

// socketPath returns where the process listens, which its handshake has said.
func (c *child) socketPath() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.socket
}

// HostToPlugin leaves addresses as they are.
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

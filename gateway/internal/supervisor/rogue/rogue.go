// Package rogue is an extension program that does what programs do wrong, for the tests of those who have to live with
// it. It is written against the wire alone, as an author without the SDK would: what it does wrong, others may do wrong.
package rogue

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/fault"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

const (
	// Mode is the variable that says how the program behaves: a word, and after a colon what it needs.
	Mode = "PROBE_MODE"
	// Drained is the variable that names the file which the program makes when it is told to drain.
	Drained = "PROBE_DRAINED"
	// Do is the label by which a sandbox says what the program does in its before_create: see act. Where there is none, the
	// step's key says it.
	Do = "do"
)

// Main is the main of the program.
func Main(mode string) {
	word, arg, _ := strings.Cut(mode, ":")
	switch word {
	case "exit": // before the handshake
		fmt.Fprintln(os.Stderr, "cannot open the pool")
		n, _ := strconv.Atoi(arg)
		unix.Exit(n)
	case "silent": // no handshake, ever
		select {}
	case "garbage": // something that is no handshake, then the end
		fmt.Println("usage: probe [flags]")
		unix.Exit(2)
	case "stopped": // frozen before the handshake
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "elsewhere": // a socket that is not where it was told to be
		fmt.Println("1|1|unix|/tmp/sandgate-probe.sock|grpc|")
		select {}
	case "version":
		fmt.Println("1|99|unix|" + os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/s|grpc|")
		select {}
	case "banner":
		fmt.Println("Probe 1.0, starting up")
		fmt.Println(strings.Repeat("=", 70<<10))
	case "badlog":
		fmt.Fprintln(os.Stderr, `{"@message": 1}`)
		fmt.Fprintln(os.Stderr, `{"@level": [], "@message": {}, "msg": 7}`)
		fmt.Fprintln(os.Stderr, `{"@level":"warn","@message":"pool is nearly full","@module":"pool","left":3}`)
	case "background": // as a daemon would: what serves is nobody's child
		background(arg)
	case "grandchild": // holds our output, in the group or, with arg "away", out of it
		child := exec.Command("/bin/sleep", "1000")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: arg == "away"}
		if err := child.Start(); err != nil {
			panic(err)
		}
		fmt.Fprintln(os.Stderr, "grandchild", child.Process.Pid)
	}
	serveProbe(word, arg)
}

// background starts the program again by one that ends, out of its session, with everything that it was given. What was
// started first stays.
func background(arg string) {
	again := func(next string) *exec.Cmd {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), Mode+"="+next)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.ExtraFiles = []*os.File{os.NewFile(wire.LaunchFD, "launch")}
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		return c
	}
	switch arg {
	case "orphan":
		c := again("background:between")
		_ = c.Run()
		select {}
	case "between":
		c := again("background:alone:" + strconv.Itoa(os.Getpid()))
		c.SysProcAttr.Pdeathsig = 0
		if err := c.Start(); err != nil {
			panic(err)
		}
		unix.Exit(0)
	default: // "alone:PID": when that one is gone
		for strings.HasSuffix(arg, ":"+strconv.Itoa(os.Getppid())) {
			runtime.Gosched()
		}
	}
}

func serveProbe(word, arg string) {
	launchFile := os.NewFile(wire.LaunchFD, "launch")
	launch, err := wire.ReadLaunch(launchFile)
	if err != nil {
		panic(err)
	}
	config := &goplugin.ServeConfig{
		HandshakeConfig:  wire.Handshake(),
		VersionedPlugins: wire.Plugins(&probe{word: word, arg: arg, busy: map[string]*sync.Mutex{}}),
		TLSProvider:      launch.ServerTLS,
		GRPCServer:       func(opts []grpc.ServerOption) *grpc.Server { return grpc.NewServer(opts...) },
		Logger:           hclog.NewNullLogger(),
	}
	switch word {
	case "plaintext":
		config.TLSProvider = nil
	case "impostor": // TLS with a pair of its own
		other, _, err := wire.NewLaunch()
		if err != nil {
			panic(err)
		}
		config.TLSProvider = func() (*tls.Config, error) { return other.ServerTLS() }
	}
	goplugin.Serve(config)
}

// probe is the extension that it serves.
type probe struct {
	extensionv1.UnimplementedExtensionServer
	word, arg string

	mu         sync.Mutex
	busy       map[string]*sync.Mutex // by subject: one call at a time
	configured string
	sick       string
}

func (p *probe) Describe(context.Context, *extensionv1.DescribeRequest) (*extensionv1.DescribeResponse, error) {
	m := &extensionv1.Manifest{Name: "probe", Version: "1.0.0", Phases: []string{"before_create", "on_create_failed", "after_delete"}}
	if p.word == "mute" {
		select {}
	}
	if p.word == "changing" { // another version with each process; arg is a file that counts
		n, _ := os.ReadFile(p.arg)
		m.Version = fmt.Sprintf("1.0.%d", len(n))
		_ = os.WriteFile(p.arg, append(n, '.'), 0o600)
	}
	return &extensionv1.DescribeResponse{Manifest: m}, nil
}

func (p *probe) Configure(_ context.Context, req *extensionv1.ConfigureRequest) (*extensionv1.ConfigureResponse, error) {
	if strings.Contains(string(req.GetConfig()), "wrong") {
		return &extensionv1.ConfigureResponse{Diagnostics: []*extensionv1.Diagnostic{{Summary: "no such pool", Path: "pool"}}}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configured = string(req.GetConfig())
	switch p.word {
	case "crashloop":
		unix.Exit(7)
	case "undecided": // for ever
		fmt.Fprintln(os.Stderr, "asking the pool's server")
		select {}
	case "undecided-frozen":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {}
	}
	return &extensionv1.ConfigureResponse{}, nil
}

func (p *probe) Health(context.Context, *extensionv1.HealthRequest) (*extensionv1.HealthResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &extensionv1.HealthResponse{Ready: p.sick == "", Reason: p.sick}, nil
}

func (p *probe) Drain(context.Context, *extensionv1.DrainRequest) (*extensionv1.DrainResponse, error) {
	if path := os.Getenv(Drained); path != "" {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
	}
	return &extensionv1.DrainResponse{}, nil
}

func (p *probe) BeforeCreate(ctx context.Context, req *extensionv1.PhaseRequest) (*extensionv1.SetupResponse, error) {
	if answer := malformed(req.GetSubject().GetLabels()[Do]); answer != nil {
		return answer, nil
	}
	todo := req.GetSubject().GetLabels()[Do]
	if todo == "" {
		todo = req.GetStep().GetKey()
	}
	text, err := p.act(ctx, req, todo)
	return &extensionv1.SetupResponse{Diagnostics: []*extensionv1.Diagnostic{{Summary: text}}}, err
}

// malformed returns an answer that no contract allows.
func malformed(todo string) *extensionv1.SetupResponse {
	switch todo {
	case "no-kind":
		return &extensionv1.SetupResponse{Entries: []*extensionv1.Entry{{Text: "something"}}}
	case "big-state":
		return &extensionv1.SetupResponse{State: &extensionv1.State{SchemaVersion: 1, Payload: make([]byte, 1<<20)}}
	case "foreign":
		return &extensionv1.SetupResponse{Contribute: []*extensionv1.Object{{Kind: "Nothing", Name: "of ours"}}}
	case "escape":
		return &extensionv1.SetupResponse{Denied: true, Diagnostics: []*extensionv1.Diagnostic{{Summary: "\x1b[2J\x1b]0;owned\x07no"}}}
	}
	return nil
}

// AfterDelete releases what it never held.
func (p *probe) AfterDelete(context.Context, *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	return &extensionv1.HoldResponse{}, nil
}

func (p *probe) OnCreateFailed(ctx context.Context, req *extensionv1.PhaseRequest) (*extensionv1.HoldResponse, error) {
	text, err := p.act(ctx, req, req.GetStep().GetKey())
	return &extensionv1.HoldResponse{Diagnostics: []*extensionv1.Diagnostic{{Summary: text}}}, err
}

// act does what it is told to. Calls of one subject are served one at a time.
func (p *probe) act(ctx context.Context, req *extensionv1.PhaseRequest, todo string) (string, error) {
	p.mu.Lock()
	subject := req.GetSubject().GetSandbox().GetId()
	if p.busy[subject] == nil {
		p.busy[subject] = &sync.Mutex{}
	}
	one := p.busy[subject]
	p.mu.Unlock()
	one.Lock()
	defer one.Unlock()
	word, arg, _ := strings.Cut(todo, ":")
	switch word {
	case "exit":
		fmt.Fprintln(os.NewFile(2, "stderr"), "pool file is corrupt") // os.Stderr is go-plugin's by now, which loses last words
		n, _ := strconv.Atoi(arg)
		unix.Exit(n)
	case "freeze":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {} // another thread may have been stopped before this one
	case "hang": // until it is cancelled
		<-ctx.Done()
		return "", ctx.Err()
	case "deaf": // for ever, cancelled or not
		select {}
	case "linger": // goes on for a while after it was cancelled
		d, _ := time.ParseDuration(arg)
		<-time.After(d)
	case "fail":
		return "", fault.ToStatus(fault.New(fault.ResourceExhausted, "pool is full"))
	case "huge":
		return strings.Repeat("x", 8<<20), nil
	case "panic":
		panic("pool table is nil")
	case "sick":
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sick = arg
	case "env":
		return strings.Join(os.Environ(), "\n"), nil
	case "read": // one of its own files
		text, err := os.ReadFile(arg)
		return string(text), err
	case "list":
		_, err := os.ReadDir(arg)
		return "", err
	case "write":
		return "", os.WriteFile(arg, []byte("it was here\n"), 0o600)
	case "touch": // below its working directory
		return "", os.WriteFile("file", nil, 0o600)
	case "kill":
		pid, _ := strconv.Atoi(arg)
		return "", syscall.Kill(pid, 0)
	case "config":
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.configured, nil
	case "flood":
		w := bufio.NewWriter(os.NewFile(2, "stderr"))
		for i := range 50_000 {
			fmt.Fprintf(w, "line %d of a flood\n", i)
		}
		_ = w.Flush()
	case "longline": // to the real standard output, which nobody but the host can drain
		out := os.NewFile(1, "stdout")
		for range 20 {
			fmt.Fprintln(out, strings.Repeat("y", 70<<10))
		}
	case "print": // by way of go-plugin's streams
		fmt.Println(arg)
	}
	return "done", nil
}

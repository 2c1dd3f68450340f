package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sandgate/sandgate/drivers/native"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/plugin"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// nativePlugin is native as a program of its own, over sandgate.driver.v1. Where a file "die" lies in its directory it
// removes that and is killed once its Create has had its effect.
type nativePlugin struct{}

func (nativePlugin) Info() plugin.Info { return plugin.Info{Name: "native-program", Version: "1.0.0"} }

func (nativePlugin) Open(_ context.Context, c *plugin.DriverConfig) (driver.Driver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d, err := native.Open(native.Config{Dir: c.Dir, Shim: []string{self, shimSwitch}, Logger: slog.New(slog.DiscardHandler), StopTimeout: 2 * time.Second})
	if err != nil {
		return nil, err
	}
	return dying{d, c.Dir}, nil
}

type dying struct {
	driver.Driver
	dir string
}

func (d dying) Unwrap() driver.Driver { return d.Driver }

func (d dying) Create(ctx context.Context, r *driver.CreateRequest) error {
	err := d.Driver.Create(ctx, r)
	if os.Remove(filepath.Join(d.dir, "die")) == nil {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	return err
}

// driverProgram makes a copy of this test binary that is a driver by its name.
func driverProgram(t *testing.T, dir string) string {
	path := filepath.Join(dir, "driver")
	raw, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestADriverProgramConforms(t *testing.T) {
	t.Parallel() // it waits more than it works
	dir := t.TempDir()
	program := driverProgram(t, dir)
	sockets, err := os.MkdirTemp("", "sgp")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(sockets) }()
	s, err := supervisor.New(supervisor.Config{Dir: sockets, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	place := func(tb testing.TB) func() (driver.Driver, error) {
		place := tb.TempDir()
		return func() (driver.Driver, error) {
			h, err := s.Launch(tb.Context(), supervisor.Spec{Name: "native-program", Command: program, Unpinned: true, Privileged: true})
			if err != nil {
				return nil, err
			}
			told := fmt.Appendf(nil, `{"name":"native","dir":%q}`, place)
			if err := h.Configure(tb.Context(), told, nil); err != nil {
				return nil, err
			}
			return wire.NewDriver(tb.Context(), h.Reach, h.Close)
		}
	}
	drivertest.Lifecycle(t, drivertest.Factory{Driver: "native", Place: place, Commands: drivertest.Shell()})
}

// TestRealScenario37: a driver program dies in Create, after its effect: it is asked, and asked again, and there is one.
func TestRealScenario37ADriverProgramDiesInCreate(t *testing.T) {
	s := newSite(t)
	path := s.write(s.keeperBlock(""), fmt.Sprintf(tunedBind, "30s"))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%s\ndriver \"far\" {\n  command = %q\n}\n", onBase(string(raw), "far"), driverProgram(t, s.dir))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	defer s.end()
	if err := os.WriteFile(filepath.Join(s.dir, "data", "drivers", "far", "die"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "data", "drivers", "far", "die")); !os.IsNotExist(err) {
		t.Error("the driver's program did not die")
	}
	s.until("it is ready", func() bool { sb, _ := s.d.engine.Lookup(id.ID); return sb.State == sandbox.Ready })
	list, err := s.d.catalog.current().Drivers["acme"].Driver.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("there are %d sandboxes: %v", len(list), err)
	}
	program := s.d.open["far"].program
	before := program.Status().PID
	conn, err := grpc.NewClient("unix://"+s.dir+"/gw.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	operator := gatewayv1.NewGatewayClient(conn)
	now, err := operator.RestartExtension(t.Context(), &gatewayv1.RestartExtensionRequest{Name: "far"})
	if err != nil || int(now.GetExtension().GetPid()) == before || now.GetExtension().GetState() != string(supervisor.Ready) {
		t.Errorf("restarted by an operator: %v; process %d is %v", err, before, now)
	}
	if _, err := operator.DisableExtension(t.Context(), &gatewayv1.DisableExtensionRequest{Name: "far"}); status.Code(err) != codes.NotFound {
		t.Errorf("a driver was disabled: %v", err)
	}
	s.remove(id.ID)
	if s.held() != 0 {
		t.Error("something is held still")
	}
}

// TestADriverProgramRunsAsAnotherUser: in its own directory, reached by its socket, under its limits; nobody else comes
// nearer to what the gateway keeps.
func TestADriverProgramRunsAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root starts a process as another user")
	}
	t.Parallel() // it waits more than it works
	const nobody = 65534
	s := newSite(t)
	block := fmt.Sprintf("driver \"far\" {\n  command = %q\n  user = \"%d\"\n  group = \"%d\"\n  env = { WHO = \"far\" }\n  limits {\n    pids = 99\n  }\n}\n",
		driverProgram(t, s.dir), nobody, nobody)
	s.write(block, "")
	_, f, err := New(t.Context(), s.options())
	if err != nil || !strings.Contains(f.String(), "chmod o+x "+s.dir) {
		t.Errorf("in a directory that its user cannot reach: %v %s", err, f)
	}
	if err := os.Chmod(s.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	s.start()
	defer s.end()
	pid := s.d.open["far"].program.Status().PID
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil || st.Uid != nobody || st.Gid != nobody {
		t.Errorf("it runs as %d:%d: %v", st.Uid, st.Gid, err)
	}
	own := filepath.Join(s.dir, "data", "drivers", "far")
	if err := unix.Stat(own, &st); err != nil || st.Uid != nobody || st.Mode&0o077 != 0 {
		t.Errorf("its directory belongs to %d, mode %o: %v", st.Uid, st.Mode, err)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !strings.Contains(string(environ), "WHO=far") {
		t.Errorf("it has the environment %q: %v", environ, err)
	}
	if got := s.d.Program("far").GetIsolation(); got != "user 65534, group 65534, all privileges of that user, pids 99" {
		t.Errorf("isolation: %s", got)
	}
	for _, dir := range []string{"data", "data/drivers"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err == nil && info.Mode().Perm()&0o007 != 0 && filepath.Join(dir, e.Name()) != "data/drivers" {
				t.Errorf("%s/%s is open to others: %v", dir, e.Name(), info.Mode())
			}
		}
	}
}

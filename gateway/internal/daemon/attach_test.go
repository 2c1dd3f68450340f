package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/sandbox"
	"github.com/sandgate/sandgate/shared/wire"
)

// byHand starts the keeper as an author does under a debugger.
func (s *site) byHand(file string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(self(s.t), keeperSwitch, s.dir)
	cmd.Env, cmd.Stderr = append(os.Environ(), wire.EnvAttach+"="+file), os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// An author's process, started by hand, takes part like any other: it comes and goes as it likes, and so does the gateway.
func TestAGatewayAttachesToAProcessThatWasStartedByHand(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	file := filepath.Join(s.dir, "keeper.attach")
	first := s.byHand(file)
	attach := func(o *Options) { o.Attach = map[string]string{"keeper": file} }
	s.startWith(attach)
	if s.pid() != first.Process.Pid {
		t.Errorf("process %d serves, want %d", s.pid(), first.Process.Pid)
	}
	one, err := s.create("one", sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if s.held() != 1 {
		t.Error("it was not asked")
	}
	s.end()
	if err := unix.Kill(first.Process.Pid, 0); err != nil {
		t.Errorf("the process did not outlive the gateway: %v", err)
	}
	s.startWith(attach)
	defer s.end()
	_ = first.Process.Kill()
	_ = first.Wait()
	s.until("its end is seen", func() bool { return s.status().State == supervisor.Starting })
	second := s.byHand(file)
	s.until("the next process serves", func() bool { return s.pid() == second.Process.Pid && s.status().State == supervisor.Ready })
	s.remove(one.ID)
	if s.held() != 0 {
		t.Error("it was not asked to release")
	}
	if err := second.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("asked to end, it ended with %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Errorf("%s is left", file)
	}
}

func (s *site) status() supervisor.Status {
	return s.d.catalog.current().extensions["keeper"].handle.Status()
}

// Others may not put a process of theirs in the place of the author's.
func TestAnAttachmentOfOthersIsRefused(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.write(s.keeperBlock(""), keeperBind)
	file := filepath.Join(s.dir, "keeper.attach")
	s.byHand(file)
	waitFor(t, "file", func() bool { _, err := os.Stat(file); return err == nil })
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	sup, err := supervisor.New(supervisor.Config{Dir: filepath.Join(s.dir, "p")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sup.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = sup.Launch(ctx, supervisor.Spec{Name: "keeper", Attach: file})
	if err == nil || !strings.Contains(err.Error(), "closed to others") {
		t.Errorf("launch: %v", err)
	}
	if _, _, err := New(t.Context(), func() Options { o := s.options(); o.Attach = map[string]string{"kepeer": file}; return o }()); err == nil ||
		!strings.Contains(fmt.Sprint(err), `no extension "kepeer"`) {
		t.Errorf("a name that is not there: %v", err)
	}
}

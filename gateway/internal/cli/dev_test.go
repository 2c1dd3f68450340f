package cli

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A throwaway gateway needs nothing, and leaves nothing: no sandbox, no directory.
func TestAThrowawayGatewayLeavesNothing(t *testing.T) {
	s := newSite(t)
	cmd := s.program("gateway", "--dev")
	cmd.Env = append(cmd.Env, "TMPDIR="+s.dir)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	address := regexp.MustCompile(`export SANDGATE_ADDR=(\S+)`)
	s.until("the gateway answers", func() bool {
		if m := address.FindStringSubmatch(s.log.String()); m != nil {
			s.env["SANDGATE_ADDR"] = m[1]
		}
		_, _, code := s.run("version", "--gateway")
		return code == exitOK
	})
	s.ok("sandbox", "create", "--wait", "--", "sleep", "600")
	m := regexp.MustCompile(`process +(\d+)`).FindStringSubmatch(s.ok("resource", "list"))
	if m == nil {
		t.Fatal("the sandbox has no process")
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the sandbox is still there: %v", err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

package cli

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// An extension that has failed for good holds a lease of a deleted sandbox. The operator sees it, gives it up with a
// reason, and finds that in the audit.
func TestAbandonARelease(t *testing.T) {
	s := newSite(t)
	s.write(strings.Replace(s.chain("enforce"), "  config {\n    store", "  restart {\n    budget = 1\n  }\n  config {\n    store", 1))
	s.start()
	s.ok("sandbox", "create", "--driver", "acme", "--name", "one", "--wait", "--", "sleep", "600")
	s.killUntilFailed("ipam")
	s.ok("sandbox", "delete", "one")
	op := s.waiting("after_delete of ipam")
	if out := s.ok("resource", "list"); !strings.Contains(out, "ipam") || !strings.Contains(out, "releasing") {
		t.Errorf("what it holds still is not shown:\n%s", out)
	}
	if errs := s.refused(exitRefused, "operation", "abandon", op, "--extension", "ipam"); !strings.Contains(errs, "reason") {
		t.Errorf("abandon without a reason: %q", errs)
	}
	if errs := s.refused(exitNotFound, "operation", "abandon", op, "--extension", "nobody", "--reason", "x"); !strings.Contains(errs, "nobody") {
		t.Errorf("abandon of what waits for nothing: %q", errs)
	}
	s.ok("operation", "abandon", op, "--extension", "ipam", "--reason", "its pool was thrown away")
	s.until("nothing is held or unfinished", func() bool {
		return strings.Count(s.ok("resource", "list"), "\n") == 1 && strings.Count(s.ok("operation", "list"), "\n") == 1
	})
	if out := s.ok("audit"); !strings.Contains(out, "its pool was thrown away") || !strings.Contains(out, fmt.Sprintf("uid:%d", unix.Geteuid())) {
		t.Errorf("the audit does not say who gave it up and why:\n%s", out)
	}
}

// A driver that is gone for good cannot delete: the operator states that the compute is gone, and the releases follow.
func TestAbandonADriver(t *testing.T) {
	base := newSite(t)
	door := base.dir + "/door.sock"
	base.write(fmt.Sprintf("driver \"native\" {\n  expose {\n    socket = %q\n  }\n}\n", door))
	process := base.startProcess(nil)
	s := newSite(t)
	s.write(strings.NewReplacer("config {\n    stop_timeout = \"1s\"\n  }", fmt.Sprintf("socket = %q", "unix://"+door), "Process.annotations", "DriverSandbox.labels",
		"Process.", "DriverSandbox.").Replace(s.chain("enforce")))
	s.start()
	s.ok("sandbox", "create", "--driver", "acme", "--name", "one", "--wait", "--", "sleep", "600")
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait()
	s.ok("sandbox", "delete", "one")
	op := s.waiting(`driver "acme": delete`)
	if out := s.ok("resource", "list"); !strings.Contains(out, "ipam") {
		t.Errorf("a lease is released while the driver may have the sandbox:\n%s", out)
	}
	s.ok("operation", "abandon", op, "--driver", "--reason", "the host has burnt down")
	s.until("nothing is held or unfinished", func() bool {
		return strings.Count(s.ok("resource", "list"), "\n") == 1 && strings.Count(s.ok("operation", "list"), "\n") == 1
	})
	if out := s.ok("audit"); !strings.Contains(out, "the host has burnt down") {
		t.Errorf("the audit does not say why:\n%s", out)
	}
	base.startProcess(nil) // the compute is there after all, and the base's own operator removes it
	for _, line := range strings.Split(base.ok("sandbox", "list"), "\n")[1:] {
		if name, _, _ := strings.Cut(line, " "); name != "" {
			base.ok("sandbox", "delete", name, "--wait")
		}
	}
}

// killUntilFailed spends an extension's crash budget.
func (s *site) killUntilFailed(extension string) {
	s.t.Helper()
	s.until(extension+" has failed", func() bool {
		var info gatewayv1.Extension
		if err := protojson.Unmarshal([]byte(s.ok("extension", "inspect", extension, "-o", "json")), &info); err != nil {
			s.t.Fatal(err)
		}
		if info.Pid != 0 {
			_ = unix.Kill(int(info.Pid), unix.SIGKILL)
		}
		return info.State == "failed"
	})
}

// waiting returns the unfinished operation that is shown to wait for something.
func (s *site) waiting(what string) (id string) {
	s.t.Helper()
	s.until("the cleanup waits for "+what, func() bool {
		var list gatewayv1.ListOperationsResponse
		if err := protojson.Unmarshal([]byte(s.ok("operation", "list", "-o", "json")), &list); err != nil {
			s.t.Fatal(err)
		}
		for _, op := range list.Operations {
			if strings.Contains(waitingFor(op), what) {
				id = op.Id
			}
		}
		return id != ""
	})
	return id
}

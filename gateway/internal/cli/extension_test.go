package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/plugin"
)

// talkerSwitch makes the test binary an extension that says what it does.
const talkerSwitch = "talker"

// talker requires of its driver what its arguments name.
type talker struct{ requires []string }

type talkerConfig struct {
	Mood  string                `json:"mood" default:"calm" enum:"calm,cross" doc:"How it answers."`
	Token string                `json:"token" config:"optional,sensitive" doc:"For the service behind it."`
	Rate  float64               `json:"rate" default:"2" min:"1" max:"10" deprecated:"it is ignored"`
	Room  string                `json:"room" doc:"Where it is heard." example:"\"hall\""`
	Peers map[string]talkerPeer `json:"peer" config:"block" doc:"Who it talks to."`
}

type talkerPeer struct {
	Near bool `json:"near" default:"false"`
}

func (t talker) Info() plugin.Info {
	return plugin.Info{Name: "talker", Version: "1.2.3", Config: &talkerConfig{}, Requires: t.requires}
}

func (talker) ValidateRequest(_ context.Context, r *plugin.Request, _ *plugin.Verdict) error {
	id, _ := r.Sandbox()
	r.Logger().Warn("somebody asks for a sandbox", "name", id.Name)
	fmt.Fprintln(os.Stderr, "\x1b[2Jplain words")
	return nil
}

func (s *site) talks(restart string) string {
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf(`
extension "talker" {
  command = %q
  args    = [%q]
  %s
  limits { files = 64 }
  config { room = "hall" }
}
driver "native" {
  config {
    stop_timeout = "1s"
  }
}
driver "acme" {
  base = "native"
  bind "talker" {}
}
`, exe, talkerSwitch, restart)
}

// one is what `extension inspect` says.
func (s *site) one() (x struct {
	State, Reason, Isolation, Uptime string
	Pid, Restarts                    int
	LastError                        string `json:"last_error"`
}) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.ok("extension", "inspect", "talker", "-o", "json")), &x); err != nil {
		s.t.Fatal(err)
	}
	return x
}

func TestExtensionLogs(t *testing.T) {
	s := newSite(t)
	s.write(s.talks(""))
	s.start()
	var followed syncBuffer
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- Run(ctx, Env{Args: []string{"extension", "logs", "talker", "-f"}, Stdout: &followed, Stderr: &followed, Getenv: s.getenv})
	}()
	s.ok("sandbox", "plan", "--driver", "acme", "--name", "one", "--", "true")
	form := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARN  \[\d+\] somebody asks for a sandbox  .*\bname=one\b`)
	s.until("the line is followed", func() bool { return form.MatchString(followed.String()) })
	before := s.one().Pid
	s.ok("extension", "restart", "talker")
	s.ok("sandbox", "plan", "--driver", "acme", "--name", "two", "--", "true")
	s.until("the next process's line is followed, too", func() bool { return strings.Contains(followed.String(), "name=two") })
	all := s.ok("extension", "logs", "talker")
	for _, want := range []string{"name=one", "name=two", fmt.Sprintf("[%d]", before), fmt.Sprintf("[%d]", s.one().Pid), "plain words"} {
		if !strings.Contains(all, want) {
			t.Errorf("the log lacks %s:\n%s", want, all)
		}
	}
	if strings.Contains(all, "\x1b") {
		t.Errorf("what an extension prints reaches the terminal: %q", all)
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("the reader ended with %d: %s", code, followed.String())
	}
	s.refused(exitNotFound, "extension", "logs", "nobody")
}

func TestExtensionDocs(t *testing.T) {
	s := newSite(t)
	s.write(s.talks(""))
	s.start()
	const want = `extension "talker", version 1.2.3

config {
  mood  (string; default "calm"; one of "calm", "cross")
    # How it answers.

  token  (string; optional; sensitive)
    # For the service behind it.

  rate  (number; default 2; from 1 to 10)
    # Deprecated: it is ignored

  room  (string; required)
    # Where it is heard.
    # For example "hall"

  peer <name> {  (any number)
    # Who it talks to.
    near  (bool; default false)
  }
}
`
	if got := s.ok("extension", "docs", "talker"); got != want {
		t.Errorf("it prints\n%s\nand not\n%s", got, want)
	}
	var schema struct {
		Attributes []struct{ Name string }
		Blocks     []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(s.ok("extension", "docs", "talker", "-o", "json")), &schema); err != nil || len(schema.Attributes) != 4 || schema.Blocks[0].Type != "peer" {
		t.Errorf("as JSON: %+v, %v", schema, err)
	}
	s.refused(exitNotFound, "extension", "docs", "nobody")
}

func TestExtensionRestart(t *testing.T) {
	s := newSite(t)
	s.write(s.talks("restart { budget = 1 }"))
	s.start()
	x := s.one()
	if x.Uptime == "" || !strings.Contains(x.Isolation, "no new privileges, no capabilities, files 64") {
		t.Errorf("it is shown as %+v", x)
	}
	for range 2 {
		_ = unix.Kill(x.Pid, unix.SIGKILL)
		s.until("its end is seen", func() bool {
			now := s.one()
			return now.Pid != x.Pid && (now.State == "ready" || now.State == "failed")
		})
		x = s.one()
	}
	if list := s.ok("extension", "list"); x.State != "failed" || !strings.Contains(list, "crashed more than 1 times") || !strings.Contains(list, "ISOLATION") {
		t.Fatalf("after two crashes: %+v\n%s", x, list)
	}
	if said := s.refused(exitUnavailable, "sandbox", "plan", "--driver", "acme", "--name", "one", "--", "true"); !strings.Contains(said, "talker") {
		t.Errorf("a plan without it: %s", said)
	}
	if out := s.ok("extension", "restart", "talker"); !strings.HasPrefix(out, "talker is ready, process ") {
		t.Errorf("it says %q", out)
	}
	if now := s.one(); now.State != "ready" || now.Pid == x.Pid {
		t.Errorf("afterwards: %+v", now)
	}
	s.ok("sandbox", "plan", "--driver", "acme", "--name", "one", "--", "true")
	if audit := s.ok("audit"); !regexp.MustCompile(`operator +talker +- +ok +uid:\d+ +- +extension restart`).MatchString(audit) {
		t.Errorf("the audit:\n%s", audit)
	}
	s.refused(exitNotFound, "extension", "restart", "nobody")
}

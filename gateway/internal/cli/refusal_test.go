package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a bind wants and the driver does not offer is the same error, at its line, for validate --launch and the start:
// a feature that the extension requires, and a point that the operator grants.
func TestWhatTheDriverDoesNotOfferIsShownAtTheBind(t *testing.T) {
	for name, write := range map[string]func(s *site) string{
		"missing-feature": func(s *site) string {
			return strings.Replace(s.talks(""), `["talker"]`, `["talker", "guest-init-dropins"]`, 1)
		},
		"missing-point": func(s *site) string {
			return strings.ReplaceAll(s.chain("enforce"), `"Process.environment"`, `"Container.env", "Process.environment"`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.write(write(s))
			out, checked, code := s.run("config", "validate", "--dev", "--launch", s.config())
			if code != exitFailure || out != "" {
				t.Errorf("validate --launch: exit %d, stdout %q", code, out)
			}
			s.golden(name, checked)
			_, started, code := s.run("gateway", "--dev", "--config", s.config())
			if code != exitConfig {
				t.Errorf("the start: exit %d", code)
			}
			if started != checked {
				t.Errorf("the start says something else:\n%s", started)
			}
			if _, _, code := s.run("config", "validate", "--dev", s.config()); code != exitOK {
				t.Errorf("validate without --launch: exit %d", code)
			}
		})
	}
}

// The kill switch holds across a restart, names the extension where it stops a create, and lets go.
func TestTheKillSwitchHoldsAcrossARestart(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	create := func(name string) []string {
		return []string{"sandbox", "create", "--driver", "acme", "--name", name, "--wait", "--", "sleep", "600"}
	}
	s.ok(create("before")...)
	s.ok("extension", "disable", "ipam")
	if said := s.stderr(exitRefused, create("one")...); !strings.Contains(said, "ipam") || !strings.Contains(said, "disabled") {
		t.Errorf("a create without ipam: %s", said)
	}
	s.end()
	s.start()
	if out := s.ok("extension", "list"); !strings.Contains(out, "ready, disabled") {
		t.Errorf("after a restart:\n%s", out)
	}
	s.stderr(exitRefused, create("one")...)
	s.ok("sandbox", "delete", "before", "--wait")
	if out := s.ok("resource", "list"); strings.Contains(out, "ip-lease") {
		t.Errorf("what is disabled releases all the same:\n%s", out)
	}
	s.ok("extension", "disable", "ipam", "--bypass")
	s.ok(create("bypassed")...)
	if out := s.ok("audit"); !strings.Contains(out, "bypass") || !strings.Contains(out, "extension disable --bypass") {
		t.Errorf("the audit:\n%s", out)
	}
	s.ok("extension", "enable", "ipam")
	s.ok(create("one")...)
	s.ok("sandbox", "delete", "one", "--wait")
	s.ok("sandbox", "delete", "bypassed", "--wait")
}

// stderr runs a command that has to fail with the code; it may have shown progress before.
func (s *site) stderr(want int, args ...string) string {
	s.t.Helper()
	out, errs, code := s.run(args...)
	if code != want {
		s.t.Errorf("sandgate %s: exit %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, errs)
	}
	return errs
}

// A driver that has sandboxes is not dropped and not re-based, neither by a reload nor by a restart: the count is said.
func TestADriverInUseIsNotDropped(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\ndriver \"other\" {\n  type = \"native\"\n}\ndriver \"acme\" {\n  base = \"native\"\n}\n")
	s.start()
	s.ok("sandbox", "create", "--driver", "acme", "--name", "one", "--wait", "--", "sleep", "600")
	for name, text := range map[string]string{
		"dropped":  "driver \"native\" {}\ndriver \"other\" {\n  type = \"native\"\n}\n",
		"re-based": "driver \"native\" {}\ndriver \"other\" {\n  type = \"native\"\n}\ndriver \"acme\" {\n  base = \"other\"\n}\n",
	} {
		s.write(text)
		said := s.refused(exitRefused, "gateway", "reload")
		if !strings.Contains(said, "1 sandboxes and 1 workspaces") || !strings.Contains(said, "site.hcl:") {
			t.Errorf("%s, by a reload: %s", name, said)
		}
	}
	s.end()
	_, said, code := s.run("gateway", "--dev", "--config", s.config())
	if code != exitConfig || !strings.Contains(said, "1 sandboxes and 1 workspaces") || !strings.Contains(said, "site.hcl line") {
		t.Errorf("by a restart: exit %d, %s", code, said)
	}
	s.write("driver \"native\" {}\ndriver \"other\" {\n  type = \"native\"\n}\ndriver \"acme\" {\n  base = \"native\"\n}\n")
	s.start()
	s.ok("sandbox", "delete", "one", "--wait")
	s.ok("workspace", "delete", "default", "--driver", "acme")
	s.write("driver \"native\" {}\ndriver \"other\" {\n  type = \"native\"\n}\n")
	if out := s.ok("gateway", "reload"); !strings.Contains(out, "driver acme: removed") {
		t.Errorf("what the reload did:\n%s", out)
	}
}

// One name in two places is ambiguous, and the error says where; --driver and --workspace say which; of one name the
// newest is meant.
func TestNamesThatAreAmbiguous(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\ndriver \"acme\" {\n  base = \"native\"\n}\n")
	s.start()
	create := func(driver, workspace string) {
		s.ok("sandbox", "create", "--driver", driver, "--workspace", workspace, "--name", "one", "--", "sleep", "600")
	}
	create("native", "a")
	create("acme", "a")
	if said := s.refused(exitRefused, "sandbox", "get", "one"); !strings.Contains(said, "acme/a, native/a") || !strings.Contains(said, "--driver") {
		t.Errorf("two drivers: %s", said)
	}
	s.ok("sandbox", "delete", "one", "--driver", "native", "--wait")
	create("acme", "b")
	s.refused(exitRefused, "sandbox", "get", "one")
	if out := s.ok("sandbox", "get", "one", "--workspace", "b"); !strings.Contains(out, "acme") {
		t.Errorf("by workspace: %s", out)
	}
	s.ok("sandbox", "delete", "one", "--workspace", "a", "--wait", "--driver", "acme")
	old := s.ok("sandbox", "get", "one", "-o", "json")
	s.ok("sandbox", "delete", "one", "--wait")
	create("acme", "b")
	if now := s.ok("sandbox", "get", "one", "-o", "json"); now == old || strings.Contains(now, "deleted") {
		t.Errorf("of one name the newest: %s", now)
	}
	s.ok("sandbox", "delete", "one", "--wait")
}

// A shell is told the names of what there is.
func TestCompletionKnowsNames(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	s.ok("sandbox", "create", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--", "sleep", "600")
	for want, args := range map[string][]string{
		"one\t":    {"sandbox", "get", ""},
		"ipam\t":   {"extension", "inspect", ""},
		"acme\t":   {"sandbox", "create", "--driver", ""},
		"team-a\t": {"workspace", "get", ""},
		"yaml":     {"sandbox", "list", "-o", ""},
	} {
		if out, _, _ := s.run(append([]string{"__complete"}, args...)...); !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("%v completes to %q, want %q in it", args, out, want)
		}
	}
	s.ok("sandbox", "delete", "one", "--wait")
}

// Every list and get has the three forms.
func TestEveryListAndGetHasThreeForms(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	s.ok("sandbox", "create", "--driver", "acme", "--name", "one", "--", "sleep", "600")
	for _, command := range []string{"sandbox list", "sandbox get one", "sandbox history one", "sandbox plan --of one", "workspace list", "workspace get default --driver acme",
		"extension list", "extension inspect ipam", "driver list", "driver inspect acme", "resource list", "operation list", "audit"} {
		args := strings.Fields(command)
		table, js, yaml := s.ok(args...), s.ok(append(args, "-o", "json")...), s.ok(append(args, "-o", "yaml")...)
		if !strings.HasPrefix(js, "{") || strings.HasPrefix(yaml, "{") && yaml != "{}\n" || strings.HasPrefix(table, "{") {
			t.Errorf("%s:\n%s%s%s", command, table, js, yaml)
		}
	}
	s.ok("sandbox", "delete", "one", "--wait")
}

func TestConfigFmt(t *testing.T) {
	s := newSite(t)
	if err := os.WriteFile(s.config(), []byte("driver \"native\" {\nchain_timeout=\"1m\"\n ready_timeout = \"2m\"\n}\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out, _, code := s.run("config", "fmt", "--check", s.config()); code != exitFailure || !strings.Contains(out, "site.hcl") {
		t.Errorf("--check: %d %q", code, out)
	}
	s.ok("config", "fmt", s.config())
	raw, err := os.ReadFile(s.config())
	if want := "driver \"native\" {\n  chain_timeout = \"1m\"\n  ready_timeout = \"2m\"\n}\n"; err != nil || string(raw) != want {
		t.Errorf("%v %s", err, raw)
	}
	if out := s.ok("config", "fmt", s.config()); out != "" {
		t.Errorf("again: %q", out)
	}
	s.ok("config", "validate", s.config())
}

// What is found can be read by programs, in Terraform's shape, whichever syntax the configuration is in.
func TestValidateForPrograms(t *testing.T) {
	s := newSite(t)
	for name, text := range map[string]string{
		"x.hcl":      "driver \"native\" {}\ndriver \"acme\" {\n  base = \"natve\"\n}\n",
		"x.hcl.json": "{\"driver\": [\n {\"native\": {}},\n {\"acme\": {\"base\": \"natve\"}}\n]}\n",
	} {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, launch := range []string{"--launch=false", "--launch"} {
			out, _, code := s.run("config", "validate", "-o", "json", launch, path)
			var r struct {
				FormatVersion string `json:"format_version"`
				Valid         *bool
				ErrorCount    int `json:"error_count"`
				Diagnostics   []struct {
					Severity, Summary, Detail string
					Range                     struct {
						Filename   string
						Start, End struct{ Line, Column, Byte int }
					}
					Snippet struct {
						Context, Code string
						StartLine     int `json:"start_line"`
						From          int `json:"highlight_start_offset"`
						To            int `json:"highlight_end_offset"`
					}
				}
			}
			if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailure {
				t.Fatalf("%s: exit %d, %v\n%s", name, code, err, out)
			}
			if r.FormatVersion != "1.0" || r.Valid == nil || *r.Valid || r.ErrorCount != 1 || len(r.Diagnostics) != 1 {
				t.Fatalf("%s: %s", name, out)
			}
			d := r.Diagnostics[0]
			if d.Severity != "error" || d.Range.Filename != path || d.Range.Start.Line != 3 || text[d.Range.Start.Byte:d.Range.End.Byte] != `"natve"` ||
				d.Snippet.StartLine != 3 || d.Snippet.Code[d.Snippet.From:d.Snippet.To] != `"natve"` || !strings.Contains(d.Detail, `"native"`) {
				t.Errorf("%s: %s", name, out)
			}
		}
	}
}

// What an extension's sandbox keeps it from is said with what lets it, and having none is seen in the list.
func TestASandboxIsExplained(t *testing.T) {
	s := newSite(t)
	const paths = "  paths {\n    write = [\"%s/leases\"]\n  }\n"
	s.write(strings.Replace(s.chain("enforce"), fmt.Sprintf(paths, s.dir), "", 1))
	_, said, code := s.run("config", "validate", "--dev", "--launch", s.config())
	if confined := !strings.Contains(said, "no Landlock") && code != exitOK; confined && !strings.Contains(said, "paths { read, write }") {
		t.Errorf("exit %d:\n%s", code, said)
	}
	s.write(strings.Replace(s.chain("enforce"), fmt.Sprintf(paths, s.dir), "  sandbox = \"none\"\n", 1))
	s.start()
	for _, line := range strings.Split(s.ok("extension", "list"), "\n") {
		if strings.HasPrefix(line, "ipam ") != strings.Contains(line, "no sandbox,") {
			t.Errorf("the list shows: %s", line)
		}
	}
}

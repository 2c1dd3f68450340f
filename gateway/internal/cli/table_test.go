package cli

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What differs from run to run, and what stands for it.
var variable = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?`), "TIME"},
	{regexp.MustCompile(`\b[\d.]+(µs|ms|s)\b`), "DURATION"},
	{regexp.MustCompile(`sensitive, [0-9a-f]{4}…`), "sensitive, DIGEST"},
	{regexp.MustCompile(`/\S*/examples\d+`), "EXAMPLES"},
	{regexp.MustCompile(`process  +\d+`), "process  PID"},
	{regexp.MustCompile(`Instance: +\w+`), "Instance: INSTANCE"},
	{regexp.MustCompile(`uid:\d+`), "uid:UID"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "DIGEST"},
	{regexp.MustCompile(`(?m) +$`), ""},
	{regexp.MustCompile(`  +`), "  "},
}

// golden compares what a command printed with the file of that name.
func (s *site) golden(name, got string) {
	s.t.Helper()
	got = regexp.MustCompile(regexp.QuoteMeta(s.dir)).ReplaceAllString(got, "DIR")
	for _, v := range variable {
		got = v.what.ReplaceAllString(got, v.with)
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" && os.Geteuid() == 0 { // what a driver offers depends on the user
		s.t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestTables(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.start()
	s.golden("plan", s.ok("sandbox", "plan", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--env", "PASSWORD=hush", "--label", "app=web", "--", "sleep", "600"))
	_, progress, code := s.run("sandbox", "create", "--driver", "acme", "--workspace", "team-a", "--name", "one", "--env", "PASSWORD=hush", "--wait", "--", "sleep", "600")
	if code != 0 {
		t.Fatalf("%d: %s", code, progress)
	}
	s.golden("create-progress", progress)
	s.golden("sandbox-list", s.ok("sandbox", "list"))
	s.golden("sandbox-get", s.ok("sandbox", "get", "one"))
	s.golden("history", s.ok("sandbox", "history", "one"))
	s.golden("resource-list", s.ok("resource", "list"))
	s.golden("workspace-get", s.ok("workspace", "get", "team-a", "--driver", "acme"))
	s.golden("driver-list", s.ok("driver", "list"))
	s.golden("driver-inspect", s.ok("driver", "inspect", "acme"))
	s.golden("extension-inspect", regexp.MustCompile(`PID:\s+\d+`).ReplaceAllString(s.ok("extension", "inspect", "ipam"), "PID: PID"))
	s.golden("audit", s.ok("audit", "--of", "one"))
	_, progress, code = s.run("sandbox", "delete", "one", "--wait")
	if code != 0 {
		t.Fatalf("%d: %s", code, progress)
	}
	s.golden("delete-progress", progress)
	s.ok("workspace", "delete", "team-a", "--driver", "acme")
	s.golden("resource-list-empty", s.ok("resource", "list"))
}

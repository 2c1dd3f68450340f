package cli

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Another process holds the database's write lock, as a backup may: whoever asks for something is told, what is in
// flight waits, and nothing is lost.
func TestALockedDatabaseLosesNothing(t *testing.T) {
	s := newSite(t)
	s.write(s.chain("enforce"))
	s.startProcess(nil)
	create := func(name string) []string {
		return []string{"sandbox", "create", "--driver", "acme", "--name", name, "--wait", "--", "sleep", "600"}
	}
	s.ok(create("before")...)
	ipam := s.pidOf("ipam")
	if err := unix.Kill(ipam, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	inFlight := make(chan string, 1)
	go func() {
		_, errs, code := s.run(create("during")...)
		if code == exitOK {
			errs = ""
		}
		inFlight <- errs
	}()
	s.until("the create is with ipam", func() bool {
		return strings.Contains(s.ok("operation", "list", "-o", "json"), `"before_create"`)
	})
	unlock := s.lockDatabase()
	if err := unix.Kill(ipam, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if errs := s.refused(exitUnavailable, create("locked")...); !strings.Contains(errs, "locked") {
		t.Errorf("a create while the database is locked: %q", errs)
	}
	s.until("the log says what is wrong", func() bool { return strings.Contains(s.log.String(), "the store cannot be written") })
	if out := s.ok("sandbox", "get", "before"); !strings.Contains(out, "ready") {
		t.Errorf("what was there:\n%s", out)
	}
	unlock()
	if errs := <-inFlight; errs != "" {
		t.Errorf("the create in flight: %s", errs)
	}
	s.ok(create("after")...)
	if _, _, code := s.run("sandbox", "get", "locked"); code != exitNotFound {
		t.Errorf("the create that was refused has left a sandbox: exit %d", code)
	}
	for _, name := range []string{"before", "during", "after"} {
		s.ok("sandbox", "delete", name, "--wait")
	}
	s.until("nothing is held", func() bool { return strings.Count(s.ok("resource", "list"), "\n") == 1 })
}

// lockDatabase takes the write lock of the gateway's database.
func (s *site) lockDatabase() (unlock func()) {
	s.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.dir, "data", "journal.db")+"?_pragma=busy_timeout(30000)&_txlock=immediate")
	if err != nil {
		s.t.Fatal(err)
	}
	tx, err := db.BeginTx(s.t.Context(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = db.Close() })
	return func() { _ = tx.Rollback() }
}

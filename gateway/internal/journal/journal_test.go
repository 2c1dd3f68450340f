package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/gateway/internal/journal/pgtest"
	"github.com/sandgate/sandgate/shared/fault"
)

var postgres struct {
	server *pgtest.Server
	err    error
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("SANDGATE_TEST_WRITER"); dir != "" {
		writeForEver(dir)
		return
	}
	postgres.server, postgres.err = pgtest.Start()
	code := m.Run()
	if postgres.server != nil {
		if err := postgres.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// backend opens stores of one sort.
type backend struct {
	name string
	// open returns a function that opens the same store each time.
	open func(t *testing.T) func() (Journal, error)
}

func backends(t *testing.T) []backend {
	t.Helper()
	out := []backend{
		{"memory", func(*testing.T) func() (Journal, error) {
			m := NewMemory()
			return func() (Journal, error) { m = m.Crash(); return m, nil }
		}},
		{"sqlite", func(t *testing.T) func() (Journal, error) {
			dir := t.TempDir()
			return func() (Journal, error) { return Open(context.Background(), Config{Dir: dir}) }
		}},
	}
	switch {
	case postgres.err == nil:
		out = append(out, backend{"postgres", func(t *testing.T) func() (Journal, error) {
			dir := t.TempDir()
			url, err := postgres.server.Database()
			if err != nil {
				t.Fatal(err)
			}
			return func() (Journal, error) { return Open(context.Background(), Config{Dir: dir, URL: url}) }
		}})
	case errors.Is(postgres.err, pgtest.ErrMissing) && (os.Getenv("CI") == "" || os.Geteuid() != 0):
		t.Logf("left out: the PostgreSQL lane: %v", postgres.err)
	default:
		t.Errorf("the PostgreSQL lane cannot run: %v", postgres.err)
	}
	return out
}

// each runs a test on every backend with an open store.
func each(t *testing.T, fn func(t *testing.T, j Journal, reopen func() Journal)) {
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			open := b.open(t)
			j, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			fn(t, j, func() Journal {
				t.Helper()
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				if j, err = open(); err != nil {
					t.Fatal(err)
				}
				return j
			})
		})
	}
}

func put(kind, id, parent, unique, body string) Write {
	return Write{Record: Record{Kind: kind, ID: id, Parent: parent, Unique: unique, Body: []byte(body)}}
}

func ids(list []Record) []string {
	out := []string{}
	for _, r := range list {
		out = append(out, r.ID)
	}
	return out
}

func TestRecordsComeBack(t *testing.T) {
	each(t, func(t *testing.T, j Journal, reopen func() Journal) {
		want := Record{Kind: "k", ID: "a/1", Parent: "p", Unique: "u", Body: []byte{0, 1, 255}, Sealed: []byte("hush")}
		if err := j.Commit(t.Context(), []Write{{Record: want}, put("k", "b", "q", "", "x")}); err != nil {
			t.Fatal(err)
		}
		j = reopen()
		got, err := j.Get(t.Context(), "k", "a/1")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		if err := j.Commit(t.Context(), []Write{{Record: Record{Kind: "k", ID: "a/1"}, Delete: true}}); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Get(t.Context(), "k", "a/1"); !fault.Is(err, fault.NotFound) {
			t.Errorf("after its deletion: %v", err)
		}
	})
}

func TestList(t *testing.T) {
	each(t, func(t *testing.T, j Journal, _ func() Journal) {
		if err := j.Commit(t.Context(), []Write{put("k", "B", "p", "", ""), put("k", "a", "p", "", ""), put("k", "a/1", "q", "", ""), put("other", "z", "p", "", "")}); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			q    Query
			want []string
		}{
			"All":       {Query{Kind: "k"}, []string{"B", "a", "a/1"}},
			"Parent":    {Query{Kind: "k", Parent: "p"}, []string{"B", "a"}},
			"After":     {Query{Kind: "k", After: "B"}, []string{"a", "a/1"}},
			"LastLimit": {Query{Kind: "k", Last: true, Limit: 2}, []string{"a/1", "a"}},
			"None":      {Query{Kind: "nope"}, []string{}},
		} {
			got, err := j.List(t.Context(), c.q)
			if diff := cmp.Diff(c.want, ids(got)); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
			}
		}
	})
}

func TestUniqueIsKeptAndTheCommitIsWhole(t *testing.T) {
	each(t, func(t *testing.T, j Journal, _ func() Journal) {
		if err := j.Commit(t.Context(), []Write{put("k", "a", "", "name", "")}); err != nil {
			t.Fatal(err)
		}
		err := j.Commit(t.Context(), []Write{put("k", "c", "", "", ""), put("k", "b", "", "name", "")})
		if !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("a taken name: %v", err)
		}
		if got, _ := j.List(t.Context(), Query{Kind: "k"}); len(got) != 1 {
			t.Errorf("half of a refused commit is there: %v", ids(got))
		}
		if err := j.Commit(t.Context(), []Write{put("k", "a", "", "", ""), put("k", "b", "", "name", "")}); err != nil {
			t.Errorf("a name that is freed in the same commit: %v", err)
		}
	})
}

func TestCommitsTogetherFailAlone(t *testing.T) {
	each(t, func(t *testing.T, j Journal, _ func() Journal) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 64 {
			wg.Go(func() {
				err := j.Commit(t.Context(), []Write{put("k", fmt.Sprintf("%03d", i), "", fmt.Sprintf("name%d", i%8), "")})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case !fault.Is(err, fault.AlreadyExists):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got, _ := j.List(t.Context(), Query{Kind: "k"}); won != 8 || len(got) != 8 {
			t.Errorf("%d commits went well and %d records are there, want 8", won, len(got))
		}
	})
}

func TestASecondGatewayIsRefused(t *testing.T) {
	for _, b := range backends(t)[1:] {
		t.Run(b.name, func(t *testing.T) {
			open := b.open(t)
			j, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := open(); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
				t.Errorf("the second: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := open()
			if err != nil {
				t.Fatalf("after the first was closed: %v", err)
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A gateway that was paused while another took its place finds the fence raised.
func TestAReplacedGatewayCommitsNothing(t *testing.T) {
	for _, b := range backends(t)[1:] {
		t.Run(b.name, func(t *testing.T) {
			open := b.open(t)
			j, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			s := j.(*Store)
			if _, err := s.db.Exec(`UPDATE fence SET token = token + 1, owner = 'another' WHERE name = 'gateway'`); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := j.Commit(t.Context(), []Write{put("k", "a", "", "", "")}); !fault.Is(err, fault.FailedPrecondition) {
					t.Errorf("a commit after that: %v", err)
				}
			}
			if got, _ := j.List(t.Context(), Query{Kind: "k"}); len(got) > 0 {
				t.Error("it has committed something")
			}
		})
	}
}

func TestSecretsAreInNoFile(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a-very-secret-value")
	for i := range 50 {
		if err := j.Commit(t.Context(), []Write{{Record: Record{Kind: "k", ID: strconv.Itoa(i), Body: []byte("plain-body"), Sealed: secret}}}); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (plain bool) {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			if bytes.Contains(raw, secret) {
				t.Errorf("%s holds the secret", path)
			}
			plain = plain || bytes.Contains(raw, []byte("plain-body"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return plain
	}
	if !look() {
		t.Error("what is not secret is not found either: the test looks in the wrong place")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	look()
	if err := os.Remove(filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("without its key file: %v", err)
	}
}

func TestKeyFileModeIsChecked(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("a key file that others may read: %v", err)
	}
}

func TestAFullDiskLosesNothing(t *testing.T) {
	j, err := Open(t.Context(), Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	if _, err := j.db.Exec(`PRAGMA max_page_count = 40`); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 20_000)
	n := 0
	for ; err == nil && n < 100; n++ {
		err = j.Commit(t.Context(), []Write{put("k", fmt.Sprintf("%03d", n), "", "", big)})
	}
	if !fault.Is(err, fault.ResourceExhausted) {
		t.Fatalf("after %d commits: %v", n, err)
	}
	if got, _ := j.List(t.Context(), Query{Kind: "k"}); len(got) != n-1 {
		t.Errorf("%d records, want %d", len(got), n-1)
	}
	if _, err := j.db.Exec(`PRAGMA max_page_count = 4000`); err != nil {
		t.Fatal(err)
	}
	if err := j.Commit(t.Context(), []Write{put("k", "later", "", "", big)}); err != nil {
		t.Errorf("once there is space: %v", err)
	}
}

// writeForEver is what the child of TestKilledInTheMiddle does: pairs of records, each pair in one commit, told on
// standard output once it is acknowledged.
func writeForEver(dir string) {
	j, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("%06d", i)
		if err := j.Commit(context.Background(), []Write{put("left", id, "", "", id), put("right", id, "", "", id)}); err != nil {
			fmt.Println("error:", err)
			return
		}
		fmt.Println(id)
	}
}

func TestKilledInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SANDGATE_TEST_WRITER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := ""
		for range 20 + round*7 {
			if _, err := fmt.Fscanln(out, &last); err != nil {
				t.Fatalf("round %d: %v %s", round, err, last)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		j, err := Open(t.Context(), Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		left, _ := j.List(t.Context(), Query{Kind: "left"})
		right, _ := j.List(t.Context(), Query{Kind: "right"})
		if diff := cmp.Diff(ids(left), ids(right)); diff != "" {
			t.Errorf("half a commit is there:\n%s", diff)
		}
		if _, err := j.Get(t.Context(), "left", last); err != nil {
			t.Errorf("an acknowledged commit is not there: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPropertyEveryBackendIsAMap(t *testing.T) {
	for _, b := range backends(t)[:2] {
		t.Run(b.name, func(t *testing.T) {
			open := b.open(t)
			j, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			n := 0
			rapid.Check(t, func(rt *rapid.T) {
				n++
				kind, model := fmt.Sprintf("kind%d", n), map[string]string{}
				id := rapid.SampledFrom([]string{"a", "b", "c/1", "c/2"})
				for range rapid.IntRange(1, 6).Draw(rt, "commits") {
					var writes []Write
					for range rapid.IntRange(1, 3).Draw(rt, "writes") {
						k, v := id.Draw(rt, "id"), rapid.StringN(0, 4, 8).Draw(rt, "value")
						if rapid.Bool().Draw(rt, "delete") {
							writes = append(writes, Write{Record: Record{Kind: kind, ID: k}, Delete: true})
							delete(model, k)
						} else {
							writes = append(writes, put(kind, k, "", "", v))
							model[k] = v
						}
					}
					if err := j.Commit(context.Background(), writes); err != nil {
						rt.Fatal(err)
					}
				}
				got := map[string]string{}
				list, err := j.List(context.Background(), Query{Kind: kind})
				if err != nil {
					rt.Fatal(err)
				}
				for _, r := range list {
					got[r.ID] = string(r.Body)
				}
				if diff := cmp.Diff(model, got); diff != "" {
					rt.Fatalf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		for _, kind := range []string{"memory", "sqlite"} {
			b.Run(fmt.Sprintf("%s/%d", kind, writers), func(b *testing.B) {
				var j Journal = NewMemory()
				if kind == "sqlite" {
					s, err := Open(b.Context(), Config{Dir: b.TempDir()})
					if err != nil {
						b.Fatal(err)
					}
					j = s
				}
				defer func() { _ = j.Close() }()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for i := range b.N/writers + 1 {
							if err := j.Commit(context.Background(), []Write{put("k", fmt.Sprintf("%d-%d", w, i), "p", "", "a body of some bytes")}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

package journal

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// A gateway that is killed, or whose disk is full, while it makes the key leaves the next one what it can go on from.
func TestAKeyThatWasCutShortIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, keyFile)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ) // the write fails instead
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: keySize / 2, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := makeKey(path)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Fatal("the key was made on a disk that is full")
	}
	j, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatalf("once there is space: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func TestADamagedFileIsSaidToBe(t *testing.T) {
	for name, damage := range map[string]func(raw []byte) []byte{
		"cut short": func(raw []byte) []byte { return raw[:10_000] },
		"flipped": func(raw []byte) []byte {
			for i := 4096; i < len(raw); i += 997 {
				raw[i] ^= 0x55
			}
			return raw
		},
		"another file": func([]byte) []byte { return bytes.Repeat([]byte("no database "), 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, err := Open(t.Context(), Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "journal.db")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(raw), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), path+" is damaged") {
				t.Errorf("%v; want it to say that the file is damaged", err)
			}
		})
	}
}

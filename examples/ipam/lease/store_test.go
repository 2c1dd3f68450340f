package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sandgate/sandgate/shared/fault"
)

var sandboxes = Pool{Name: "sandboxes", CIDR: netip.MustParsePrefix("10.80.0.0/16"), SubnetBits: 24}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestAddressComesFromTheSubnetOfTheWorkspace(t *testing.T) {
	ctx, s := t.Context(), mustOpen(t, t.TempDir())
	for i, want := range []string{"10.80.0.0/24", "10.80.1.0/24"} {
		got, err := s.Subnet(ctx, &sandboxes, workspaceOwner(i), netip.Prefix{})
		if err != nil || got.Prefix.String() != want {
			t.Fatalf("subnet %d: %v, %v; want %s", i, got, err, want)
		}
	}
	for n, want := range map[int]string{1: "10.80.1.2/24"} {
		for range 2 { // asked again, the same
			got, err := s.Address(ctx, &sandboxes, sandboxOwner(1, n), false)
			if err != nil || got.Prefix.String() != want || got.ID() != "10.80.1.2" {
				t.Fatalf("address: %v, %v; want %s", got, err, want)
			}
		}
	}
	// The same sandbox id under another driver is another sandbox.
	other := sandboxOwner(1, 1)
	other.Driver = "docker"
	if got, err := s.Address(ctx, &sandboxes, other, true); err != nil || got.Prefix.String() != "10.80.2.0/16" {
		t.Errorf("from the pool itself, past the subnets: %v, %v", got, err)
	}
	if _, err := s.Address(ctx, &sandboxes, sandboxOwner(7, 7), false); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("an address in a workspace without a subnet: %v", err)
	}
}

func TestASubnetThatWasLostIsAskedForByName(t *testing.T) {
	ctx, s := t.Context(), mustOpen(t, t.TempDir())
	want := netip.MustParsePrefix("10.80.9.0/24")
	if got, err := s.Subnet(ctx, &sandboxes, workspaceOwner(1), want); err != nil || got.Prefix != want {
		t.Fatalf("got %v, %v", got, err)
	}
	if got, err := s.Subnet(ctx, &sandboxes, workspaceOwner(2), want); !fault.Is(err, fault.Conflict) {
		t.Fatalf("somebody else's: %v, %v", got, err)
	}
}

func TestFullSaysWhichAndHowFull(t *testing.T) {
	ctx, s := t.Context(), mustOpen(t, t.TempDir())
	small := Pool{Name: "small", CIDR: netip.MustParsePrefix("10.0.0.0/27"), SubnetBits: 29,
		Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.24/29")}}
	var last error
	for i := range 4 {
		_, last = s.Subnet(ctx, &small, workspaceOwner(i), netip.Prefix{})
	}
	expectFull(t, last, `pool "small" (10.0.0.0/27) is full: 3 of 4 subnets of /29 are held, the others are reserved or in other use`)
	for i := range 6 {
		_, last = s.Address(ctx, &small, sandboxOwner(0, i), false)
	}
	expectFull(t, last, `subnet 10.0.0.0/29 of pool "small" is full: 5 of 5 addresses are held`)
	_, last = s.Address(ctx, &small, sandboxOwner(9, 99), true)
	expectFull(t, last, `pool "small" (10.0.0.0/27) is full: 5 of 29 addresses are held, the others are reserved or in other use`)
}

func expectFull(t *testing.T, err error, want string) {
	t.Helper()
	var full *FullError
	if !errors.As(err, &full) || full.Message != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A subnet that is released while a sandbox in it still has its address is given to nobody until that is released too.
func TestSubnetOfAReleasingSandboxIsNotGivenAway(t *testing.T) {
	ctx, s := t.Context(), mustOpen(t, t.TempDir())
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Subnet(ctx, &sandboxes, workspaceOwner(1), netip.Prefix{}))
	must(s.Address(ctx, &sandboxes, sandboxOwner(1, 1), false))
	must(s.Release(ctx, workspaceOwner(1)))
	if got, err := s.Subnet(ctx, &sandboxes, workspaceOwner(2), netip.Prefix{}); err != nil || got.ID() != "10.80.1.0/24" {
		t.Errorf("got %v, %v", got, err)
	}
	must(s.Release(ctx, sandboxOwner(1, 1)))
	if got, err := s.Subnet(ctx, &sandboxes, workspaceOwner(3), netip.Prefix{}); err != nil || got.ID() != "10.80.0.0/24" {
		t.Errorf("got %v, %v", got, err)
	}
}

// Many at once, through two stores on one directory as two processes would be: no address is ever with two owners,
// each release frees once, and the two agree in the end.
func TestConcurrentOwnersNeverShare(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{mustOpen(t, dir), mustOpen(t, dir)}
	tight := Pool{Name: "tight", CIDR: netip.MustParsePrefix("10.9.0.0/27"), SubnetBits: 29}
	var mu sync.Mutex
	holders := map[string]Owner{}
	var wg sync.WaitGroup
	var full atomic.Int64
	for n := range 48 {
		wg.Go(func() {
			ctx, s := t.Context(), stores[n%2]
			owner := sandboxOwner(0, n)
			for range 12 {
				got, err := s.Address(ctx, &tight, owner, true)
				var none *FullError
				if errors.As(err, &none) {
					full.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, taken := holders[got.ID()]; taken {
					t.Errorf("%s is with %s and %s", got.ID(), other, owner)
				}
				holders[got.ID()] = owner
				mu.Unlock()
				mu.Lock()
				delete(holders, got.ID())
				mu.Unlock()
				if freed, err := s.Release(ctx, owner); err != nil || len(freed) != 1 || freed[0] != got {
					t.Errorf("released %v, %v; want %v", freed, err, got)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		if held, err := s.Holds(t.Context(), ""); err != nil || len(held) > 0 {
			t.Errorf("left: %v, %v", held, err)
		}
	}
	t.Logf("full %d times", full.Load())
}

// What was reserved after its subnet was given out is not given out either.
func TestReservedWithinASubnet(t *testing.T) {
	ctx, s := t.Context(), mustOpen(t, t.TempDir())
	p := sandboxes
	if _, err := s.Subnet(ctx, &p, workspaceOwner(0), netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	p.Reserved = []netip.Prefix{netip.MustParsePrefix("10.80.0.0/29")}
	if got, err := s.Address(ctx, &p, sandboxOwner(0, 1), false); err != nil || got.ID() != "10.80.0.8" {
		t.Errorf("got %v, %v", got, err)
	}
}

// What a killed writer left without an end is taken away, by the next process and by one that was there all along.
func TestATornTailIsTakenAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, logName)
	tear := func() {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"seq":9,"op":"ta`); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	clean := func(who string) {
		t.Helper()
		if data, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(data), "}\n") {
			t.Errorf("%s left %q, %v", who, data, err)
		}
	}
	s := mustOpen(t, dir)
	tear()
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	clean("the one that was there")
	tear()
	mustOpen(t, dir)
	clean("the next one")
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A line that was written and never flushed, since its writer was killed in between, must be flushed before anyone is
// told of it.
func TestWhatIsReadIsFlushedBeforeItIsAnswered(t *testing.T) {
	dir := t.TempDir()
	first := mustOpen(t, dir)
	if _, err := first.Address(t.Context(), &sandboxes, sandboxOwner(0, 1), true); err != nil {
		t.Fatal(err)
	}
	flushes := 0
	d := realDisk()
	d.sync = func(f *os.File) error { flushes++; return f.Sync() }
	second, err := open(t.Context(), dir, d)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if flushes != 1 {
		t.Errorf("%d flushes when it was opened, want 1", flushes)
	}
	if _, err := first.Address(t.Context(), &sandboxes, sandboxOwner(0, 2), true); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing new
		if _, err := second.Address(t.Context(), &sandboxes, sandboxOwner(0, 2), true); err != nil || flushes != 2 {
			t.Errorf("%d flushes, want 2: %v", flushes, err)
		}
	}
}

// What arrives while a flush is under way shares the next one.
func TestOneFlushForAllThatWait(t *testing.T) {
	dir := t.TempDir()
	var flushes atomic.Int64
	entered, gate := make(chan struct{}), make(chan struct{})
	d := realDisk()
	d.sync = func(f *os.File) error {
		if flushes.Add(1) == 1 {
			close(entered)
			<-gate
		}
		return f.Sync()
	}
	mustOpen(t, dir).Close() // makes the files
	s := &Store{journal: journal{dir: dir, disk: d}}
	var err error
	if s.lockFile, err = os.Open(filepath.Join(dir, lockName)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	take := func(n int) {
		if _, err := s.Address(t.Context(), &sandboxes, sandboxOwner(0, n), true); err != nil {
			t.Error(err)
		}
	}
	wg.Go(func() { take(0) })
	<-entered
	const waiting = 40
	for n := range waiting {
		wg.Go(func() { take(n + 1) })
	}
	for queued := 0; queued < waiting; { // all are in the queue, none can have the turn
		s.mu.Lock()
		queued = len(s.queue)
		s.mu.Unlock()
	}
	close(gate)
	wg.Wait()
	if got := flushes.Load(); got != 2 {
		t.Errorf("%d flushes for 1 + %d changes, want 2", got, waiting)
	}
}

// Faults of the disk, at any operation and of any kind: nothing that was answered is lost, nothing is given out
// twice, and the store works again as soon as the disk does.
func TestFaultsOfTheDisk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		budget := 1 << 30
		d := realDisk()
		d.write = func(f *os.File, b []byte, at int64) error {
			n := min(len(b), budget)
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return err
			}
			if budget -= n; n < len(b) {
				return &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
			}
			return nil
		}
		syncs := 1 << 30
		d.sync = func(f *os.File) error {
			if syncs--; syncs < 0 {
				return &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.EIO}
			}
			return f.Sync()
		}
		s, err := open(t.Context(), dir, d)
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		answered, unsure := map[Owner]Hold{}, map[Owner]bool{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			budget, syncs = 1<<30, 1<<30
			switch rapid.IntRange(0, 3).Draw(rt, "fault") {
			case 0:
				budget = rapid.IntRange(0, 400).Draw(rt, "budget")
			case 1:
				syncs = rapid.IntRange(0, 2).Draw(rt, "syncs")
			}
			if rapid.IntRange(0, 9).Draw(rt, "compact") == 0 {
				s.journal.compact = 0
			}
			owner := sandboxOwner(0, rapid.IntRange(0, 12).Draw(rt, "owner"))
			if rapid.Bool().Draw(rt, "release") {
				_, err = s.Release(t.Context(), owner)
				delete(answered, owner)
			} else {
				var got Hold
				got, err = s.Address(t.Context(), &sandboxes, owner, true)
				if was, had := answered[owner]; err == nil && had && was != got {
					rt.Fatalf("%s had %v and has %v", owner, was, got)
				}
				if err == nil {
					answered[owner] = got
				}
			}
			unsure[owner] = err != nil
			if err != nil && !fault.Is(err, fault.ResourceExhausted) && !fault.Is(err, fault.Unavailable) {
				rt.Fatalf("a fault of the disk is reported as %v", err)
			}
		}
		budget, syncs = 1<<30, 1<<30
		held, err := s.Holds(t.Context(), "")
		if err != nil {
			rt.Fatalf("the disk is well again: %v", err)
		}
		onDisk, err := Read(dir)
		if err != nil || len(onDisk) != len(held) {
			rt.Fatalf("memory has %v, the disk has %v: %v", held, onDisk, err)
		}
		for _, h := range held {
			if want, ok := answered[h.Owner]; ok && want != h || !ok && !unsure[h.Owner] {
				rt.Fatalf("holds %v, answered was %v", h, want)
			}
			delete(answered, h.Owner)
		}
		if len(answered) > 0 {
			rt.Fatalf("answered and lost: %v", answered)
		}
	})
}

func TestACancelledCallTakesNothing(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Address(ctx, &sandboxes, sandboxOwner(0, 1), true); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if held, err := s.Holds(t.Context(), ""); err != nil || len(held) > 0 {
		t.Errorf("holds %v, %v", held, err)
	}
}

func TestALockThatIsNotLetGo(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	other, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := s.Address(ctx, &sandboxes, sandboxOwner(0, 1), true)
		result <- err
	}()
	cancel()
	if err := <-result; !fault.Is(err, fault.Unavailable) && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Address(t.Context(), &sandboxes, sandboxOwner(0, 1), true); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
}

func TestALogThatVanishesIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	if err := os.Remove(filepath.Join(dir, logName)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Address(t.Context(), &sandboxes, sandboxOwner(0, 1), true); err == nil {
		t.Errorf("gave out %v without a log", got)
	}
}

func TestTheLogStaysShort(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	for n := range 2 * slack {
		if _, err := s.Address(t.Context(), &sandboxes, sandboxOwner(0, n), true); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Release(t.Context(), sandboxOwner(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(data), "\n"); lines > slack+10 {
		t.Errorf("%d lines for nothing held", lines)
	}
}

func BenchmarkAddress(b *testing.B) {
	for _, parallel := range []int{1, 64} {
		b.Run(fmt.Sprintf("at-once-%d", parallel), func(b *testing.B) {
			s := mustOpen(b, b.TempDir())
			var n atomic.Int64
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					o := sandboxOwner(0, int(n.Add(1)))
					if _, err := s.Address(context.Background(), &sandboxes, o, true); err != nil {
						b.Error(err)
						return
					}
					if _, err := s.Release(context.Background(), o); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

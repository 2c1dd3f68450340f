package lease

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandgate/sandgate/shared/fault"
)

// sampleLog is a log that began with two holds, to which three changes were added.
func sampleLog(t testing.TB) []byte {
	t.Helper()
	b := newBook()
	for _, h := range []Hold{
		{Kind: Subnet, Prefix: netip.MustParsePrefix("10.80.0.0/24"), Pool: "sandboxes", Owner: workspaceOwner(1)},
		{Kind: Address, Prefix: netip.MustParsePrefix("10.80.0.2/24"), Pool: "sandboxes", Owner: sandboxOwner(1, 1)},
	} {
		if err := b.take(h); err != nil {
			t.Fatal(err)
		}
	}
	out, seq, err := b.snapshot(41)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []change{
		{opTake, Hold{Kind: Address, Prefix: netip.MustParsePrefix("10.80.0.3/24"), Pool: "sandboxes", Owner: sandboxOwner(1, 2)}},
		{opFree, Hold{Kind: Address, Prefix: netip.MustParsePrefix("10.80.0.2/24"), Pool: "sandboxes", Owner: sandboxOwner(1, 1)}},
		{opTake, Hold{Kind: Address, Prefix: netip.MustParsePrefix("10.80.0.2/24"), Pool: "sandboxes", Owner: sandboxOwner(1, 3)}},
	} {
		line, err := record{Seq: seq + uint64(i) + 1, Op: c.op, Hold: &c.hold}.encode()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, line...)
	}
	return out
}

func readAll(data []byte) (*replay, error) {
	p := &replay{book: newBook()}
	return p, p.read(data)
}

// The format that the README promises to other programs.
func TestLogFormat(t *testing.T) {
	line, _, _ := bytes.Cut(sampleLog(t)[bytes.IndexByte(sampleLog(t), '\n')+1:], []byte("\n"))
	want := `{"seq":43,"op":"take","kind":"ip-subnet","prefix":"10.80.0.0/24","pool":"sandboxes",` +
		`"driver":"native","workspace_id":"w1","workspace":"team-1","sum":"a2ff4187"}`
	if diff := cmp.Diff(want, string(line)); diff != "" {
		t.Errorf("a line of the log (-want +got):\n%s", diff)
	}
	if first := string(sampleLog(t)[:70]); !strings.HasPrefix(first, `{"seq":42,"op":"begin","format":"sandgate-ipam","version":1,"live":2,`) {
		t.Errorf("the first line begins with %s", first)
	}
}

// Whatever single byte changes, in all that was once flushed, it is found.
func TestEveryChangedByteIsFound(t *testing.T) {
	data := sampleLog(t)
	if _, err := readAll(data); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for _, flip := range []byte{0x01, 0x20, 0x80, 0xff, data[i] ^ '\n', data[i]} {
			if flip == 0 {
				continue
			}
			broken := slices.Clone(data)
			broken[i] ^= flip
			if _, err := readAll(broken); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "line ") {
				t.Fatalf("byte %d ^ %#x: %v", i, flip, err)
			}
		}
	}
}

// A log that ends early is what a killed writer left: all whole lines count, what has no end was never answered.
// Within the lines with which the file came into place it cannot be that.
func TestEveryTornTail(t *testing.T) {
	data := sampleLog(t)
	began := 0
	for range 3 {
		began += bytes.IndexByte(data[began:], '\n') + 1
	}
	for n := range data {
		p, err := readAll(data[:n])
		if n < began {
			if !fault.Is(err, fault.FailedPrecondition) {
				t.Fatalf("%d of %d bytes, before the end of the beginning: %v", n, len(data), err)
			}
			continue
		}
		if whole := int64(bytes.LastIndexByte(data[:n], '\n') + 1); err != nil || p.size != whole {
			t.Fatalf("%d of %d bytes: read %d, want %d: %v", n, len(data), p.size, whole, err)
		}
	}
}

func TestLinesThatContradict(t *testing.T) {
	take := func(seq uint64, prefix string, o Owner) record {
		h := Hold{Kind: Address, Prefix: netip.MustParsePrefix(prefix), Owner: o}
		return record{Seq: seq, Op: opTake, Hold: &h}
	}
	begin := record{Seq: 1, Op: opBegin, Format: format, Version: version}
	freed := take(2, "10.0.0.2/24", sandboxOwner(1, 1))
	freed.Op = opFree
	odd := take(2, "10.0.0.2/24", sandboxOwner(1, 1))
	odd.Op = "borrow"
	subnet := Hold{Kind: Subnet, Prefix: netip.MustParsePrefix("10.0.0.0/24"), Owner: workspaceOwner(2)}
	for want, lines := range map[string][]record{
		"line 3: ip-lease 10.0.0.2 cannot be held by sandbox native/box-2 (s2): 10.0.0.2 is held by sandbox native/box-1 (s1)": {
			begin, take(2, "10.0.0.2/24", sandboxOwner(1, 1)), take(3, "10.0.0.2/16", sandboxOwner(1, 2))},
		"line 3: ip-subnet 10.0.0.0/24 cannot be held by workspace native/team-2 (w2): 10.0.0.2 is held by sandbox native/box-1 (s1)": {
			begin, take(2, "10.0.0.2/24", sandboxOwner(1, 1)), {Seq: 3, Op: opTake, Hold: &subnet}},
		"line 3: its number is 4 after 2: lines are missing, or there twice": {
			begin, take(2, "10.0.0.2/24", sandboxOwner(1, 1)), take(4, "10.0.0.3/24", sandboxOwner(1, 2))},
		"line 2: ip-lease 10.0.0.2 is not held by sandbox native/box-1 (s1)":          {begin, freed},
		`line 2: "borrow" is no operation`:                                            {begin, odd},
		"line 1: this is not a sandgate-ipam log":                                     {take(1, "10.0.0.2/24", sandboxOwner(1, 1))},
		"line 1: the log has version 7, this program reads 1":                         {{Seq: 1, Op: opBegin, Format: format, Version: 7}},
		"line 2: ip-lease 10.0.0.2 cannot be held by workspace native/team-1 (w1)":    {begin, take(2, "10.0.0.2/24", workspaceOwner(1))},
		`line 2: "begin" names no hold`:                                               {begin, {Seq: 2, Op: opBegin}},
		"line 2: the file ends within the lines that it began with":                   {{Seq: 1, Op: opBegin, Format: format, Version: version, Live: 1}},
		`line 2: "ip-lease" "::ffff:10.0.0.2/120" is neither a subnet nor an address`: {begin, take(2, "::ffff:10.0.0.2/120", sandboxOwner(1, 1))},
	} {
		var data []byte
		for _, r := range lines {
			line, err := r.encode()
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, line...)
		}
		_, err := readAll(data)
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// No log makes the reader panic or hold something twice, and what it accepts it would write again with that meaning.
func FuzzRead(f *testing.F) {
	data := sampleLog(f)
	f.Add(data)
	f.Add(data[:len(data)-20])
	f.Add([]byte{})
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readAll(data)
		if err != nil {
			return
		}
		if p.size > int64(len(data)) || bytes.IndexByte(data[p.size:], '\n') >= 0 {
			t.Fatalf("read %d of %d bytes and left a whole line", p.size, len(data))
		}
		again, _, err := p.book.snapshot(p.seq)
		if err != nil {
			t.Fatal(err)
		}
		q, err := readAll(again)
		if err != nil {
			t.Fatalf("a log of what it accepted does not read: %v\n%s", err, again)
		}
		if diff := cmp.Diff(p.book.sorted(), q.book.sorted(), cmp.Comparer(equalPrefix)); diff != "" {
			t.Fatalf("written again (-first +second):\n%s", diff)
		}
	})
}

// As FuzzRead, with checksums that hold: the fuzzer gets behind the first check.
func FuzzReadLines(f *testing.F) {
	for line := range bytes.Lines(sampleLog(f)) {
		f.Add(line[:len(line)-sumLen-1])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if bytes.IndexByte(body, '\n') >= 0 {
			return
		}
		data := slices.Concat(sampleLog(t), body, []byte(`,"sum":"`+checksum(body)+"\"}\n"))
		if p, err := readAll(data); err == nil && p.size != int64(len(data)) {
			t.Fatalf("read %d of %d bytes", p.size, len(data))
		}
	})
}

func TestOpenRefusesABrokenLog(t *testing.T) {
	dir := t.TempDir()
	data := sampleLog(t)
	data[len(data)/2] ^= 1
	if err := os.WriteFile(filepath.Join(dir, logName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir)
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "line 4: its checksum does not hold") {
		t.Fatalf("opened %v, %v", s, err)
	}
	after, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil || !bytes.Equal(data, after) {
		t.Errorf("the broken log was changed: %v", err)
	}
}

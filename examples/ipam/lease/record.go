package lease

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/sandgate/sandgate/shared/fault"
)

// What the first line of a log says of it.
const (
	format  = "sandgate-ipam"
	version = 1
)

// record is one line of the log. Numbers grow by one from line to line, so that a line that is missing is noticed.
type record struct {
	Seq uint64 `json:"seq"`
	Op  op     `json:"op"`
	// Of the first line alone: what the file is, and how many of the following lines were written with it, all
	// before the file came into place. They list what was held at that time.
	Format  string `json:"format,omitempty"`
	Version int    `json:"version,omitempty"`
	Live    int    `json:"live,omitempty"`
	*Hold
}

const sumLen = len(`,"sum":"01234567"}`)

// encode returns the record as a line. The checksum (CRC-32C, of all that stands before it) is its last member.
func (r record) encode() ([]byte, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	line = line[:len(line)-1]
	return fmt.Appendf(line, `,"sum":"%s"}`+"\n", checksum(line)), nil
}

func checksum(b []byte) string {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return hex.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// decode reads a line without its end.
func decode(line []byte) (record, error) {
	var r struct {
		record
		Sum string `json:"sum"`
	}
	if !intact(line) {
		return record{}, fmt.Errorf("its checksum does not hold")
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return record{}, err
	}
	return r.record, nil
}

// intact reports whether the line ends with its own checksum.
func intact(line []byte) bool {
	cut := len(line) - sumLen
	return cut > 0 && string(line[cut:]) == `,"sum":"`+checksum(line[:cut])+`"}`
}

// replay is the reading of a log, from its first line or from where it ended the last time.
type replay struct {
	book *book
	seq  uint64 // of the last line that was read
	live int    // lines that still belong to the beginning
	line int
	size int64 // bytes read; what is after them was never answered
}

// read takes in what follows. A last line without an end was being written when its writer was killed: nobody was
// ever told of it, and it is left out. Everything else that does not read is an error, since what it said is lost.
func (p *replay) read(data []byte) error {
	for {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		if !ended {
			break
		}
		p.line++
		if err := p.apply(line); err != nil {
			return fault.New(fault.FailedPrecondition, "line %d: %w", p.line, err)
		}
		p.size += int64(len(line)) + 1
		data = rest
	}
	if p.live > 0 || p.line == 0 {
		return fault.New(fault.FailedPrecondition, "line %d: the file ends within the lines that it began with", p.line+1)
	}
	if n := len(data); n > 0 && intact(data[:n-1]) {
		return fault.New(fault.FailedPrecondition, "line %d: its end was overwritten", p.line+1)
	}
	return nil
}

func (p *replay) apply(line []byte) error {
	r, err := decode(line)
	switch {
	case err != nil:
		return err
	case p.line == 1:
		return p.begin(r)
	case r.Seq != p.seq+1:
		return fmt.Errorf("its number is %d after %d: lines are missing, or there twice", r.Seq, p.seq)
	case r.Hold == nil:
		return fmt.Errorf("%q names no hold", r.Op)
	}
	p.seq = r.Seq
	if err := r.Hold.check(); err != nil {
		return err
	}
	switch r.Op {
	case opTake:
		err = p.book.take(*r.Hold)
	case opFree:
		err = p.book.free(*r.Hold)
	default:
		err = fmt.Errorf("%q is no operation", r.Op)
	}
	if p.live > 0 {
		p.live--
		if err == nil && r.Op != opTake {
			err = fmt.Errorf("%q among the lines that the file began with", r.Op)
		}
	}
	p.book.changes = nil
	return err
}

func (p *replay) begin(r record) error {
	if r.Op != opBegin || r.Format != format {
		return fmt.Errorf("this is not a %s log", format)
	}
	if r.Version != version {
		return fmt.Errorf("the log has version %d, this program reads %d", r.Version, version)
	}
	p.seq, p.live = r.Seq, r.Live
	return nil
}

// snapshot returns a whole log that says what the book has, and the number of its last line.
func (b *book) snapshot(seq uint64) ([]byte, uint64, error) {
	out, err := record{Seq: seq + 1, Op: opBegin, Format: format, Version: version, Live: len(b.holds)}.encode()
	if err != nil {
		return nil, 0, err
	}
	seq++
	for _, h := range b.sorted() {
		seq++
		line, err := record{Seq: seq, Op: opTake, Hold: &h}.encode()
		if err != nil {
			return nil, 0, err
		}
		out = append(out, line...)
	}
	return out, seq, nil
}

// sorted returns everything held. Subnets come before the addresses in them.
func (b *book) sorted() []Hold {
	out := make([]Hold, 0, len(b.holds))
	for _, h := range b.holds {
		out = append(out, h)
	}
	slices.SortFunc(out, compare)
	return out
}

package native

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/sandgate/sandgate/drivers/host"
)

// A log has an end, and who follows it misses nothing of what was written while it read.
func TestALogIsBounded(t *testing.T) {
	dir := t.TempDir()
	const limit = 10_000
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		keepLog(dir, in, limit)
	}()
	r := &host.LogReader{Dir: dir}
	defer func() { r.Close() }()
	var got, want bytes.Buffer
	for i := range 5_000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if _, err := io.WriteString(out, line); err != nil {
			t.Fatal(err)
		}
		if i%500 == 0 {
			if err := r.Copy(&got); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := r.Copy(&got); err != nil {
		t.Fatal(err)
	}
	if got.String() != want.String() {
		t.Errorf("who followed has %d bytes of %d", got.Len(), want.Len())
	}
	for _, name := range []string{host.LogFile, host.OldLog} {
		info, err := os.Stat(dir + "/" + name)
		if err != nil || info.Size() > limit {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	var late bytes.Buffer
	whole := &host.LogReader{Dir: dir}
	if err := whole.Copy(&late); err != nil || !strings.HasSuffix(want.String(), late.String()) || late.Len() <= limit {
		t.Errorf("who comes late has %d bytes, %v", late.Len(), err)
	}
	whole.Close()
}

func TestASandboxThatWritesWithoutEndHasItsShareOfTheDisk(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), sh("head -c 50000000 /dev/zero | tr '\\0' x; echo the end")).create()
	b.until("exited")
	if got := b.logs(false); len(got) > 2*maxLog || !strings.HasSuffix(got, "xthe end\n") {
		t.Errorf("the log has %d bytes", len(got))
	}
}

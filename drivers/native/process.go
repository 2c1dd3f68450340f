package native

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sandgate/sandgate/drivers/host"
)

// endStrays ends what still runs of a sandbox whose directory somebody else has removed. Its shim ends by itself, but
// not in the same moment, and one that is starting may bring about another process meanwhile: so it looks until there
// is none.
func (d *Driver) endStrays(ctx context.Context, id, operation string) error {
	for {
		shims, err := d.marked("shim", id, operation)
		if err != nil {
			return err
		}
		inits, err := d.marked("init", id, operation)
		if err != nil || len(shims)+len(inits) == 0 {
			return err
		}
		for _, p := range shims {
			if err := p.Finish(ctx, d.cfg.StopTimeout); err != nil {
				return err
			}
		}
		for _, p := range inits {
			if err := p.Finish(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// marked finds the processes of a sandbox by the marks among their arguments.
func (d *Driver) marked(role, id, operation string) ([]host.Process, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []host.Process
	marks := "\x00" + strings.Join([]string{role, id, operation}, "\x00") + "\x00"
	for _, path := range lines {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		p := host.ProcessOf(pid) // before its arguments: they are this process's or a later one's, which is then not held
		raw, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(raw), d.cfg.Shim[0]+"\x00") || !strings.HasSuffix(string(raw), marks) {
			continue // it has ended meanwhile, or is none of the sandbox
		}
		out = append(out, p)
	}
	return out, nil
}

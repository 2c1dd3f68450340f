package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/sandgate/sandgate/shared/driver"
)

// row is one figure.
type row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// report gathers the figures and prints each at once.
type report struct {
	dir    string
	procs  int // GOMAXPROCS of gateway and extensions; 0: where it says nothing
	rows   []row
	missed int
}

func (r *report) add(name string, value float64, unit string) {
	if r.procs > 0 {
		name = fmt.Sprintf("procs=%d/%s", r.procs, name)
	}
	r.rows = append(r.rows, row{name, value, unit})
	fmt.Printf("%-58s %12.3f %s\n", name, value, unit)
}

func (r *report) duration(name string, d time.Duration) {
	r.add(name, float64(d.Microseconds())/1000, "ms")
}

// wanted adds a figure and says whether it is as wanted.
func (r *report) wanted(name string, value float64, unit string, atLeast bool, target float64) {
	r.add(name, value, unit)
	word, held := "at most", value <= target
	if atLeast {
		word, held = "at least", value >= target
	}
	verdict := "held"
	if !held {
		verdict = "MISSED"
		r.missed++
	}
	fmt.Printf("%-58s   wanted: %s %g %s: %s\n", "", word, target, unit, verdict)
}

// printReport measures everything in one run, with one processor and with two.
func printReport(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	r := &report{dir: dir}
	fmt.Printf("%s, %s, %d processors\n", runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU())
	for _, procs := range []int{1, 2} {
		r.procs = procs
		runtime.GOMAXPROCS(procs)
		for _, part := range []func(context.Context, *programs) error{r.calls, r.chains, r.validators, r.overlap, r.starts} {
			if err := r.with(ctx, part); err != nil {
				return err
			}
		}
	}
	r.procs = 0
	if err := r.with(ctx, r.memory); err != nil {
		return err
	}
	fmt.Printf("%d of the wanted figures were missed\n", r.missed)
	file := os.Getenv("BENCH_JSON")
	if file == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}

// with runs a part with a supervisor of its own.
func (r *report) with(ctx context.Context, part func(context.Context, *programs) error) (err error) {
	p, err := newPrograms(filepath.Join(r.dir, "x"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end(), p.Close()) }()
	runtime.GC() // what the part before has left is not this one's
	return part(ctx, p)
}

// env is the environment of the programs of this part.
func (r *report) env(more ...string) []string {
	return append([]string{"GOMAXPROCS", strconv.Itoa(max(1, r.procs))}, more...)
}

// calls measures what the gateway adds to a call.
func (r *report) calls(ctx context.Context, p *programs) error {
	b, err := newBare()
	if err != nil {
		return err
	}
	defer b.close()
	if _, _, err := p.launch(ctx, 1, r.env()...); err != nil {
		return err
	}
	g, err := newGateway(ctx, memory, p.handles)
	if err != nil {
		return err
	}
	call, bytes, err := phaseCall(ctx, g, p.handles[0].Name())
	if err != nil {
		return errors.Join(err, g.close())
	}
	took, err := inTurn(ctx, 5000, b.ping(bytes), call)
	if err != nil {
		return errors.Join(err, g.close())
	}
	floor, phase := took[0], took[1]
	r.add("floor/bytes", float64(bytes), "bytes")
	for _, pc := range []int{50, 99} {
		r.add(fmt.Sprintf("floor/p%d", pc), float64(floor.at(pc).Nanoseconds())/1000, "µs")
		r.add(fmt.Sprintf("call/p%d", pc), float64(phase.at(pc).Nanoseconds())/1000, "µs")
	}
	r.wanted("call/floors", float64(phase.at(50))/float64(floor.at(50)), "floors", false, 1.5)
	return g.close()
}

// chains measures creates through chains of programs that do nothing.
func (r *report) chains(ctx context.Context, p *programs) error {
	if _, _, err := p.launch(ctx, 16, r.env()...); err != nil {
		return err
	}
	for _, st := range []store{disk, memory} {
		for _, n := range []int{0, 1, 2, 4, 8, 16} {
			g, err := newGateway(ctx, st, p.handles[:n])
			if err != nil {
				return err
			}
			for _, at := range []int{1, 8, 64} {
				took, rate, err := creates(ctx, g, at, max(20, 2*at), time.Second)
				if err != nil {
					return errors.Join(err, g.close())
				}
				name := fmt.Sprintf("create/%s/chain=%d/at=%d", st, n, at)
				r.duration(name+"/p50", took.at(50))
				r.duration(name+"/p99", took.at(99))
				r.add(name+"/rate", rate, "per second")
			}
			commits, steps, err := commitsPerCreate(ctx, g)
			if err == nil && st == disk {
				r.wanted(fmt.Sprintf("create/chain=%d/commits", n), float64(commits), "commits", false, float64(steps+2))
			}
			if err := errors.Join(err, g.close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// validators measures a chain whose validators wait.
func (r *report) validators(ctx context.Context, p *programs) error {
	if _, _, err := p.launch(ctx, 16, r.env("NOOP_PHASES", "validate_request", "NOOP_WAIT", "20ms")...); err != nil {
		return err
	}
	g, err := newGateway(ctx, memory, p.handles)
	if err != nil {
		return err
	}
	took, _, err := creates(ctx, g, 1, 40, 0)
	r.duration("validators=16/wait=20ms/p99", took.at(99))
	r.wanted("validators=16/wait=20ms/p50", float64(took.at(50).Microseconds())/1000, "ms", false, 30)
	return errors.Join(err, g.close())
}

// overlap measures how much of the waiting of creates is done side by side.
func (r *report) overlap(ctx context.Context, p *programs) error {
	if _, _, err := p.launch(ctx, 2, r.env("NOOP_WAIT", "5ms")...); err != nil {
		return err
	}
	g, err := newGateway(ctx, memory, p.handles)
	if err != nil {
		return err
	}
	_, alone, err := creates(ctx, g, 1, 30, 3*time.Second)
	if err != nil {
		return errors.Join(err, g.close())
	}
	_, together, err := creates(ctx, g, 64, 640, 3*time.Second)
	r.add("overlap/wait=5ms/at=1/rate", alone, "per second")
	r.add("overlap/wait=5ms/at=64/rate", together, "per second")
	r.wanted("overlap/wait=5ms/at=64", together/alone, "times", true, 40)
	return errors.Join(err, g.close())
}

// starts measures how long a program takes to be ready, from the start of its process. What comes before that is its
// verification: it is hashed at every start, so it grows with the program.
func (r *report) starts(ctx context.Context, p *programs) error {
	var ready, whole, each, all, slow times
	launch := func(n int, env ...string) (wholes, fromLaunch times, total time.Duration, err error) {
		began := time.Now()
		wholes, fromLaunch, err = p.launch(ctx, n, r.env(env...)...)
		total = time.Since(began)
		return wholes, fromLaunch, total, errors.Join(err, p.end())
	}
	for range 30 {
		w, l, _, err := launch(1)
		if err != nil {
			return err
		}
		whole, ready = append(whole, w...), append(ready, l...)
	}
	for range 5 {
		_, l, total, err := launch(16)
		if err != nil {
			return err
		}
		each, all = append(each, l...), append(all, total)
		if _, _, total, err = launch(16, "NOOP_START", "500ms"); err != nil {
			return err
		}
		slow = append(slow, total)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.wanted("start/alone/p50", ms(ready.at(50)), "ms", false, 20)
	r.duration("start/alone/p99", ready.at(99))
	r.duration("start/alone/verified first/p50", whole.at(50))
	r.duration("start/16 side by side/p50", each.at(50))
	r.duration("start/16 side by side/p99", each.at(99))
	r.duration("start/16 side by side/verified first/all", all.at(50))
	r.wanted("start/16 side by side, each slow by 500 ms/all", ms(slow.at(50)), "ms", false, 2000)
	return nil
}

// memory measures what extensions and sandboxes take.
func (r *report) memory(ctx context.Context, p *programs) error {
	const mb = 1 << 20
	before := heap()
	if _, _, err := p.launch(ctx, 16); err != nil {
		return err
	}
	r.add("memory/extension/gateway", float64(heap()-before)/16/mb, "MB")
	var resident, share uint64
	for _, h := range p.handles {
		rss, pss, err := memoryOf(h)
		if err != nil {
			return err
		}
		resident, share = resident+rss, share+pss
	}
	r.add("memory/extension/resident", float64(resident)/16/mb, "MB")
	r.add("memory/extension/share", float64(share)/16/mb, "MB")
	g, err := newGatewayOver(ctx, &idle{events: make(chan driver.Event)}, disk, p.handles[:2])
	if err != nil {
		return err
	}
	before = heap()
	goroutines := runtime.NumGoroutine()
	_, rate, err := creates(ctx, g, 64, 10_000, 0)
	if err != nil {
		return errors.Join(err, g.close())
	}
	r.add("memory/10,000 sandboxes/create rate", rate, "per second")
	r.add("memory/10,000 sandboxes/heap", float64(heap()-before)/mb, "MB")
	r.add("memory/10,000 sandboxes/goroutines", float64(runtime.NumGoroutine()-goroutines), "goroutines")
	err = g.Engine.Close()
	size := int64(0)
	files, _ := filepath.Glob(filepath.Join(g.dir, "journal.db*")) // the pattern is fixed
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			size += st.Size()
		}
	}
	r.add("memory/10,000 sandboxes/journal on disk", float64(size)/mb, "MB")
	return errors.Join(err, g.close())
}

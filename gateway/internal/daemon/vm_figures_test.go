package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/vm/vmtest"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/gateway/internal/pipeline"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/sandbox"
)

var vmFigures = flag.Bool("vm-figures", false, "measure where the time of a virtual machine goes, from create to ready")

const (
	figureMachines = 10
	figureWanted   = 0.05 // what gateway and chain may add to the time of the machine itself
)

// stopwatch notes when what happens to one sandbox at a time.
type stopwatch struct {
	mu         sync.Mutex
	extensions time.Duration // in calls of them
	made, let  time.Time     // when driver.Create began and ended
	ready      time.Time
}

type timedDriver struct {
	driver.Driver
	w *stopwatch
}

func (d timedDriver) Unwrap() driver.Driver { return d.Driver }

func (d timedDriver) Create(ctx context.Context, r *driver.CreateRequest) error {
	began := time.Now()
	err := d.Driver.Create(ctx, r)
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.made, d.w.let = began, time.Now()
	return err
}

func (d timedDriver) Watch(ctx context.Context, fn func(driver.Event) error) error {
	return d.Driver.Watch(ctx, func(e driver.Event) error {
		if e.Status != nil && e.Status.State == driver.Ready {
			d.w.mu.Lock()
			d.w.ready = time.Now()
			d.w.mu.Unlock()
		}
		return fn(e)
	})
}

type timedExtension struct {
	pipeline.Extension
	w *stopwatch
}

func (x timedExtension) Call(ctx context.Context, c *extension.Call) (*extension.Answer, error) {
	began := time.Now()
	a, err := x.Extension.Call(ctx, c)
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	x.w.extensions += time.Since(began)
	return a, err
}

// parts are where the time from create to ready went.
type parts struct{ all, gateway, extensions, qemu, kernel, init time.Duration }

// The time from create to ready, in its parts, and what a machine costs in memory beyond what it was given.
func TestVMFigures(t *testing.T) {
	if !*vmFigures {
		return // a figure of a machine that does something else says nothing: make bench-vm
	}
	for _, accel := range []string{"tcg", "kvm"} {
		t.Run(accel, func(t *testing.T) { figures(t, accel) })
	}
}

func figures(t *testing.T, accel string) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "../../../examples/ipam", "../../../examples/tenant-namespace", "../../../examples/guest-dropin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := newSite(t)
	settings := strings.Replace(vmtest.Settings(t, "memory_mib = 256"), "memory_mib = 128\n", "", 1)
	text := strings.NewReplacer("BIN", bin, "DIR", s.dir, "SETTINGS", strings.Replace(settings, `accel = "tcg"`, fmt.Sprintf("accel = %q", accel), 1)).Replace(figureConfig)
	if err := os.WriteFile(filepath.Join(s.dir, "site.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &stopwatch{}
	s.startWith(func(o *Options) {
		o.between.driver = func(d driver.Driver) driver.Driver { return timedDriver{d, w} }
		o.between.extension = func(_ string, x pipeline.Extension) pipeline.Extension { return timedExtension{x, w} }
	})
	defer s.end()
	var all []parts
	var beyond []int64
	for i := range figureMachines + 1 {
		w.mu.Lock()
		w.extensions, w.ready = 0, time.Time{}
		w.mu.Unlock()
		began := time.Now()
		h, id, err := s.d.engine.CreateSandbox(engine.CreateRequest{Driver: "acme", Name: fmt.Sprintf("box-%d", i), Workspace: "team-figures", Spec: sandbox.Spec{Command: []string{"/bin/sleep", "600"}}})
		if err == nil {
			_, err = h.Wait(t.Context())
		}
		if err != nil && accel == "kvm" && strings.Contains(err.Error(), "KVM does not work") {
			t.Skipf("not measured: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.until("the machine is ready", func() bool {
			sb, err := s.d.engine.Find(engine.Ref{IDOrName: id.ID})
			return err == nil && sb.State == sandbox.Ready && sb.Run.Ready
		})
		p := w.parts(t, began, time.Now(), filepath.Join(s.dir, "data/drivers/vm/sandboxes", id.ID))
		if i > 0 { // the first one has the images made
			all = append(all, p)
			beyond = append(beyond, memoryOf(t, filepath.Join(s.dir, "data/drivers/vm/sandboxes", id.ID)))
		}
		s.remove(id.ID)
	}
	m := median(all)
	machine := m.qemu + m.kernel + m.init
	t.Logf("%s, median of %d: create to ready %v = gateway %v + extensions %v + QEMU start %v + kernel %v + init %v", accel, len(all),
		round(m.all), round(m.gateway), round(m.extensions), round(m.qemu), round(m.kernel), round(m.init))
	slices.Sort(beyond)
	t.Logf("%s: QEMU has %d MiB (PSS) beyond the machine's own memory that it uses; no other process belongs to a machine", accel, beyond[len(beyond)/2]>>20)
	if got := (m.gateway + m.extensions).Seconds() / machine.Seconds(); got > figureWanted {
		t.Errorf("MISSED: gateway and chain add %.1f %% to the machine's own time, wanted less than %.0f %%", 100*got, 100*figureWanted)
	} else {
		t.Logf("%s: gateway and chain add %.1f %% to the machine's own time, wanted less than %.0f %%", accel, 100*got, 100*figureWanted)
	}
}

const figureConfig = `
gateway {
  data_dir = "DIR/data"
  listen   = "unix://DIR/gw.sock"
}
extension "tenant-namespace" {
  command = "BIN/tenant-namespace"
  config {
    tenant "team-*" {
      labels  = { tier = "figures" }
      network = true
    }
  }
}
extension "ipam" {
  command = "BIN/ipam"
  paths {
    write = ["DIR/leases"]
  }
  config {
    store = "DIR/leases"
    pool "sandboxes" {
      cidr          = "10.199.0.0/16"
      subnet_prefix = 24
    }
  }
}
extension "guest-dropin" {
  command = "BIN/guest-dropin"
  config {
    dropin "10-motd.sh" {
      contents = "#!/bin/sh\necho hello > /etc/motd\n"
    }
  }
}
driver "vm" {
  SETTINGS
}
driver "acme" {
  base = "vm"
  bind "tenant-namespace" {
    grant { mutate = ["LaunchPlan.labels", "Network"] }
  }
  bind "ipam" {
    grant { mutate = ["LaunchPlan.guest_ip", "Network.subnet"] }
  }
  bind "guest-dropin" {
    grant { mutate = ["GuestInitDropin"] }
  }
}
`

// parts takes the time of one machine apart. The guest's own clock says how long its kernel and its first process took; what
// is left of the time from driver.Create to ready is QEMU's, and the rest the gateway's.
func (w *stopwatch) parts(t *testing.T, began, seen time.Time, dir string) parts {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "events.1"))
	if err != nil {
		t.Fatal(err)
	}
	up := map[string]time.Duration{}
	for line := range strings.Lines(string(raw)) {
		var e struct {
			Type   string `json:"type"`
			Uptime int64  `json:"uptime_ms"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		up[e.Type] = time.Duration(e.Uptime) * time.Millisecond
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := parts{all: seen.Sub(began), extensions: w.extensions, kernel: up["init"], init: up["ready"] - up["init"]}
	p.qemu = w.ready.Sub(w.made) - up["ready"]
	p.gateway = p.all - w.ready.Sub(w.made) - p.extensions
	return p
}

// memoryOf is what a machine's QEMU uses of the host's memory besides the guest's own: its share of what is shared too.
func memoryOf(t *testing.T, dir string) int64 {
	t.Helper()
	var m struct {
		PID int `json:"pid"`
	}
	raw, err := os.ReadFile(filepath.Join(dir, "machine.json"))
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err = os.ReadFile(fmt.Sprintf("/proc/%d/smaps", m.PID))
	if err != nil {
		t.Fatal(err)
	}
	var size, pss, other int64
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "Size: %d kB", &kib); err == nil {
			size = kib
		}
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			pss = kib
			if size != 256<<10 { // the guest's memory is one mapping of its own size
				other += pss
			}
		}
	}
	return other << 10
}

func median(all []parts) parts {
	by := func(get func(parts) time.Duration) time.Duration {
		sorted := slices.SortedFunc(slices.Values(all), func(a, b parts) int { return cmp.Compare(get(a), get(b)) })
		return get(sorted[len(sorted)/2])
	}
	return parts{all: by(func(p parts) time.Duration { return p.all }), gateway: by(func(p parts) time.Duration { return p.gateway }),
		extensions: by(func(p parts) time.Duration { return p.extensions }), qemu: by(func(p parts) time.Duration { return p.qemu }),
		kernel: by(func(p parts) time.Duration { return p.kernel }), init: by(func(p parts) time.Duration { return p.init })}
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

package supervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandgate/sandgate/shared/fault"
)

// privileges returns what a process may do, by the names of proc_pid_status(5).
func privileges(t *testing.T, pid int) map[string]uint64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" {
			out[name], _ = strconv.ParseUint(value, 16, 64)
		}
	}
	return out
}

func TestAProcessHasTheCapabilitiesThatItKeepsAndGainsNone(t *testing.T) {
	const admin = 1 << unix.CAP_NET_ADMIN
	r := newRig(t)
	before := privileges(t, os.Getpid())
	for name, c := range map[string]struct {
		keep []string
		user string
		want uint64
	}{
		"by default none":             {want: 0},
		"the one that is kept":        {keep: []string{"CAP_NET_ADMIN"}, want: admin},
		"by its short name":           {keep: []string{"net_admin"}, want: admin},
		"as another user, by default": {user: "65534", want: 0},
		"as another user":             {keep: []string{"CAP_NET_ADMIN"}, user: "65534", want: admin},
	} {
		if os.Geteuid() != 0 && (len(c.keep) > 0 || c.user != "") {
			continue // an ordinary user has nothing to keep
		}
		spec := r.probe("noop")
		spec.Name, spec.Capabilities, spec.User, spec.Group = "probe", c.keep, c.user, c.user
		got := privileges(t, r.up(spec).Status().PID)
		if got["NoNewPrivs"] != 1 {
			t.Errorf("%s: it may gain privileges", name)
		}
		if os.Geteuid() == 0 && (got["CapEff"] != c.want || got["CapBnd"] != c.want) {
			t.Errorf("%s: it has %x, and could have %x; want %x", name, got["CapEff"], got["CapBnd"], c.want)
		}
	}
	if after := privileges(t, os.Getpid()); after["CapBnd"] != before["CapBnd"] || after["NoNewPrivs"] != before["NoNewPrivs"] {
		t.Errorf("the gateway itself had %v and has %v", before, after)
	}
	spec := r.probe("noop")
	spec.Capabilities = []string{"CAP_EVERYTHING"}
	if _, err := r.Launch(r.ctx(), spec); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "CAP_EVERYTHING") {
		t.Errorf("a capability that is none: %v", err)
	}
}

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandgate/sandgate/drivers/remote"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/driver/drivertest"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// TestARemoteDriverConforms: the remote driver over a gateway that serves native through a chain.
func TestARemoteDriverConforms(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newSite(t)
	s.writeExposed("30s", "")
	s.start()
	defer s.end()
	place := func(tb testing.TB) func() (driver.Driver, error) {
		dir := filepath.Join(tb.TempDir(), "notes")
		return func() (driver.Driver, error) {
			return remote.Open(remote.Config{Name: "remote", Socket: s.socket(), Dir: dir, Version: "test"})
		}
	}
	drivertest.Lifecycle(t, drivertest.Factory{Driver: "remote", Place: place, Commands: drivertest.Shell()})
}

// TestAChainOfThree: a gateway whose composed driver stands on a remote one, which is another gateway's, which stands on
// native.
func TestAChainOfThree(t *testing.T) {
	t.Parallel() // it waits more than it works
	far := newSite(t)
	far.writeExposed("30s", "")
	far.start()
	defer far.end()
	near := newSite(t)
	path := near.write(near.keeperBlock(""), `bind "keeper" {
    grant { mutate = ["DriverSandbox.labels", "DriverSandbox.image"] }
  }`)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s\ndriver \"far\" {\n  socket = \"unix://%s\"\n}\n", onBase(string(raw), "far"), far.socket()), 0o600); err != nil {
		t.Fatal(err)
	}
	near.start()
	defer near.end()
	id, err := near.create("one", sandbox.Spec{Environment: map[string]string{"A": "1"}, Token: []byte("hush")})
	if err != nil {
		t.Fatal(err)
	}
	if near.held() != 1 || far.held() != 1 {
		t.Errorf("held: %d here, %d there", near.held(), far.held())
	}
	near.until("it is ready", func() bool { sb, _ := near.d.engine.Lookup(id.ID); return sb.State == sandbox.Ready })
	there, ok := far.d.engine.Lookup(id.ID)
	if !ok || there.Name != "one" || there.Driver != "acme" || there.State != sandbox.Ready {
		t.Errorf("there: %+v", there)
	}
	near.remove(id.ID)
	if near.held()+far.held() != 0 {
		t.Errorf("held after the delete: %d here, %d there", near.held(), far.held())
	}
}

// A gateway starts while its remote driver is away: the others serve, and that one does when it is back.
func TestAGatewayStartsWhileARemoteDriverIsAway(t *testing.T) {
	t.Parallel() // it waits more than it works
	far := newSite(t)
	far.writeExposed("30s", "")
	far.start()
	near := newSite(t)
	path := near.write(near.keeperBlock(""), keeperBind)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s\ndriver \"far\" {\n  socket = \"unix://%s\"\n}\n", raw, far.socket()), 0o600); err != nil {
		t.Fatal(err)
	}
	near.start()
	near.end()
	far.end()
	began := time.Now()
	near.start() // its test fails where it does not
	defer near.end()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	here, err := near.create("here", sandbox.Spec{})
	if err != nil {
		t.Errorf("another driver: %v", err)
	}
	far.start()
	defer far.end()
	h, there, err := near.d.engine.CreateSandbox(engine.CreateRequest{Driver: "far", Name: "there", Spec: sandbox.Spec{Command: []string{"/bin/sleep", "600"}}})
	if err == nil {
		_, err = h.Wait(t.Context())
	}
	if err != nil {
		t.Fatalf("it is back: %v", err)
	}
	near.until("it is watched", func() bool { sb, _ := near.d.engine.Lookup(there.ID); return sb.State == sandbox.Ready })
	near.remove(there.ID)
	near.remove(here.ID)
}

// onBase moves the composed driver of a configuration onto another base.
func onBase(text, base string) string {
	return strings.Replace(text, `base = "native"`, fmt.Sprintf("base = %q", base), 1)
}

package kubernetes

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sandgate/sandgate/shared/fault"
)

// A server that is ready and refuses, since a webhook of it is away, is asked seldom and given up after a while; one whose
// caller has gone is not asked again.
func TestAServerThatRefusesIsAskedSeldom(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	defer server.Close()
	typed, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{typed: typed, patience: 3 * time.Second}
	refuse := func(context.Context) error {
		asked.Add(1)
		return fault.New(fault.Unavailable, "a webhook does not answer")
	}
	if err := c.patiently(t.Context(), t.Context(), "apply", "pod", refuse); !fault.Is(err, fault.Unavailable) {
		t.Errorf("it is given up with %v", err)
	}
	if n := asked.Load(); n < 3 || n > 8 {
		t.Errorf("it was asked %d times in three seconds", n)
	}
	asked.Store(0)
	caller, leave := context.WithCancel(t.Context())
	err = c.patiently(t.Context(), caller, "apply", "pod", func(ctx context.Context) error { leave(); return refuse(ctx) })
	if n := asked.Load(); n != 1 || fault.CodeOf(err) != fault.Canceled {
		t.Errorf("after its caller left it was asked %d times, and ends with %v", n, err)
	}
}

package enginetest

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// An engine comes up with its image, is stopped, killed and started again, and leaves nothing.
func TestEngineLeavesNothing(t *testing.T) {
	for _, k := range []Kind{Docker, Podman, Rootless} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			e := Use(t, k)
			for _, order := range []string{"stop", "start", "kill", "start", "reboot", "start"} {
				if err := e.Order(order); err != nil {
					t.Fatalf("%s: %v", order, err)
				}
			}
			if _, err := e.Inventory(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

package native

import (
	"testing"
)

// BenchmarkCreate is from the call to the executed command: two starts of this program, a dozen mounts, one sync.
func BenchmarkCreate(b *testing.B) {
	for name, subnet := range map[string]string{"alone": "", "networked": "10.203.24.0/24"} {
		b.Run(name, func(b *testing.B) {
			k := newKit(b)
			w := k.workspace(subnet)
			for b.Loop() {
				b.StopTimer()
				box := k.plan(w, sh("exec sleep 600"))
				if subnet != "" {
					box = k.plan(w, sh("exec sleep 600"), at("10.203.24.2"))
				}
				b.StartTimer()
				box.create()
				b.StopTimer()
				box.delete()
				b.StartTimer()
			}
		})
	}
}

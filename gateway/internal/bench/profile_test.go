package bench

import (
	"fmt"
	"path/filepath"
	"testing"
)

// The benchmarks are for profiles: go test -bench Create/memory -cpuprofile cpu.out ./gateway/internal/bench

func BenchmarkCreate(b *testing.B) {
	p, err := newPrograms(filepath.Join(shortDir, "b"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if _, _, err := p.launch(b.Context(), 2); err != nil {
		b.Fatal(err)
	}
	for _, st := range []store{memory, disk} {
		for _, n := range []int{0, 2} {
			for _, at := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/chain=%d/at=%d", st, n, at), func(b *testing.B) {
					g, err := newGateway(b.Context(), st, p.handles[:n])
					if err != nil {
						b.Fatal(err)
					}
					b.ReportAllocs()
					b.ResetTimer()
					if _, _, err := creates(b.Context(), g, at, b.N, 0); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := g.close(); err != nil {
						b.Fatal(err)
					}
				})
			}
		}
	}
}

func BenchmarkCall(b *testing.B) {
	p, err := newPrograms(filepath.Join(shortDir, "c"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if _, _, err := p.launch(b.Context(), 1); err != nil {
		b.Fatal(err)
	}
	g, err := newGateway(b.Context(), memory, p.handles)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = g.close() }()
	call, _, err := phaseCall(b.Context(), g, p.handles[0].Name())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := call(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	p, err := newPrograms(filepath.Join(shortDir, "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	for b.Loop() {
		if _, _, err := p.launch(b.Context(), 1); err != nil {
			b.Fatal(err)
		}
		if err := p.end(); err != nil {
			b.Fatal(err)
		}
	}
}

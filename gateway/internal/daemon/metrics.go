package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sandgate/sandgate/gateway/internal/engine"
)

// what is looked up when the metrics are read.
var (
	aboutExtensions = prometheus.NewDesc("sandgate_extension_state", "The state that an extension is in has the value 1.", []string{"extension", "version", "state"}, nil)
	aboutRestarts   = prometheus.NewDesc("sandgate_extension_restarts_total", "How often the process of an extension was restarted.", []string{"extension"}, nil)
	aboutSandboxes  = prometheus.NewDesc("sandgate_sandboxes", "Sandboxes, by state; those that are deleted are not counted.", []string{"driver", "state"}, nil)
	aboutUnfinished = prometheus.NewDesc("sandgate_operations_unfinished", "Operations that have not ended.", []string{"driver", "operation"}, nil)
	aboutReleases   = prometheus.NewDesc("sandgate_releases_waiting", "Releases that an extension has not acknowledged yet.", []string{"extension", "phase"}, nil)
	aboutEntries    = prometheus.NewDesc("sandgate_resources_held", "Side resources in the ledger.", []string{"extension"}, nil)
)

// collector looks up how things are.
type collector struct{ d *Daemon }

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, about := range []*prometheus.Desc{aboutExtensions, aboutRestarts, aboutSandboxes, aboutUnfinished, aboutReleases, aboutEntries} {
		out <- about
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for name, r := range c.d.catalog.current().extensions {
		st := r.handle.Status()
		out <- prometheus.MustNewConstMetric(aboutExtensions, prometheus.GaugeValue, 1, name, st.Manifest.Version, string(st.State))
		out <- prometheus.MustNewConstMetric(aboutRestarts, prometheus.CounterValue, float64(st.Restarts), name)
	}
	sandboxes := counts{}
	for _, sb := range c.d.engine.Sandboxes(false) {
		sandboxes.add(1, sb.Driver, string(sb.State))
	}
	sandboxes.send(out, aboutSandboxes)
	unfinished := counts{}
	// Those of no subject in particular come from memory, which does not fail.
	ops, _ := c.d.engine.Operations(context.Background(), "")
	for _, op := range ops {
		unfinished.add(1, op.Driver, string(op.Kind))
	}
	unfinished.send(out, aboutUnfinished)
	releases, entries := counts{}, counts{}
	for _, h := range c.d.engine.Holdings() {
		countHolding(h, releases, entries)
	}
	releases.send(out, aboutReleases)
	entries.send(out, aboutEntries)
}

func countHolding(h engine.Holding, releases, entries counts) {
	for _, r := range h.Releases {
		releases.add(1, h.Extension, string(r.Phase))
	}
	for _, held := range h.Entries {
		entries.add(len(held), h.Extension)
	}
}

// counts counts by up to two labels.
type counts map[[2]string]int

func (c counts) add(n int, labels ...string) {
	var key [2]string
	copy(key[:], labels)
	c[key] += n
}

func (c counts) send(out chan<- prometheus.Metric, about *prometheus.Desc) {
	for key, n := range c {
		labels := key[:]
		if about == aboutEntries {
			labels = key[:1]
		}
		out <- prometheus.MustNewConstMetric(about, prometheus.GaugeValue, float64(n), labels...)
	}
}

// serveMetrics serves them on the configured socket until the returned function is called. Without one it does nothing.
func (d *Daemon) serveMetrics(address string) (stop func() error, err error) {
	if address == "" {
		return func() error { return nil }, nil
	}
	l, err := listenUnix("metrics", address)
	if err != nil {
		return nil, err
	}
	if err := d.telemetry.Collect(collector{d}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", d.telemetry.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return context.Background() }}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return func() error {
		err := server.Close()
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
		return err
	}, nil
}

package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/gateway/internal/engine"
	"github.com/sandgate/sandgate/shared/sandbox"
)

var dockerRate = flag.Bool("docker-rate", false, "measure the rate of creates on Docker against the plain client's")

const (
	rateCount  = 200
	rateAtOnce = 16
	rateRounds = 2
	rateWanted = 0.9
)

// Creates through the gateway with two extensions keep at least nine tenths of the rate at which the plain client makes
// the same containers, in the same run, in turn.
func TestDockerRate(t *testing.T) {
	if !*dockerRate {
		return // a figure of a machine that does something else says nothing: make bench-docker
	}
	w := newWreck(t, enginetest.Docker, 8)
	path := filepath.Join(w.dir, "site.hcl")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	direct := strings.ReplaceAll(string(raw), w.proxy.(*enginetest.Proxy).Socket, w.engine.Socket)
	if err := os.WriteFile(path, []byte(direct), 0o600); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	d, f, err := New(t.Context(), Options{Paths: []string{path}, Version: "test", Dev: true, Shim: []string{os.Args[0], heldSwitch, w.dir},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Ready: func(string) { close(ready) }})
	if err != nil || d == nil {
		t.Fatalf("%v %s", err, f)
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- d.Run(ctx) }()
	<-ready
	api, err := client.New(client.WithHost("unix://" + w.engine.Socket))
	if err != nil {
		t.Fatal(err)
	}
	var plain, gateway time.Duration
	for round := range rateRounds {
		p, g := ratePlain(t, api, round), rateGateway(t, d, w.name, round)
		t.Logf("round %d: plain %.1f/s, gateway %.1f/s", round, rate(p), rate(g))
		plain, gateway = plain+p, gateway+g
	}
	got := plain.Seconds() / gateway.Seconds()
	t.Logf("plain %.1f/s, gateway with two extensions %.1f/s: %.2f of the plain client's, wanted at least %.1f",
		rate(plain/rateRounds), rate(gateway/rateRounds), got, rateWanted)
	if got < rateWanted {
		t.Errorf("MISSED: %.2f", got)
	}
	// At this rate Docker loses count of a network's places, and does not remove it until it was started anew.
	if err := errors.Join(w.engine.Order("stop"), w.engine.Order("start")); err != nil {
		t.Fatal(err)
	}
	for round := range rateRounds {
		if _, err := api.NetworkRemove(t.Context(), rateNetwork(round), client.NetworkRemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	h, err := d.engine.DeleteWorkspace(w.name, crashWorkspace, sandbox.Origin{})
	if err == nil {
		_, err = h.Wait(t.Context())
	}
	stop()
	if err := errors.Join(err, <-done, api.Close()); err != nil {
		t.Error(err)
	}
}

func rateNetwork(round int) string { return fmt.Sprintf("plain-%d", round) }

func rate(d time.Duration) float64 { return rateCount / d.Seconds() }

// each does something for every number, some at once, and returns how long it took.
func rateEach(t *testing.T, do func(ctx context.Context, i int) error) time.Duration {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(rateAtOnce)
	began := time.Now()
	for i := range rateCount {
		g.Go(func() error { return do(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

var rateCommand = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"}

// ratePlain makes the containers as a program would that knows nothing of sandboxes.
func ratePlain(t *testing.T, api *client.Client, round int) time.Duration {
	t.Helper()
	net := rateNetwork(round)
	subnet := netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", 111+round))
	if _, err := api.NetworkCreate(t.Context(), net, client.NetworkCreateOptions{Driver: "bridge",
		IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet, Gateway: subnet.Addr().Next()}}}}); err != nil {
		t.Fatal(err)
	}
	ids := make([]string, rateCount)
	pids, grace := int64(4096), 1
	took := rateEach(t, func(ctx context.Context, i int) error {
		r, err := api.ContainerCreate(ctx, client.ContainerCreateOptions{Name: fmt.Sprintf("%s-%d", net, i),
			Config: &container.Config{Image: enginetest.Image, Entrypoint: rateCommand[:1], Cmd: rateCommand[1:], Hostname: "plain", StopTimeout: &grace,
				Env: []string{"A=1", "B=2", "C=3"}, Labels: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "5", "f": "6", "g": "7", "h": "8", "i": "9"}},
			HostConfig: &container.HostConfig{NetworkMode: container.NetworkMode(net), Resources: container.Resources{PidsLimit: &pids}},
			NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{net: {
				IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.AddrFrom4([4]byte{10, byte(111 + round), 0, byte(2 + i)})}}}}})
		if err == nil {
			ids[i] = r.ID
			_, err = api.ContainerStart(ctx, r.ID, client.ContainerStartOptions{})
		}
		return err
	})
	rateEach(t, func(ctx context.Context, i int) error {
		_, err := api.ContainerRemove(ctx, ids[i], client.ContainerRemoveOptions{Force: true})
		return err
	})
	return took
}

func rateGateway(t *testing.T, d *Daemon, driverName string, round int) time.Duration {
	t.Helper()
	id := func(i int) string { return fmt.Sprintf("%s-%d-%d", driverName, round, i) }
	wait := func(ctx context.Context, h *engine.Handle, err error) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err == nil {
			_, err = h.Wait(ctx)
		}
		if ctx.Err() != nil {
			ops, _ := d.engine.Operations(t.Context(), "")
			return fmt.Errorf("it does not end: %+v", ops)
		}
		return err
	}
	h, err := d.engine.EnsureWorkspace(driverName, crashWorkspace, sandbox.Origin{})
	if err := wait(t.Context(), h, err); err != nil {
		t.Fatal(err)
	}
	took := rateEach(t, func(ctx context.Context, i int) error {
		h, _, err := d.engine.CreateSandbox(engine.CreateRequest{ID: id(i), Driver: driverName, Workspace: crashWorkspace, Name: fmt.Sprintf("s-%d-%d", round, i),
			Spec: sandbox.Spec{Command: rateCommand}})
		return wait(ctx, h, err)
	})
	rateEach(t, func(ctx context.Context, i int) error {
		h, err := d.engine.DeleteSandbox(id(i), sandbox.Origin{})
		return wait(ctx, h, err)
	})
	return took
}

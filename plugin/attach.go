package plugin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
	"github.com/sandgate/sandgate/shared/wire"
)

// serveAttached serves a process that was started by hand, until it is interrupted: a gateway that reads the file
// attaches to it, and may go and come again.
func serveAttached(server extensionv1.ExtensionServer, driver driverv1.DriverServer, file string) (err error) {
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	socket := "@sandgate-attach-" + rand.Text() // an abstract one (unix(7)): a debugger kills, and nothing is left
	said, tlsConfig, err := wire.NewAttachment(os.Getpid(), socket)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	p := &process{server: server, driver: driver, own: func() {}}
	s := p.newGRPC([]grpc.ServerOption{grpc.Creds(credentials.NewTLS(tlsConfig))})
	extensionv1.RegisterExtensionServer(s, server)
	if driver != nil {
		driverv1.RegisterDriverServer(s, driver)
	}
	answers := health.NewServer()
	answers.SetServingStatus(wire.HealthService, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(s, answers)
	if err := writeAttachment(file, said); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() {
		if e := os.Remove(file); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	fmt.Fprintf(os.Stderr, "attach a gateway to this process: sandgate gateway --dev --attach NAME=%s\n", file)
	end, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	served, failed := make(chan struct{}), error(nil)
	go func() {
		defer close(served)
		failed = s.Serve(listener)
	}()
	select {
	case <-served:
		return failed
	case <-end.Done():
		p.stop(served)
		return nil
	}
}

// writeAttachment puts the file in its place whole, for its owner alone.
func writeAttachment(file string, said *wire.Attachment) error {
	raw, err := json.Marshal(said)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".attach-*") // it is made with the mode 0600
	if err != nil {
		return fmt.Errorf("write %s, which %s names: %w", file, wire.EnvAttach, err)
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

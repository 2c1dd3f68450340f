package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sandgate/sandgate/gateway/internal/api"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/shared/fault"
)

const tcpScheme = "tcp://"

// listen opens the API's listener, and says how who calls there is known: on a Unix socket by the kernel's word, over
// TCP by a certificate.
func listen(g config.Gateway) (net.Listener, grpc.ServerOption, error) {
	address, tcp := strings.CutPrefix(g.Listen, tcpScheme)
	if !tcp {
		l, err := listenUnix("listen", g.Listen)
		return l, grpc.Creds(api.PeerCredentials(nil)), err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen = %q: %w", g.Listen, err)
	}
	return l, grpc.Creds(credentials.NewTLS(mutualTLS(g.TLS))), nil
}

// checkListener finds what keeps the TCP listener from being served, before anything is launched.
func checkListener(g config.Gateway, f *config.Findings) {
	if !strings.HasPrefix(g.Listen, tcpScheme) || g.TLS == nil {
		return
	}
	if _, err := loadTLS(g.TLS); err != nil {
		f.Add(g.TLS.Range, "Unusable certificate", err.Error()+".")
	}
}

// mutualTLS asks every caller for a certificate. The files are read for every connection, so that a certificate is
// renewed by writing its files.
func mutualTLS(t *config.TLS) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return loadTLS(t) }}
}

func loadTLS(t *config.TLS) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("cert %q with key %q: %w", t.Cert, t.Key, err)
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("client_ca: %w", err)
	}
	callers := x509.NewCertPool()
	if !callers.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "client_ca %q has no certificate in PEM form", t.ClientCA)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: callers,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}, nil
}

// listenUnix makes a socket that only the gateway's user may open. What was left there is removed.
func listenUnix(setting, address string) (net.Listener, error) {
	path := strings.TrimPrefix(address, "unix://")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("%s = %q: %w", setting, address, err)
	}
	// The store is locked, so no other gateway of this data directory is there: a socket that is has been left.
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fault.New(fault.FailedPrecondition, "%s = %q: another program serves there", setting, address)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("%s = %q: %w", setting, address, err)
	}
	// The socket comes into being under a name that nobody may open, and gets its own once its mode is set.
	private := path + ".new"
	if err := removeSocket(private); err != nil {
		return nil, fmt.Errorf("%s = %q: %w", setting, address, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%s = %q: %w", setting, address, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(private, 0o600), os.Rename(private, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("%s = %q: %w", setting, address, err), l.Close())
	}
	return &named{Listener: l, path: path}, nil
}

// removeSocket removes a socket that was left. Anything else there is somebody's, and a setting that is wrong.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fault.New(fault.FailedPrecondition, "%s is there and is no socket: name another path, or move it away", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// named removes its socket when it is closed.
type named struct {
	net.Listener
	path string
	once sync.Once
}

func (n *named) Close() (err error) {
	n.once.Do(func() { err = errors.Join(n.Listener.Close(), os.Remove(n.path)) })
	return err
}

package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"math"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sandgate/sandgate/shared/fault"
	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

const defaultAddr = "unix:///run/sandgate/gateway.sock"

// client reaches the gateway.
type client struct {
	env           Env
	addr          string
	cert, key, ca string // of a gateway that listens on TCP
}

func (c *client) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&c.addr, "addr", "", "address of the gateway's API (default $SANDGATE_ADDR, else "+defaultAddr+")")
	f.StringVar(&c.cert, "tls-cert", "", "with a tcp:// address: your certificate (default $SANDGATE_TLS_CERT)")
	f.StringVar(&c.key, "tls-key", "", "with a tcp:// address: its key (default $SANDGATE_TLS_KEY)")
	f.StringVar(&c.ca, "tls-ca", "", "with a tcp:// address: who signs the gateway's certificate (default $SANDGATE_TLS_CA)")
}

func (c *client) address() string {
	return cmp.Or(c.addr, c.env.Getenv("SANDGATE_ADDR"), defaultAddr)
}

// dial opens a connection; nothing is sent yet.
func (c *client) dial() (*grpc.ClientConn, error) {
	addr := c.address()
	switch host, tcp := strings.CutPrefix(addr, "tcp://"); {
	case tcp:
		creds, err := c.mutualTLS(host)
		if err != nil {
			return nil, err
		}
		return grpc.NewClient("dns:///"+host, grpc.WithTransportCredentials(creds), largeAnswers())
	case strings.HasPrefix(addr, "unix:"):
		return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"), largeAnswers())
	}
	return nil, fault.New(fault.Invalid, "the address %q is neither unix:///path/to/gateway.sock nor tcp://host:port", addr)
}

// largeAnswers lets a list be as long as it is: a gateway's own words are trusted.
func largeAnswers() grpc.DialOption {
	return grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32))
}

// mutualTLS is how both sides prove who they are.
func (c *client) mutualTLS(address string) (credentials.TransportCredentials, error) {
	cert, key := cmp.Or(c.cert, c.env.Getenv("SANDGATE_TLS_CERT")), cmp.Or(c.key, c.env.Getenv("SANDGATE_TLS_KEY"))
	ca := cmp.Or(c.ca, c.env.Getenv("SANDGATE_TLS_CA"))
	if cert == "" || key == "" || ca == "" {
		return nil, fault.New(fault.Invalid, "a gateway on TCP wants a certificate: say --tls-cert, --tls-key and --tls-ca, or set SANDGATE_TLS_CERT, SANDGATE_TLS_KEY and SANDGATE_TLS_CA")
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the address tcp://%s: %w", address, err)
	}
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "--tls-cert %s with --tls-key %s: %w", cert, key, err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fault.New(fault.Invalid, "--tls-ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "--tls-ca %s has no certificate in PEM form", ca)
	}
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, RootCAs: roots, ServerName: host}), nil
}

// with calls fn with a connection. Errors of the API come back as faults.
func (c *client) with(ctx context.Context, fn func(context.Context, gatewayv1.GatewayClient) error) error {
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return c.unanswered(fault.FromStatus(fn(ctx, gatewayv1.NewGatewayClient(conn))))
}

// unanswered says it where an error means that no gateway was reached, or that it went away. The gateway's own errors may
// tell of a connection, too, one to an extension say, but do not begin so.
func (c *client) unanswered(err error) error {
	if !fault.Is(err, fault.Unavailable) {
		return err
	}
	switch said := err.Error(); {
	case strings.HasPrefix(said, "error reading from server: "):
		return fault.New(fault.Unavailable, "the gateway at %s went away before it had answered; what it has accepted goes on when it is back: see sandgate operation list (%v)", c.address(), err)
	case !strings.HasPrefix(said, "connection error: "):
		return err
	case strings.HasSuffix(said, `: permission denied"`):
		return fault.New(fault.Denied, "%s is not open to this user: it is for the one that the gateway runs as, and for root (%v)", c.address(), err)
	}
	return fault.New(fault.Unavailable, "no gateway answers at %s; is `sandgate gateway` running, and does SANDGATE_ADDR name it? (%v)", c.address(), err)
}

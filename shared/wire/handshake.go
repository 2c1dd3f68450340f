package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	driverv1 "github.com/sandgate/sandgate/shared/proto/driver/v1"
	extensionv1 "github.com/sandgate/sandgate/shared/proto/extension/v1"
)

// How a host and an extension program meet.
//
// The host starts the program with an environment of the operator's variables, the cookie below, and what go-plugin
// documents: PLUGIN_PROTOCOL_VERSIONS, PLUGIN_UNIX_SOCKET_DIR, PLUGIN_MIN_PORT and PLUGIN_MAX_PORT. Descriptor
// LaunchFD is the reading end of a pipe. One line of JSON stands in it, the Launch; after that it stays silent and
// open for as long as the host lives, so that end of file there means that the host is gone. The program listens on a
// Unix socket in PLUGIN_UNIX_SOCKET_DIR, with TLS from the Launch, and prints go-plugin's handshake line to its
// standard output: 1|PROTOCOL|unix|PATH|grpc|. It serves grpc.health.v1.Health, where the service "plugin" is SERVING,
// and sandgate.extension.v1.Extension. It ends on SIGTERM, and when the pipe ends.
const (
	CookieKey   = "SANDGATE_EXTENSION"
	CookieValue = "4f0d7c5e-launched-by-a-sandgate-gateway"

	// Protocol is the newest version of the extension protocol, sandgate.extension.v1.
	Protocol = 1

	// LaunchFD is the descriptor from which a program reads its Launch.
	LaunchFD = 3

	// EnvProgramDir names, for a script with files beside it, the directory where these lie, as they were hashed.
	EnvProgramDir = "SANDGATE_PROGRAM_DIR"

	// HealthService is the service name that go-plugin's health check asks for.
	HealthService = goplugin.GRPCServiceName

	// MaxRequest bounds one message that the host sends, in bytes.
	MaxRequest = 16 << 20

	// pluginName is the only entry of the plugin sets. maxLaunch bounds the line on LaunchFD.
	pluginName = "extension"
	maxLaunch  = 64 << 10
)

// LaunchVariables returns the names of the environment variables that belong to the launch: an operator cannot set
// them, and a program takes them out of its environment once it has read them.
func LaunchVariables() []string {
	return []string{CookieKey, "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "PLUGIN_CLIENT_CERT",
		"PLUGIN_MULTIPLEX_GRPC", goplugin.EnvUnixSocketDir, goplugin.EnvUnixSocketGroup}
}

// Handshake returns go-plugin's handshake of an extension, the same for both sides.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// Plugins returns the plugin sets by protocol version: for a program with the server it serves, for a host with nil.
// A program that is a driver gives that too.
func Plugins(server extensionv1.ExtensionServer, driver ...driverv1.DriverServer) map[int]goplugin.PluginSet {
	return map[int]goplugin.PluginSet{Protocol: {pluginName: &glue{server: server, drivers: driver}}}
}

// DriverConfig is what a driver program is configured with.
type DriverConfig struct {
	Name   string          `json:"name"`
	Dir    string          `json:"dir"`
	Config json.RawMessage `json:"config,omitempty"`
}

// Dispense returns the connection to the extension that a go-plugin client has started.
func Dispense(client goplugin.ClientProtocol) (grpc.ClientConnInterface, error) {
	raw, err := client.Dispense(pluginName)
	if err != nil {
		return nil, fmt.Errorf("dispense the extension: %w", err)
	}
	return raw.(grpc.ClientConnInterface), nil
}

// glue is the go-plugin side of both ends: it registers the server, and hands out the connection.
type glue struct {
	goplugin.NetRPCUnsupportedPlugin
	server  extensionv1.ExtensionServer
	drivers []driverv1.DriverServer
}

var _ goplugin.GRPCPlugin = (*glue)(nil)

func (g *glue) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	extensionv1.RegisterExtensionServer(s, g.server)
	for _, d := range g.drivers {
		driverv1.RegisterDriverServer(s, d)
	}
	return nil
}

func (g *glue) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// Launch is what a host hands to a program that it starts: the program's own certificate and key, and the
// certificate of the host, which is the only one that it accepts. All are PEM. It holds a secret: never log it.
type Launch struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	Host        string `json:"host_certificate"`
}

// NewLaunch makes a fresh pair for each side. It returns what goes to the program and the TLS configuration with
// which the host dials it.
func NewLaunch() (*Launch, *tls.Config, error) {
	host, err := newPair("sandgate-host")
	if err != nil {
		return nil, nil, err
	}
	program, err := newPair("sandgate-extension")
	if err != nil {
		return nil, nil, err
	}
	launch := &Launch{Certificate: program.certificatePEM(), Host: host.certificatePEM()}
	if launch.Key, err = program.keyPEM(); err != nil {
		return nil, nil, err
	}
	return launch, pinned(host.tls(), program.der), nil
}

// Write writes the line that ReadLaunch reads.
func (l *Launch) Write(w io.Writer) error {
	line, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode the launch: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the launch: %w", err)
	}
	return nil
}

// ReadLaunch reads the line that a host wrote, and nothing after it.
func ReadLaunch(r io.Reader) (*Launch, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxLaunch)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("read the launch from descriptor %d: %w", LaunchFD, err)
	}
	l := &Launch{}
	if err := json.Unmarshal(bytes.TrimSpace(line), l); err != nil {
		return nil, fmt.Errorf("decode the launch from descriptor %d: %w", LaunchFD, err)
	}
	return l, nil
}

// ServerTLS returns the configuration with which the program listens. It accepts the host of this launch only.
func (l *Launch) ServerTLS() (*tls.Config, error) {
	pair, err := tls.X509KeyPair([]byte(l.Certificate), []byte(l.Key))
	if err != nil {
		return nil, fmt.Errorf("read the pair of the launch: %w", err)
	}
	block, _ := pem.Decode([]byte(l.Host))
	if block == nil {
		return nil, fmt.Errorf("read the host's certificate of the launch: it is not PEM")
	}
	return pinned(pair, block.Bytes), nil
}

// pinned accepts one peer: the one that shows exactly that certificate, and has its key.
func pinned(own tls.Certificate, peer []byte) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{own},
		MinVersion:   tls.VersionTLS13,
		ServerName:   "localhost",
		ClientAuth:   tls.RequireAnyClientCert,
		// No authority has signed these certificates; VerifyConnection compares the peer's with the one that we made.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || !bytes.Equal(state.PeerCertificates[0].Raw, peer) {
				return fmt.Errorf("the peer's certificate is not the one that was made for this launch")
			}
			return nil
		},
	}
}

type pair struct {
	key *ecdsa.PrivateKey
	der []byte
}

// newPair makes a self-signed certificate for both directions. TLS libraries that cannot pin take it as their only
// authority, which comes to the same.
func newPair(name string) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{"localhost"},
		NotBefore:             now.Add(-24 * time.Hour), // a wall clock that is set back breaks nothing
		NotAfter:              now.AddDate(10, 0, 0),    // a pair lives as long as its process
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &pair{key: key, der: der}, nil
}

func (p *pair) tls() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.der}, PrivateKey: p.key}
}

func (p *pair) certificatePEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.der}))
}

func (p *pair) keyPEM() (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return "", fmt.Errorf("encode a key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

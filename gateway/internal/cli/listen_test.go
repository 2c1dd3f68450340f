package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	a.key, a.cert = a.make(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// make writes NAME.pem and NAME.key.
func (a *authority) make(name string, c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, out
}

func (a *authority) caller(name string) {
	a.make(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// as makes commands use the certificate of that name.
func (s *site) as(name, ca string) {
	s.env["SANDGATE_TLS_CERT"], s.env["SANDGATE_TLS_KEY"] = s.dir+"/"+name+".pem", s.dir+"/"+name+".key"
	s.env["SANDGATE_TLS_CA"] = s.dir + "/" + ca + ".pem"
}

func TestTCPWantsACertificateOfBothSides(t *testing.T) {
	s := newSite(t)
	ca, other := newAuthority(t, s.dir, "ca"), newAuthority(t, s.dir, "other-ca")
	ca.make("gateway", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	ca.caller("alice")
	other.caller("mallory")
	s.listen = "tcp://127.0.0.1:0"
	s.more = fmt.Sprintf("  tls {\n    cert      = \"%[1]s/gateway.pem\"\n    key       = \"%[1]s/gateway.key\"\n    client_ca = \"%[1]s/ca.pem\"\n  }\n", s.dir)
	s.write("driver \"native\" {}\n")
	s.as("alice", "ca")
	s.start()

	s.ok("sandbox", "create", "--name", "one", "--", "true")
	if got := s.ok("sandbox", "get", "one", "-o", "json"); !strings.Contains(got, `"cert:alice"`) {
		t.Errorf("the caller is not known by the certificate:\n%s", got)
	}
	s.ok("sandbox", "delete", "one", "--wait")

	s.as("mallory", "ca")
	s.refused(exitUnavailable, "sandbox", "list")
	s.as("alice", "other-ca")
	s.refused(exitUnavailable, "sandbox", "list")
	delete(s.env, "SANDGATE_TLS_CERT")
	if said := s.refused(exitRefused, "sandbox", "list"); !strings.Contains(said, "--tls-cert") {
		t.Errorf("without a certificate: %s", said)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.env["SANDGATE_ADDR"], "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	plain, err := grpc.NewClient(strings.TrimPrefix(s.env["SANDGATE_ADDR"], "tcp://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if _, err := gatewayv1.NewGatewayClient(plain).GetVersion(t.Context(), &gatewayv1.GetVersionRequest{}); err == nil {
		t.Error("a caller without TLS was answered")
	}
}

func TestTheUnixSocketIsTheUsersAlone(t *testing.T) {
	s := newSite(t)
	s.write("driver \"native\" {}\n")
	s.start()
	info, err := os.Stat(s.dir + "/gw.sock")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v", info.Mode().Perm())
	}
	conn, err := grpc.NewClient(s.listen, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	h, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: gatewayv1.Gateway_ServiceDesc.ServiceName})
	if err != nil || h.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", h, err)
	}
	if names, err := services(t.Context(), conn); err != nil || !strings.Contains(names, gatewayv1.Gateway_ServiceDesc.ServiceName) {
		t.Errorf("reflection: %v %v", names, err)
	}
}

func services(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return "", err
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		return "", err
	}
	m, err := stream.Recv()
	if err != nil {
		return "", err
	}
	return m.String(), stream.CloseSend()
}

var readyAt = regexp.MustCompile(`address=(tcp://\S+)`)

// findAddress takes the address of a TCP listener from what the gateway said.
func (s *site) findAddress() {
	if m := readyAt.FindStringSubmatch(s.log.String()); m != nil {
		s.env["SANDGATE_ADDR"] = m[1]
	}
}

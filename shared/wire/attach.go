package wire

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
)

// EnvAttach names the file that a program writes which was started by hand, under a debugger for example, so that a
// gateway can attach to it instead of starting one.
const EnvAttach = "SANDGATE_ATTACH"

// Attachment is what stands in that file, as JSON: where the program listens and how to prove to it who dials. It holds
// a secret, the host's key: the file is its owner's alone. All but the first two are PEM.
type Attachment struct {
	PID         int    `json:"pid"`
	Socket      string `json:"socket"`
	Certificate string `json:"certificate"`
	Host        string `json:"host_certificate"`
	HostKey     string `json:"host_key"`
}

// NewAttachment makes a fresh pair for each side. It returns what goes into the file, and the TLS configuration with
// which the program listens.
func NewAttachment(pid int, socket string) (*Attachment, *tls.Config, error) {
	host, err := newPair("sandgate-host")
	if err != nil {
		return nil, nil, err
	}
	program, err := newPair("sandgate-extension")
	if err != nil {
		return nil, nil, err
	}
	a := &Attachment{PID: pid, Socket: socket, Certificate: program.certificatePEM(), Host: host.certificatePEM()}
	if a.HostKey, err = host.keyPEM(); err != nil {
		return nil, nil, err
	}
	return a, pinned(program.tls(), host.der), nil
}

// ReadAttachment reads what a program wrote.
func ReadAttachment(raw []byte) (*Attachment, error) {
	a := &Attachment{}
	if err := json.Unmarshal(raw, a); err != nil {
		return nil, fmt.Errorf("decode the attachment: %w", err)
	}
	return a, nil
}

// ClientTLS returns the configuration with which a host dials the program, and no other.
func (a *Attachment) ClientTLS() (*tls.Config, error) {
	own, err := tls.X509KeyPair([]byte(a.Host), []byte(a.HostKey))
	if err != nil {
		return nil, fmt.Errorf("read the host's pair of the attachment: %w", err)
	}
	block, _ := pem.Decode([]byte(a.Certificate))
	if block == nil {
		return nil, fmt.Errorf("read the program's certificate of the attachment: it is not PEM")
	}
	return pinned(own, block.Bytes), nil
}

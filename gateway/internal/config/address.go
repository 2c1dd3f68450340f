package config

import (
	"net"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

func (c *checker) address(addr string, at hcl.Range, tls bool) {
	switch {
	case addr == "", strings.HasPrefix(addr, "unix:///"):
	case strings.HasPrefix(addr, "tcp://"):
		if !tls {
			c.wrong(at, "Missing tls block", "A TCP listener needs a tls block with cert, key and client_ca: callers prove who they are by their certificate.")
		}
		if _, port, err := net.SplitHostPort(strings.TrimPrefix(addr, "tcp://")); err != nil || port == "" {
			c.wrong(at, "Invalid address", "tcp:// is followed by a host and a port, for example \"tcp://0.0.0.0:7443\".")
		}
	default:
		c.wrong(at, "Invalid address", "An address is unix:///path/to/socket, or tcp://host:port with a tls block.%s", asURL(addr))
	}
}

// asURL suggests the address of a path.
func asURL(path string) string {
	if !strings.HasPrefix(path, "/") {
		return ""
	}
	return " Did you mean \"unix://" + path + "\"?"
}

// longestSocket is what the kernel takes as the path of a socket, without the ".new" that a socket of the gateway's has
// until its mode is set.
const longestSocket = 107 - len(".new")

// socketPath finds a path at which the gateway could not serve. The kernel would only say "invalid argument".
func (c *checker) socketPath(addr string, at hcl.Range) {
	if strings.HasPrefix(addr, "tcp://") {
		return
	}
	if path := strings.TrimPrefix(addr, "unix://"); len(path) > longestSocket {
		c.wrong(at, "Path too long", "The path of a socket has at most %d bytes; this one has %d.", longestSocket, len(path))
	}
}

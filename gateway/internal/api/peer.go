package api

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/sandgate/sandgate/shared/fault"
)

// PeerInfo is who is at the other end of a Unix socket, as the kernel says (SO_PEERCRED).
type PeerInfo struct {
	credentials.CommonAuthInfo
	UID uint32
	PID int32
}

// AuthType names the mechanism.
func (PeerInfo) AuthType() string { return "peercred" }

// PeerCredentials are transport credentials for a Unix socket: no encryption, and the peer's user known and, where
// allow is set, one of those.
func PeerCredentials(allow []uint32) credentials.TransportCredentials { return peerCredentials{allow} }

type peerCredentials struct{ allow []uint32 }

func (p peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fault.New(fault.Internal, "peer credentials need a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if cerr != nil {
		return nil, nil, cerr
	}
	for _, uid := range p.allow {
		if uid == cred.Uid {
			return c, peerInfo(cred), nil
		}
	}
	if len(p.allow) > 0 {
		return nil, nil, fault.New(fault.Denied, "user %d may not use this socket", cred.Uid)
	}
	return c, peerInfo(cred), nil
}

func peerInfo(cred *unix.Ucred) PeerInfo {
	return PeerInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, UID: cred.Uid, PID: cred.Pid}
}

func (peerCredentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, PeerInfo{}, nil
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

func (peerCredentials) OverrideServerName(string) error { return nil }

package supervisor

import (
	"google.golang.org/grpc"

	"github.com/sandgate/sandgate/shared/wire"
)

// newRemote speaks the extension contract over a connection.
func newRemote(conn grpc.ClientConnInterface) remote { return wire.NewExtension(conn) }

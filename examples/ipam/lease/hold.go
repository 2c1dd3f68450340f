package lease

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/sandgate/sandgate/shared/fault"
)

// Kind is what is held.
type Kind string

// The kinds. They are the kinds of the extension's ledger entries too.
const (
	Subnet  Kind = "ip-subnet" // held by a workspace
	Address Kind = "ip-lease"  // held by a sandbox
)

// Owner is whose a hold is. Driver and Sandbox, or for a workspace Driver and WorkspaceID, identify it; the rest is
// kept so that a reconcile can say whose it is.
type Owner struct {
	Driver      string `json:"driver"`
	WorkspaceID string `json:"workspace_id"`
	Workspace   string `json:"workspace"`
	Sandbox     string `json:"sandbox,omitempty"` // the sandbox's id; empty when the workspace is the owner
	Name        string `json:"name,omitempty"`    // the sandbox's name
}

// key is what identifies an owner.
type key struct{ driver, workspace, sandbox string }

func (o Owner) key() key {
	if o.Sandbox != "" {
		return key{driver: o.Driver, sandbox: o.Sandbox}
	}
	return key{driver: o.Driver, workspace: o.WorkspaceID}
}

// ofWorkspace returns the key of the workspace of a sandbox.
func (o Owner) ofWorkspace() key { return key{driver: o.Driver, workspace: o.WorkspaceID} }

// String names the owner for people.
func (o Owner) String() string {
	if o.Sandbox != "" {
		return "sandbox " + o.Driver + "/" + cmp.Or(o.Name, o.Sandbox) + " (" + o.Sandbox + ")"
	}
	return "workspace " + o.Driver + "/" + cmp.Or(o.Workspace, o.WorkspaceID) + " (" + o.WorkspaceID + ")"
}

// Hold is one subnet or address that somebody has.
type Hold struct {
	Kind Kind `json:"kind"`
	// Prefix is the subnet; of an address, the address with the prefix length of its network.
	Prefix netip.Prefix `json:"prefix"`
	Pool   string       `json:"pool,omitempty"` // empty when it was taken back and no pool has it any more
	Owner
}

// ID returns what identifies the hold within its kind: the subnet, or the address without a prefix length.
func (h Hold) ID() string {
	if h.Kind == Address {
		return h.Prefix.Addr().String()
	}
	return h.Prefix.String()
}

// span returns the addresses that the hold keeps from others.
func (h Hold) span() span {
	if h.Kind == Address {
		return span{h.Prefix.Addr(), h.Prefix.Addr()}
	}
	return spanOf(h.Prefix)
}

// ParseID returns the hold that an id of Hold.ID stands for, without pool and owner; the prefix of an address is
// that single address.
func ParseID(kind Kind, id string) (Hold, error) {
	h := Hold{Kind: kind}
	var err error
	switch kind {
	case Address:
		var a netip.Addr
		a, err = netip.ParseAddr(id)
		h.Prefix = netip.PrefixFrom(a, a.BitLen())
	case Subnet:
		h.Prefix, err = netip.ParsePrefix(id)
	default:
		err = fmt.Errorf("the kind is neither %s nor %s", Subnet, Address)
	}
	if err == nil {
		err = h.checkPrefix()
	}
	if err != nil {
		return Hold{}, fault.New(fault.Invalid, "%q %q: %w", kind, id, err)
	}
	return h, nil
}

// check reports a hold that cannot be.
func (h Hold) check() error {
	if err := h.checkPrefix(); err != nil {
		return err
	}
	if (h.Kind == Address) != (h.Sandbox != "") {
		return fmt.Errorf("%s %s cannot be held by %s", h.Kind, h.ID(), h.Owner)
	}
	return nil
}

func (h Hold) checkPrefix() error {
	p := h.Prefix
	if !p.IsValid() || p.Addr().Is4In6() || h.Kind == Subnet && p != p.Masked() || h.Kind != Subnet && h.Kind != Address {
		return fmt.Errorf("%q %q is neither a subnet nor an address", h.Kind, p)
	}
	return nil
}

// compare sorts holds by owner, then by address.
func compare(a, b Hold) int {
	return cmp.Or(cmp.Compare(a.Driver, b.Driver), cmp.Compare(a.WorkspaceID, b.WorkspaceID),
		cmp.Compare(a.Sandbox, b.Sandbox), cmp.Compare(a.Kind, b.Kind), a.Prefix.Addr().Compare(b.Prefix.Addr()))
}

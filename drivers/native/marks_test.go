package native

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/sandgate/sandgate/drivers/host"
	"github.com/sandgate/sandgate/shared/driver"
	"github.com/sandgate/sandgate/shared/fault"
	"github.com/sandgate/sandgate/shared/sandbox"
)

// A directory that has a sandbox's name and not its marks is somebody else's: nothing is made, and it stays.
func TestAnUnmarkedDirectoryIsInTheWay(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	b := k.plan(k.workspace(""), sh("exec sleep 600"))
	dir := k.d.dir(b.Identity.ID)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.d.Resolve(t.Context(), b.resolution()); !fault.Is(err, fault.Conflict) {
		t.Errorf("Resolve: %v, want a conflict", err)
	}
	if err := k.d.Create(t.Context(), b.CreateRequest); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Create: %v, want AlreadyExists", err)
	}
	b.delete()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
	all, err := os.ReadDir(k.d.sandboxes())
	if err != nil || len(all) != 1 {
		t.Errorf("there is %v, %v; want the one directory", all, err)
	}
}

// The same of links: one with a name of ours and without our marks is never used, changed or removed.
func TestAnUnmarkedLinkIsInTheWay(t *testing.T) {
	t.Parallel()
	asRoot(t)
	k := newKit(t)
	plant := func(name string) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkDel(link)
			}
			if err != nil {
				t.Errorf("the link that was in the way: %v", err)
			}
		})
	}
	w := k.workspace("10.203.21.0/24")
	b := k.plan(w, sh("exec sleep 600"), at("10.203.21.2"))
	plant(linkName(b.Identity.ID))
	if err := k.d.Resolve(t.Context(), b.resolution()); !fault.Is(err, fault.Conflict) {
		t.Errorf("Resolve: %v, want a conflict", err)
	}
	if err := k.d.Create(t.Context(), b.CreateRequest); !fault.Is(err, fault.Conflict) {
		t.Errorf("Create: %v, want a conflict", err)
	}
	b.delete()
	b.Identity.ID += "-other" // so that nothingLeft does not take the planted link for the sandbox's

	other := *w
	other.ID += "-other"
	plant(bridgeName(other.ID))
	if err := k.d.EnsureWorkspace(t.Context(), &driver.WorkspaceRequest{Workspace: other.Workspace, Plan: w.plan}); !fault.Is(err, fault.Conflict) {
		t.Errorf("EnsureWorkspace: %v, want a conflict", err)
	}
	if err := k.d.DeleteWorkspace(t.Context(), other.Workspace); err != nil {
		t.Error(err)
	}
}

// A gateway that was killed between making a link and marking it finds its own by the hardware address.
func TestALinkWhoseMarkWasCutShortIsOurs(t *testing.T) {
	t.Parallel()
	asRoot(t)
	k := newKit(t)
	w := k.workspace("10.203.22.0/24")
	again := *w
	again.ID += "-again"
	name, alias := bridgeName(again.ID), workspaceMarks(again.Workspace)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: host.Attributes(name, alias)}); err != nil {
		t.Fatal(err)
	}
	if err := k.d.EnsureWorkspace(t.Context(), &driver.WorkspaceRequest{Workspace: again.Workspace, Plan: w.plan}); err != nil {
		t.Errorf("EnsureWorkspace: %v", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil || link.Attrs().Alias != alias || link.Attrs().Flags&1 == 0 {
		t.Errorf("the bridge is %+v, %v; want it marked and up", link, err)
	}
	if err := k.d.DeleteWorkspace(t.Context(), again.Workspace); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(name); !host.NotFound(err) {
		t.Errorf("the bridge is still there: %v", err)
	}
}

// A reboot takes the bridge of a workspace along, and nobody ensures the workspace again before its runs are restored.
func TestARunBringsTheNetworkOfItsWorkspaceBack(t *testing.T) {
	asRoot(t)
	k := newKit(t)
	w := k.workspace("10.203.23.0/24")
	link, err := netlink.LinkByName(bridgeName(w.ID))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	var boxes []*box
	var all errgroup.Group
	for _, address := range []string{"10.203.23.2", "10.203.23.3", "10.203.23.4"} {
		b := k.plan(w, sh("exec sleep 600"), at(address))
		boxes = append(boxes, b)
		all.Go(func() error { return k.d.Create(t.Context(), b.CreateRequest) })
	}
	if err := all.Wait(); err != nil {
		t.Errorf("Create, side by side: %v", err)
	}
	if link, err = netlink.LinkByName(bridgeName(w.ID)); err != nil || link.Attrs().Alias != workspaceMarks(w.Workspace) {
		t.Errorf("the bridge is %+v, %v; want it marked", link, err)
	}
	for _, b := range boxes {
		b.delete()
	}
}

// An id may end like a file that is being made. It is no other sandbox's.
func TestIDsThatLookAlike(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	w := k.workspace("")
	b := k.plan(w, sh("exec sleep 600"))
	var others []*box
	for _, end := range []string{".new", ".gone", ".tmp"} {
		o := k.plan(w, sh("exec sleep 600"))
		o.Identity.ID = b.Identity.ID + end
		others = append(others, o.create())
	}
	b.create()
	b.delete()
	for _, o := range others {
		if st := o.get(); st.State != driver.Ready {
			t.Errorf("%s is %s", o.Identity.ID, st.State)
		}
	}
	if list, err := k.d.List(t.Context()); err != nil || len(list) != len(others) {
		t.Errorf("List has %d, %v; want %d", len(list), err, len(others))
	}
}

func TestAnAddressIsGivenOnce(t *testing.T) {
	t.Parallel()
	asRoot(t)
	k := newKit(t)
	w := k.workspace("10.203.23.0/24")
	var g errgroup.Group
	made := make(chan *box, 8)
	for range cap(made) {
		b := k.plan(w, sh("exec sleep 600"), at("10.203.23.2"))
		g.Go(func() error {
			err := k.d.Create(t.Context(), b.CreateRequest)
			if err == nil {
				made <- b
			} else if !fault.Is(err, fault.Conflict) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	close(made)
	if len(made) != 1 {
		t.Fatalf("%d sandboxes were made with one address", len(made))
	}
	b := <-made
	// Once it does not run, another one may have the address, and it may not begin until that one has ended.
	if err := k.d.Stop(t.Context(), b.Identity); err != nil {
		t.Fatal(err)
	}
	next := k.plan(w, sh("exec sleep 600"), at("10.203.23.2")).create()
	start := driver.StartRequest(*b.CreateRequest)
	start.Run = 2
	if err := k.d.Start(t.Context(), &start); !fault.Is(err, fault.Conflict) {
		t.Errorf("Start: %v, want a conflict", err)
	}
	next.delete()
	if err := k.d.Start(t.Context(), &start); err != nil {
		t.Errorf("Start: %v", err)
	}
}

// Whoever finds a program with the set-user-id bit that a sandbox has left could become the gateway's user.
func TestWhatSandboxesLeaveIsClosedToOthers(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	if err := os.Chmod(k.d.sandboxes(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.d.cfg); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Clean(k.d.sandboxes()))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the sandboxes is %v, %v", info.Mode(), errors.Unwrap(err))
	}
}

// A file where sandboxes have directories is nobody's sandbox, and hides none.
func TestAFileAmongTheSandboxes(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	if err := os.WriteFile(filepath.Join(k.d.sandboxes(), "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.d.Get(t.Context(), sandbox.Identity{ID: "stray"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get: %v, want NotFound", err)
	}
	if all, err := k.d.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("List: %v, %v", all, err)
	}
}

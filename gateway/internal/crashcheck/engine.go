package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// The marks of what a driver of a container engine makes.
const (
	ownerLabel       = "sandgate.dev/owner"
	sandboxLabel     = "sandgate.dev/sandbox"
	operationLabel   = "sandgate.dev/operation"
	workspaceIDLabel = "sandgate.dev/workspace-id"
)

// container is one as an engine lists it.
type container struct {
	ID              string `json:"Id"`
	State           string
	Labels          map[string]string
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

// judgeEngine compares what a container engine has with the ledger, over the API that Docker and Podman share: a
// container for each sandbox, which bears its marks and has the address that is leased to it, a network for each
// workspace, no volume; and of the driver's notes only those of sandboxes that there are.
func (s site) judgeEngine(l *ledger, leases map[string]lease, r *report) {
	owners, _ := filepath.Glob(s.dir + "/data/drivers/*/owner")
	if len(owners) != 1 {
		r.add("%d drivers have a mark of their own, want 1", len(owners))
		return
	}
	owner, err := os.ReadFile(owners[0])
	if err != nil {
		r.add("%v", err)
	}
	filter := "filters=" + url.QueryEscape(fmt.Sprintf(`{"label":[%q]}`, ownerLabel+"="+string(bytes.TrimSpace(owner))))
	var containers []container
	var networks []struct{ Labels map[string]string }
	var volumes struct{ Volumes []struct{ Name string } }
	s.ask("/containers/json?all=1&"+filter, &containers, r)
	s.ask("/networks?"+filter, &networks, r)
	s.ask("/volumes?"+filter, &volumes, r)
	for _, v := range volumes.Volumes {
		r.add("nobody's volume: %s", v.Name)
	}
	count := map[string]int{}
	for _, c := range containers {
		id := c.Labels[sandboxLabel]
		sb, ok := l.sandboxes[id]
		count[id]++
		switch {
		case !ok || sb.Operation != c.Labels[operationLabel]:
			r.add("nobody's container: %s %v", c.ID, c.Labels)
		case sb.runs() != (c.State == "running"):
			r.add("sandbox %s is %s, and its container %s", id, sb.State, c.State)
		case sb.runs():
			s.judgeAddress(c, id, leases, r)
		}
	}
	for id := range l.sandboxes {
		if count[id] != 1 {
			r.add("sandbox %s has %d containers", id, count[id])
		}
	}
	of := map[string]int{}
	for _, n := range networks {
		id := n.Labels[workspaceIDLabel]
		if of[id]++; l.workspaces[id].ID == "" {
			r.add("nobody's network: %v", n.Labels)
		}
	}
	for id := range l.workspaces {
		if of[id] != 1 {
			r.add("workspace %s has %d networks", id, of[id])
		}
	}
	s.judgeNotes(l, filepath.Join(filepath.Dir(owners[0]), "runs"), r)
}

// judgeAddress looks at the address from outside and from inside.
func (s site) judgeAddress(c container, id string, leases map[string]lease, r *report) {
	for _, x := range leases {
		if x.Sandbox != id {
			continue
		}
		p, err := netip.ParsePrefix(x.Prefix)
		if err != nil {
			r.add("lease %+v: %v", x, err)
			continue
		}
		want := p.Addr().String()
		for name, n := range c.NetworkSettings.Networks {
			if n.IPAddress != want {
				r.add("sandbox %s has the address %s in %s, want %s", id, n.IPAddress, name, want)
			}
		}
		if len(c.NetworkSettings.Networks) != 1 {
			r.add("sandbox %s is in %d networks", id, len(c.NetworkSettings.Networks))
		}
		if seen := s.seen(c.ID); !strings.Contains(seen, want) {
			r.add("sandbox %s does not see its address %s: %s", id, want, seen)
		}
	}
}

// seen is what the sandbox has written down of what it sees.
func (s site) seen(id string) string {
	raw, err := s.get("/containers/" + id + "/archive?path=/seen")
	if err != nil {
		return err.Error()
	}
	files := tar.NewReader(bytes.NewReader(raw))
	if _, err = files.Next(); err == nil {
		raw, err = io.ReadAll(files)
	}
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (s site) judgeNotes(l *ledger, dir string, r *report) {
	notes, err := os.ReadDir(dir)
	if err != nil {
		r.add("%v", err)
	}
	for _, n := range notes {
		if id, whole := strings.CutSuffix(n.Name(), ".json"); whole && l.sandboxes[id].ID == "" {
			r.add("a note of a sandbox that there is not: %s", n.Name())
		}
	}
}

func (s site) ask(path string, out any, r *report) {
	raw, err := s.get(path)
	if err == nil {
		err = json.Unmarshal(raw, out)
	}
	if err != nil {
		r.add("ask the engine: %v", err)
	}
}

func (s site) get(path string) (raw []byte, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.engine)
	}}}
	resp, err := client.Get("http://engine/v1.40" + path)
	if err != nil {
		return nil, err
	}
	if raw, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, raw)
	}
	if closing := resp.Body.Close(); err == nil {
		err = closing
	}
	return raw, err
}

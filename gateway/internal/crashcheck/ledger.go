package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // the driver "sqlite" of database/sql
)

// ledger is what the gateway's database says.
type ledger struct {
	sandboxes  map[string]recorded // every one that is not deleted
	workspaces map[string]recorded // likewise
	known      map[string]bool     // ids of every sandbox that there is a record of
	entries    map[string]bool     // extension, lifetime, subject, kind, id
	unfinished []string
	doubts     []string
}

// recorded is what of a sandbox or workspace matters here.
type recorded struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	State       string `json:"state"`
	Operation   string `json:"operation"`
	WorkspaceID string `json:"workspace_id"`
	Run         struct {
		Number int  `json:"number"`
		Active bool `json:"active"`
	} `json:"run"`
}

func (r recorded) runs() bool { return r.State == "ready" }

type entry struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
}

type holding struct {
	Subject   string                     `json:"subject"`
	Extension string                     `json:"extension"`
	Entries   map[string][]entry         `json:"entries"`
	Doubt     map[string]json.RawMessage `json:"doubt"`
	Releases  []json.RawMessage          `json:"releases"`
}

// key names one thing that is held.
func key(extension, lifetime, subject, kind, id string) string {
	return fmt.Sprintf("%s holds %s %s for %s %s", extension, kind, id, lifetime, subject)
}

func readLedger(path string) (_ *ledger, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.Query(`SELECT kind, id, body FROM records WHERE kind IN ('sandbox', 'workspace', 'holding', 'operation')`)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	l := &ledger{sandboxes: map[string]recorded{}, workspaces: map[string]recorded{}, known: map[string]bool{}, entries: map[string]bool{}}
	for rows.Next() {
		var kind, id string
		var body []byte
		if err := rows.Scan(&kind, &id, &body); err != nil {
			return nil, err
		}
		if err := l.take(kind, id, body); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", kind, id, err)
		}
	}
	return l, rows.Err()
}

func (l *ledger) take(kind, id string, body []byte) error {
	switch kind {
	case "operation":
		l.unfinished = append(l.unfinished, fmt.Sprintf("operation %s: %s", id, body))
		return nil
	case "holding":
		var h holding
		err := json.Unmarshal(body, &h)
		for lifetime, list := range h.Entries {
			for _, e := range list {
				l.entries[key(h.Extension, lifetime, h.Subject, e.Kind, e.ID)] = true
			}
		}
		if len(h.Doubt)+len(h.Releases) > 0 {
			l.doubts = append(l.doubts, fmt.Sprintf("%s and %s: %s", h.Extension, h.Subject, body))
		}
		return err
	}
	var r recorded
	err := json.Unmarshal(body, &r)
	if kind == "sandbox" {
		l.known[id] = true
	}
	if r.State == "deleted" {
		return err
	}
	if kind == "sandbox" {
		l.sandboxes[id] = r
	} else {
		l.workspaces[id] = r
	}
	return err
}

// judge says what of the ledger alone is not at rest.
func (l *ledger) judge(r *report) {
	for _, x := range l.unfinished {
		r.add("not finished: %s", x)
	}
	for _, x := range l.doubts {
		r.add("in doubt or not released: %s", x)
	}
	for _, sb := range l.sandboxes {
		if sb.State != "ready" && sb.State != "stopped" {
			r.add("sandbox %s is %s", sb.ID, sb.State)
		}
		if sb.Run.Active != sb.runs() {
			r.add("sandbox %s is %s, and its run is active: %t", sb.ID, sb.State, sb.Run.Active)
		}
		if _, ok := l.workspaces[sb.WorkspaceID]; !ok {
			r.add("sandbox %s is of workspace %s, which there is not", sb.ID, sb.WorkspaceID)
		}
	}
	for _, w := range l.workspaces {
		if w.State != "ensured" {
			r.add("workspace %s is %s", w.ID, w.State)
		}
	}
}

// lease is one line of ipam's log.
type lease struct {
	Seq         uint64 `json:"seq"`
	Op          string `json:"op"`
	Kind        string `json:"kind"`
	Prefix      string `json:"prefix"`
	WorkspaceID string `json:"workspace_id"`
	Sandbox     string `json:"sandbox"`
}

func (l lease) subject() (lifetime, id string) {
	if l.Sandbox != "" {
		return "sandbox", l.Sandbox
	}
	return "workspace", l.WorkspaceID
}

// name is how ipam names it to the gateway: an address without the length of its network.
func (l lease) name() string {
	if l.Kind == "ip-lease" {
		address, _, _ := strings.Cut(l.Prefix, "/")
		return address
	}
	return l.Prefix
}

// readLeases replays ipam's log: nothing is taken twice, nothing is freed twice.
func readLeases(path string, r *report) map[string]lease {
	held := map[string]lease{}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return held
	}
	if err != nil {
		r.add("%v", err)
	}
	for n := 1; ; n++ {
		line, rest, ended := bytes.Cut(raw, []byte("\n"))
		if !ended {
			return held
		}
		raw = rest
		var l lease
		cut := bytes.LastIndex(line, []byte(`,"sum":"`))
		if cut < 0 || json.Unmarshal(line, &l) != nil ||
			string(line[cut:]) != fmt.Sprintf(`,"sum":"%08x"}`, crc32.Checksum(line[:cut], crc32.MakeTable(crc32.Castagnoli))) {
			r.add("%s:%d does not read: %s", path, n, line)
			continue
		}
		name := l.Kind + " " + l.name()
		before, taken := held[name]
		switch {
		case l.Op == "begin":
		case l.Op == "take" && taken:
			r.add("%s:%d: %s is taken by %s, and %s has it", path, n, name, l.Sandbox+l.WorkspaceID, before.Sandbox+before.WorkspaceID)
		case l.Op == "free" && !taken:
			r.add("%s:%d: %s is freed a second time", path, n, name)
		case l.Op == "take":
			held[name] = l
		case l.Op == "free":
			delete(held, name)
		default:
			r.add("%s:%d: %q is no operation", path, n, l.Op)
		}
	}
}

// witnessed is one file of the third extension.
type witnessed struct {
	Sandbox   *struct{ ID string } `json:"sandbox"`
	Workspace struct{ ID string }  `json:"workspace"`
	Lifetime  string               `json:"lifetime"`
	Kind      string               `json:"kind"`
	ID        string               `json:"id"`
}

func (w witnessed) subject() string {
	if w.Sandbox != nil {
		return w.Sandbox.ID
	}
	return w.Workspace.ID
}

func readWitness(dir string, r *report) []witnessed {
	if raw, err := os.ReadFile(filepath.Join(dir, "violations")); err == nil {
		r.add("released while in use: %s", raw)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "held", "*@*"))
	var out []witnessed
	for _, path := range files {
		if filepath.Ext(path) == ".new" {
			continue // it was being written; the phase that does so is called again, or undone
		}
		var w witnessed
		raw, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(raw, &w) != nil {
			r.add("%s does not read: %v", path, err)
			continue
		}
		out = append(out, w)
	}
	return out
}

// compareHeld says what the ledger has and nobody holds, what is held and the ledger has not, and what is held by
// something that does not live.
func (s site) compareHeld(l *ledger, leases map[string]lease, held []witnessed, r *report) {
	real := map[string]bool{}
	addresses, subnets := map[string]int{}, map[string]int{}
	for _, x := range leases {
		lifetime, id := x.subject()
		real[key("ipam", lifetime, id, x.Kind, x.name())] = true
		if lifetime == "sandbox" {
			addresses[id]++
		} else {
			subnets[id]++
		}
	}
	for _, x := range held {
		real[key("witness", x.Lifetime, x.subject(), x.Kind, x.ID)] = true
	}
	for k := range real {
		if !l.entries[k] {
			r.add("the ledger does not have: %s", k)
		}
	}
	for k := range l.entries {
		if !real[k] {
			r.add("the ledger has, and it is not so: %s", k)
		}
	}
	want := map[string]bool{}
	for id, sb := range l.sandboxes {
		if addresses[id] != 1 {
			r.add("sandbox %s has %d addresses", id, addresses[id])
		}
		for _, kind := range []string{"before_create", "after_create"} {
			want[key("witness", "sandbox", id, kind, id)] = true
		}
		for _, kind := range []string{"before_start", "after_ready"} {
			if sb.runs() {
				want[key("witness", "run", id, kind, fmt.Sprintf("%s-%d", id, sb.Run.Number))] = true
			}
		}
	}
	for id := range l.workspaces {
		want[key("witness", "workspace", id, "ensure_workspace", id)] = true
		if subnets[id] != 1 && networks() && s.cluster == "" {
			r.add("workspace %s has %d subnets", id, subnets[id])
		}
	}
	for k := range want {
		if !real[k] && s.witnessed() {
			r.add("it lives, and nobody holds for it what it needs: %s", k)
		}
	}
	for _, x := range held {
		k := key("witness", x.Lifetime, x.subject(), x.Kind, x.ID)
		if !want[k] {
			r.add("nothing lives that this is held for: %s", k)
		}
	}
	for _, x := range leases {
		lifetime, id := x.subject()
		_, sb := l.sandboxes[id]
		_, ws := l.workspaces[id]
		if !sb && !ws {
			r.add("nothing lives that this is held for: %s", key("ipam", lifetime, id, x.Kind, x.name()))
		}
	}
}

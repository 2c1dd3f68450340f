// Package guest is what the VM driver and the first process of its machines agree on: the configuration that a machine
// boots with, and the lines that pass through its serial ports. Both sides read what the other wrote with the parsers
// here; the driver trusts a machine no more than any other stranger.
package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

// ConfigPath is where a machine finds its configuration, in its initramfs.
const ConfigPath = "/sandgate/config.json"

// ModuleDir is where a machine finds its kernel's modules, in its initramfs. They are loaded in the order of their names.
const ModuleDir = "/sandgate/modules"

// TokenPath is where a sandbox finds its token, as the variable TokenVariable says.
const (
	TokenPath     = "/run/sandgate/token"
	TokenVariable = "SANDGATE_TOKEN_FILE"
)

// The names of a machine's virtio-serial ports.
const (
	EventPort   = "sandgate.events"  // lines from the machine, each an Event
	LogPort     = "sandgate.log"     // what drop-ins and the command write
	ControlPort = "sandgate.control" // lines to the machine, each an Order
)

// A machine's disks, in the order in which it is given them.
const (
	RootDisk    = "/dev/vda" // the image: a squashfs, read-only
	OverlayDisk = "/dev/vdb" // what the sandbox changes: an ext4
)

// Config is what a machine boots with.
type Config struct {
	Run         int               `json:"run"` // it is in every event of the machine
	Hostname    string            `json:"hostname"`
	Network     *Network          `json:"network,omitempty"` // none: only the loopback interface
	DropIns     []DropIn          `json:"dropins,omitempty"`
	Command     []string          `json:"command"`
	Environment map[string]string `json:"environment,omitempty"`
	Directory   string            `json:"directory,omitempty"` // made if it is not there; "": the root
	User        string            `json:"user,omitempty"`      // "user", "uid", and with ":group" or ":gid" after it; "": root
	PIDs        int64             `json:"pids,omitempty"`      // how many processes there may be; 0: as many as fit
	Token       []byte            `json:"token,omitempty"`
}

// Network is how a machine's one interface is set up.
type Network struct {
	MAC         string   `json:"mac"`       // of the interface
	Addresses   []string `json:"addresses"` // in CIDR form
	Gateway     string   `json:"gateway,omitempty"`
	Nameservers []string `json:"dns,omitempty"`
}

// DropIn is a program that runs in the machine, as root, before its command. Drop-ins run one after another in the
// order of their names, byte by byte. One that fails fails the boot.
type DropIn struct {
	Name     string `json:"name"`
	Contents []byte `json:"contents"`
}

var (
	dropInForm   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
)

// CheckDropInName reports what is wrong with the name of a drop-in. It becomes the name of a file.
func CheckDropInName(name string) error {
	if !dropInForm.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("the name %q is not of letters, digits, dots, dashes and underscores, 128 at most", name)
	}
	return nil
}

// ParseConfig reads a configuration, and sorts its drop-ins. With an error it returns what it could read.
func ParseConfig(raw []byte) (*Config, error) {
	c := &Config{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return c, err
	}
	slices.SortFunc(c.DropIns, func(a, b DropIn) int { return strings.Compare(a.Name, b.Name) })
	return c, c.Check()
}

// Check reports what is wrong with a configuration.
func (c *Config) Check() error {
	if len(c.Command) == 0 || c.Command[0] == "" {
		return fmt.Errorf("command: is missing")
	}
	if !hostnameForm.MatchString(c.Hostname) {
		return fmt.Errorf("hostname: %q is no name of a host", c.Hostname)
	}
	if c.Directory != "" && !path.IsAbs(c.Directory) {
		return fmt.Errorf("directory: %q is no absolute path", c.Directory)
	}
	for _, text := range append(slices.Clone(c.Command), c.Directory, c.User) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("command, directory or user: has a zero byte")
		}
	}
	for name, value := range c.Environment {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment: the variable %q cannot be set", name)
		}
	}
	seen := map[string]bool{}
	for _, d := range c.DropIns {
		if err := CheckDropInName(d.Name); err != nil {
			return fmt.Errorf("drop-in: %w", err)
		}
		if seen[d.Name] {
			return fmt.Errorf("drop-in: there are two of the name %q", d.Name)
		}
		seen[d.Name] = true
	}
	if c.Network == nil {
		return nil
	}
	return c.Network.check()
}

func (n *Network) check() error {
	for _, a := range n.Addresses {
		if _, err := netip.ParsePrefix(a); err != nil {
			return fmt.Errorf("network: %q is no address with the length of its prefix", a)
		}
	}
	for _, a := range append(slices.Clone(n.Nameservers), n.Gateway) {
		if _, err := netip.ParseAddr(a); err != nil && a != "" {
			return fmt.Errorf("network: %q is no address", a)
		}
	}
	return nil
}

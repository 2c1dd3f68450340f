package container

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/sandgate/sandgate/shared/plan"
)

// The kinds of the driver's plans, and the names of the objects that mean something to it.
const (
	kindContainer = "Container"
	kindVolume    = "Volume"
	kindNetwork   = "Network"
	mainContainer = "main"
	workspace     = "workspace"
)

const containerSchema = `types:
- name: Container
  map:
    fields:
    - {name: image, type: {scalar: string}}
    - {name: command, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: directory, type: {scalar: string}}
    - {name: hostname, type: {scalar: string}}
    - {name: user, type: {scalar: string}}
    - {name: environment, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
    - {name: limits, type: {namedType: limits}}
    - {name: network, type: {namedType: network}}
    - {name: networks, type: {list: {elementType: {namedType: attachment}, elementRelationship: associative, keys: [name]}}}
    - {name: mounts, type: {list: {elementType: {namedType: mount}, elementRelationship: associative, keys: [target]}}}
    - {name: devices, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: extra_hosts, type: {map: {elementType: {scalar: string}}}}
    - {name: health, type: {namedType: health}}
    - {name: sysctls, type: {map: {elementType: {scalar: string}}}}
    - {name: user_namespace, type: {scalar: string}}
    - {name: security, type: {namedType: security}}
- name: limits
  map:
    fields:
    - {name: pids, type: {scalar: numeric}}
    - {name: memory, type: {scalar: numeric}}
    - {name: milli_cpu, type: {scalar: numeric}}
- name: network
  map:
    fields:
    - {name: address, type: {scalar: string}}
- name: attachment
  map:
    fields:
    - {name: name, type: {scalar: string}}
    - {name: address, type: {scalar: string}}
- name: mount
  map:
    fields:
    - {name: target, type: {scalar: string}}
    - {name: type, type: {scalar: string}}
    - {name: source, type: {scalar: string}}
    - {name: read_only, type: {scalar: boolean}}
    - {name: size, type: {scalar: numeric}}
    - {name: selinux, type: {scalar: string}}
- name: health
  map:
    fields:
    - {name: test, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: interval, type: {scalar: string}}
    - {name: timeout, type: {scalar: string}}
    - {name: start_period, type: {scalar: string}}
    - {name: retries, type: {scalar: numeric}}
- name: security
  map:
    fields:
    - {name: seccomp, type: {scalar: string}}
    - {name: apparmor, type: {scalar: string}}
    - {name: no_new_privileges, type: {scalar: boolean}}
`

const volumeSchema = `types:
- name: Volume
  map:
    fields:
    - {name: target, type: {scalar: string}}
    - {name: read_only, type: {scalar: boolean}}
    - {name: driver, type: {scalar: string}}
    - {name: options, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
`

const networkSchema = `types:
- name: Network
  map:
    fields:
    - {name: subnet, type: {scalar: string}}
    - {name: internal, type: {scalar: boolean}}
    - {name: options, type: {map: {elementType: {scalar: string}}}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
`

// box, volume and net are the objects as Go has them.
type box struct {
	Image       string            `json:"image,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Directory   string            `json:"directory,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	User        string            `json:"user,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Limits      Limits            `json:"limits,omitzero"`
	Network     struct {
		Address string `json:"address,omitempty"`
	} `json:"network,omitzero"`
	Networks      []attachment      `json:"networks,omitempty"`
	Mounts        []Mount           `json:"mounts,omitempty"`
	Devices       []string          `json:"devices,omitempty"`
	ExtraHosts    map[string]string `json:"extra_hosts,omitempty"`
	Health        *health           `json:"health,omitempty"`
	Sysctls       map[string]string `json:"sysctls,omitempty"`
	UserNamespace string            `json:"user_namespace,omitempty"`
	Security      struct {
		Seccomp         string `json:"seccomp,omitempty"`
		AppArmor        string `json:"apparmor,omitempty"`
		NoNewPrivileges bool   `json:"no_new_privileges,omitempty"`
	} `json:"security,omitzero"`
}

type attachment struct {
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
}

type health struct {
	Test        []string `json:"test,omitempty"`
	Interval    duration `json:"interval,omitempty"`
	Timeout     duration `json:"timeout,omitempty"`
	StartPeriod duration `json:"start_period,omitempty"`
	Retries     int      `json:"retries,omitempty"`
}

// duration is a text such as "10s".
type duration string

func (t duration) parse() (time.Duration, error) {
	if t == "" {
		return 0, nil
	}
	n, err := time.ParseDuration(string(t))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no duration, for example 10s", string(t))
	}
	return n, nil
}

type volume struct {
	Name     string            `json:"-"`
	Target   string            `json:"target,omitempty"`
	ReadOnly bool              `json:"read_only,omitempty"`
	Driver   string            `json:"driver,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

type net struct {
	Name     string            `json:"-"`
	Subnet   string            `json:"subnet,omitempty"`
	Internal bool              `json:"internal,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// as turns an object's fields into its Go form. They fit its schema, so they fit that.
func as[T any](o plan.Object) T {
	var v T
	raw, err := json.Marshal(o.Fields)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		panic(fmt.Sprintf("container: %s does not fit its own schema: %v", o.Ref(), err))
	}
	return v
}

func boxOf(p *plan.Plan) box {
	o, _ := p.Object(kindContainer, mainContainer)
	return as[box](o)
}

func volumesOf(p *plan.Plan) []volume {
	var out []volume
	for _, o := range p.Objects() {
		if o.Kind == kindVolume {
			v := as[volume](o)
			v.Name = o.Name
			out = append(out, v)
		}
	}
	return out
}

// networksOf returns the networks of a workspace by the names that they have in its plan.
func networksOf(ws *plan.Plan) map[string]net {
	out := map[string]net{}
	if ws == nil {
		return out
	}
	for _, o := range ws.Objects() {
		if o.Kind == kindNetwork {
			n := as[net](o)
			n.Name = o.Name
			out[o.Name] = n
		}
	}
	return out
}

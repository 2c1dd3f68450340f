package main

import (
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// config is the extension's block of the configuration.
type config struct {
	Directory string `json:"directory" doc:"where the proxy reads its files; absolute"`
	Domain    string `json:"domain" doc:"a sandbox is reached at NAME.WORKSPACE.DOMAIN"`
	Port      int    `json:"port" default:"8080" min:"1" max:"65535" doc:"that a sandbox listens on, where it asks for no other"`
}

// asked is what a sandbox may say in driver_config.extensions.route.
type asked struct {
	Port int `json:"port"`
}

// label of a name in the DNS, RFC 1123 section 2.1.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *config) check() (wrong []fault.Diagnostic) {
	if !filepath.IsAbs(c.Directory) {
		wrong = append(wrong, fault.Diagnostic{Path: "directory", Summary: "is not absolute"})
	}
	for _, l := range strings.Split(c.Domain, ".") {
		if !label.MatchString(l) {
			return append(wrong, fault.Diagnostic{Path: "domain", Summary: "is no domain", Detail: `For example "sandboxes.example.com".`})
		}
	}
	return wrong
}

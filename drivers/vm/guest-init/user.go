package main

import (
	"fmt"
	osuser "os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/sandgate/sandgate/drivers/vm/internal/guest"
)

// user is who runs the command.
type user struct {
	uid, gid int
	groups   []uint32
	home     string
}

// lookUp finds a user in the sandbox's own files: "name", "uid", and with ":group" or ":gid" after it.
func lookUp(text string) (*user, error) {
	if text == "" {
		text = "0"
	}
	name, group, _ := strings.Cut(text, ":")
	out := &user{home: "/"}
	found, err := osuser.Lookup(name)
	if n, bad := strconv.ParseUint(name, 10, 31); bad == nil {
		out.uid = int(n)
		found, err = osuser.LookupId(name)
		if err != nil { // a number needs no name
			found, err = nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the user %q: %w", name, err)
	}
	if found != nil {
		if out.uid, err = strconv.Atoi(found.Uid); err == nil {
			out.gid, err = strconv.Atoi(found.Gid)
		}
		if err != nil {
			return nil, fmt.Errorf("the user %q: %w", name, err)
		}
		if found.HomeDir != "" {
			out.home = found.HomeDir
		}
		ids, _ := found.GroupIds() // without the file of groups there are no more
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 31); err == nil {
				out.groups = append(out.groups, uint32(n))
			}
		}
	}
	if group == "" {
		return out, nil
	}
	out.groups = nil
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		out.gid = int(n)
		return out, nil
	}
	g, err := osuser.LookupGroup(group)
	if err != nil {
		return nil, fmt.Errorf("the group %q: %w", group, err)
	}
	out.gid, err = strconv.Atoi(g.Gid)
	return out, err
}

// defaultPath is where commands are looked for when nobody says.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is what the command and the drop-ins find.
func environment(c *guest.Config, who *user) []string {
	all := map[string]string{"PATH": defaultPath, "HOME": who.home}
	for k, v := range c.Environment {
		all[k] = v
	}
	if len(c.Token) > 0 {
		all[guest.TokenVariable] = guest.TokenPath
	}
	var env []string
	for k, v := range all {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

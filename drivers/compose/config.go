package compose

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sandgate/sandgate/shared/fault"
)

// The reserved keys of a composed driver's driver_config.
const (
	keyBase       = "base"       // an object for the base driver
	keyExtensions = "extensions" // an object with an object for each extension, by its name
)

const field = "driver_config"

// SplitConfig takes the driver_config of a sandbox on a composed driver apart: what the key base holds is for the base
// driver, each member of the key extensions is for the extension of that name, and the rest is the wrapper's own. What
// is not there is nil. Invalid names the key that is not an object or is there twice; it never shows a value.
func SplitConfig(raw json.RawMessage) (own, base json.RawMessage, extensions map[string]json.RawMessage, err error) {
	members, err := object(field, raw)
	if err != nil {
		return nil, nil, nil, err
	}
	if value, ok := members[keyBase]; ok {
		if _, err := object(field+"."+keyBase, value); err != nil {
			return nil, nil, nil, err
		}
		base = value
		delete(members, keyBase)
	}
	if value, ok := members[keyExtensions]; ok {
		if extensions, err = splitExtensions(value); err != nil {
			return nil, nil, nil, err
		}
		delete(members, keyExtensions)
	}
	if len(members) > 0 {
		if own, err = json.Marshal(members); err != nil {
			return nil, nil, nil, fault.New(fault.Internal, "encode %s: %w", field, err)
		}
	}
	return own, base, extensions, nil
}

func splitExtensions(raw json.RawMessage) (map[string]json.RawMessage, error) {
	path := field + "." + keyExtensions
	members, err := object(path, raw)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if _, err := object(path+"."+name, members[name]); err != nil {
			return nil, err
		}
	}
	return members, nil
}

// split is SplitConfig for this driver, which has no settings of its own.
func (c *composed) split(raw json.RawMessage) (own, base json.RawMessage, extensions map[string]json.RawMessage, err error) {
	own, base, extensions, err = SplitConfig(raw)
	if err != nil || own == nil {
		return own, base, extensions, err
	}
	members, err := object(field, own)
	if err != nil {
		return nil, nil, nil, err
	}
	f := &fault.Error{Code: fault.Invalid}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		path := field + "." + key
		f = f.With(fault.Diagnostic{
			Path:    path,
			Summary: fmt.Sprintf("driver %q has no setting of its own", c.name),
			Detail:  "Settings of its base driver go into base { … }, those of an extension into extensions { NAME { … } }.",
		})
		if f.Message == "" {
			f.Message = fmt.Sprintf("%s: driver %q has no setting of its own; use the keys %s and %s", path, c.name, keyBase, keyExtensions)
		}
	}
	return nil, nil, nil, f
}

// extensions returns the parts for extensions of the whole stack. An extension is configured in one place.
func (c *composed) extensions(raw json.RawMessage) (map[string]json.RawMessage, error) {
	_, base, all, err := c.split(raw)
	if err != nil {
		return nil, err
	}
	below, ok := c.base.(*composed)
	if !ok {
		return all, nil
	}
	inner, err := below.extensions(base)
	if err != nil {
		return nil, inBase(err)
	}
	for _, name := range slices.Sorted(maps.Keys(inner)) {
		if _, twice := all[name]; twice {
			return nil, invalid(field+"."+keyExtensions+"."+name, "is configured for the base driver too")
		}
		if all == nil {
			all = map[string]json.RawMessage{}
		}
		all[name] = inner[name]
	}
	return all, nil
}

// inBase says of an error about the base's part of driver_config where the caller wrote that part.
func inBase(err error) error {
	diagnostics := slices.Clone(fault.DiagnosticsOf(err))
	moved := false
	for i, d := range diagnostics {
		if rest, ok := strings.CutPrefix(d.Path, field); ok {
			diagnostics[i].Path = field + "." + keyBase + rest
			moved = true
		}
	}
	if !moved {
		return err
	}
	return fault.New(fault.CodeOf(err), "in %s.%s: %w", field, keyBase, err).With(diagnostics...)
}

// object returns the members of a JSON object, none where there is nothing.
func object(path string, raw json.RawMessage) (map[string]json.RawMessage, error) {
	if len(raw) == 0 {
		return map[string]json.RawMessage{}, nil
	}
	notObject := func() error { return invalid(path, "is not a JSON object") }
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, notObject()
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, notObject()
		}
		if _, twice := members[key]; twice {
			return nil, invalid(path+"."+key, "is there twice")
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, notObject()
		}
		members[key] = value
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') || d.More() {
		return nil, notObject()
	}
	return members, nil
}

func invalid(path, summary string) error {
	return fault.New(fault.Invalid, "%s %s", path, summary).With(fault.Diagnostic{Path: path, Summary: summary})
}

package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sandgate/sandgate/drivers"
	"github.com/sandgate/sandgate/gateway/internal/config"
	"github.com/sandgate/sandgate/gateway/internal/supervisor"
	"github.com/sandgate/sandgate/shared/extension"
)

// schemas keeps what programs have said of their configuration, by the digest of the program, so that a configuration can
// be checked without starting one. What a digest stands for never changes, so an entry is never wrong, only missing.
type schemas []string // directories; the first is written to

// described is one entry.
type described struct {
	Name    string                 `json:"name"`
	Version string                 `json:"version"`
	Schema  extension.ConfigSchema `json:"schema"`
}

const schemasDir = "schemas"

// ownSchemas is the cache of whoever runs a command, "" where there is no place for one.
func ownSchemas() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "sandgate", schemasDir)
}

func (s schemas) file(dir, ref string) string {
	return filepath.Join(dir, strings.TrimPrefix(ref, "sha256:")+".json")
}

// find returns what is known of a program. What cannot be read is not known.
func (s schemas) find(ref string) (described, bool) {
	for _, dir := range s {
		var one described
		raw, err := os.ReadFile(s.file(dir, ref))
		if err == nil && json.Unmarshal(raw, &one) == nil {
			return one, true
		}
	}
	return described{}, false
}

// keep notes what a program has said. A cache that cannot be written keeps nothing.
func (s schemas) keep(ref string, one described) error {
	if len(s) == 0 || s[0] == "" || ref == "" {
		return nil
	}
	path := s.file(s[0], ref)
	raw, err := json.Marshal(one)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, raw) {
		return nil
	}
	if err := os.MkdirAll(s[0], 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s[0], ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// CheckOffline validates a configuration without starting anything: extensions' own settings by what their programs have
// said when they were started.
func CheckOffline(opts Options) *config.Findings {
	cfg, f := config.Load(opts.Paths, config.Options{Dev: opts.Dev, Types: drivers.Names()})
	if cfg == nil {
		return f
	}
	for _, c := range cfg.Drivers {
		if t, ok := drivers.Types()[c.Type]; ok {
			_, diags := config.DecodeBody(c.Config, t.Schema, cfg.Context(), c.Range, fmt.Sprintf("driver %q", c.Name))
			f.AddDiagnostics(diags)
		}
		if c.Command != "" {
			if _, err := supervisor.Reference(driverSpec(c, opts.Dev)); err != nil {
				f.Add(c.Range, "Driver cannot be launched", err.Error())
			}
		}
	}
	known := schemas{filepath.Join(cfg.Gateway.DataDir, schemasDir), ownSchemas()}
	for _, x := range cfg.Extensions {
		ref, err := supervisor.Reference(specOf(x, opts.Dev))
		if err != nil {
			f.Add(x.Range, "Extension cannot be launched", err.Error())
			continue
		}
		said, ok := known.find(ref)
		if !ok {
			f.Warn(x.Range, "Settings not checked", fmt.Sprintf("What extension %q takes in its config block is not known here: its program was never started with this digest. `config validate --launch` starts it, asks, and remembers.", x.Name))
			continue
		}
		decodeExtension(cfg, x, said, f)
	}
	return f
}

// decodeExtension reads the configuration of an extension with its schema.
func decodeExtension(cfg *config.Config, x config.Extension, said described, f *config.Findings) json.RawMessage {
	f.Hide(config.Sensitive(x.Config, said.Schema))
	raw, diags := config.DecodeBody(x.Config, said.Schema, cfg.Context(), x.Range, fmt.Sprintf("extension %q %s", said.Name, said.Version))
	f.AddDiagnostics(diags)
	return raw
}

package config

import (
	"encoding/json"
	"os"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/sandgate/sandgate/shared/extension"
)

// LoadBlock reads a file that holds what stands in a config block, and nothing around it, with the schema of whoever
// owns it. Variables are those that its expressions may use besides env(). An empty path is an empty block.
func LoadBlock(path string, schema extension.ConfigSchema, variables map[string]string, who string) (json.RawMessage, *Findings) {
	f := NewFindings()
	body := hcl.EmptyBody()
	if path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			f.add(nil, "Configuration cannot be read", err.Error())
			return nil, f
		}
		parsed := f.parse(content, path)
		if f.HasErrors() {
			return nil, f
		}
		body = parsed.Body
	}
	ctx := (&sources{}).context(Options{Getenv: os.LookupEnv})
	ctx.Variables = map[string]cty.Value{}
	for name, v := range variables {
		ctx.Variables[name] = cty.StringVal(v)
	}
	raw, diags := DecodeBody(body, schema, ctx, hcl.Range{Filename: path, Start: hcl.InitialPos, End: hcl.InitialPos}, who)
	f.extend(diags)
	return raw, f
}

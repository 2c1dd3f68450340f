package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	gatewayv1 "github.com/sandgate/sandgate/shared/proto/gateway/v1"

	"github.com/sandgate/sandgate/shared/extension"
	"github.com/sandgate/sandgate/shared/fault"
)

func docsCommand(env Env, c *client) *cobra.Command {
	var out format
	cmd := &cobra.Command{Use: "docs NAME", Short: "Print the reference of an extension's config block", Args: exactly("NAME"),
		Long: "Prints what may stand in the config block of an extension: every setting with its type, default, bounds and meaning,\n" +
			"as the program that runs declares it. With -o json or yaml, the schema itself.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, g gatewayv1.GatewayClient) error {
				x, err := g.GetExtension(ctx, &gatewayv1.GetExtensionRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return printDocs(env.Stdout, out, x)
			})
		}}
	out.flag(cmd)
	return cmd
}

func printDocs(w io.Writer, out format, x *gatewayv1.Extension) error {
	var manifest extension.Manifest
	if err := json.Unmarshal([]byte(x.GetManifestJson()), &manifest); err != nil {
		return fault.New(fault.Internal, "the manifest of extension %q cannot be read: %w", x.GetName(), err)
	}
	var schema extension.ConfigSchema
	if len(manifest.ConfigSchema) > 0 {
		if err := json.Unmarshal(manifest.ConfigSchema, &schema); err != nil {
			return fault.New(fault.Internal, "the configuration schema of extension %q cannot be read: %w", x.GetName(), err)
		}
	}
	if out != "table" {
		raw, err := json.Marshal(schema)
		if err != nil {
			return err
		}
		return out.raw(w, raw)
	}
	d := &docs{w: w}
	d.line(0, "extension %q, version %s", x.GetName(), x.GetVersion())
	if len(schema.Attributes)+len(schema.Blocks) == 0 {
		d.line(0, "\nIt takes no config block.")
		return d.err
	}
	d.line(0, "\nconfig {")
	d.body(1, schema)
	d.line(0, "}")
	return d.err
}

// docs writes the reference of a schema. What an extension says never controls the terminal.
type docs struct {
	w   io.Writer
	err error
}

func (d *docs) line(depth int, format string, args ...any) {
	for text := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		if _, err := fmt.Fprintln(d.w, strings.Repeat("  ", depth)+printable(text)); err != nil {
			d.err = err
		}
	}
}

func (d *docs) body(depth int, s extension.ConfigSchema) {
	for i, a := range s.Attributes {
		if i > 0 {
			d.line(0, "")
		}
		d.attribute(depth, a)
	}
	for i, b := range s.Blocks {
		if i > 0 || len(s.Attributes) > 0 {
			d.line(0, "")
		}
		head := b.Type
		for _, l := range b.Labels {
			head += " <" + l + ">"
		}
		d.line(depth, "%s {  %s", head, times(b))
		d.comment(depth+1, b.Description)
		d.body(depth+1, b.Body)
		d.line(depth, "}")
	}
}

func (d *docs) comment(depth int, text string) {
	if text != "" {
		d.line(depth, "# %s", strings.ReplaceAll(text, "\n", "\n# "))
	}
}

func (d *docs) attribute(depth int, a extension.Attribute) {
	words := []string{a.Type}
	switch {
	case a.Required:
		words = append(words, "required")
	case a.Default != nil && !a.Sensitive:
		words = append(words, "default "+value(a.Default))
	default:
		words = append(words, "optional")
	}
	if a.Sensitive {
		words = append(words, "sensitive")
	}
	if len(a.Enum) > 0 {
		var each []string
		for _, v := range a.Enum {
			each = append(each, value(v))
		}
		words = append(words, "one of "+strings.Join(each, ", "))
	}
	switch {
	case a.Min != nil && a.Max != nil:
		words = append(words, fmt.Sprintf("from %g to %g", *a.Min, *a.Max))
	case a.Min != nil:
		words = append(words, fmt.Sprintf("from %g", *a.Min))
	case a.Max != nil:
		words = append(words, fmt.Sprintf("up to %g", *a.Max))
	}
	d.line(depth, "%s  (%s)", a.Name, strings.Join(words, "; "))
	d.comment(depth+1, a.Description)
	if a.Deprecated != "" {
		d.comment(depth+1, "Deprecated: "+a.Deprecated)
	}
	if a.Example != "" {
		d.comment(depth+1, "For example "+a.Example)
	}
}

func value(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(raw)
}

// times says how often a block may stand.
func times(b extension.Block) string {
	switch {
	case b.Min > 0 && b.Max == b.Min:
		return fmt.Sprintf("(exactly %d)", b.Min)
	case b.Min > 0 && b.Max > 0:
		return fmt.Sprintf("(from %d to %d)", b.Min, b.Max)
	case b.Min > 0:
		return fmt.Sprintf("(at least %d)", b.Min)
	case b.Max > 0:
		return fmt.Sprintf("(at most %d)", b.Max)
	}
	return "(any number)"
}

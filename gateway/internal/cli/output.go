package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

// format is the value of -o.
type format string

func (f *format) flag(c *cobra.Command) {
	*f = "table"
	c.Flags().VarP(f, "output", "o", "table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// Set refuses what is no format before anything is done.
func (f *format) Set(s string) error {
	if s != "table" && s != "json" && s != "yaml" {
		return fmt.Errorf("it takes table, json or yaml, not %q", s)
	}
	*f = format(s)
	return nil
}

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// print writes the message in the format; draw makes the table for people.
func (f format) print(w io.Writer, m proto.Message, draw func(*table)) error {
	if f == "table" {
		t := &table{w: tabwriter.NewWriter(w, 2, 4, 2, ' ', 0)}
		draw(t)
		return t.w.Flush()
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m) // a script finds an empty list where none is
	if err != nil {
		return err
	}
	return f.raw(w, raw)
}

func (f format) raw(w io.Writer, raw []byte) error {
	if f == "yaml" {
		out, err := yaml.JSONToYAML(raw)
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, out.String())
	return err
}

// table draws columns.
type table struct{ w *tabwriter.Writer }

// row writes one line. Empty cells are shown as "-", and control characters never reach the terminal.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
		cells[i] = printable(cells[i])
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// line writes text outside of the columns.
func (t *table) line(format string, args ...any) {
	fmt.Fprintln(t.w, printable(fmt.Sprintf(format, args...)))
}

// printable takes out what a terminal would obey, or would show in another order.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return ' '
		}
		return r
	}, s)
}

// printableLines is printable, but for the ends of lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

func brief(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func list(items []string) string { return strings.Join(items, ",") }

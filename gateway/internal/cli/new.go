package cli

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sandgate/sandgate/gateway/internal/scaffold"
)

func newCommand(env Env) *cobra.Command {
	p := scaffold.Project{}
	cmd := &cobra.Command{
		Use: "new NAME", Short: "Begin an extension: a project that builds and keeps every rule", Args: exactly("NAME"),
		Long: `Writes a project into a directory that is empty or not there yet: an extension that builds, keeps every rule of
"sandgate extension verify", and has tests of its own. Its README.md says how to go on.`,
		RunE: func(_ *cobra.Command, args []string) (err error) {
			p.Name = args[0]
			if p.Dir == "" {
				p.Dir = p.Name
			}
			if p.Module == "" {
				p.Module = "example.com/" + p.Name
			}
			if p.Replace != "" {
				if p.Replace, err = filepath.Abs(p.Replace); err != nil {
					return err
				}
				if _, err := os.Stat(filepath.Join(p.Replace, "plugin", "plugin.go")); err != nil {
					return fmt.Errorf("%w: --replace takes a checkout of Sandgate: %w", errUsage, err)
				}
			}
			p.Version = moduleVersion()
			if p.Lang == "go" && p.Version == "" && p.Replace == "" {
				return fmt.Errorf("%w: this program is a development build, which no published version belongs to: name a checkout of Sandgate with --replace", errUsage)
			}
			p.Version = cmp.Or(p.Version, "v0.0.0")
			names, err := p.Write()
			for _, name := range names {
				fmt.Fprintln(env.Stdout, name)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Lang, "lang", "go", "go or python")
	f.StringVar(&p.Dir, "dir", "", "where to write it (default ./NAME)")
	f.StringVar(&p.Module, "module", "", "of a Go project, the module's path (default example.com/NAME)")
	f.StringVar(&p.Replace, "replace", "", "of a Go project, a checkout of Sandgate to build with, in the place of a published version")
	return cmd
}

// moduleVersion is the version of Sandgate that a project requires: this program's, or nothing where it has none.
func moduleVersion() string {
	if len(Version) > 1 && Version[0] == 'v' {
		return Version
	}
	return ""
}
